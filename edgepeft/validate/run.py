"""``validate``: parity and accuracy of a bundle, every adapter, every variant asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from .. import runtime as runtimes
from ..bundle import Bundle, read_bundle, rereading
from ..data import Examples
from ..errors import InputError
from ..metrics import Comparison, Measured, Scored, compare, measure
from ..report.accuracy import Accuracy
from ..report.gate import Gate, Report
from ..report.partial import Keep, keep_nothing
from ..runtime import Runtime
from ..spelling import did_you_mean
from ..targets import GeneralizationRules
from .chunks import AnswerFile, ChunksOf, state_hash
from .detectors import adapter_outputs, other_bases, permuted_labels, twins, unchanged
from .gates import validation_gates, validation_tables
from .generalization import Generalization, adapters_of, generalization
from .parity import (
    adapter_parity,
    adapter_probe,
    adapter_sources,
    base_restored,
    not_finite,
    pad_token_of,
    peft_noise,
    peft_outputs,
    task_of,
)
from .probe import Probe, bundle_probe
from .quality import Rows, answer_rows, check_rows, missing_note, task_of_head
from .quantized_base import comparable
from .reference import check_base, head_width, peft_model
from .result import AdapterParity, Validation


@rereading
def validate(
    bundle: str | Path | Bundle,
    *,
    data: Mapping[str, Rows] | None = None,
    adapters: Mapping[str, str | Path] | None = None,
    only: Sequence[str] | None = None,
    base: str | None = None,
    variants: Sequence[str] | None = None,
    reference: bool = True,
    max_drop: float = 0.01,
    general: Sequence[Rows] = (),
    rules: GeneralizationRules | None = None,
    progress: Callable[[str], None] = lambda message: None,
    keep: Keep = keep_nothing,
    answers: Path | None = None,
) -> Validation:
    """Compare a bundle with PEFT, and measure its quality.

    An adapter whose PEFT checkpoint is at hand is compared with PEFT over the base: outputs on ragged padded batches in fp32.
    A bundle that was made from a quantized file is compared over the rounded numbers. Base and adapters must give finite numbers
    in every variant.

    Args:
        bundle: The bundle, or its folder.
        data: Labelled rows (:class:`Examples`) by adapter, or a language model's (:class:`LanguageRows`), which the adapter was not
            trained on. Every metric of the task is measured on them in every variant, with its interval.
        adapters: PEFT checkpoints by adapter; by default from where the manifest says that they came.
        only: Adapters to limit everything but the base to; by default all.
        base: The model that PEFT runs (a folder or a Hugging Face id); by default the one that the manifest names.
        variants: Which variants; by default all.
        reference: ``False`` leaves out what needs PEFT, and so torch.
        max_drop: How much accuracy a variant may lose against PEFT, as a share: 0.01 is one point.
        general: Rows that no adapter was trained for. Adapters with ``data`` whose labels they have are judged on them, and so is
            the base where it has a head for them; a language model's adapters all are.
        rules: What may be lost on ``general``; a limit that is not set is not judged; a loss that is shown, of 5 points or more, is
            warned of.
        progress: Is called with a line of text for each step, and for each chunk of many rows.
        keep: Is given a function of no arguments after each step: the validation of all so far, ``None`` before the first.
        answers: A file that keeps the answers of rows while they are run, and is removed in the end. A run that finds it
            with answers of the same bundle and rows goes on after them.

    Returns:
        What was measured, and a gate for each claim. ``passed`` says whether all hold; ``unchecked`` names adapters that were
        not compared.

    Raises:
        InputError: There is no such adapter or variant, or rows are for another task.
        DataError: A row's label is none of the adapter's; said before a model is loaded.
        ManifestError: The manifest is not valid; graphs that do not make up the task are such a case.
        BundleError: The bundle cannot be opened.

    Example:
        >>> result = validate("bundle")
        >>> result.passed, result.problems
        (True, ())
    """
    opened = bundle if isinstance(bundle, Bundle) else read_bundle(bundle)
    manifest = opened.manifest
    names = list(variants or manifest.variants)
    for name in names:
        if name not in manifest.variants:
            close = did_you_mean(name, manifest.variants)
            raise InputError(f"{opened.path} has no variant {name!r}; it has: {', '.join(manifest.variants)}{close}")
    data, rules = dict(data or {}), rules or GeneralizationRules()
    chosen = _chosen(opened, data, only)
    for name, rows in data.items():
        check_rows(opened, name, rows)
    fitting = adapters_of(opened, data, general, chosen)
    sources = adapter_sources(opened, adapters or {}) if reference else {}
    sources = {name: source for name, source in sources.items() if name in chosen}
    base = base or manifest.base.source
    if sources:
        check_base(base)
    runtime = runtimes.open(opened.path, variant="fp32" if "fp32" in manifest.variants else None)
    opener = _Variants(runtime)
    probe = bundle_probe(opened)
    kept = None if answers is None else AnswerFile(answers)
    if kept is not None and kept.path.is_file():
        progress("going on after the answers of a run that was broken off")
    chunks = ChunksOf(opened, kept, progress)
    found = _Found(str(opened.path), sorted(chosen - set(sources)) if reference else [], max_drop, rules)
    keep(lambda: None)
    found.parity = _parity(runtime, sources, base, probe, progress)
    outputs = adapter_outputs(runtime, probe, [name for name in runtime.adapters if name in chosen])
    found.without_effect = unchanged(runtime, probe, outputs)
    found.warnings = [*twins(outputs, found.without_effect), *other_bases(opened, sources)]
    found.restored = base_restored(runtime, probe) if runtime.adapters else None
    keep(found.validation)
    for variant in names:
        progress(f"outputs of {variant}")
        found.broken |= not_finite(opener(variant), probe)
    for counted, scored in _answered(opener, data, names, sources, base, progress, chunks):
        found.accuracies += [counted] if counted is not None else []
        found.scored += scored
        found.measured += [each for mine in scored for each in measure(mine)]
        keep(found.validation)
    for each in generalization(opened, data, fitting, names, opener, found.measured, progress, chunks):
        found.elsewhere += (each,)
    found.compared = compare(found.measured, "fp32" if "fp32" in names else names[0])
    if kept is not None:
        kept.remove()
    return found.validation()


@dataclass
class _Found:
    """What a validation has found so far."""

    bundle: str
    unchecked: list[str]
    max_drop: float
    rules: GeneralizationRules
    parity: tuple[AdapterParity, ...] = ()
    restored: bool | None = None
    without_effect: Sequence[str] = ()
    warnings: list[str] = field(default_factory=list)
    broken: dict[tuple[str | None, str], str] = field(default_factory=dict)
    accuracies: list[Accuracy] = field(default_factory=list)
    scored: list[Scored] = field(default_factory=list)
    measured: list[Measured] = field(default_factory=list)
    compared: tuple[Comparison, ...] = ()
    elsewhere: tuple[Generalization, ...] = ()

    def validation(self) -> Validation:
        """It as a :class:`Validation`."""
        said = [*self.warnings, *map(permuted_labels, self.scored)]
        said += [each for one in self.elsewhere for each in one.warnings(self.rules)]
        return Validation(
            bundle=self.bundle,
            parity=self.parity,
            base_restored=self.restored,
            accuracy=tuple(self.accuracies),
            gates=(
                *validation_gates(self.parity, self.restored, self.accuracies, self.broken, self.max_drop),
                *(
                    Gate.holds(f"changes the output {name}", False, "its outputs are the base's, bit for bit")
                    for name in self.without_effect
                    if name not in {each.adapter for each in self.parity}  # there it is said already
                ),
                *(gate for each in self.elsewhere for gate in each.gates(self.rules)),
            ),
            unchecked=tuple(self.unchecked),
            metrics=tuple(self.measured),
            comparisons=self.compared,
            generalization=self.elsewhere,
            notes=tuple(filter(None, [missing_note(self.scored), *said])),
        )


def _chosen(bundle: Bundle, data: Mapping[str, Rows], only: Sequence[str] | None) -> set[str]:
    """The adapters to look at; :class:`InputError` for a name that the bundle does not have, or data for another."""
    known = {*bundle.manifest.adapters, *filter(None, [bundle.manifest.merged])}
    for name in (*data, *(only or ())):
        if name not in known:
            close = did_you_mean(name, known)
            raise InputError(
                f"{bundle.path} has no adapter {name!r}; it has: {', '.join(sorted(known)) or 'none'}{close}"
            )
    chosen = known if only is None else set(only)
    if stray := next((name for name in data if name not in chosen), None):
        raise InputError(
            f"data was given for {stray!r}, which is not among the adapters chosen: {', '.join(sorted(chosen))}"
        )
    return chosen


class _Variants:
    """Opens variants: the first stays open, and one more at a time, since together they may not fit into memory."""

    def __init__(self, first: Runtime) -> None:
        self.first = first
        self._held: Runtime | None = None

    def __call__(self, variant: str) -> Runtime:
        if variant == self.first.variant:
            return self.first
        if self._held is None or self._held.variant != variant:
            self._held = None  # before the next is opened
            self._held = runtimes.open(self.first.bundle.path, variant=variant)
        return self._held


def _parity(
    runtime: Runtime, sources: Mapping[str, str | Path], base: str, probe: Probe, progress: Callable[[str], None]
) -> tuple[AdapterParity, ...]:
    """Each adapter whose checkpoint is at hand, against PEFT."""
    parity = []
    with comparable(runtime) if sources else nullcontext((runtime, None)) as (compared, rounded):
        for name, source in sources.items():
            progress(f"parity of {name} against PEFT")
            own = adapter_probe(runtime.bundle, name, source, base, probe)
            expected = peft_outputs(runtime.bundle, name, source, base, own.probe, rounded=rounded)
            noise = partial(peft_noise, runtime.bundle, name, source, base, own.probe, expected, rounded=rounded)
            found = adapter_parity(compared, name, expected, own.probe, noise)
            parity.append(replace(found, other_tokens=own.other_tokens))
    return tuple(parity)


def _answered(
    opener: _Variants,
    data: Mapping[str, Rows],
    variants: Sequence[str],
    sources: Mapping[str, str | Path],
    base: str,
    progress: Callable[[str], None],
    chunks: ChunksOf,
) -> Iterator[tuple[Accuracy | None, tuple[Scored, ...]]]:
    """All rows in all variants: a classifier's accuracy, beside PEFT where its checkpoint is at hand, and the rows to score."""
    bundle = opener.first.bundle
    manifest = bundle.manifest
    reference = opener.first if opener.first.variant == "fp32" else None
    for name, rows in data.items():
        module, beside = None, ""
        if name in sources and isinstance(rows, Examples) and task_of_head(manifest, name) == "text-classification":
            labels = manifest.labels if manifest.mode != "swap" else manifest.adapters[name].labels
            module = peft_model(
                base,
                sources[name],
                task=task_of(manifest, name),
                num_labels=head_width(sources[name], labels),
                pad=pad_token_of(bundle),
            )
            beside = state_hash(module)
        for variant in variants:
            progress(f"quality of {name}, {variant}")
            mine = chunks(variant, name, rows, beside or ("fp32" if reference is not None else ""))
            yield answer_rows(opener(variant), name, rows, module=module, against=reference, chunks=mine)


def validation_report(result: Validation) -> Report:
    """A validation for people and files; its verdict is that of ``result.gates``."""
    tables = validation_tables(result)
    notes = (*result.problems, *result.notes)
    if result.unchecked:
        names = ", ".join(result.unchecked)
        notes = (*notes, f"not compared with PEFT: {names}; no checkpoint at hand, give it with --adapter NAME=PATH")
    if not tables:
        notes = (*notes, "nothing was compared: no PEFT checkpoint is at hand and no --data was given")
    return Report(
        kind="validate",
        title=f"Validation of {result.bundle}",
        gates=result.gates,
        tables=tuple(tables),
        notes=notes,
        data=result.as_dict(),
    )
