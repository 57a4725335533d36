"""The keys of a target file (``targets/*.toml``); these models are their documentation.

MB is 1,000,000 bytes, times are milliseconds, a shape is written ``"<batch>x<sequence>"`` in tokens.
"""

from __future__ import annotations

import platform
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from ..executors import STATIC, executor_entry
from .shape import SHAPE, Shape, parse_shape

OperatingSystem = Literal["linux", "windows", "macos", "android", "ios", "web"]
Architecture = Literal["x86_64", "arm64", "wasm32"]


def _shape_key(text: str) -> str:
    if SHAPE.fullmatch(text) is None:
        raise ValueError("a shape is written <batch>x<sequence>, for example 1x128")
    return text


def _executor(text: str) -> str:
    executor_entry(text)
    return text


# Strict: TOML has types, so "35" in quotes or true is a slip and not a number.
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False, strict=True)]
ShapeKey = Annotated[str, AfterValidator(_shape_key)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Machine(_Model):
    """``[machine]``: what the device is."""

    os: OperatingSystem
    arch: Architecture


class RuntimeRules(_Model):
    """``[runtime]``: how ONNX Runtime is run there."""

    #: Oldest onnxruntime version the target is held to.
    onnxruntime: str = Field(pattern=r"^\d+\.\d+(\.\d+)?$")
    #: Execution providers in order of preference, by ONNX Runtime's names.
    providers: tuple[Annotated[str, Field(pattern=r"^[A-Za-z]+ExecutionProvider$")], ...] = Field(min_length=1)
    #: Threads inside one operator.
    threads: int = Field(ge=1, le=256, strict=True)


class GraphRules(_Model):
    """``[graph]``: what the graph may hold there, and how it is written."""

    #: Highest opset of the default domain that the oldest runtime and the providers take.
    opset: int = Field(default=21, ge=13, le=30, strict=True)
    #: ``onnx`` files, or ``ort`` flatbuffers, which builds of ONNX Runtime without the ONNX parser (mobile) can open.
    format: Literal["onnx", "ort"] = "onnx"
    #: ``static``: the providers take fixed shapes only, and inputs are padded to a bucket.
    shapes: Literal["dynamic", "static"] = "dynamic"
    #: The fixed shapes, where they are static.
    buckets: tuple[ShapeKey, ...] = ()
    #: ``constant``: the providers take a MatMul only where its right side is a constant, so slots run on the CPU.
    weights: Literal["any", "constant"] = "any"
    #: Operators that cannot run there at all (``MatMulInteger``, ``com.microsoft.FusedMatMul``): a variant that holds one is no
    #: variant for the target.
    forbidden_ops: tuple[Annotated[str, Field(pattern=r"^([a-z][a-z.]*\.)?[A-Z][A-Za-z0-9]*$")], ...] = ()

    @model_validator(mode="after")
    def _bucketed(self) -> GraphRules:
        if self.shapes == "static" and not self.buckets:
            raise ValueError('shapes = "static" needs buckets, for example buckets = ["1x32", "1x128"]')
        if self.shapes == "dynamic" and self.buckets:
            raise ValueError('buckets are for shapes = "static"')
        return self


class Budgets(_Model):
    """``[budgets]``: the most each number may be; a key that is left out is not judged."""

    #: Median latency of one steady inference by shape; the shapes listed are the shapes measured.
    p50_ms: dict[ShapeKey, Positive] = Field(default_factory=dict)
    #: 95th percentile of the same, where the sample is large enough to tell it.
    p95_ms: dict[ShapeKey, Positive] = Field(default_factory=dict)
    #: The *least* number of generated tokens a second (causal language models).
    tokens_per_s: Positive | None = None
    #: From ``use(name)`` to ready, median.
    swap_ms: Positive | None = None
    #: From opening the bundle to ready, hash checks included.
    load_ms: Positive | None = None
    #: Highest resident set size of a process that measures everything.
    peak_rss_mb: Positive | None = None
    #: Memory of the process's own once the bundle is open, what is mapped from files, and the highest resident set till then.
    anonymous_mb: Positive | None = None
    mapped_mb: Positive | None = None
    load_peak_mb: Positive | None = None
    #: Growth of the resident set over the swaps measured.
    rss_drift_mb: Positive | None = None
    #: All files of the bundle but the variants that the target does not use: what one device gets.
    bundle_mb: Positive | None = None
    #: The file a device fetches for one more adapter.
    adapter_mb: Positive | None = None

    @model_validator(mode="after")
    def _possible(self) -> Budgets:
        if self.adapter_mb is not None and self.bundle_mb is not None and self.adapter_mb > self.bundle_mb:
            raise ValueError(
                f"adapter_mb {self.adapter_mb:g} is more than bundle_mb {self.bundle_mb:g}: a bundle holds its adapters"
            )
        for shape, p95 in self.p95_ms.items():
            if (p50 := self.p50_ms.get(shape)) is not None and p95 < p50:
                raise ValueError(f"p95_ms {p95:g} for {shape} is less than its p50_ms {p50:g}: no run can keep it")
        if self.rss_drift_mb is not None and self.peak_rss_mb is not None and self.rss_drift_mb > self.peak_rss_mb:
            raise ValueError(f"rss_drift_mb {self.rss_drift_mb:g} is more than peak_rss_mb {self.peak_rss_mb:g}")
        return self


class CheckRules(_Model):
    """``[check]``: when a candidate counts as a regression against a baseline."""

    #: Allowed slowdown of the median latency: 0.10 allows a ratio of 1.10.
    latency_tolerance: Positive = 0.10
    #: Allowed growth of the instructions of an inference, which are compared where an emulator counts them.
    instruction_tolerance: Positive = 0.01
    #: Allowed drop of accuracy, as a share: 0.01 is one point.
    accuracy_tolerance: Positive = 0.01
    #: Confidence of every interval.
    confidence: float = Field(default=0.95, ge=0.5, lt=1, strict=True)
    #: ABBA rounds before the first verdict, and at most.
    min_rounds: int = Field(default=4, ge=3, strict=True)
    max_rounds: int = Field(default=12, ge=3, strict=True)
    #: No further round is started after this long.
    max_seconds: Positive = 600.0

    def for_seconds(self, seconds: float) -> CheckRules:
        """The same rules with time alone as the end: rounds go on until all is decided or ``seconds`` are over."""
        return self.model_copy(update={"max_seconds": seconds, "max_rounds": 10_000})

    @model_validator(mode="after")
    def _ordered(self) -> CheckRules:
        if self.min_rounds > self.max_rounds:
            raise ValueError(f"min_rounds {self.min_rounds} is more than max_rounds {self.max_rounds}")
        return self


class GeneralizationRules(_Model):
    """``[generalization]``: what may be lost on rows from elsewhere (``validate --general``); a key left out is not judged."""

    #: Most that a score may be below that in domain, as a share: 0.10 is ten points.
    max_drop: Share | None = None
    #: Most that the adapter may take from the base's own score on the same rows, or add to its perplexity, as a share.
    max_forgetting: Share | None = None


class Target(_Model):
    """One kind of device."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    summary: str = Field(min_length=1)
    #: ``deprecated``: the platform's maker has given it up; ``note`` says what to use instead.
    status: Literal["supported", "deprecated"] = "supported"
    #: What a reader should know before choosing it.
    note: str = ""
    #: What executes a bundle for this target: one of :data:`~edgepeft.executors.EXECUTORS`, or ``static``: nothing.
    executor: Annotated[str, AfterValidator(_executor)] = STATIC
    #: How adapters reach the graph there: ``overridable`` initializers, or plain ``input`` where those cannot be fed.
    slots: Literal["overridable", "input"] = "overridable"
    #: Variants in order of preference; the first that a bundle has is the one to deploy.
    variants: tuple[str, ...] = Field(default=("fp32",), min_length=1)
    machine: Machine
    runtime: RuntimeRules
    graph: GraphRules = GraphRules()
    budgets: Budgets = Budgets()
    #: ``[accuracy]``: the least accuracy by adapter name; ``"*"`` is for every adapter not named.
    accuracy: dict[str, Share] = Field(default_factory=dict)
    check: CheckRules = CheckRules()
    generalization: GeneralizationRules = GeneralizationRules()

    @model_validator(mode="after")
    def _shapes_fit(self) -> Target:
        other = [key for key in (*self.budgets.p50_ms, *self.budgets.p95_ms) if key not in self.graph.buckets]
        if self.graph.shapes == "static" and other:
            raise ValueError(
                f"a latency budget for {other[0]}, but graph.buckets has only {', '.join(self.graph.buckets)}"
            )
        return self

    def floor(self, adapter: str | None) -> float | None:
        """The accuracy floor of ``adapter`` (``None``: the base or a merged model), if one is set."""
        return self.accuracy.get(adapter or "*", self.accuracy.get("*"))

    def shapes(self) -> tuple[Shape, ...]:
        """The shapes that have a latency budget, smallest first; 1x32 and 1x128 where none has."""
        keys = {**self.budgets.p50_ms, **self.budgets.p95_ms} or self.graph.buckets or ("1x32", "1x128")
        return tuple(sorted(map(parse_shape, keys), key=lambda shape: (shape.batch * shape.sequence, shape)))

    def here(self) -> str | None:
        """Why this machine is not the target's kind; ``None`` when it is."""
        here = host_machine()
        wanted = f"{self.machine.os} {self.machine.arch}"
        return None if here == wanted else f"{self.name} is {wanted}, this machine is {here}"


def host_machine() -> str:
    """This machine as ``"<os> <arch>"`` in the words of target files."""
    system = {"Darwin": "macos"}.get(platform.system(), platform.system().lower())
    arch = {"amd64": "x86_64", "aarch64": "arm64"}.get(platform.machine().lower(), platform.machine().lower())
    return f"{system} {arch}"
