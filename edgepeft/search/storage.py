"""The study in Optuna's storage, which several workers and hosts share, and which of its trials are still being run."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from filelock import FileLock, Timeout

from ..addresses import without_secrets
from ..errors import InputError, MissingExtraError
from .study_file import Range, StudyFile

DIRECTIONS = ("maximize", "minimize", "minimize")
_SIGNATURE = "edgepeft"
#: Of a trial that goes on with one whose worker is gone: that one's number.
_TAKEN = "taken_from"
#: An address that cannot be shown without what may be secret in it.
_UNTOLD = "at the address given"


def open_study(study: StudyFile, worker: int) -> Any:
    """The Optuna study, made where it is not there.

    Args:
        study: The study file.
        worker: Which worker this is: each draws with a seed of its own, or all would try the same.

    Raises:
        MissingExtraError: Optuna is not installed.
        InputError: The storage cannot be reached, or holds a study of this name over another space.
    """
    try:
        import optuna
    except ImportError as error:
        raise MissingExtraError("edgepeft search needs Optuna: pip install 'edgepeft[search]'") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study.folder.mkdir(parents=True, exist_ok=True)
    try:
        sampler = optuna.samplers.TPESampler(seed=study.seed + worker, multivariate=True, constant_liar=True)
        found = optuna.create_study(
            storage=_storage(study),
            study_name=study.name,
            directions=DIRECTIONS,
            sampler=sampler,
            load_if_exists=True,
        )
    except Exception as error:  # drivers of databases raise what they like
        advice = "Is the database up, and its driver installed?" if "://" in study.storage else "Can it be written?"
        raise InputError(
            f"the storage {shown(study.storage)} of study {study.name} cannot be reached: {type(error).__name__}: "
            f"{str(error).splitlines()[0].rstrip('.') if str(error) else ''}. {advice}"
        ) from error
    mine = json.loads(json.dumps(study.signature()))
    kept = found.user_attrs.get(_SIGNATURE)
    if kept is None:
        found.set_user_attr(_SIGNATURE, mine)
    elif kept != mine:
        changed = ", ".join(key for key in mine if kept.get(key) != mine[key])
        raise InputError(
            f"study {study.name} in {shown(study.storage)} was begun with another {changed}: its trials cannot be compared with "
            "new ones. Give study.name and study.out another name, or put the file back as it was"
        )
    return found


def _storage(study: StudyFile) -> Any:
    import optuna

    if "://" in study.storage:
        return optuna.storages.RDBStorage(study.storage)
    path = study.folder.parent / study.storage
    path.parent.mkdir(parents=True, exist_ok=True)
    return optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))


def shown(storage: str) -> str:
    """The storage as messages and reports say it: a database's address without a password."""
    if "://" not in storage:
        return storage
    try:
        parts = urlsplit(storage)
        # A password with a / in it ends the host too early: what is taken for port or path is a part of it.
        whole = "@" not in parts.path and (parts.port is not None or not parts.netloc.endswith(":"))
        return without_secrets(storage) if whole else _UNTOLD
    except ValueError:  # no address: nothing of it is known to be no secret
        return _UNTOLD


def suggest(trial: Any, study: StudyFile) -> dict[str, Any]:
    """A value of each axis."""
    found: dict[str, Any] = {}
    for name, axis in study.space.items():
        if not isinstance(axis, Range):
            found[name] = trial.suggest_categorical(name, list(axis.values)) if len(axis.values) > 1 else axis.values[0]
        elif axis.whole:
            found[name] = trial.suggest_int(name, int(axis.low), int(axis.high), log=axis.log)
        else:
            found[name] = trial.suggest_float(name, axis.low, axis.high, log=axis.log)
    return found


@contextmanager
def held_folder(folder: Path) -> Iterator[None]:
    """Within: this process runs the trial in ``folder``. The lock goes with the process, however that ends.

    Raises:
        Timeout: Another process does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock", timeout=0):
        yield


def is_held(folder: Path) -> bool:
    """Whether a process runs the trial in ``folder``."""
    try:
        with held_folder(folder):
            return False
    except Timeout:
        return True


def standing(trials: Sequence[Any]) -> Iterator[Any]:
    """The trials without those that another one went on with."""
    taken = {trial.user_attrs.get(_TAKEN) for trial in trials}
    return (trial for trial in trials if trial.number not in taken)


def counted(trials: Sequence[Any]) -> int:
    """The trials that ended, run or wait; those that another one went on with are not counted."""
    return sum(1 for _ in standing(trials))


def take_up(optuna_study: Any, study: StudyFile) -> int:
    """Queue the trials of workers that are gone: each goes on in its folder. Gives how many.

    Only trials of this host are looked at: a lock says nothing about a process elsewhere.
    """
    from optuna.trial import TrialState

    found = 0
    for trial in optuna_study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        name = trial.user_attrs.get("folder")
        if name is None or trial.user_attrs.get("host") != platform.node() or is_held(study.folder / name):
            continue
        optuna_study.enqueue_trial(dict(trial.params), user_attrs={"folder": name, _TAKEN: trial.number})
        optuna_study.tell(trial.number, state=TrialState.FAIL)
        found += 1
    return found
