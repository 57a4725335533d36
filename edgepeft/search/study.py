"""Running a study: trials asked of Optuna one after another, until there are as many as the file says."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from ..data import Examples
from ..errors import EdgepeftError, InputError
from ..train.processes import check_alone
from ..train.resume import training_folder
from .checked import check_study
from .front import Found, TrialRow, front_of, write_report
from .reach import check_reachable
from .storage import counted, held_folder, open_study, shown, standing, suggest, take_up
from .study_file import StudyFile, read_study
from .trial import ADAPTER, Measured, run_trial

if TYPE_CHECKING:
    from ..train import Scores

#: Trials of the same model and data that reached an epoch, before another is broken off for being below their median.
_BEFORE_PRUNING = 4
_CURVE = "curve"


class _PrunedError(Exception):
    """The trial is not worth its time: after this epoch it is below the median of the others."""


def run_study(
    study: StudyFile,
    *,
    workers: int = 1,
    worker: int | None = None,
    ray: str | None = None,
    announce: Callable[[str], None] = lambda message: None,
) -> Found:
    """Run trials until there are as many as the study asks for, together with all other workers that share its storage.

    A trial is a training, an export, a rounding and a measurement in a folder of its own. A trial that was broken off (a worker
    was killed) is taken up by the next worker on the same host, in its folder, from where it was. Training is broken off after
    an epoch whose best accuracy lies below the median of at least four others over the same model and data.

    Args:
        study: What :func:`read_study` gives.
        workers: Processes on this host; this one is the first. With ``ray`` tasks of Ray.
        worker: Which worker this is; by default drawn, so that two calls do not try the same.
        ray: Run the workers as tasks of Ray: ``"local"`` starts one here, ``"auto"`` and an address join a cluster whose hosts see
            the study and its data at the same paths. This process waits for them.
        announce: Is called with a line of text for each trial.

    Returns:
        The front and all trials so far. The same stands in ``report/search.json`` of the study's folder.

    Raises:
        DataError: Rows that the study names cannot be read, cannot be trained on, or more than half of them are validation rows.
        InputError: The storage cannot be reached, or holds another study of this name; a base is not there, or no recipe makes a
            variant.
        UnsupportedAdapterError: A method cannot ship.
        MissingExtraError: Optuna is not installed, or Ray.

    Example:
        >>> found = run_study(read_study("study.toml"), workers=2)  # doctest: +SKIP
        >>> found.front[0].accuracy  # doctest: +SKIP
        0.872
    """
    check_alone("edgepeft search")
    held, said = check_study(study)
    check_reachable(study.storage, shown(study.storage))
    for each in said:
        announce(each)
    number = int.from_bytes(os.urandom(2)) if worker is None else worker
    optuna_study = open_study(study, number)
    if ray is not None:
        from .on_ray import run_on_ray

        run_on_ray(study, ray, range(number, number + workers), work, _teller(study, optuna_study, announce))
        return _found(study, optuna_study)
    with ExitStack() as stack:
        others = [stack.enter_context(_helper(study, number + each)) for each in range(1, workers)]
        while _one(study, optuna_study, held, announce):
            pass
        for other in others:
            other.wait()
    return _found(study, optuna_study)


def work(file: str, trials: int, worker: int) -> None:
    """Be one worker of the study in ``file``, as a task of Ray is. What it says goes into a file beside the trials.

    Raises:
        InputError: The file is not there: the host does not share the disk.
    """
    if not Path(file).is_file():
        raise InputError(
            f"{file} is not there on {platform.node()}: hosts of a cluster must see the study and its data at the same paths, on a "
            "disk that all share"
        )
    study = replace(read_study(file), trials=trials)
    study.folder.mkdir(parents=True, exist_ok=True)
    with (study.folder / f"worker-{worker}.log").open("a", encoding="utf-8", buffering=1) as log:
        run_study(study, worker=worker, announce=lambda said: print(said, file=log))


def _found(study: StudyFile, optuna_study: Any) -> Found:
    found = rows_of(study, optuna_study)
    write_report(found)
    return found


def _teller(study: StudyFile, optuna_study: Any, announce: Callable[[str], None]) -> Callable[[], None]:
    """Tells of each trial once that other processes have begun, and once that they have ended."""
    told: dict[int, str] = {}

    def look() -> None:
        for row in rows_of(study, optuna_study).trials:
            if told.get(row.number) == row.state:
                continue
            told[row.number] = row.state
            values = ", ".join(f"{key} {_short(value)}" for key, value in row.values.items())
            reached = row.why if row.accuracy is None else f"accuracy {row.accuracy:.3f}"
            announce(f"trial {row.number}: {row.state} {reached or values}")

    return look


def _helper(study: StudyFile, worker: int) -> subprocess.Popen[bytes]:
    """Another worker in a process of its own; what it says goes into a file beside the trials."""
    code = (
        "import sys; from dataclasses import replace; from edgepeft.search import read_study, run_study; "
        "study = replace(read_study(sys.argv[1]), trials=int(sys.argv[3])); "
        "run_study(study, worker=int(sys.argv[2]), announce=lambda said: print(said, flush=True))"
    )
    log = (study.folder / f"worker-{worker}.log").open("ab")
    with log:
        return subprocess.Popen(
            [sys.executable, "-c", code, str(study.file), str(worker), str(study.trials)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def _one(study: StudyFile, optuna_study: Any, held: Examples, announce: Callable[[str], None]) -> bool:
    """Run one trial; False where there are enough."""
    import optuna

    with ExitStack() as running:
        with FileLock(study.folder / ".asking.lock"):
            if taken := take_up(optuna_study, study):
                announce(
                    f"{taken} trial{'s' if taken > 1 else ''} of workers that are gone go{'es' if taken == 1 else ''} on"
                )
            trials = optuna_study.get_trials(deepcopy=False)
            waiting = any(trial.state == optuna.trial.TrialState.WAITING for trial in trials)
            if not waiting and counted(trials) >= study.trials:
                return False
            trial = optuna_study.ask()
            values = suggest(trial, study)
            name = trial.user_attrs.get("folder") or f"trial-{trial.number:04d}-{uuid.uuid4().hex[:6]}"
            folder = study.folder / name
            running.enter_context(held_folder(folder))
            trial.set_user_attr("folder", name)
            trial.set_user_attr("host", platform.node())
            trial.set_user_attr("values", values)
        said = f"trial {trial.number}"
        announce(f"{said}: {', '.join(f'{key} {_short(value)}' for key, value in values.items())}")
        curve: list[float] = list(trial.user_attrs.get(_CURVE, ()))

        def on_epoch(epoch: int, scores: Scores) -> None:
            if scores.accuracy is None:
                return
            del curve[epoch - 1 :]
            curve.append(scores.accuracy)
            trial.set_user_attr(_CURVE, curve)
            if study.prune and _below(optuna_study, trial.number, values, curve):
                raise _PrunedError

        try:
            measured = run_trial(study, folder, values, held, on_epoch, lambda what: announce(f"{said}: {what}"))
        except _PrunedError:
            optuna_study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            shutil.rmtree(training_folder(folder / ADAPTER), ignore_errors=True)
            announce(f"{said}: broken off after epoch {len(curve)}, accuracy {max(curve):.3f}")
        except EdgepeftError as error:
            trial.set_user_attr("why", f"{type(error).__name__}: {error}")
            optuna_study.tell(trial, state=optuna.trial.TrialState.FAIL)
            announce(f"{said}: {error}")
        else:
            lower, upper = measured.interval
            trial.set_user_attr("interval", [lower, upper])
            optuna_study.tell(trial, [measured.accuracy, measured.p50_ms, measured.mb])
            announce(f"{said}: {_told(measured)}")
    _tidy(study, optuna_study)
    return True


def _told(measured: Measured) -> str:
    lower, upper = measured.interval
    return (
        f"accuracy {measured.accuracy:.3f} [{lower:.3f}, {upper:.3f}], {measured.p50_ms:.2f} ms, {measured.mb:.1f} MB"
    )


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else Path(value).name if isinstance(value, str) else str(value)


def _below(optuna_study: Any, number: int, values: dict[str, Any], curve: Sequence[float]) -> bool:
    """Whether the best accuracy so far is below the median of other trials at this epoch, over the same model and data."""
    others = []
    for trial in optuna_study.get_trials(deepcopy=False):
        theirs, points = trial.user_attrs.get("values", {}), trial.user_attrs.get(_CURVE, ())
        same = all(theirs.get(key) == values[key] for key in ("model", "data"))
        if trial.number != number and same and len(points) >= len(curve):
            others.append(max(points[: len(curve)]))
    return len(others) >= _BEFORE_PRUNING and max(curve) < median(others)


def rows_of(study: StudyFile, optuna_study: Any) -> Found:
    """The trials of a study as they stand now; those that another one went on with are left out."""
    rows = []
    for trial in standing(optuna_study.get_trials(deepcopy=False)):
        if "values" not in trial.user_attrs:
            continue
        state = {"FAIL": "failed"}.get(trial.state.name, trial.state.name.lower())
        known = trial.user_attrs
        row = TrialRow(trial.number, state, dict(known["values"]), known["folder"], why=known.get("why", ""))
        if trial.state.name == "COMPLETE":
            accuracy, p50_ms, mb = trial.values
            lower, upper = known["interval"]
            row = TrialRow(row.number, state, row.values, row.folder, accuracy, lower, upper, p50_ms, mb)
        rows.append(row)
    front = front_of(rows)
    marked = tuple(TrialRow(**{**vars(row), "on_front": row.number in front}) for row in rows)
    best = sorted((row for row in marked if row.on_front), key=lambda row: (-(row.accuracy or 0), row.p50_ms, row.mb))
    return Found(study.name, study.folder, shown(study.storage), tuple(best), marked)


def _tidy(study: StudyFile, optuna_study: Any) -> None:
    """Remove the bundles of ended trials that are not on the front; their adapters stay, which make them again."""
    if study.keep == "all":
        return
    for row in rows_of(study, optuna_study).trials:
        if row.state in {"complete", "pruned", "failed"} and not row.on_front:
            shutil.rmtree(study.folder / row.folder / "bundle", ignore_errors=True)
