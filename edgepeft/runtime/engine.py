"""The engine: one variant of a bundle in ONNX Runtime. It has no state that a call changes, so threads share it."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast, get_args

import numpy as np

from ..bundle import NO_TEXT, Bundle, Manifest, OwnText, head_of
from ..bundle.manifest import MAX_THREADS
from ..bundle.manifest_heads import base_head, task_outputs
from ..errors import DeviceError, InputError, UnknownAdapterError
from ..executors import Device
from .active import ActiveAdapter, content_of, scaled_adapter
from .arrays import Inputs, check_arrays, in_cache_type
from .blend import blend, describe
from .buffers import as_values
from .generation import Generator, generator_for
from .gpu import GpuSlots, Placement, computes_halves, open_gpu_session, placement_of
from .gpu_attention import LongAttention
from .kernel_adapter import Factors
from .kernels import Kernels, UseKernels, check_use
from .mixed import hide_padding, mixed_adapter
from .once import Once
from .per_text import PerText
from .pooling import EmbeddingGraphs
from .prefix import after_prefix
from .refresh import Refreshed, added_since, compare, read_again, same_text
from .resident import RESIDENT, ResidentAdapters
from .sessions import check_session, open_kernel_session, run_values
from .text import TextEncoder, encode_rows


class Engine:
    """Sessions, slots, tokenizer and resident adapters of one variant of a bundle.

    What a run computes depends on its arguments alone: the arrays and an :class:`ActiveAdapter`, which the caller holds until
    the run has ended. No lock is held while a graph runs.
    """

    def __init__(
        self, bundle: Bundle, variant: str | None, threads: int | None, resident: int = RESIDENT,
        kernels: UseKernels = "auto", factors: Factors = "fp32", settings: Mapping[str, str] | None = None,
        device: Device = "cpu",
    ) -> None:  # fmt: skip
        self.variant, self._entry = bundle.variant(variant)
        bundle = bundle.on(self.variant)
        #: The bundle and those of its adapters that are in memory; :meth:`refresh` puts another in its place, at once.
        self.resident = ResidentAdapters(bundle, resident)
        if threads is None:
            # A bundle made for a target knows how many threads it has there.
            threads = bundle.manifest.target_threads
        if threads is not None and (type(threads) is not int or not 1 <= threads <= MAX_THREADS):
            raise InputError(
                f"threads must be a whole number of at least 1 and at most {MAX_THREADS}, found {threads!r:.80}"
            )
        self.threads: int | None = threads
        # Opening a graph verifies it and its weights; a decoder, opened when it is first used, is verified here all the same.
        opened = {self._entry.file, *(() if self._entry.decoder_file is not None else self._entry.data)}
        # An adapter is verified when it is first used: of many, an app uses a few.
        adapters = {adapter.onnx_adapter for adapter in bundle.manifest.adapters.values()}
        later = adapters if bundle.verification != "always" else set()
        bundle.check(name for name in bundle.loaded_files(self.variant) if name not in opened | later)
        bundle.look(later)
        check_use(kernels, factors)
        #: What computes the graphs.
        self.device: Device = check_device(device, kernels)
        self._check_halves()
        self._use: tuple[UseKernels, Factors] = kernels, factors
        #: What runs the slots of :attr:`session`'s graph; ``None``: ONNX Runtime's own operators.
        self.kernels: Kernels | None
        self._session: Any
        self._session, self.kernels = self._opened(settings)
        if self.kernels is not None and self._entry.decoder_file is None:
            self.resident = ResidentAdapters(bundle, resident, form=self.kernels.resident)
        self._gpu = None if self.device == "cpu" else GpuSlots(self._session, bundle.manifest.slots)
        if self._gpu is not None:
            self.resident = ResidentAdapters(bundle, resident, form=self._gpu.resident)
        self._attention = LongAttention(lambda more: self._open(self._entry.file, more)[0], self._entry.half)
        self._decoder_kernels: Kernels | None = None
        if self._entry.decoder_file is None:
            check_session(self._session, bundle.file(self._entry.file), bundle.manifest, self._entry)
        given = [output.name for output in self._session.get_outputs()]
        tasks = bundle.manifest.tasks
        #: What a run of each task gives: the task's own names of outputs → the graph's.
        self._outputs = {task: task_outputs(bundle.manifest, task) for task in tasks} or {
            bundle.manifest.task: {name: name for name in given}
        }
        self._slots = {value.name for value in self._session.get_overridable_initializers()}
        self._refreshing = threading.Lock()
        self._decoder_session = Once(self._open_decoder)
        self._encoders: PerText[TextEncoder] = PerText(lambda own: TextEncoder(self.bundle, own))
        self._cutting: dict[int, PerText[TextEncoder]] = {}
        self._generators: PerText[Generator] = PerText(lambda own: generator_for(self, own))
        self.embeddings = EmbeddingGraphs(lambda: self.bundle, self.threads)
        self.base = ActiveAdapter(
            name="", scale=1.0, labels=bundle.manifest.labels, head=head_of(bundle.manifest, None),
            embedding=bundle.embedding_of(None),
        )  # fmt: skip

    def _check_halves(self) -> None:
        """Raise :class:`DeviceError` for a variant whose numbers the GPU does not have."""
        if self.device != "cpu" and self._entry.half and not computes_halves():
            others = [name for name, entry in self.bundle.manifest.variants.items() if not entry.half]
            raise DeviceError(
                f"this machine's GPU does not compute in float16 (shader-f16), which variant {self.variant} needs; open "
                f"another variant on it ({', '.join(others) or 'the bundle has none'}), or this one with device='cpu'"
            )

    def _opened(self, settings: Mapping[str, str] | None) -> tuple[Any, Kernels | None]:
        """The session of the first graph, and what runs its slots."""
        return self._open(self._entry.file, settings)

    def _open(self, file: str, settings: Mapping[str, str] | None = None) -> tuple[Any, Kernels | None]:
        if self.device == "webgpu":
            half = self._entry.half and self._entry.decoder_file is None
            return open_gpu_session(self.bundle, file, threads=self.threads, settings=settings, half=half), None
        use, factors = self._use
        return open_kernel_session(self.bundle, file, use, threads=self.threads, factors=factors, settings=settings)

    @property
    def bundle(self) -> Bundle:
        """The bundle as it was opened, or last read again by :meth:`refresh`."""
        return self.resident.bundle

    @property
    def manifest(self) -> Manifest:
        """The bundle's manifest."""
        return self.bundle.manifest

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._session is None

    @property
    def session(self) -> Any:
        """The session of the variant's graph (of an encoder-decoder: its encoder); :class:`InputError` once closed."""
        session = self._session
        if session is None:
            raise InputError(f"{self.bundle.path} was closed; open it again with runtime.open")
        return session

    @property
    def placement(self) -> Placement | None:
        """Which nodes of :attr:`session`'s graph are on the GPU; ``None`` on the CPU."""
        return None if self._gpu is None else placement_of(self.session)

    @property
    def decoder_session(self) -> Any:
        """The session of an encoder-decoder's decoder, opened at its first use; :class:`InputError` without one."""
        self.check_open()
        return self._decoder_session.get()

    @property
    def encoder(self) -> TextEncoder:
        """The base's tokenizer, padding and cutting for the base."""
        return self.encoder_of(NO_TEXT)

    def encoder_of(self, own: OwnText, limit: int | None = None) -> TextEncoder:
        """The tokenizer of an adapter with this text, cutting texts to ``limit`` tokens, or to the base's longest input."""
        self.check_open()
        if limit is None or limit == self.manifest.max_length:
            return self._encoders.get(own)
        cutting = self._cutting.setdefault(limit, PerText(lambda text: TextEncoder(self.bundle, text, limit)))
        return cutting.get(own)

    def encode(self, texts: Sequence[Any], active: ActiveAdapter) -> dict[str, np.ndarray]:
        """Padded arrays ``[batch, sequence]`` for texts, each as its adapter's tokenizer cuts it."""
        return encode_rows([self.encoder_of(active.text_of(row)) for row in range(len(texts))], texts)

    @property
    def generator(self) -> Generator:
        """What generation with the base needs; :class:`InputError` for a bundle whose task does not write."""
        return self.generator_of(NO_TEXT)

    def generator_of(self, own: OwnText) -> Generator:
        """What generation with an adapter of this text needs: its tokenizer, template and defaults."""
        self.check_open()
        return self._generators.get(own)

    def check_open(self) -> None:
        """Raise :class:`InputError` once closed."""
        if self._session is None:
            _ = self.session

    def close(self) -> None:
        """Give up sessions and adapters. Runs that have begun end as they began; their memory is freed then."""
        self._session = None
        self._decoder_session = Once(self._open_decoder)
        self._generators.forget()
        self._attention.forget()
        self.resident.forget()
        self.embeddings.forget()

    def refresh(self) -> Refreshed:
        """Read the manifest again: see :meth:`Runtime.refresh`."""
        self.check_open()
        with self._refreshing:
            before = self.resident
            bundle = read_again(before.bundle.path, before.bundle.verification).on(self.variant)
            changed = compare(before.bundle, bundle, self.variant)
            bundle.files.take_over(before.bundle.files)
            unchanged = set(bundle.manifest.adapters) - {*changed.added, *changed.replaced}
            self.base = replace(
                self.base, labels=bundle.manifest.labels, head=head_of(bundle.manifest, None),
                embedding=bundle.embedding_of(None),
            )  # fmt: skip
            self.resident = before.moved(bundle, unchanged)
            if not same_text(before.bundle, bundle):
                self._encoders.forget()
                self._cutting.clear()
                self._generators.forget()
        return changed

    def adapter(
        self,
        adapter: str | Mapping[str, float] | None,
        scale: float = 1.0,
        head: str | None = None,
        task: str | None = None,
    ) -> ActiveAdapter:
        """An adapter of the bundle, the weighted sum of several or the base, ready to run; see :meth:`Runtime.adapter`."""
        self.check_open()
        if task is not None:
            return self._base_for(adapter, task)
        if isinstance(adapter, Mapping):
            return self._blend(adapter, scale, head)
        if head is not None:
            raise InputError(f"head={head!r} is for blends; {adapter!r} has its own")
        merged = self.manifest.merged
        if merged is not None:
            if adapter not in (None, merged):
                raise UnknownAdapterError(
                    f"{self.bundle.path} is merged with {merged!r}; it has no adapter {adapter!r}"
                )
            if scale != 1.0:
                raise InputError(f"{self.bundle.path} is merged with {merged!r}, whose scale is fixed")
            return self.base
        if adapter is None:
            return self.base
        resident = self.resident
        try:
            if scale == 1.0:
                return self._fitting_cache(resident.get(adapter))
            return scaled_adapter(resident.bundle, adapter, resident.tensors(adapter), scale)
        except UnknownAdapterError as error:
            raise added_since(resident.bundle, adapter) or error from None

    def _fitting_cache(self, active: ActiveAdapter) -> ActiveAdapter:
        """``active``; :class:`InputError` where its states before the sequence are floats and the cache holds none."""
        if active.prefix and self._entry.cache_dtype == "int8":
            raise InputError(
                f"adapter {active.name!r} puts {active.prefix_length} states in floats before the sequence, and {self.variant} "
                "keeps its cache in int8. Open another variant for it"
            )
        return active

    def _base_for(self, adapter: str | Mapping[str, float] | None, task: str) -> ActiveAdapter:
        if adapter is not None:
            raise InputError(f"task={task!r} is for the base; an adapter has its own")
        if task not in self._outputs:
            raise InputError(f"{self.bundle.path} is not for {task}; it is for: {', '.join(self._outputs)}")
        own = base_head(self.manifest, task)
        return replace(self.base, labels=own.labels, head=own)

    def _blend(self, weights: Mapping[str, float], scale: float, head: str | None) -> ActiveAdapter:
        if self.manifest.merged is not None:
            raise InputError(f"{self.bundle.path} is merged with {self.manifest.merged!r}; it has no adapters to blend")
        resident = self.resident
        summed = blend(resident.bundle, weights, scale=scale, head=head, read=resident.tensors)
        return ActiveAdapter(
            name=describe(weights),
            scale=scale,
            labels=summed.head.labels,
            head=summed.head,
            embedding=summed.embedding,
            text=self.bundle.text_of(summed.text),
            feeds=as_values(summed.tensors),
            identity=("blend", *weights.items(), scale, head, *(content_of(resident.bundle, name) for name in weights)),
        )

    def mixed(self, adapters: Sequence[str | None]) -> ActiveAdapter:
        """An adapter of its own for each row of a batch (``None``: the base), as one."""
        self.check_open()
        resident = self.resident
        if self.kernels is None or self._entry.decoder_file is not None:
            return mixed_adapter(resident.bundle, adapters, resident.tensors)
        kernels, used = self.kernels, dict[str, ActiveAdapter]()

        def not_taken(name: str) -> dict[str, np.ndarray]:
            used[name] = found = resident.get(name)
            values = found.values if found.values is not None else found.feeds
            return {tensor: value.numpy() for tensor, value in values.items() if tensor != kernels.adapter}

        active = mixed_adapter(resident.bundle, adapters, not_taken)
        pieces = [None if name is None else used[name].piece for name in adapters]
        return replace(active, feeds={**active.feeds, **kernels.mixed(pieces)}, formed=True)

    def run(self, inputs: Inputs, active: ActiveAdapter) -> dict[str, np.ndarray]:
        """Run arrays through the base with an adapter; raw outputs by name.

        Where rows have heads of different label counts, logits behind a row's own are minus infinity. Raises
        :class:`InputError` for arrays that do not fit the base.
        """
        check_arrays(inputs, self.manifest, self._entry)
        session = self.session
        try:
            if active.prefix:
                limit = self.manifest.max_length
                return after_prefix(lambda row: self._run(session, row, active), inputs, active.prefix, limit)
            outputs = self._run(session, inputs, active)
        except InputError:
            raise
        except Exception as error:  # ONNX Runtime's exception types are not public
            shapes = {name: array.shape for name, array in inputs.items()}
            raise InputError(
                f"ONNX Runtime cannot run inputs of shape {shapes} (this base takes token ids below its vocabulary size and "
                f"at most {self.manifest.max_length} tokens): {error}"
            ) from error
        if active.row_labels is not None:
            hide_padding(outputs, active.row_labels)
        return outputs

    def _run(self, session: Any, inputs: Inputs, active: ActiveAdapter) -> dict[str, np.ndarray]:
        inputs = in_cache_type(inputs, self._entry)
        if self._entry.decoder_file is not None:
            # The other graph's slots are unknown to this one, which RunOptions would refuse.
            slots = {name: value for name, value in self.slot_values(active).items() if name in self._slots}
            return run_values(session, list(next(iter(self._outputs.values()))), inputs, slots)
        names = self._outputs.get(active.head.task or "") or self._outputs[self.manifest.task]
        if self.kernels is None and self._gpu is None:
            feeds, options = active.feeds, active.options
        else:  # RunOptions would give the file's tensors, of which a twin takes few and a GPU copies at each run
            feeds, options = self.slot_values(active), None
        if self._gpu is not None:
            tokens = max((array.shape[1] for name, array in inputs.items() if name == "input_ids"), default=0)
            found = self._attention.run(
                session, tokens, lambda chosen: run_values(chosen, list(names.values()), inputs, feeds)
            )
            return {own: found[name] for own, name in names.items()}
        if feeds:
            found = run_values(session, list(names.values()), inputs, feeds, options)
            return {own: found[name] for own, name in names.items()}
        return dict(zip(names, session.run(list(names.values()), dict(inputs), options), strict=True))

    def slot_values(self, active: ActiveAdapter) -> Mapping[str, Any]:
        """What runs are fed for an adapter, as OrtValues by name; nothing for the base. Made once for an adapter."""
        if self._gpu is not None:
            return self._gpu.filled(self._plain_values(active))
        used = [each for each in (self.kernels, self._decoder_kernels) if each is not None]
        if active.formed or not used or active is self.base:
            return self._plain_values(active)
        made = active.for_kernels.get(len(used))
        if made is None:
            values = self._plain_values(active)
            tensors = {name: value.numpy() for name, value in values.items()}
            taken = frozenset[str]().union(*(each.taken for each in used))
            # Names of slots, and of what the kernels take, differ between the graphs of an encoder-decoder.
            pieces = as_values({name: piece for each in used for name, piece in each.pieces(tensors).items()})
            made = {**{name: value for name, value in values.items() if name not in taken}, **pieces}
            active.for_kernels[len(used)] = made
        return made

    def _plain_values(self, active: ActiveAdapter) -> Mapping[str, Any]:
        if active.values is not None:
            return active.values
        return active.feeds if active.handle is None else self.resident.values(active.name)

    def _open_decoder(self) -> Any:
        if self._entry.decoder_file is None:
            raise InputError(f"{self.bundle.path} is for {self.manifest.task}; it has no decoder that writes texts")
        session, self._decoder_kernels = self._open(self._entry.decoder_file)
        return session


def check_device(device: object, kernels: UseKernels) -> Device:
    """Raise :class:`InputError` for a device that ``runtime.open`` does not know, or kernels on one that has none."""
    if device not in get_args(Device):
        raise InputError(f"device is one of {', '.join(get_args(Device))}, found {device!r:.80}")
    if device != "cpu" and kernels == "require":
        raise InputError(
            f"kernels='require' is for device='cpu': the kernels are compiled for processors, found {device!r}"
        )
    return cast(Device, device)
