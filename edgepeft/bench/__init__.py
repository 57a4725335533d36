"""Latency, memory and size in fresh processes; the statistics of a comparison; gates."""

from __future__ import annotations

from ..worker.job import (
    Case,
    CaseCount,
    CaseSamples,
    Generated,
    Host,
    Job,
    Message,
    Prompts,
    RowLogits,
    Rows,
    Sampling,
    SwapSamples,
    WorkerResult,
)
from ..worker.process import Runner, run_worker
from .accuracy import Correct, predict_correct
from .compare import CHECK_SAMPLING, CheckResult, check
from .gates import budget_gates, floor_gate
from .interleave import CaseCheck
from .measure import Progress, bench
from .present import bench_report, check_report
from .result import BenchResult, BundleFacts, CaseResult, VariantResult, load_bench

__all__ = [
    "CHECK_SAMPLING",
    "BenchResult",
    "BundleFacts",
    "Case",
    "CaseCheck",
    "CaseCount",
    "CaseResult",
    "CaseSamples",
    "CheckResult",
    "Correct",
    "Generated",
    "Host",
    "Job",
    "Message",
    "Progress",
    "Prompts",
    "RowLogits",
    "Rows",
    "Runner",
    "Sampling",
    "SwapSamples",
    "VariantResult",
    "WorkerResult",
    "bench",
    "bench_report",
    "budget_gates",
    "check",
    "check_report",
    "floor_gate",
    "load_bench",
    "predict_correct",
    "run_worker",
]
