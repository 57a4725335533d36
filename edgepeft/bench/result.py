"""What ``bench`` measured: JSON in, JSON out, and a report for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Literal

from pydantic import Field, ValidationError, model_validator

from ..bundle.manifest import Manifest
from ..errors import InputError
from ..json_text import json_text
from ..strict_json import kind, read_json
from ..units import MB
from ..worker.job import Case, CaseSamples, Host, Model, Sampling, WorkerResult
from .stats import percentile


class BundleFacts(Model):
    """A bundle's identity and sizes in MB (1,000,000 bytes)."""

    path: str
    mode: str
    base_identity: str
    bundle_mb: float
    #: What one device gets, by variant: every file but the other variants'.
    deployed_mb: dict[str, float] = Field(default_factory=dict)
    variants_mb: dict[str, float]
    #: The ``.onnx_adapter`` file of each adapter: what a device fetches for one more.
    adapters_mb: dict[str, float]

    @classmethod
    def of(cls, path: Path, manifest: Manifest) -> BundleFacts:
        """The facts that ``manifest`` states about the bundle in ``path``."""

        def size(*names: str) -> float:
            return sum(manifest.files[name].bytes for name in names) / MB

        return cls(
            path=str(path),
            mode=manifest.mode,
            base_identity=manifest.base.identity,
            bundle_mb=size(*manifest.files),
            deployed_mb={name: size(*manifest.deployed(name)) for name in manifest.variants},
            variants_mb={name: size(v.file, *v.data) for name, v in manifest.variants.items()},
            adapters_mb={name: size(a.onnx_adapter) for name, a in manifest.adapters.items()},
        )


class CaseResult(Model):
    """Steady latency of one variant, adapter and shape over several fresh processes.

    ``p50_ms`` is the median of the process medians; ``p95_ms`` and ``p99_ms`` are of all iterations together, and
    ``None`` where these are too few to support them.
    """

    variant: str
    adapter: str | None
    shape: str
    process_p50_ms: tuple[float, ...]
    iterations: int
    p50_ms: float
    p95_ms: float | None
    p99_ms: float | None
    #: Tokens that all rows together make in a second, where the case decodes.
    tokens_per_s: float | None = None
    #: Which outputs of the case are not finite numbers, in words; empty where all are, or nobody looked.
    not_finite: str = ""

    @property
    def key(self) -> str:
        """``variant/adapter shape``, as gates name it."""
        return case_key(self.variant, self.adapter, self.shape)


class VariantResult(Model):
    """What one variant costs beside latency; each tuple has one value a process."""

    variant: str
    load_ms: tuple[float, ...]
    rss_loaded_mb: float | None
    peak_rss_mb: float | None
    #: Of the resident set once the bundle is open: memory of the process's own, and what is mapped from files.
    anonymous_mb: float | None = None
    mapped_mb: float | None = None
    #: Highest resident set until the bundle was open.
    load_peak_mb: float | None = None
    swaps: int = 0
    swap_process_p50_ms: tuple[float, ...] = ()
    swap_p50_ms: float | None = None
    #: ``use`` and the first inference after it, at the smallest shape.
    swap_first_inference_p50_ms: float | None = None
    #: The slowest first ``use`` of an adapter in a process, which reads its file.
    swap_cold_max_ms: float | None = None
    #: Largest growth of the resident set over the swaps of a process.
    rss_drift_mb: float | None = None


class BenchResult(Model):
    """One bundle measured on one host for one target."""

    schema_version: Literal[1] = 1
    kind: Literal["bench"] = "bench"
    target: str
    bundle: BundleFacts
    host: Host
    sampling: Sampling
    #: How many sessions some time apart the processes of each variant were run in, as many in each, in their order.
    sessions: int = Field(default=1, ge=1)
    cases: tuple[CaseResult, ...]
    variants: tuple[VariantResult, ...]

    @model_validator(mode="after")
    def _whole_sessions(self) -> BenchResult:
        for case in self.cases:
            if len(case.process_p50_ms) % self.sessions:
                raise ValueError(
                    f"{len(case.process_p50_ms)} processes of {case.key} are not {self.sessions} sessions of as many"
                )
        return self


