"""``quantize --cache int8``: a variant once more, with its key/value cache in 8 bits, over the same weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from ..bundle import LOCK_TIMEOUT, AdapterEntry, Bundle, Manifest, Variant, read_bundle
from ..bundle.cache_names import is_past, is_present
from ..errors import BundleError, InputError, ParityError
from ..quantize.cache8 import SUFFIX, Rotation, attention_of, rotations, write_cache8
from ..runtime.sessions import open_graph_session
from ._calibrate import ROWS
from ._calibration_data import Data, texts_of
from ._calibration_runs import Runs, calibration_runs, can_calibrate
from ._edit import Edit, edit
from ._manifest import require_onnx
from ._quality import Quality, measure_quality

Announce = Callable[[str], None]

#: The largest mean divergence from the variant itself, in nats: less than what 4 bits for the weights cost. A cache that costs more
#: holds numbers that 8 bits with one scale a channel do not tell apart.
MOST = 0.05


@dataclass(frozen=True)
class QuantizedCache:
    """The bundle with its new variant, what a token takes in the cache of both, and how far the two are apart."""

    bundle: Bundle
    variant: str
    source: str
    #: Bytes that a token takes in the cache, of ``source`` and of ``variant``.
    token_bytes: tuple[int, int]
    #: Against ``source``, for the base and each adapter, on texts kept apart.
    quality: tuple[Quality, ...]


def quantize_cache(
    bundle: str | Path,
    variant: str | None = None,
    *,
    data: Mapping[str, Data] | None = None,
    rows: int = ROWS,
    replace: bool = False,
    lock_timeout: float = LOCK_TIMEOUT,
    announce: Announce = lambda message: None,
) -> QuantizedCache:
    """Add a variant whose key/value cache holds 8 bits a number, a quarter of float32, over the weights of the one it is made of.

    Keys and values of the base and of every adapter are measured on texts; each channel of each head gets a scale for the largest
    of them, keys for any position that rotary tables may turn them to. Then both variants run texts kept apart, and are compared.

    Args:
        bundle: The bundle's folder.
        variant: The variant that it is made of, as :func:`edgepeft.runtime.open` chooses it by default.
        data: Texts by adapter (``"*"``: for all); a text that ships with edgepeft where there are none.
        rows: How many texts of each adapter are run.
        replace: Replace a variant of that name.
        lock_timeout: Seconds to wait for another process that changes the bundle.
        announce: Is called with a line of text for each step.

    Returns:
        The bundle with the variant ``<variant>_kv8``.

    Raises:
        InputError: The bundle is no language model's, has no tokenizer, keeps its cache in another operator than
            GroupQueryAttention or not in float32, holds an adapter that puts states before the sequence, or has it already.
        ParityError: The two differ by more than 8 bits explain; the bundle is as it was.
        BundleError: A key or value is not finite.
        BusyBundleError: Another process changes the bundle and did not end in time.

    Example:
        >>> quantize_cache("bundle", "q4").token_bytes
        (46080, 11520)
    """
    opened = read_bundle(bundle)
    source, entry = opened.variant(variant)
    name = f"{source}_{SUFFIX}"
    _check(opened, source, name, replace)
    if why := can_calibrate(opened, data or {}):
        raise InputError(f"{opened.path}: the cache cannot be measured: {why}")
    runs = calibration_runs(opened, texts_of(opened, data or {}), rows=rows)
    largest = _measured(opened, entry, runs, announce)
    with edit(bundle, lock_timeout=lock_timeout) as change:
        what = "its cache was being measured"
        change.refuse_another_base(opened.manifest, what)
        adapters = (each.onnx_adapter for each in opened.manifest.adapters.values())
        change.refuse_other_files(opened.manifest, (*entry.files(), *adapters), what)
        _check(change.before, source, name, replace)
        made = _write(change, entry, name, largest)
        staged = change.stage(
            written=[made.file],
            variants={**change.manifest.variants, name: made},
            adapters={each: _refitted_too(own, source, name) for each, own in change.manifest.adapters.items()},
            provenance=_provenance(change, name, runs, ()),
        )
        announce(f"comparing {name} with {source} on texts kept apart")
        quality = measure_quality(staged.path, name, runs.held_out, whole=source)
        _judge(name, source, quality)
        change.stage(provenance=_provenance(change, name, runs, quality))
    before = _token_bytes(opened.manifest, entry)
    return QuantizedCache(change.after, name, source, (before, before // 4), quality)


def _check(bundle: Bundle, source: str, name: str, replace: bool) -> None:
    manifest, path = bundle.manifest, bundle.path
    entry = manifest.variants.get(source)
    if manifest.task != "text-generation":
        raise InputError(
            f"{path} is for {manifest.task}: only a language model that continues texts has a cache to quantize"
        )
    if entry is None:
        raise BundleError(f"{path} has no variant {source!r} any more; it has: {', '.join(manifest.variants)}")
    require_onnx(path, entry)
    if entry.cache_dtype is not None:
        raise InputError(
            f"the cache of {source} in {path} is {entry.cache_dtype} already; 8 bits are made of one in float32"
        )
    if name in manifest.variants and not replace:
        raise InputError(f"{path} already has a variant {name!r}; replace it with --replace")
    before = next((each for each, own in manifest.adapters.items() if own.prefix_length), None)
    if before is not None:
        raise InputError(
            f"adapter {before!r} of {path} puts states in floats before the sequence, which a cache in 8 bits does not hold. "
            "Remove it from a copy of the bundle first"
        )
    attention_of_file(bundle.file(entry.file))


def attention_of_file(file: Path) -> None:
    """Raise :class:`InputError` where a graph's cache cannot be held in 8 bits."""
    import onnx_ir as ir

    attention_of(ir.load(file).graph, file)


