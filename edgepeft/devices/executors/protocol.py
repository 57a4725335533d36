"""What an executor is: something that runs a job on a target's kind of device and brings the report back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ...bench import Job, WorkerResult


@dataclass(frozen=True)
class Missing:
    """Something this machine lacks for an executor, and the command or step that brings it."""

    what: str
    remedy: str


class Executor(Protocol):
    """Runs jobs. One is made for each target by :func:`edgepeft.devices.executor_for`.

    ``run`` is given a :class:`~edgepeft.bench.Job` whose ``bundle`` is a folder of *this* machine, with a variant that
    suits the target. It brings the bundle to the device where that is elsewhere, checks its hashes there, runs the job in
    a fresh process (page, session) and returns the :class:`~edgepeft.bench.WorkerResult`: logits for ``job.rows`` in
    order, samples for ``job.cases``, swaps where ``job.swaps``, ``base_restored`` where ``job.restore``. It raises
    :class:`~edgepeft.errors.DeviceError` that says what to do, takes bounded time, and leaves nothing running.

    An executor that cannot run a task has ``refuses``, the reason by task. One that counts instructions has a true attribute
    ``counts`` and answers ``job.counted``. One that computes in less than the variant's precision has a true attribute
    ``reduced_precision``: its answers are then compared as those of a quantized variant.
    """

    @property
    def name(self) -> str:
        """How reports call it: ``arm64 (qemu)``."""

    @property
    def emulated(self) -> bool:
        """Whether time there says nothing about the device's: latency is then never judged."""

    @property
    def copies(self) -> bool:
        """Whether the bundle is copied to a device first: one over the target's size budget is then refused before."""

    @property
    def rows(self) -> int:
        """How many labelled rows an adapter are run by default; fewer where running is slow."""

    def missing(self) -> tuple[Missing, ...]:
        """What must be there before ``run`` can work, quickly found out; empty when it is ready."""

    def run(self, job: Job) -> WorkerResult:
        """Run ``job`` on the device."""