def case_key(variant: str, adapter: str | None, shape: str) -> str:
    """How a case is named in gates and tables."""
    return f"{variant}/{adapter or '(base)'} {shape}"


def process_median(samples: CaseSamples) -> float:
    """The median of one process's iterations, in ms. :class:`InputError` where it has too few."""
    value = percentile(samples.samples_ms, 50)
    if value is None or value <= 0:
        raise InputError(f"{len(samples.samples_ms)} iterations of {samples.case} do not make a median")
    return value


def summarise(
    facts: BundleFacts,
    target: str,
    sampling: Sampling,
    runs: Mapping[str, Sequence[WorkerResult]],
    *,
    sessions: int = 1,
) -> BenchResult:
    """The result of several processes for each variant, in so many sessions; a variant without one is left out."""
    runs = {variant: results for variant, results in runs.items() if results}
    host = next(run.host for results in runs.values() for run in results)
    return BenchResult(
        target=target,
        bundle=facts,
        host=host,
        sampling=sampling,
        sessions=sessions,
        cases=tuple(
            _case_result(variant, case, [s for run in results for s in run.cases if s.case == case])
            for variant, results in runs.items()
            for case in dict.fromkeys(s.case for run in results for s in run.cases)
        ),
        variants=tuple(_variant_result(variant, results) for variant, results in runs.items()),
    )


def _case_result(variant: str, case: Case, processes: Sequence[CaseSamples]) -> CaseResult:
    medians = tuple(map(process_median, processes))
    pooled = [sample for process in processes for sample in process.samples_ms]
    return CaseResult(
        variant=variant,
        adapter=case.adapter,
        shape=case.label,
        process_p50_ms=medians,
        iterations=len(pooled),
        p50_ms=median(medians),
        p95_ms=percentile(pooled, 95),
        p99_ms=percentile(pooled, 99),
        tokens_per_s=case.batch * 1e3 / median(medians) if case.phase == "decode" else None,
        not_finite=next((process.not_finite for process in processes if process.not_finite), ""),
    )


def _variant_result(variant: str, results: Sequence[WorkerResult]) -> VariantResult:
    swaps = [run.swap for run in results if run.swap is not None]
    use = [p50 for swap in swaps if (p50 := percentile(swap.use_ms, 50)) is not None]
    return VariantResult(
        variant=variant,
        load_ms=tuple(run.load_ms for run in results),
        rss_loaded_mb=_largest([run.rss_loaded_mb for run in results]),
        peak_rss_mb=_largest([run.peak_rss_mb for run in results]),
        anonymous_mb=_largest([run.anonymous_mb for run in results]),
        mapped_mb=_largest([run.mapped_mb for run in results]),
        load_peak_mb=_largest([run.load_peak_mb for run in results]),
        swaps=sum(len(swap.use_ms) for swap in swaps),
        swap_process_p50_ms=tuple(use),
        swap_p50_ms=median(use) if use else None,
        swap_first_inference_p50_ms=percentile([ms for swap in swaps for ms in swap.first_inference_ms], 50),
        swap_cold_max_ms=_largest([ms for swap in swaps for ms in swap.cold_ms]),
        rss_drift_mb=_largest([swap.drift_mb for swap in swaps]),
    )


def _largest(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return max(known) if known else None


def load_bench(path: str | Path) -> BenchResult:
    """A saved bench report: the ``.json`` that ``bench`` wrote, or a bare :class:`BenchResult` in JSON.

    Raises :class:`InputError` that says why the file is not one.
    """
    path = Path(path)
    raw = read_json(path, what="bench report", advice="write one with: edgepeft bench")
    if not isinstance(raw, dict) or raw.get("kind") != "bench":
        found = raw.get("kind") if isinstance(raw, dict) else kind(raw)
        raise InputError(f"{path} is not a bench report (kind {found!r:.80}); write one with: edgepeft bench")
    data = raw.get("data", raw)
    if isinstance(data, dict) and "partial" in data:
        raise InputError(
            f"bench report {path} is partial ({data['partial']!s:.80}), and so no baseline: measure it again"
        )
    try:
        return BenchResult.model_validate_json(json_text(data, indent=None))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise InputError(
            f"bench report {path} does not fit this edgepeft: {key}: {first['msg']}; measure it again"
        ) from error
