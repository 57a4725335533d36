"""``bench --target`` and ``check --target`` through an executor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..bench import Correct, Job, Progress, Rows, bench, bench_report, check, check_report
from ..bench.accuracy import answers
from ..bench.history import append_run, is_history, refuse_url, require_history
from ..bundle import Bundle, head_of, read_bundle, rereading
from ..data import Examples
from ..errors import InputError
from ..report.answers import expected_answers, given_answers, require_labels
from ..report.gate import Report
from ..report.partial import Keep, keep_nothing
from ..targets import Target
from .checks.emulated import Counts, Emulated, compare_counts, emulated_report, measure_emulated, saved_counts
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
        keep(lambda: None)
        return emulated_report(measure_emulated(opened, target, executor, names, adapters, shapes, progress))
    result = bench(
        opened.path,
        target,
        adapters=adapters,
        variants=variants,
        shapes=shapes,
        threads=threads,
        processes=processes,
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

    An emulated device's latency is not compared: there, instructions (``baseline`` being a bundle, or a report of ``bench`` on
    the same executor), memory, sizes and (with ``data``) accuracy floors and drops are judged. Raises as
    :func:`edgepeft.devices.validate_on`.
    """
    refuse_url(baseline)
    opened = read_bundle(bundle)
    place = find_place(target, on, opened.manifest.task)
    chosen = choose_variants(opened.manifest, target, options.get("variants"), place.executor)
    if place.executor is None:
        return static_report(opened, target, chosen, place.why_static, "check")
    executor = place.executor
    if executor.copies:
        require_size(opened, target, chosen)
    if not executor.emulated:
        result = check(
            opened.path, baseline, target, data=data, runner=executor.run, progress=progress,
            correct=correct_on(executor), keep=_kept_as(keep, check_report), **options,
        )  # fmt: skip
        return check_report(result)
    from ..bench.accuracy import check_accuracy

    keep(lambda: None)
    done = measure_emulated(opened, target, executor, chosen, options.get("adapters"), options.get("shapes"), progress)
    saved = Path(baseline).is_file()
    if is_history(baseline):
        raise InputError(
            f"a history holds times, and {executor.name} emulates {target.name}: give a bundle or a report"
        )
    reference = None if saved else read_bundle(baseline)
    before = saved_counts(Path(baseline), done) if reference is None else _counts_of(reference, done, progress)
    compared, tables = compare_counts(done.counts, before, target)
    names: tuple[str | None, ...] = tuple(options.get("adapters") or opened.manifest.adapters or (None,))
    shortened = {name: _some(examples, executor.rows) for name, examples in (data or {}).items()}
    _, gates = check_accuracy(
        opened.path, None if reference is None else reference.path,
        [(variant, name) for variant in chosen for name in names], shortened,
        {name: target.floor(name) for name in names}, target.check, correct_on(executor),
    )  # fmt: skip
    title = f"Check of {opened.path} against {baseline} for {target.name} on {executor.name}"
    return emulated_report(done, "check", title, (*compared, *gates), tables)


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
