"""``fit``: from a bundle to the one that a target gets, with nothing in it that the target does not use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .. import runtime as runtimes
from ..bundle import LOCK_TIMEOUT, Bundle, read_bundle, replacing, rereading, scratch
from ..devices.place import require_shapes
from ..errors import ParityError
from ..targets import Target
from ..validate.gates import PARITY_TOLERANCE
from ..validate.probe import bundle_probe
from ._calibration_data import Data
from ._dry_run import drop_if, kept_unless
from ._export import export
from ._exported import Exported
from ._manifest import check_target_folder
from ._target_files import stage_for

Announce = Callable[[str], None]


@dataclass(frozen=True)
class Fitted:
    """A bundle made for a target, and why it looks as it does; after a dry run it is not there."""

    bundle: Bundle
    variant: str
    size_mb: float
    notes: tuple[str, ...]


def export_for(
    target: Target,
    model: str | Path,
    adapters: Mapping[str, str | Path],
    out: str | Path,
    *,
    data: Mapping[str, Data] | None = None,
    lock_timeout: float = LOCK_TIMEOUT,
    announce: Announce = lambda message: None,
    **options: Any,
) -> Exported:
    """Export a base and its adapters, and write what a target gets of each bundle.

    Nothing is at ``out`` before it fits: a bundle over the target's size budget is refused.

    Args:
        target: The target (:func:`edgepeft.targets.load_target`).
        model: The base: a folder or a Hugging Face id.
        adapters: PEFT checkpoints by the names that they get.
        out: The folder of the result.
        data: Texts or sounds by adapter, as :func:`~edgepeft.pipeline.quantize` takes them, for recipes that run the model.
        lock_timeout: Seconds to wait for another process that changes the bundle.
        announce: Is called with a line of text for each step.
        options: Further options of :func:`edgepeft.pipeline.export`.

    Returns:
        What :func:`~edgepeft.pipeline.export` returns, of the bundles made for the target.

    Raises:
        TargetError: No variant suits, or a result is over the size budget.
        EdgepeftError: Whatever :func:`~edgepeft.pipeline.export` raises.

    Example:
        >>> target = load_target("web-wasm")
        >>> export_for(target, "org/model", {"reviews": "./reviews-lora"}, "for-web")
    """
    out = Path(out)
    if not (options.get("mode") in {"merge", "bake"} and len(adapters) > 1):
        check_target_folder(out)
    with scratch(out) as folder:
        whole = folder / "bundle"
        exported = export(model, adapters, whole, announce=announce, **options)
        fitted = [
            fit(
                b.path,
                target,
                out / b.path.relative_to(whole),
                data=_of(b, data),
                lock_timeout=lock_timeout,
                announce=announce,
            )
            for b in exported.bundles
        ]
    for each in fitted:
        for note in each.notes:
            announce(f"passed over {note}")
        announce(f"{each.variant} for {target.name}, {each.size_mb:.1f} MB")
    return replace(exported, bundles=tuple(each.bundle for each in fitted))


def _of(bundle: Bundle, data: Mapping[str, Data] | None) -> Mapping[str, Data] | None:
    """The texts of a merged bundle's one adapter; all of them for a bundle with several."""
    merged = bundle.manifest.merged
    return data if merged is None or data is None else {n: e for n, e in data.items() if n in (merged, "*")}


@rereading
def fit(
    bundle: str | Path,
    target: Target,
    out: str | Path,
    *,
    data: Mapping[str, Data] | None = None,
    dry_run: bool = False,
    lock_timeout: float = LOCK_TIMEOUT,
    announce: Announce = lambda message: None,
) -> Fitted:
    """Write what a target gets of a bundle: its preferred variant, slot style and file format. Needs no torch.

    The variant is the first of the target's that the bundle has, or that a recipe makes of fp32, whose operators the target
    has, and that keeps the size budget. The result must give what the variant gave before, adapter by adapter.

    Args:
        bundle: The bundle's folder, which stays as it is.
        target: The target (:func:`edgepeft.targets.load_target`). By default the result is opened as its threads say.
        out: The folder of the result.
        data: Texts or sounds by adapter, as :func:`~edgepeft.pipeline.quantize` takes them, for recipes that run the model.
        dry_run: Do all of it, checks included, and leave ``out`` as it was.
        lock_timeout: Seconds to wait for another process that changes the bundle.
        announce: Is called with a line of text for each step.

    Returns:
        The bundle, its variant, its size in MB, and what was done to it.

    Raises:
        TargetError: No variant suits, the opset is too high, every variant is over the size budget, or the target takes fixed
            shapes only and the bundle writes texts; ``out`` stays as it was.
        ParityError: The result gives other outputs than the variant.
        BusyBundleError: Another process changes ``out`` and did not end in time.

    Example:
        >>> fit("bundle", load_target("android-arm64-cpu"), "for-android").variant
        'int8'
    """
    out = Path(out)
    check_target_folder(out)
    with kept_unless(dry_run), replacing(out, keep=False, lock_timeout=lock_timeout) as folder:
        opened = read_bundle(bundle)
        require_shapes(opened.manifest, target)
        staged = stage_for(opened, target, folder, data=data, announce=announce)
        announce(f"comparing {staged.variant} with the bundle it came from")
        _compare(opened, staged.bundle, staged.variant)
        drop_if(dry_run)
        for path in staged.bundle.path.iterdir():
            path.rename(folder / path.name)
        staged.bundle.path.rmdir()
    return Fitted(
        bundle=Bundle(out, staged.bundle.manifest), variant=staged.variant, size_mb=staged.size_mb, notes=staged.notes
    )


def _compare(before: Bundle, after: Bundle, variant: str) -> None:
    """Every adapter of both bundles on the probe of their task; a variant that the first lacks is opened only."""
    if variant not in before.manifest.variants:
        runtimes.open(after.path, variant=variant)  # quantized on the way: `quantize` has opened and counted it
        return
    probe = bundle_probe(before)
    two = runtimes.open(after.path, variant=variant)
    # As many threads as the target has: they split sums, and float16 rounds other sums to other numbers.
    one = runtimes.open(before.path, variant=variant, threads=two.threads)
    for adapter in (None, *before.manifest.adapters):
        worst = probe.difference(probe.run(two.adapter(adapter)), probe.run(one.adapter(adapter)))
        if not worst <= PARITY_TOLERANCE:
            raise ParityError(
                f"{adapter or 'the base'}: {variant} changed by {worst:.2g} on the way; nothing was written"
            )
