"""A device that is this machine, and answers as a test wants it to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edgepeft.bench import Job, WorkerResult, run_worker
from edgepeft.devices import Missing
from edgepeft.targets import Target, host_machine, load_target


class Device:
    """Runs jobs here, as ``change`` makes them come back."""

    name, emulated, copies, rows = "test device", False, True, 8

    def __init__(self, change: Callable[[WorkerResult], WorkerResult] = lambda r: r, *, emulated: bool = False) -> None:
        self.change, self.jobs, self.emulated = change, list[Job](), emulated

    def missing(self) -> tuple[Missing, ...]:
        return ()

    def run(self, job: Job) -> WorkerResult:
        self.jobs.append(job)
        return self.change(run_worker(job))


def host_target(folder: Path) -> Target:
    """A target ``mine`` of this machine's kind, written to ``folder/mine.toml``."""
    system, arch = host_machine().split()
    file = folder / "mine.toml"
    file.write_text(
        f'extends = "linux-x64-cpu"\nname = "mine"\nsummary = "s"\n[machine]\nos = "{system}"\narch = "{arch}"\n'
    )
    return load_target(file)
