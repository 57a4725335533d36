"""Workers of a study as tasks of Ray: on this host, or on the hosts of a cluster that share the study's folder.

Ray starts them, spreads them and starts them again where a host or process is lost; trials are asked of Optuna's storage as ever.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ..errors import EdgepeftError, InputError, MissingExtraError
from .study_file import StudyFile

#: ``--ray local`` starts a Ray of its own, on this host, for the time of the search.
LOCAL = "local"
#: Seconds between two looks at what the workers have done.
_LOOK_S = 2.0


def run_on_ray(
    study: StudyFile,
    address: str,
    workers: Sequence[int],
    work: Callable[[str, int, int], None],
    look: Callable[[], None],
) -> None:
    """Run the workers of a study as tasks of Ray, until all have ended.

    Args:
        study: The study; its file and folder must be at the same paths on every host that runs a worker.
        address: ``"local"``, ``"auto"`` for the cluster that this host belongs to, or a cluster's address.
        workers: Their numbers. Each takes as many of Ray's CPUs as the study has threads.
        work: What a worker does, called with the study's file, its number of trials and the worker's number.
        look: Is called every two seconds, to tell how far they are.

    Raises:
        MissingExtraError: Ray is not installed.
        InputError: The cluster cannot be reached, or has not enough CPUs for a worker.
        EdgepeftError: What ended a worker.
    """
    with _joined(address, len(workers) * study.threads) as ray:
        if ray.cluster_resources().get("CPU", 0) < study.threads:
            raise InputError(
                f"a worker of {study.name} takes {study.threads} CPUs of Ray (study.threads), and no more than "
                f"{ray.cluster_resources().get('CPU', 0):g} are there"
            )
        task = ray.remote(work).options(num_cpus=study.threads)
        running = [task.remote(str(study.file), study.trials, worker) for worker in workers]
        while running:
            ended, running = ray.wait(running, num_returns=1, timeout=_LOOK_S)
            look()
            for each in ended:
                _result(ray, each)


@contextmanager
def _joined(address: str, cpus: int) -> Iterator[Any]:
    """Within: Ray, joined or started; one that was joined before is left as it is."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else a Ray that is started here tells its makers
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError("edgepeft search --ray needs Ray: pip install 'edgepeft[ray]'") from error
    if ray.is_initialized():
        yield ray
        return
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    options |= (
        {"address": LOCAL, "num_cpus": cpus, "include_dashboard": False} if address == LOCAL else {"address": address}
    )
    try:
        ray.init(**options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise InputError(f"no Ray at {address}: {error}. Start one with: ray start --head") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _result(ray: Any, task: Any) -> None:
    """What ended a task, as an error of ours."""
    try:
        ray.get(task)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, EdgepeftError):
            raise error.cause from error
        raise InputError(f"a worker ended with {type(error.cause).__name__}: {error.cause}") from error
    except ray.exceptions.RayError as error:
        raise InputError(f"Ray lost a worker ({type(error).__name__}); call the search again to go on") from error
