"""``local``: a fresh process on this machine."""

from __future__ import annotations

from ...bench import Job, WorkerResult, run_worker
from ...targets import Target
from .protocol import Missing


class LocalExecutor:
    """Runs on this machine, where that is of the target's kind."""

    name = "local"
    emulated = False
    copies = False
    rows = 200

    def __init__(self, target: Target) -> None:
        self._target = target

    def missing(self) -> tuple[Missing, ...]:
        """Another kind of machine, or a provider that this executor does not run."""
        missing = []
        if (why := self._target.here()) is not None:
            machine = self._target.machine
            there = "" if machine.os == "windows" else ", or --on ssh://user@host"  # which needs a POSIX shell
            missing.append(Missing(why, f"run edgepeft on a {machine.os} {machine.arch} machine{there}"))
        if self._target.runtime.providers != ("CPUExecutionProvider",):
            providers = ", ".join(self._target.runtime.providers)
            missing.append(
                Missing(f"{self._target.name} runs on {providers}; local runs the CPU provider", "--on another")
            )
        return tuple(missing)

    def run(self, job: Job) -> WorkerResult:
        """In a fresh Python process."""
        return run_worker(job)
