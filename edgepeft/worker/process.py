"""Running a measuring process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError

from ..errors import MeasureError
from ..terminate import run_child
from .job import Job, WorkerResult

#: How a job is run; tests and remote executors bring their own.
Runner = Callable[[Job], WorkerResult]

#: Lines of a failed worker's standard error that are shown.
_TAIL_LINES = 12

_TIMEOUT_S = 900


def run_worker(
    job: Job,
    *,
    command: Sequence[str] | None = None,
    environment: Mapping[str, str] | None = None,
    timeout_s: float | None = None,
) -> WorkerResult:
    """Run ``job`` in a fresh Python process (``command``, where it is another program that speaks the worker's language)
    and return what it measured.

    Raises :class:`MeasureError` with the end of the worker's standard error when it fails, is killed, takes more than
    ``timeout_s`` (15 minutes) or answers with something else than a result; the process is then gone.
    """
    command = list(command or [sys.executable, "-P", "-m", "edgepeft.worker"])
    timeout_s = _TIMEOUT_S if timeout_s is None else timeout_s
    what = f"measuring {job.bundle} ({job.variant})"
    try:
        done = run_child(
            command,
            input=job.model_dump_json(),
            env=dict(environment) if environment is not None else worker_environment(),
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired as error:
        raise MeasureError(f"{what}: no result after {timeout_s:g} s; measure fewer cases or a shorter time") from error
    except OSError as error:
        raise MeasureError(f"{what}: cannot start {command[0]}: {error.strerror or error}") from error
    tail = "\n".join(done.stderr.strip().splitlines()[-_TAIL_LINES:])
    if done.returncode != 0:
        ended = f"killed by signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
        raise MeasureError(f"{what}: the worker ended with {ended}: {tail or '(nothing on standard error)'}")
    try:
        return WorkerResult.model_validate_json(done.stdout)
    except ValidationError as error:
        raise MeasureError(f"{what}: the worker's answer is not a result: {done.stdout[:200]!r} {tail}") from error


def worker_environment() -> dict[str, str]:
    """This environment, with this edgepeft importable also where it is run from a source checkout."""
    environment = dict(os.environ)
    root = Path(__file__).parents[2]
    # An installed package is found anyway, and site-packages before the standard library could shadow it.
    if root.name not in {"site-packages", "dist-packages"}:
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(root), environment.get("PYTHONPATH", "")]))
    return environment
