"""``bench --target`` and ``check --target`` through an executor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..bench import Correct, Job, Progress, Rows, WorkerResult, bench, bench_report, check, check_report
from ..bundle import Bundle, read_bundle
from ..data import Examples
from ..errors import InputError
from ..targets import Report, Table, Target
from .labels import labels_of
from .outcome import memory_gate
from .place import choose_variants, find_place, require_size
from .protocol import Executor
from .static import size_gates, static_report

#: Swaps under emulation: enough for the resident set to settle.
_EMULATED_SWAPS = 200


def _silent(done: int, total: int, what: str) -> None:
    pass


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
    progress: Progress = _silent,
) -> Report:
    """Measure a bundle on ``target`` and hold it against its budgets; :func:`edgepeft.bench.bench` on an executor.

    An emulated device's times are not judged: memory, its growth over swaps, and sizes are. Where nothing can execute the
    target the report says "static only". Raises as :func:`edgepeft.devices.validate_on`.
    """
    opened = read_bundle(bundle)
    place = find_place(target, on)
    chosen = variants or [name for name in target.variants if name in opened.manifest.variants]
    if place.executor is None:
        return static_report(
            opened, target, choose_variants(opened.manifest, target, chosen), place.why_static, "bench"
        )
    executor = place.executor
    if executor.copies:
        require_size(opened, target, choose_variants(opened.manifest, target, chosen))
    if executor.emulated:
        return _emulated(opened, target, executor, choose_variants(opened.manifest, target, chosen), progress)
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
    )
    return bench_report(result, target)


def _emulated(
    bundle: Bundle, target: Target, executor: Executor, variants: Sequence[str], progress: Progress
) -> Report:
    results: dict[str, WorkerResult] = {}
    for number, variant in enumerate(variants):
        progress(number, len(variants), f"{variant} on {executor.name}")
        results[variant] = executor.run(
            Job(
                bundle=str(bundle.path), variant=variant, threads=1,
                rows=tuple(Rows(adapter=name, texts=("A short text.",)) for name in bundle.manifest.adapters or (None,)),
                swaps=_EMULATED_SWAPS if bundle.manifest.adapters else 0,
            )
        )  # fmt: skip
    progress(len(variants), len(variants), "done")
    gates = [gate for variant, result in results.items() for gate in memory_gate(variant, result, target, True)]
    drift = {v: r.swap.drift_mb if r.swap is not None else None for v, r in results.items()}
    first = next(iter(results.values()))
    notes = [note for result in results.values() for note in result.notes]
    return Report(
        kind="bench",
        title=f"Bench of {bundle.path} for {target.name} on {executor.name}",
        gates=(*gates, *size_gates(bundle, target, variants)),
        tables=(
            Table(
                f"Memory on {executor.name}, the emulator's own included",
                ("variant", "peak RSS MB", f"RSS drift MB over {_EMULATED_SWAPS} swaps"),
                tuple((v, r.peak_rss_mb, drift[v]) for v, r in results.items()),
            ),
        ),
        notes=(
            *notes,
            f"{first.host.cpu}, {first.host.os} {first.host.machine}, onnxruntime {first.host.onnxruntime}",
            "emulated: no latency, load or swap time was judged; measure them on a device with --on ssh://user@host",
        ),
        data={"target": target.name, "executor": executor.name, "emulated": True,
              "results": {v: r.model_dump(mode="json") for v, r in results.items()}},
    )  # fmt: skip


def correct_on(executor: Executor) -> Correct:
    """What :func:`edgepeft.bench.check` asks for: whether each row is answered right, by the executor."""

    from ..validate.accuracy import label_ids

    def correct(bundle: Path, variant: str, adapter: str | None, examples: Examples) -> list[bool]:
        manifest = read_bundle(bundle).manifest
        if examples.labels is None:
            raise InputError(f"{examples.source or 'the examples'}: accuracy needs labels")
        rows = Rows(adapter=adapter, texts=examples.texts, pairs=examples.pairs, batch=16)
        answer = executor.run(Job(bundle=str(bundle), variant=variant, threads=1, rows=(rows,)))
        logits = np.array(answer.rows[0].logits)
        expected = label_ids(examples, labels_of(manifest, adapter, logits.shape[1]))
        return [bool(right) for right in logits.argmax(1) == expected]

    return correct


def check_on(
    bundle: str | Path,
    baseline: str | Path,
    target: Target,
    *,
    on: str | None = None,
    data: Mapping[str, Examples] | None = None,
    progress: Progress = _silent,
    **options: Any,
) -> Report:
    """Compare a bundle with a baseline on ``target``; :func:`edgepeft.bench.check` on an executor, with its ``options``.

    An emulated device's latency is not compared: there, memory, sizes and (with ``data``) accuracy floors and drops are
    judged. Raises as :func:`edgepeft.devices.validate_on`.
    """
    opened = read_bundle(bundle)
    place = find_place(target, on)
    chosen = choose_variants(opened.manifest, target, options.get("variants"))
    if place.executor is None:
        return static_report(opened, target, chosen, place.why_static, "check")
    executor = place.executor
    if executor.copies:
        require_size(opened, target, chosen)
    if not executor.emulated:
        result = check(
            opened.path, baseline, target, data=data, runner=executor.run, progress=progress,
            correct=correct_on(executor), **options,
        )  # fmt: skip
        return check_report(result)
    from ..bench.accuracy import check_accuracy

    report = _emulated(opened, target, executor, chosen, progress)
    names: tuple[str | None, ...] = tuple(options.get("adapters") or opened.manifest.adapters or (None,))
    other = None if Path(baseline).is_file() else read_bundle(baseline).path
    shortened = {name: _some(examples, executor.rows) for name, examples in (data or {}).items()}
    _, gates = check_accuracy(
        opened.path, other, [(variant, name) for variant in chosen for name in names], shortened,
        {name: target.floor(name) for name in names}, target.check, correct_on(executor),
    )  # fmt: skip
    return Report(
        kind="check",
        title=f"Check of {opened.path} against {baseline} for {target.name} on {executor.name}",
        gates=(*report.gates, *gates),
        tables=report.tables,
        notes=report.notes,
        data=report.data,
    )


def _some(examples: Examples, rows: int) -> Examples:
    step = max(1.0, len(examples) / rows)
    return examples.select([int(i * step) for i in range(min(rows, len(examples)))])
