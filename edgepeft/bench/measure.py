"""``bench``: what a bundle costs on this host, measured in fresh processes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..bundle import read_bundle, rereading
from ..bundle.manifest import Manifest
from ..errors import InputError, TargetError, UnknownAdapterError
from ..report.partial import Keep, keep_nothing
from ..spelling import did_you_mean
from ..targets import Shape, Target, load_target, parse_shape
from ..worker.job import Case, Job, Sampling, WorkerResult
from ..worker.process import Runner, run_worker
from .result import BenchResult, BundleFacts, summarise

#: Seconds between the sessions of a measurement.
PAUSE_S = 30.0

#: Called with steps done, steps expected and what comes next.
Progress = Callable[[int, int, str], None]


def silent(done: int, total: int, what: str) -> None:
    """The progress callback that shows nothing."""


@dataclass(frozen=True)
class Plan:
    """What is measured: every variant with every case."""

    variants: tuple[str, ...]
    cases: tuple[Case, ...]
    threads: int

    def job(self, bundle: Path, variant: str, sampling: Sampling, swaps: int = 0) -> Job:
        """The job of one process."""
        return Job(
            bundle=str(bundle), variant=variant, threads=self.threads, cases=self.cases, sampling=sampling, swaps=swaps
        )


def make_plan(
    manifest: Manifest,
    target: Target,
    adapters: Sequence[str | None] | None = None,
    variants: Sequence[str] | None = None,
    shapes: Sequence[str | Shape] | None = None,
    threads: int | None = None,
) -> Plan:
    """What to measure of a bundle; what is not asked for comes from the target.

    Defaults: every adapter (``None``, the base, where there is none), the target's preferred variants that the bundle
    has (all of its variants where it has none of those), the shapes with a latency budget, the target's threads. A language
    model is measured twice at a shape: reading a prompt of it, and decoding after it.
    Raises :class:`UnknownAdapterError` or :class:`InputError` for a name that the bundle does not have.
    """
    if adapters is None:
        adapters = (*manifest.adapters,) or (None,)
    for adapter in adapters:
        if adapter is not None and adapter not in manifest.adapters:
            raise UnknownAdapterError(
                f"no adapter {adapter!r} in the bundle; it has: {_names(adapter, manifest.adapters)}"
            )
    if variants is None:
        variants = [name for name in target.variants if name in manifest.variants] or [*manifest.variants]
    for variant in variants:
        if variant not in manifest.variants:
            raise InputError(f"no variant {variant!r} in the bundle; it has: {_names(variant, manifest.variants)}")
    sizes = target.shapes() if shapes is None else [parse_shape(s) if isinstance(s, str) else s for s in shapes]
    for size in sizes:
        if manifest.max_length is not None and size.sequence > manifest.max_length:
            raise InputError(
                f"shape {size}: the bundle takes at most {manifest.max_length} tokens; name shapes that fit, "
                f"for example --shape 1x{manifest.max_length}"
            )
    if not (adapters and variants and sizes):
        raise InputError("nothing to measure: adapters, variants and shapes must each name at least one")
    phases: tuple[Literal["run", "decode"], ...] = ("run", "decode") if manifest.decodes else ("run",)
    return Plan(
        variants=tuple(dict.fromkeys(variants)),
        cases=tuple(
            Case(adapter=adapter, batch=size.batch, sequence=size.sequence, phase=phase)
            for adapter in dict.fromkeys(adapters)
            for size in dict.fromkeys(sizes)
            for phase in phases
            if phase == "run" or size.sequence != manifest.max_length
        ),
        threads=threads if threads is not None else target.runtime.threads,
    )


def _names(asked: str, names: Iterable[str]) -> str:
    known = list(names)
    return f"{', '.join(known) or 'none'}{did_you_mean(asked, known)}"


@rereading
def bench(
    bundle: str | Path,
    target: str | Path | Target,
    *,
    adapters: Sequence[str | None] | None = None,
    variants: Sequence[str] | None = None,
    shapes: Sequence[str | Shape] | None = None,
    threads: int | None = None,
    processes: int = 3,
    sessions: int = 1,
    pause_s: float = PAUSE_S,
    swaps: int = 1000,
    sampling: Sampling | None = None,
    runner: Runner = run_worker,
    progress: Progress = silent,
    keep: Keep = keep_nothing,
) -> BenchResult:
    """Measure a bundle on this host, in fresh processes for each variant.

    Nothing is judged here: :func:`edgepeft.bench.budget_gates` compares the result with the target's budgets.

    Args:
        bundle: The bundle's folder.
        target: A target, its name, or the path of a target file.
        adapters: Which adapters, ``None`` for the base; by default every adapter.
        variants: Which variants; by default the target's preferred ones that the bundle has.
        shapes: Input shapes as ``"1x128"`` (rows x tokens); by default those with a latency budget.
        threads: ONNX Runtime's intra-op threads; by default the target's.
        processes: Processes for each variant in a session, at least 2.
        sessions: Sessions of so many processes. A machine drifts from one minute to another; a result of several sessions shows by
            how much, and is a baseline that decides more.
        pause_s: Seconds between two sessions.
        swaps: Adapter swaps that are timed in each process; 0 for none.
        sampling: How long each case is measured, in seconds and runs.
        runner: What runs a job in a process.
        progress: Is called with jobs done, jobs in all, and what was done.
        keep: Is given a function of no arguments after each process: the result of all so far, ``None`` before the first.

    Returns:
        Latency and swap times in milliseconds, memory and sizes in MB, by variant.

    Raises:
        TargetError: The target cannot be measured on this machine.
        InputError: There is no such variant, or a shape or a number is wrong.
        UnknownAdapterError: The bundle has no adapter of that name.
        MeasureError: A process failed.

    Example:
        >>> result = bench("bundle", "linux-x64-cpu", shapes=["1x128"])
        >>> result.variants[0].variant
        'fp32'
    """
    target = target if isinstance(target, Target) else load_target(target)
    if processes < 2:
        raise InputError(f"processes must be at least 2, so that their spread can be seen; got {processes}")
    if sessions < 1 or not 0 <= pause_s < math.inf:
        raise InputError(
            f"sessions must be at least 1 and the seconds between them at least 0; got {sessions} and {pause_s:g}"
        )
    require_host(target, runner)
    opened = read_bundle(bundle)
    plan = make_plan(opened.manifest, target, adapters, variants, shapes, threads)
    sampling = sampling or Sampling()
    runs: dict[str, list[WorkerResult]] = {variant: [] for variant in plan.variants}
    total = processes * sessions * len(plan.variants)
    facts = BundleFacts.of(opened.path, opened.manifest)
    keep(lambda: None)
    for number in range(processes * sessions):
        done, session = number * len(plan.variants), number // processes + 1
        if number and number % processes == 0:
            progress(done, total, f"{pause_s:g} s until session {session} of {sessions}")
            time.sleep(pause_s)
        for place, variant in enumerate(plan.variants):
            said = f"{variant}, process {number + 1} of {processes * sessions}"
            progress(done + place, total, said if sessions == 1 else f"{said}, session {session} of {sessions}")
            result = runner(plan.job(opened.path, variant, sampling, swaps))
            require_runtime(target, result)
            runs[variant].append(result)
            keep(lambda: summarise(facts, target.name, sampling, runs))
    progress(total, total, "done")
    return summarise(facts, target.name, sampling, runs, sessions=sessions)


def require_host(target: Target, runner: Runner) -> None:
    """:class:`TargetError` where ``runner`` measures on this machine and that is not the target's kind."""
    if runner is not run_worker:
        return
    if (why := target.here()) is not None:
        raise TargetError(f"{why}: its latency cannot be measured here, and another machine's says nothing about it")
    if target.runtime.providers != ("CPUExecutionProvider",):
        raise TargetError(
            f"{target.name} runs on {', '.join(target.runtime.providers)}; this edgepeft measures the CPU provider only"
        )


def require_runtime(target: Target, result: WorkerResult) -> None:
    """:class:`TargetError` where the worker ran an ONNX Runtime older than the target's minimum."""
    wanted, installed = target.runtime.onnxruntime, result.host.onnxruntime
    if _release(installed) < _release(wanted):
        raise TargetError(
            f"{target.name} needs onnxruntime {wanted} or newer, found {installed}: pip install -U onnxruntime"
        )


def _release(version: str) -> tuple[int, ...]:
    """``"1.28.0+cpu"`` as ``(1, 28)``: ONNX Runtime's patch releases are not told apart."""
    return tuple(int(part) for part in version.split(".")[:2])
