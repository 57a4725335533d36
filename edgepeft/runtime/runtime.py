"""``runtime.open``: a bundle ready to run, with adapters to choose. No torch, no transformers, no onnx."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from ..bundle import Verify, read_bundle, rereading
from ..executors import Device
from .engine import Engine
from .gpu import Placement
from .kernel_adapter import Factors
from .kernels import Kernels, UseKernels
from .refresh import Refreshed
from .resident import RESIDENT
from .views import Calls, View


class Runtime(Calls):
    """One variant of a bundle, open: what gives views, and a view of its own that ``use`` swaps.

    Made by :func:`open`. ``model.adapter("reviews")`` and ``model.base`` are views, which nothing changes: what threads and
    servers call. ``model.use("reviews")`` swaps the view that the runtime's own calls take, one each and to its end.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._view = View(engine, engine.base)

    @property
    def view(self) -> View:
        """The view in use: the base's, until :meth:`use` swaps it."""
        return self._view

    @property
    def session(self) -> Any:
        """The ONNX Runtime session of the variant's graph."""
        return self.engine.session

    @property
    def threads(self) -> int | None:
        """ONNX Runtime's intra-op threads; ``None`` where it chooses."""
        return self.engine.threads

    @property
    def device(self) -> Device:
        """What computes the base: ``"cpu"`` or ``"webgpu"``."""
        return self.engine.device

    @property
    def placement(self) -> Placement | None:
        """How many nodes of the graph the GPU computes, and which ones stay on the CPU; ``None`` for ``device="cpu"``."""
        return self.engine.placement

    @property
    def kernels(self) -> Kernels | None:
        """edgepeft's operators that run the slots (``edgepeft[kernels]``); ``None``: ONNX Runtime's own do."""
        return self.engine.kernels

    @property
    def active(self) -> str | None:
        """The adapter in use (``a=0.7, b=0.3`` for a blend), ``None`` for the base."""
        return self._view.name

    @property
    def base(self) -> View:
        """A view of the base without an adapter (in a merged bundle: with the one that is folded in)."""
        return self.adapter(None)

    def adapter(
        self,
        adapter: str | Mapping[str, float] | None,
        *,
        scale: float = 1.0,
        head: str | None = None,
        task: str | None = None,
    ) -> View:
        """A view with an adapter, or with the blend ``{"a": 0.7, "b": 0.3}``; the adapter in use stays.

        Args:
            adapter: A name, or names with their weights: the exact weighted sum of the adapters' changes. ``None``: the base.
            scale: Multiplies the low-rank part.
            head: For a blend whose adapters replace a parameter differently (a classification head): whose is taken.
            task: For ``None`` over a base of several tasks: which one's outputs the view gives.

        Returns:
            A view. The first time the adapter's file is mapped into memory.

        Raises:
            UnknownAdapterError: The bundle has no adapter of that name; the message lists those there are.
            InputError: The adapter is not linear in a scale or a weight, or blended adapters replace a parameter differently.

        Example:
            >>> reviews = model.adapter("reviews", scale=0.5)
            >>> reviews.predict("I would buy it again").label
            'positive'
        """
        return View(self.engine, self.engine.adapter(adapter, scale, head, task))

    def use(self, adapter: str | Mapping[str, float] | None, *, scale: float = 1.0, head: str | None = None) -> Runtime:
        """Swap the adapter in use to what :meth:`adapter` gives, or back to the base with ``None``; returns ``self``.

        Safe from any thread: a call that has begun, a stream included, ends with the adapter it began with. Where it raises,
        the adapter in use stays.
        """
        self._view = self.adapter(adapter, scale=scale, head=head)
        return self

    def refresh(self) -> Refreshed:
        """Read the bundle's manifest again, so that adapters that were added since can be used and removed ones are gone.

        Adapters that did not change stay in memory. Views, conversations and streams go on with the adapter that they hold, the
        one in use included, whatever became of it; :meth:`use` or :meth:`adapter` gives the new one.

        Returns:
            The names that came, went or were replaced; false where there are none.

        Raises:
            BundleError: The base in the folder is no longer the one that is open; open the bundle again.
            CorruptBundleError: A file of an adapter is missing or has another size.
            AdapterMismatchError: An adapter does not fit this base.

        Example:
            >>> edgepeft.pipeline.add("bundle", "reviews", "my-checkpoint")
            >>> model.refresh().added
            ('reviews',)
            >>> model.use("reviews")
        """
        return self.engine.refresh()

    def unload(self, adapter: str) -> None:
        """Let go of an adapter's memory; one that is not in memory stays so.

        A view that holds it goes on, the one in use included, and the memory is freed with the last of them. The next
        :meth:`use` reads the file again.

        Raises:
            UnknownAdapterError: The bundle has no adapter of that name; the message lists those there are.
        """
        self.engine.resident.unload(adapter)

    @property
    def resident(self) -> tuple[str, ...]:
        """The adapters in memory, the one used longest ago first: at most as many as ``open(resident=…)`` says."""
        return self.engine.resident.names

    def close(self) -> None:
        """Give up the session and the adapters; calls raise :class:`InputError` from now on.

        A call or stream that has begun ends as it began. ``with runtime.open(...) as model`` closes at its end.
        """
        self.engine.close()

    def __enter__(self) -> Runtime:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        names = ", ".join(self.adapters) or "none"
        closed = ", closed" if self.engine.closed else ""
        return (
            f"<Runtime of {str(self.bundle.path)!r}: {self.manifest.task}, {self.variant}, adapters: {names}; in use: "
            f"{self.active or 'the base'}{closed}>"
        )


