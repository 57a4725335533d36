"""Whether the adapter that runs is the adapter that was trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..base.check import output_difference, reference_outputs
from ..base.ragged import bundle_batches
from ..bundle import Bundle
from ..errors import InputError, ParityError
from ..runtime import Runtime
from .form import PARITY_TOLERANCE, AdapterParity
from .reference import head_width, peft_model

Batch = Mapping[str, np.ndarray]


def adapter_parity(
    runtime: Runtime, name: str, source: str | Path, base: str, batches: Sequence[Batch]
) -> AdapterParity:
    """Compare an adapter in a bundle with PEFT running its checkpoint at ``source`` over the model ``base``."""
    merged = runtime.manifest.mode == "merge"
    labels = runtime.labels if merged else runtime.manifest.adapters[name].labels
    module = peft_model(base, source, task=runtime.manifest.task, num_labels=head_width(source, labels))
    outputs = [value.name for value in runtime.manifest.outputs]
    expected = [reference_outputs(module, batch, outputs) for batch in batches]
    without = None if merged else [runtime.use(None).forward(batch) for batch in batches]
    if not merged:
        runtime.use(name)
    found = [runtime.forward(batch) for batch in batches]
    if not merged:
        runtime.use(None)
    worst = max(
        output_difference(mine, reference, batch.get("attention_mask"))
        for mine, reference, batch in zip(found, expected, batches, strict=True)
    )
    changed = without is None or any(
        mine[k].shape != plain[k].shape or not np.array_equal(mine[k], plain[k])
        for mine, plain in zip(found, without, strict=True)
        for k in mine
    )
    return AdapterParity(adapter=name, max_difference=worst, changes_output=changed)


def base_restored(runtime: Runtime, batches: Sequence[Batch]) -> bool:
    """Whether the base's outputs are the same bits before, between and after using every adapter."""
    runtime.use(None)
    before = [runtime.forward(batch) for batch in batches]
    for name in (*runtime.adapters, *reversed(runtime.adapters)):
        runtime.use(name)
        for batch in batches:
            runtime.forward(batch)
    runtime.use(None)
    after = [runtime.forward(batch) for batch in batches]
    return all(np.array_equal(a[k], b[k]) for a, b in zip(before, after, strict=True) for k in a)


def check_parity(runtime: Runtime, sources: Mapping[str, str | Path], base: str) -> tuple[AdapterParity, ...]:
    """Parity of every adapter in ``sources``; raises :class:`ParityError` for the first that is beyond the tolerance."""
    batches = bundle_batches(runtime.bundle)
    results = []
    for name, source in sources.items():
        result = adapter_parity(runtime, name, source, base, batches)
        if not result.max_difference <= PARITY_TOLERANCE:
            raise ParityError(
                f"adapter {name!r}: ONNX Runtime differs from PEFT by {result.max_difference:.2g}, allowed is "
                f"{PARITY_TOLERANCE:.0e}; nothing was written"
            )
        results.append(result)
    if runtime.adapters and not base_restored(runtime, batches):
        raise ParityError("the base's outputs are not the same bits after the adapters were used; nothing was written")
    return tuple(results)


def adapter_sources(bundle: Bundle, given: Mapping[str, str | Path]) -> dict[str, str | Path]:
    """Where each adapter's checkpoint is: as given, else as recorded in the manifest where that folder still exists."""
    recorded = {name: entry.source for name, entry in bundle.manifest.adapters.items()}
    known = {*recorded, *filter(None, [bundle.manifest.merged])}
    unknown = sorted(set(given) - known)
    if unknown:
        raise InputError(f"{bundle.path} has no adapter {unknown[0]!r}; it has: {', '.join(sorted(known)) or 'none'}")
    found: dict[str, str | Path] = {n: s for n, s in recorded.items() if (Path(s) / "adapter_config.json").is_file()}
    found.update(given)
    return found
