"""Whether the adapter that runs is the adapter that was trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from .. import runtime as runtimes
from ..adapters.checkpoint import Source, read_checkpoint, split_task
from ..base.rounding import TOLERANCE, Noise, rounding_noise
from ..bundle import Bundle, Manifest
from ..errors import AdapterError, InputError, ParityError
from ..runtime import Runtime
from ..runtime.finite import count_not_finite
from ..runtime.views import View
from ..spelling import did_you_mean
from .mixed_probe import mixed_differences
from .probe import Found, Probe, bundle_probe, same_outputs
from .quantized_base import comparable
from .reference import Rounded, head_width, peft_reference
from .result import AdapterParity
from .text_probe import own_tokenizer, with_text


def peft_outputs(
    bundle: Bundle,
    name: str,
    source: Source,
    base: str,
    probe: Probe,
    *,
    module: Any | None = None,
    rounded: Rounded | None = None,
) -> Found:
    """What PEFT computes for an adapter's checkpoint over the model ``base``.

    ``module`` is that model where it is loaded; ``rounded`` is what :func:`edgepeft.validate.quantized_base.comparable` gives.
    """
    manifest = bundle.manifest
    labels = manifest.labels if manifest.mode != "swap" else manifest.adapters[name].labels
    checkpoint = read_checkpoint(source)
    with peft_reference(
        base,
        checkpoint,
        task=task_of(manifest, name),
        num_labels=head_width(checkpoint, labels),
        module=module,
        rounded=rounded,
        pad=pad_token_of(bundle),
    ) as reference:
        return probe.reference(reference)


def pad_token_of(bundle: Bundle) -> int | None:
    """The padding token that the base was captured with, by its configuration."""
    found = bundle.read_json("config.json").get("pad_token_id")
    return found if type(found) is int else None


def task_of(manifest: Manifest, name: str) -> str:
    """The task of an adapter: the bundle's, or over a base of several its own."""
    entry = manifest.adapters.get(name)
    return manifest.task if entry is None or entry.task is None else entry.task


def peft_noise(
    bundle: Bundle,
    name: str,
    source: Source,
    base: str,
    probe: Probe,
    expected: Found,
    *,
    module: Any | None = None,
    rounded: Rounded | None = None,
) -> Noise:
    """How much of :func:`peft_outputs`, ``expected``, is PEFT's own rounding."""
    manifest = bundle.manifest
    labels = manifest.labels if manifest.mode != "swap" else manifest.adapters[name].labels
    checkpoint = read_checkpoint(source)
    with peft_reference(
        base,
        checkpoint,
        task=task_of(manifest, name),
        num_labels=head_width(checkpoint, labels),
        module=module,
        rounded=rounded,
        pad=pad_token_of(bundle),
    ) as reference:
        return rounding_noise(reference, probe.reference, probe.difference, expected)


def adapter_parity(
    runtime: Runtime, name: str, expected: Found, probe: Probe, noise: Callable[[], Noise] | None = None
) -> AdapterParity:
    """Compare an adapter in a bundle with what PEFT computes, ``expected``.

    ``noise`` measures how much of that is rounding; it is asked only where the difference is beyond ``TOLERANCE``.
    """
    merged = runtime.manifest.mode != "swap"
    view = runtime.base if merged else runtime.adapter(name)
    found = probe.run(view)
    sides = ((f"ONNX Runtime ({runtime.variant})", found), ("PEFT", expected))
    difference = probe.difference(found, expected)
    measured = noise() if noise is not None and TOLERANCE < difference < math.inf else None
    return AdapterParity(
        adapter=name,
        max_difference=difference,
        allowed=TOLERANCE if measured is None else measured.allowed,
        noise="" if measured is None else str(measured),
        changes_output=merged or _changes(runtime.adapter(None, task=view.task), probe, found),
        not_finite="; ".join(f"{side}: {said}" for side, outputs in sides if (said := _not_finite(outputs))),
    )


def _changes(base: View, probe: Probe, found: Found) -> bool:
    """Whether ``found`` is not what the base gives; the first batch most often tells."""
    brief = probe.brief()
    first = brief.run(base)
    return not same_outputs(found[: len(first)], first) or not same_outputs(found, probe.run(base))


def one_by_one(works: Sequence[Callable[[], Any]]) -> list[Any]:
    """What each of ``works`` returns, called in their order."""
    return [work() for work in works]


def base_restored(
    runtime: Runtime, probe: Probe, run: Callable[[Sequence[Callable[[], Any]]], list[Any]] = one_by_one
) -> bool:
    """Whether the base's outputs are the same bits before and after using every adapter.

    ``run`` gives what each of the runs gives; a graph may run all of them part by part, in their order.
    """
    probe = probe.brief()
    views = [runtime.base, *map(runtime.adapter, (*runtime.adapters, *reversed(runtime.adapters))), runtime.base]
    before, *_, after = run([partial(probe.run, view) for view in views])
    return same_outputs(after, before)


def _not_finite(outputs: Found) -> str:
    """Where the first batch that holds NaN or infinity has them; empty where none has."""
    said = next(filter(None, map(count_not_finite, outputs)), "")
    return f"{said} are not finite" if said else ""


def not_finite(runtime: Runtime, probe: Probe) -> dict[tuple[str | None, str], str]:
    """The base (``None``) and the adapters whose outputs hold NaN or infinity, by adapter and variant: where, in words.

    A wrong comparison can hide them, since every comparison with NaN is false. So they are looked for by themselves.
    """
    probe = probe.brief()
    names: tuple[str | None, ...] = (None, *runtime.adapters)
    said = {(name, runtime.variant): _not_finite(probe.run(runtime.adapter(name))) for name in names}
    return {key: where for key, where in said.items() if where}