@rereading
def open(
    path: str | Path,
    *,
    variant: str | None = None,
    threads: int | None = None,
    verify: Verify = "changed",
    resident: int = RESIDENT,
    kernels: UseKernels = "auto",
    factors: Factors = "fp32",
    device: Device = "cpu",
) -> Runtime:
    """Open a bundle for inference.

    Args:
        path: The bundle's folder.
        variant: A precision of the base, ``fp32`` by default.
        threads: ONNX Runtime's intra-op threads.
        verify: When a file is hashed and compared with the manifest. ``"always"``: each time the bundle is opened.
            ``"changed"``: unless this user's cache remembers a file with the same device, inode, size and times; what a disk
            loses without a write goes unseen. ``"never"``: not at all, for files that something else vouches for (a
            read-only image, a signed package). Whatever it is, links out of the folder, pipes, devices, wrong sizes and
            weights that the manifest does not list are refused, and what was opened stays what is used. An adapter's content is
            checked at its first use (``"always"``: also here).
        resident: How many adapters stay in memory. Each is opened at its first use; beyond that number the one used longest ago
            is let go, and read again when it is next used. A view keeps its adapter in memory as long as it lives.
        kernels: Whether edgepeft's own operators run the slots. ``"auto"``: where ``edgepeft[kernels]`` is installed and fits this
            processor and graph. ``"require"``: or an error. ``"off"``: never. ``model.kernels`` says what is used.
        factors: In which type kernels read adapters: ``"fp32"`` as they are, ``"fp16"`` in half the bytes a token, or ``"int8"`` in
            a quarter, with a scale for each rank. An adapter that the type cannot hold is refused at its first use. ``"auto"``: the
            smallest of them that holds the adapter.
        device: ``"webgpu"``: this machine's GPU computes the base, through ONNX Runtime's WebGPU plugin (``edgepeft[webgpu]``).
            What it does not take runs on the CPU: ``model.placement`` says what that is.

    Returns:
        A runtime; use it in ``with``, or call ``close`` when it is no longer needed.

    Raises:
        BundleError: No bundle at ``path``, no such variant, or a graph that cannot be opened.
        CorruptBundleError: A file is missing or was changed.
        AdapterMismatchError: An adapter does not fit this base.
        MissingExtraError: ``kernels="require"``, and none are installed that fit; ``device="webgpu"``, and the plugin is not
            installed or cannot be loaded.
        DeviceError: ``device="webgpu"``, and there is no GPU, or it does not compute in the variant's float16.

    Example:
        >>> with runtime.open("bundle", threads=2) as model:
        ...     model.adapter("reviews").predict("I would buy it again")
    """
    return Runtime(
        Engine(read_bundle(path, verify=verify), variant, threads, resident, kernels, factors, device=device)
    )
