"""Whether the adapter that runs is the adapter that was trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..bundle import Bundle
from ..errors import InputError, ParityError
from ..runtime import Runtime
from .form import PARITY_TOLERANCE, AdapterParity
from .probe import Probe, bundle_probe, same_outputs
from .reference import Rounded, head_width, peft_model
from .rounded import comparable


def adapter_parity(
    runtime: Runtime, name: str, source: str | Path, base: str, probe: Probe, rounded: Rounded | None = None
) -> AdapterParity:
    """Compare an adapter in a bundle with PEFT running its checkpoint at ``source`` over the model ``base``.

    ``runtime`` and ``rounded`` are what :func:`edgepeft.validate.rounded.comparable` gives.
    """
    merged = runtime.manifest.mode != "swap"
    labels = runtime.labels if merged else runtime.manifest.adapters[name].labels
    module = peft_model(
        base, source, task=runtime.manifest.task, num_labels=head_width(source, labels), rounded=rounded
    )
    expected = probe.reference(module)
    del module  # a language model's second copy need not live while ONNX Runtime runs
    without = None if merged else probe.run(runtime.use(None))
    if not merged:
        runtime.use(name)
    found = probe.run(runtime)
    if not merged:
        runtime.use(None)
    return AdapterParity(
        adapter=name,
        max_difference=probe.difference(found, expected),
        changes_output=without is None or not same_outputs(found, without),
    )


def base_restored(runtime: Runtime, probe: Probe) -> bool:
    """Whether the base's outputs are the same bits before, between and after using every adapter."""
    before = probe.run(runtime.use(None))
    for name in (*runtime.adapters, *reversed(runtime.adapters)):
        probe.run(runtime.use(name))
    return same_outputs(probe.run(runtime.use(None)), before)


def check_parity(runtime: Runtime, sources: Mapping[str, str | Path], base: str) -> tuple[AdapterParity, ...]:
    """Parity of every adapter in ``sources``; raises :class:`ParityError` for the first that is beyond the tolerance."""
    probe = bundle_probe(runtime.bundle)
    results = []
    with comparable(runtime) as (compared, rounded):
        for name, source in sources.items():
            result = adapter_parity(compared, name, source, base, probe, rounded)
            if not result.max_difference <= PARITY_TOLERANCE:
                raise ParityError(
                    f"adapter {name!r}: ONNX Runtime differs from PEFT by {result.max_difference:.2g}, allowed is "
                    f"{PARITY_TOLERANCE:.0e}; nothing was written"
                )
            results.append(result)
    if runtime.adapters and not base_restored(runtime, probe):
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
