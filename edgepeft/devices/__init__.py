"""Running bundles where they will live: executors, and validate, bench and check on them."""

from __future__ import annotations

from .checks.coverage import coverage_report
from .checks.static import static_report
from .compare import compare_targets
from .executors.protocol import Executor, Missing
from .executors.registry import executor_for, setup_target
from .measure import bench_on, check_on
from .place import Place, choose_variants, deployed_mb, find_place, preferred_variant, require_size
from .validate import validate_on

__all__ = [
    "Executor",
    "Missing",
    "Place",
    "bench_on",
    "check_on",
    "choose_variants",
    "compare_targets",
    "coverage_report",
    "deployed_mb",
    "executor_for",
    "find_place",
    "preferred_variant",
    "require_size",
    "setup_target",
    "static_report",
    "validate_on",
]
