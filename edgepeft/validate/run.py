"""``validate``: parity and accuracy of a bundle, every adapter, every variant asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

from .. import runtime as runtimes
from ..bundle import Bundle, read_bundle
from ..data import Examples
from ..errors import InputError
from .accuracy import accuracy
from .form import PARITY_TOLERANCE, AdapterAccuracy, AdapterParity, Validation
from .parity import adapter_parity, adapter_sources, base_restored, peft_outputs
from .probe import bundle_probe
from .reference import check_base, head_width, peft_model
from .rounded import comparable


def _problems(
    parity: Sequence[AdapterParity], restored: bool | None, rows: Sequence[AdapterAccuracy], max_drop: float
) -> list[str]:
    found = []
    for p in parity:
        if not p.max_difference <= PARITY_TOLERANCE:
            found.append(f"{p.adapter}: differs from PEFT by {p.max_difference:.2g} (allowed {PARITY_TOLERANCE:.0e})")
        if not p.changes_output:
            found.append(f"{p.adapter}: the adapter changes nothing")
    if restored is False:
        found.append("the base's outputs are not the same bits after the adapters were used")
    for row in rows:
        if row.reference_accuracy is not None and row.accuracy < row.reference_accuracy - max_drop:
            found.append(
                f"{row.adapter} ({row.variant}): accuracy {row.accuracy:.3f}, PEFT {row.reference_accuracy:.3f} on {row.data}"
            )
        if row.variant == "fp32" and row.same_argmax is not None and row.same_argmax != row.rows:
            found.append(
                f"{row.adapter}: {row.rows - row.same_argmax} of {row.rows} rows choose another label than PEFT"
            )
    return found


def validate(
    bundle: str | Path | Bundle,
    *,
    data: Mapping[str, Examples] | None = None,
    adapters: Mapping[str, str | Path] | None = None,
    base: str | None = None,
    variants: Sequence[str] | None = None,
    reference: bool = True,
    max_drop: float = 0.01,
    progress: Callable[[str], None] = lambda message: None,
) -> Validation:
    """Validate a bundle.

    ``data`` maps an adapter to labelled rows it was not trained on. With ``reference`` every adapter whose PEFT checkpoint
    is at hand (``adapters``, else where the manifest says it came from) is compared with PEFT over the model ``base``:
    parity on ragged batches in fp32 (over the rounded numbers, where the bundle was made from a quantized file), accuracy
    on ``data`` in every variant. ``max_drop`` is the accuracy a variant may lose against PEFT, as a share.
    Raises :class:`InputError` for an unknown adapter.
    """
    opened = bundle if isinstance(bundle, Bundle) else read_bundle(bundle)
    manifest = opened.manifest
    names = [opened.variant(name)[0] for name in variants or manifest.variants]
    data = dict(data or {})
    known = set(manifest.adapters) | {manifest.merged}
    for name in data:
        if name not in known:
            raise InputError(
                f"{opened.path} has no adapter {name!r}; it has: {', '.join(sorted(filter(None, known))) or 'none'}"
            )
    sources = adapter_sources(opened, adapters or {}) if reference else {}
    base = base or manifest.base.source
    if sources:
        check_base(base)
    runtime = runtimes.open(opened.path, variant="fp32" if "fp32" in manifest.variants else None)
    probe = bundle_probe(opened)
    parity = []
    with comparable(runtime) if sources else nullcontext((runtime, None)) as (compared, rounded):
        for name, source in sources.items():
            progress(f"parity of {name} against PEFT")
            parity.append(
                adapter_parity(compared, name, peft_outputs(opened, name, source, base, probe, rounded=rounded), probe)
            )
    restored = base_restored(runtime, probe) if runtime.adapters else None
    rows = []
    for name, examples in data.items():
        module = None
        if name in sources:
            labels = manifest.labels if manifest.mode != "swap" else manifest.adapters[name].labels
            module = peft_model(base, sources[name], task=manifest.task, num_labels=head_width(sources[name], labels))
        for variant in names:
            progress(f"accuracy of {name}, {variant}")
            opened_variant = runtime if variant == runtime.variant else runtimes.open(opened.path, variant=variant)
            rows.append(accuracy(opened_variant, name, examples, module=module))
    return Validation(
        bundle=str(opened.path),
        parity=tuple(parity),
        base_restored=restored,
        accuracy=tuple(rows),
        problems=tuple(_problems(parity, restored, rows, max_drop)),
        unchecked=tuple(sorted(n for n in known if n is not None and n not in sources)) if reference else (),
    )