@dataclass(frozen=True)
class AdapterProbe:
    """What is run for one adapter, its own text among it; ``other_tokens`` as in :class:`AdapterParity`."""

    probe: Probe
    other_tokens: str


def adapter_probe(bundle: Bundle, name: str, source: Source, base: str, plain: Probe) -> AdapterProbe:
    """``plain`` with texts as the adapter ``name`` reads them in ``bundle``, compared with how its checkpoint reads them."""
    probe, texts = with_text(plain, bundle, name)
    if texts is None:
        return AdapterProbe(probe, "")
    encode = own_tokenizer(read_checkpoint(source), base, bundle.manifest.max_length)
    return AdapterProbe(probe, "" if encode is None else texts.difference(encode))


def check_mixed(
    runtime: Runtime, expected: Mapping[str, Found], probe: Probe, results: Sequence[AdapterParity]
) -> None:
    """Raise :class:`ParityError` where the rows of a mixed batch are not what each is alone."""
    allowed = {result.adapter: result.allowed for result in results}
    for pair, difference in mixed_differences(runtime, expected, probe).items():
        if not difference <= max(allowed[name] for name in pair):
            raise ParityError(
                f"a batch with rows of {pair[0]!r} and {pair[1]!r}: ONNX Runtime differs from PEFT by {difference:.2g}, though "
                "each alone does not; nothing was written"
            )


def judge_adapter(
    runtime: Runtime, name: str, expected: Found, probe: AdapterProbe, noise: Callable[[], Noise]
) -> AdapterParity:
    """:func:`adapter_parity`; raises :class:`ParityError` where the adapter is beyond the tolerance, or reads other tokens."""
    result = adapter_parity(runtime, name, expected, probe.probe, noise)
    if probe.other_tokens:
        raise ParityError(
            f"adapter {name!r}: {probe.other_tokens}. The adapter would read other tokens than it was trained on: put the files of "
            "the tokenizer it was trained with beside its weights; nothing was written"
        )
    if not result.max_difference <= result.allowed:
        why = f" ({result.not_finite or result.noise})" if result.not_finite or result.noise else ""
        raise ParityError(
            f"adapter {name!r}: ONNX Runtime differs from PEFT by {result.max_difference:.2g}, allowed is "
            f"{result.allowed:.0e}{why}; nothing was written"
        )
    return result


def check_parity(
    bundle: Bundle,
    sources: Mapping[str, Source],
    base: str,
    *,
    module: Any | None = None,
    settle: Callable[[], None] = lambda: None,
) -> tuple[AdapterParity, ...]:
    """Parity of every adapter in ``sources`` over ``base`` (``module``, where it is loaded already).

    PyTorch does all of its part before ONNX Runtime opens the bundle; ``settle`` is called in between. Raises
    :class:`ParityError` for the first adapter that is beyond the tolerance.
    """
    plain = bundle_probe(bundle)
    probes = {name: adapter_probe(bundle, name, source, base, plain) for name, source in sources.items()}

    def outputs(name: str, rounded: Rounded | None = None) -> Found:
        return peft_outputs(bundle, name, sources[name], base, probes[name].probe, module=module, rounded=rounded)

    def judged(runtime: Runtime, name: str, found: Found, rounded: Rounded | None = None) -> AdapterParity:
        def noise() -> Noise:
            part = probes[name].probe
            return peft_noise(bundle, name, sources[name], base, part, found, module=module, rounded=rounded)

        return judge_adapter(runtime, name, found, probes[name], noise)

    if "fp32" in bundle.manifest.variants:
        expected = {name: outputs(name) for name in sources}
        settle()
        runtime = runtimes.open(bundle.path)
        results = [judged(runtime, name, found) for name, found in expected.items()]
        check_mixed(runtime, expected, plain, results)
    else:
        runtime = runtimes.open(bundle.path)
        with comparable(runtime) as (compared, rounded):
            expected = {name: outputs(name, rounded) for name in sources}
            results = [judged(compared, name, found, rounded) for name, found in expected.items()]
            check_mixed(compared, expected, plain, results)
    if runtime.adapters and not base_restored(runtime, plain):
        raise ParityError("the base's outputs are not the same bits after the adapters were used; nothing was written")
    return tuple(results)


def adapter_sources(bundle: Bundle, given: Mapping[str, str | Path]) -> dict[str, str | Path]:
    """Where each adapter's checkpoint is: as given, else as recorded in the manifest where that folder still exists.

    Raises:
        InputError: One is given for no adapter of the bundle, or cannot be read: before anything is compared.
    """
    recorded = {name: entry.source for name, entry in bundle.manifest.adapters.items()}
    known = {*recorded, *filter(None, [bundle.manifest.merged])}
    unknown = sorted(set(given) - known)
    if unknown:
        close = did_you_mean(unknown[0], known)
        raise InputError(
            f"{bundle.path} has no adapter {unknown[0]!r}; it has: {', '.join(sorted(known)) or 'none'}{close}"
        )
    found: dict[str, str | Path] = {
        name: source
        for name, source in recorded.items()
        if (Path(split_task(source)[0]) / "adapter_config.json").is_file()
    }
    for name, source in given.items():
        try:
            read_checkpoint(source)
        except AdapterError as error:
            raise InputError(f"--adapter {name}: there is no checkpoint to compare with: {error}") from error
    found.update(given)
    return found
