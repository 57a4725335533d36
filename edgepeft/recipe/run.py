"""Running a recipe: each step a process of its own, and only those that something changed for."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from ..errors import BusyBundleError, InputError
from ..json_text import json_text
from .content import made, step_key
from .plan import Recipe, Step

#: Where the keys of finished steps are noted, below the recipe's ``out``.
_NOTES = ".recipe.json"


@dataclass(frozen=True)
class StepResult:
    """What became of a step. ``result`` is what it printed as JSON, where that was asked for."""

    name: str
    status: Literal["up to date", "would run", "done", "failed"]
    seconds: float = 0.0
    exit_code: int = 0
    result: Any = None


def build(
    recipe: Recipe,
    *,
    again: bool = False,
    dry_run: bool = False,
    as_json: bool = False,
    announce: Callable[[str], None] = lambda message: None,
) -> tuple[StepResult, ...]:
    """Run the steps of a recipe whose inputs, options or results changed since they last ended well, and all that follow one.

    A step is left out where its arguments, the contents of the files that they name, the steps before it and what it made are
    as they were. A build that was interrupted goes on with the step that it was at.

    Args:
        recipe: The recipe.
        again: Run every step.
        dry_run: Only tell which steps would run.
        as_json: Give the steps ``--json`` and keep what they print.
        announce: Is called with a line of text for each step.

    Returns:
        The steps up to the first that did not end well.

    Raises:
        BusyBundleError: Another process builds the same recipe.
        InputError: The folder for the results cannot be made.
    """
    out = recipe.folder / recipe.out
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out} cannot be made: {error.strerror}") from error
    try:
        with FileLock(out / ".recipe.lock", timeout=0):
            return _build(recipe, out / _NOTES, again, dry_run, as_json, announce)
    except Timeout as error:
        raise BusyBundleError(
            f"another process builds into {out}; wait for it, or name another out in the recipe"
        ) from error


def _build(
    recipe: Recipe, notes: Path, again: bool, dry_run: bool, as_json: bool, announce: Callable[[str], None]
) -> tuple[StepResult, ...]:
    known = _read(notes)
    results: list[StepResult] = []
    before, stale = "", again
    for step in recipe.steps:
        # Of a step that would only run after another one, nothing can be told yet: its inputs are not there.
        key = "" if stale and dry_run else step_key(step, recipe.folder, recipe.bundle, before)
        noted = known.get(step.name, {})
        stale = stale or noted.get("key") != key or noted.get("made") != made(step, recipe.folder)
        if not stale:
            results.append(StepResult(step.name, "up to date"))
        elif dry_run:
            results.append(StepResult(step.name, "would run"))
        else:
            announce(f"{step.name}: edgepeft {' '.join(step.arguments)}")
            known.pop(step.name, None)
            _write(notes, known)
            done = _run(step, recipe.folder, as_json)
            results.append(done)
            if done.exit_code:
                break
            known[step.name] = {"key": key, "made": made(step, recipe.folder) or ""}
            _write(notes, known)
            before = key
            continue
        before = key
    return tuple(results)


def _run(step: Step, folder: Path, as_json: bool) -> StepResult:
    start = time.monotonic()
    command = [sys.executable, "-m", "edgepeft", *step.arguments, *(["--json"] if as_json else [])]
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE if as_json else None, text=True, check=False)
    try:
        result = json.loads(done.stdout) if as_json and done.stdout else None
    except ValueError:  # it broke before it printed
        result = None
    status: Literal["done", "failed"] = "failed" if done.returncode else "done"
    return StepResult(step.name, status, time.monotonic() - start, done.returncode, result)


def _read(notes: Path) -> dict[str, dict[str, str]]:
    """What is noted; nothing where the notes are not there or damaged: steps then run again."""
    try:
        found = json.loads(notes.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {name: note for name, note in found.items() if isinstance(note, dict)} if isinstance(found, dict) else {}


def _write(notes: Path, known: dict[str, dict[str, str]]) -> None:
    staged = notes.with_suffix(".new")
    staged.write_text(json_text(known) + "\n", encoding="utf-8")
    staged.replace(notes)