def _measured(bundle: Bundle, entry: Variant, runs: Runs, announce: Announce) -> dict[str, np.ndarray]:
    """The largest magnitude of each channel ``[heads, head_dim]``, by the output that holds the keys or values."""
    counts = ", ".join(f"{count} of {'the base' if name == '*' else name}" for name, count in runs.counts.items())
    announce(f"measuring keys and values: runs {counts}")
    session = open_graph_session(bundle, entry.file)
    names = [value.name for value in bundle.manifest.outputs if is_present(value.name)]
    turned = rotations(bundle.file(entry.file))
    largest: dict[str, np.ndarray] = {}
    for feeds in runs.feeds:
        for name, array in zip(names, session.run(names, dict(feeds)), strict=True):
            if not np.isfinite(array).all():
                raise BundleError(
                    f"{bundle.path}: {name} is not finite on the texts that it was measured on; look for NaN or infinite weights "
                    "in the checkpoint"
                )
            found = _sizes(array, turned.get(name)).max(axis=(0, 2))
            largest[name] = np.maximum(largest.get(name, 0.0), found)
    return largest


def _sizes(array: np.ndarray, turned: Rotation | None) -> np.ndarray:
    return np.abs(array) if turned is None else turned.turned_any_way(array)


def _write(change: Edit, entry: Variant, name: str, largest: Mapping[str, np.ndarray]) -> Variant:
    path = PurePosixPath(entry.file)
    file = path.with_name(f"{path.stem}_{SUFFIX}{path.suffix}").as_posix()
    (change.folder / file).unlink(missing_ok=True)
    write_cache8(change.folder / entry.file, change.folder / file, largest)
    return Variant(
        file=file,
        data=entry.data,
        slots=entry.slots,
        recipe=f"{entry.recipe}; the key/value cache in 8 bits, one scale a channel",
        half=entry.half,
        cache_dtype="int8",
        quantized_share=entry.quantized_share,
    )


def _refitted_too(adapter: AdapterEntry, source: str, name: str) -> AdapterEntry:
    """The adapter with what was fitted to the weights of ``source`` for ``name`` too, which runs the same weights."""
    own = adapter.refits.get(source)
    refits = {variant: each for variant, each in adapter.refits.items() if variant != name}
    return adapter.model_copy(update={"refits": {**refits, name: own} if own is not None else refits})


def _judge(name: str, source: str, quality: Sequence[Quality]) -> None:
    for each in quality:
        if not each.divergence <= MOST:
            raise ParityError(
                f"{name}, {each.adapter or 'the base'}: next tokens diverge by {each.divergence:.3g} nats from {source}, "
                f"allowed are {MOST:g}; the bundle was left as it was. Its keys or values have outliers that 8 bits do not hold"
            )


def _provenance(change: Edit, name: str, runs: Runs, quality: Sequence[Quality]) -> dict[str, object]:
    known = dict(change.manifest.provenance)
    told = {each.adapter or "*": float(f"{each.divergence:.3g}") for each in quality}
    known["calibration"] = {
        **known.get("calibration", {}),
        name: {"texts": dict(runs.counts), "cache_divergence": told},
    }
    return known


def _token_bytes(manifest: Manifest, entry: Variant) -> int:
    """Bytes of one token in the cache of a variant in float32."""
    shapes = [value.shape for value in entry.typed(manifest.inputs) if is_past(value.name)]
    return sum(4 * int(shape[1]) * int(shape[3]) for shape in shapes)
