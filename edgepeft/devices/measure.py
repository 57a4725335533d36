"""``bench --target`` and ``check --target`` through an executor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..bench import CheckResult, Correct, Job, Progress, Rows, bench, bench_report, check, check_report
from ..bench.accuracy import answers
from ..bench.baseline import baseline_bundle
from ..bench.history import append_run, is_history, require_history
from ..bench.measure import PAUSE_S
from ..bench.remote import local_baseline
from ..bundle import Bundle, head_of, read_bundle, rereading
from ..data import Examples
from ..errors import InputError
from ..report.answers import expected_answers, given_answers, require_labels
from ..report.gate import Report
from ..report.partial import Keep, keep_nothing
from ..targets import Target
from .checks.emulated import (
    Counts,
    Emulated,
    comparable_counts,
    compare_counts,
    emulated_report,
    measure_emulated,
    read_counts,
)
from .checks.static import static_report
from .executors.protocol import Executor
from .place import choose_variants, find_place, require_size, target_variants


def _silent(done: int, total: int, what: str) -> None:
    pass


@rereading
def bench_on(
    bundle: str | Path,
    target: Target,
    *,
    on: str | None = None,
    adapters: Sequence[str | None] | None = None,
    variants: Sequence[str] | None = None,
    shapes: Sequence[str] | None = None,
    threads: int | None = None,
    processes: int = 3,
    sessions: int = 1,
    pause_s: float = PAUSE_S,
    history: Path | None = None,
    progress: Progress = _silent,
    keep: Keep = keep_nothing,
) -> Report:
    """Measure a bundle on ``target`` and hold it against its budgets; :func:`edgepeft.bench.bench` on an executor.

    An emulated device's times are not judged: memory, its growth over swaps, and sizes are, and the instructions of an
    inference are counted where it can. Where nothing can execute the
    target the report says "static only". ``history`` is a file to which the run is added, of times that were measured here or on a
    device. ``keep`` is given what makes the report of all so far, after each process. Raises as
    :func:`edgepeft.devices.validate_on`.
    """
    if history is not None:
        require_history(history)
    opened = read_bundle(bundle)
    place = find_place(target, on, opened.manifest.task)
    chosen = variants or target_variants(opened.manifest, target, place.executor)
    if place.executor is None:
        return static_report(
            opened, target, choose_variants(opened.manifest, target, chosen), place.why_static, "bench"
        )
    executor = place.executor
    if executor.copies:
        require_size(opened, target, choose_variants(opened.manifest, target, chosen))
    if executor.emulated:
        if history is not None:
            raise InputError(
                f"a history holds times, and {executor.name} emulates {target.name}: its times mean nothing"
            )
        names = choose_variants(opened.manifest, target, chosen)
        return emulated_report(
            measure_emulated(
                opened, target, executor, names, adapters, shapes, progress, keep=_kept_as(keep, emulated_report)
            )
        )
    result = bench(
        opened.path,
        target,
        adapters=adapters,
        variants=variants,
        shapes=shapes,
        threads=threads,
        processes=processes,
        sessions=sessions,
        pause_s=pause_s,
        runner=executor.run,
        progress=progress,
        keep=_kept_as(keep, lambda found: bench_report(found, target)),
    )
    report = bench_report(result, target)
    if history is None:
        return report
    count = append_run(history, result)
    return replace(report, notes=(*report.notes, f"run {count} of the history {history}"))


def _kept_as(keep: Keep, report: Callable[[Any], Report]) -> Keep:
    """``keep``, given reports instead of the results that they are made of."""

    def kept(make: Callable[[], Any]) -> None:
        def made() -> Report | None:
            found = make()
            return None if found is None else report(found)

        keep(made)

    return kept


def correct_on(executor: Executor) -> Correct:
    """What :func:`edgepeft.bench.check` asks for: whether each row is answered right, by the executor."""

    def correct(bundle: Path, variant: str, adapter: str | None, examples: Examples) -> list[bool | None]:
        manifest = read_bundle(bundle).manifest
        if examples.labels is None:
            raise InputError(f"{examples.source or 'the examples'}: accuracy needs labels")
        rows = Rows(
            adapter=adapter, texts=tuple(examples.texts), pairs=examples.pairs and tuple(examples.pairs), batch=16
        )
        answer = executor.run(Job(bundle=str(bundle), variant=variant, threads=1, rows=(rows,)))
        logits = np.array(answer.rows[0].logits)
        head, width = head_of(manifest, adapter), logits.shape[1]
        require_labels(head, width, adapter or "the base")
        return answers(given_answers(logits, head), expected_answers(examples, head, width))

    return correct


@rereading
def check_on(
    bundle: str | Path,
    baseline: str | Path,
    target: Target,
    *,
    on: str | None = None,
    data: Mapping[str, Examples] | None = None,
    progress: Progress = _silent,
    keep: Keep = keep_nothing,
    **options: Any,
) -> Report:
    """Compare a bundle with a baseline on ``target``; :func:`edgepeft.bench.check` on an executor, with its ``options``.

    ``baseline`` may also be the address of a report or a history, as a text that begins with ``http://`` or ``https://``: see
    :func:`edgepeft.bench.remote.local_baseline`.

    An emulated device's latency is not compared: there, instructions (``baseline`` being a bundle, or a report of ``bench`` on
    the same executor), memory, sizes and (with ``data``) accuracy floors and drops are judged. Raises as
    :func:`edgepeft.devices.validate_on`.
    """
    opened = read_bundle(bundle)
    place = find_place(target, on, opened.manifest.task)
    chosen = choose_variants(opened.manifest, target, options.get("variants"), place.executor)
    path, origin = local_baseline(baseline)
    reference = baseline_bundle(path)
    if place.executor is None:
        return static_report(opened, target, chosen, place.why_static, "check")
    executor = place.executor
    if executor.copies:
        require_size(opened, target, chosen)
    if not executor.emulated:

        def checked(result: CheckResult) -> Report:
            report = check_report(result)
            return replace(report, notes=(*report.notes, *origin))

        result = check(
            opened.path, path, target, data=data, runner=executor.run, progress=progress,
            correct=correct_on(executor), keep=_kept_as(keep, checked), **options,
        )  # fmt: skip
        return checked(result)
    from ..bench.accuracy import check_accuracy

    title = f"Check of {opened.path} against {path} for {target.name} on {executor.name}"
    if is_history(path):
        raise InputError(
            f"a history holds times, and {executor.name} emulates {target.name}: give a bundle or a report"
        )
    saved = None if reference is not None else read_counts(path, executor)
    done = measure_emulated(
        opened, target, executor, chosen, options.get("adapters"), options.get("shapes"), progress,
        keep=_kept_as(keep, lambda so_far: emulated_report(so_far, "check", title)),
    )  # fmt: skip
    before = (
        _counts_of(reference, done, progress) if reference is not None else comparable_counts(path, saved or {}, done)
    )
    compared, tables = compare_counts(done.counts, before, target)
    names: tuple[str | None, ...] = tuple(options.get("adapters") or opened.manifest.adapters or (None,))
    shortened = {name: _some(examples, executor.rows) for name, examples in (data or {}).items()}
    _, gates = check_accuracy(
        opened.path, None if reference is None else reference.path,
        [(variant, name) for variant in chosen for name in names], shortened,
        {name: target.floor(name) for name in names}, target.check, correct_on(executor),
    )  # fmt: skip
    report = emulated_report(done, "check", title, (*compared, *gates), tables)
    return replace(report, notes=(*report.notes, *origin))


def _counts_of(reference: Bundle, done: Emulated, progress: Progress) -> Counts:
    """The baseline's instructions in the cases that both bundles have."""
    manifest = reference.manifest
    cases = [(variant, case) for variant, case in done.counts if variant in manifest.variants]
    adapters = [case.adapter for _, case in cases if case.adapter in (None, *manifest.adapters)]
    if not adapters:
        return {}
    shapes = dict.fromkeys(str(case.shape) for _, case in cases)
    variants = dict.fromkeys(variant for variant, _ in cases)
    return measure_emulated(
        reference,
        done.target,
        done.executor,
        [*variants],
        [*dict.fromkeys(adapters)],
        [*shapes],
        progress,
        counts_only=True,
    ).counts


def _some(examples: Examples, rows: int) -> Examples:
    step = max(1.0, len(examples) / rows)
    return examples.select([int(i * step) for i in range(min(rows, len(examples)))])
