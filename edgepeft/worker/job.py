"""What a measuring process is asked and what it answers: JSON on its standard input and output.

Times are milliseconds, memory is MB of 1,000,000 bytes; ``None`` marks what the platform cannot tell.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..executors import Device
from ..targets import Shape


class Model(BaseModel):
    """Frozen, with no unknown keys: a report from another version is refused, not half read.

    Numbers that are not finite are written to JSON by name (``"NaN"``), and read back: by default pydantic writes ``null``,
    and a broken model's logits would look like a broken answer.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


class Sampling(Model):
    """How long each case is measured. A case stops when time and minimum count are both reached, or at the maximum."""

    warmup_s: float = Field(default=0.1, ge=0)
    measure_s: float = Field(default=0.5, gt=0)
    min_iterations: int = Field(default=10, ge=6)  # a median is not stated from fewer: stats.MIN_SAMPLES
    max_iterations: int = Field(default=2000, ge=1)
    seed: int = 0


class Case(Model):
    """One adapter (``None``: the base, or the model of a merged bundle) at one input shape.

    A language model has two cases at a shape: ``run`` reads a prompt of it, ``decode`` makes one more token for each row.
    """

    adapter: str | None
    batch: int = Field(ge=1)
    sequence: int = Field(ge=1)
    phase: Literal["run", "decode"] = "run"

    @property
    def shape(self) -> Shape:
        """The shape as a pair, printed ``1x128``."""
        return Shape(self.batch, self.sequence)

    @property
    def label(self) -> str:
        """The shape as reports name it: ``1x128``, or ``1x128 decode``."""
        return str(self.shape) if self.phase == "run" else f"{self.shape} {self.phase}"


class Rows(Model):
    """Texts to classify with one adapter (``None``: the base, or the model of a merged bundle), in batches of ``batch``."""

    adapter: str | None
    texts: tuple[str, ...] = Field(min_length=1)
    #: Second texts, one for each, where the task is on pairs.
    pairs: tuple[str, ...] | None = None
    batch: int = Field(default=8, ge=1)

    @model_validator(mode="after")
    def _paired(self) -> Rows:
        if self.pairs is not None and len(self.pairs) != len(self.texts):
            raise ValueError(f"{len(self.pairs)} second texts for {len(self.texts)} texts")
        return self


#: ``{"role": "user", "content": "…"}``.
Message = dict[str, str]


class Prompts(Model):
    """Texts, or conversations as messages, to go on with, one by one, with one adapter (``None``: the base).

    Greedily: the likeliest token each time, whatever the model's own settings say of sampling or repetition.

    ``chat``: whether texts go through the chat template as a user's message; ``None``: where the bundle has one.
    """

    adapter: str | None
    texts: tuple[str | tuple[Message, ...], ...] = Field(min_length=1)
    max_new_tokens: int = Field(default=32, ge=1)
    chat: bool | None = None


class Generated(Model):
    """What :class:`Prompts` gave, in the order of the texts: token ids, milliseconds to the first, tokens/s after it."""

    adapter: str | None
    tokens: tuple[tuple[int, ...], ...]
    texts: tuple[str, ...]
    prefill_ms: tuple[float, ...]
    #: ``None`` for an answer of one token.
    tokens_per_s: tuple[float | None, ...]
    #: Why an answer has no tokens, where the model's logits were not finite numbers; else empty.
    not_finite: str = ""


class Job(Model):
    """One fresh process: open ``variant`` of ``bundle``, run ``rows`` and ``prompts``, measure ``cases``, swap ``swaps`` times.

    ``bundle`` is a folder on the machine that gives the job out; an executor that works elsewhere copies it. With
    ``restore`` the base and every adapter run a probe before and after rows and prompts, and the outputs are compared bit
    by bit. ``counted`` are cases whose instructions are counted, where an emulator can. ``device`` says what computes it in a
    process of this machine.
    """

    bundle: str
    variant: str
    threads: int
    cases: tuple[Case, ...] = ()
    sampling: Sampling = Sampling()
    counted: tuple[Case, ...] = ()
    swaps: int = 0
    rows: tuple[Rows, ...] = ()
    prompts: tuple[Prompts, ...] = ()
    restore: bool = False
    device: Device = "cpu"


class RowLogits(Model):
    """What :class:`Rows` gave: ``logits`` is ``[rows][labels]`` in the order of the texts."""

    adapter: str | None
    logits: tuple[tuple[float, ...], ...]


class CaseSamples(Model):
    """Steady latency of each iteration of one case."""

    case: Case
    samples_ms: tuple[float, ...]
    #: Which outputs are not finite numbers, in words; empty where all are, or the executor does not look.
    not_finite: str = ""


class CaseCount(Model):
    """Instructions of each counted inference of one case."""

    case: Case
    instructions: tuple[int, ...] = Field(min_length=1)

    @property
    def least(self) -> int:
        """What the inference itself needs: see :class:`edgepeft.worker.instructions.Counter`."""
        return min(self.instructions)


class SwapSamples(Model):
    """Swaps between the bundle's adapters (or one adapter and the base)."""

    #: The first ``use`` of each adapter in the process, which reads its file.
    cold_ms: tuple[float, ...]
    #: ``use(name)`` until it returns.
    use_ms: tuple[float, ...]
    #: ``use(name)`` and the first inference after it, at the job's smallest shape.
    first_inference_ms: tuple[float, ...]
    #: Resident set before and after the swaps of ``use_ms``.
    rss_before_mb: float | None
    rss_after_mb: float | None

    @property
    def drift_mb(self) -> float | None:
        """Growth of the resident set over the swaps."""
        if self.rss_before_mb is None or self.rss_after_mb is None:
            return None
        return self.rss_after_mb - self.rss_before_mb


class Host(Model):
    """What must be equal for two sessions' latencies to be compared."""

    cpu: str
    cores: int
    os: str
    machine: str
    python: str
    onnxruntime: str
    threads: int
    #: Its GPU's name, where that computes.
    gpu: str = ""
    #: What edgepeft's own operators run with, where they are installed and this machine's processor computes.
    kernels: str = ""


class WorkerResult(Model):
    """What one process measured."""

    host: Host
    import_ms: float
    load_ms: float
    rss_start_mb: float | None
    rss_loaded_mb: float | None
    peak_rss_mb: float | None
    #: Of the resident set once the bundle is open: memory of the process's own, and what is mapped from files.
    anonymous_mb: float | None = None
    mapped_mb: float | None = None
    #: Highest resident set until the bundle was open.
    load_peak_mb: float | None = None
    cases: tuple[CaseSamples, ...]
    counts: tuple[CaseCount, ...] = ()
    swap: SwapSamples | None = None
    rows: tuple[RowLogits, ...] = ()
    generated: tuple[Generated, ...] = ()
    #: Whether the base (and every adapter) gave the same bits before and after all swaps; ``None`` where the job did not ask.
    base_restored: bool | None = None
    #: What a reader must know of how it was run: nodes that fell back to another provider, missing counters.
    notes: tuple[str, ...] = ()
