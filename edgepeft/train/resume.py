"""A training that was broken off goes on where it was: what it needs for that is kept beside the adapter's folder.

The folder ``.NAME.training`` appears with the first state and goes when the adapter is written. A state is one file that takes
the place of the one before it, so a process that is killed at any moment leaves the last whole state.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError
from ..json_text import json_text
from ..strict_json import read_object
from .device import device_random_state, restore_device_random
from .processes import is_first, launched

if TYPE_CHECKING:
    from .batches import Row

#: Seconds between two states within an epoch: at most so much is lost. A state of a LoRA is written in some milliseconds.
EVERY_S = 30.0
_CALL, _STATE = "call.json", "state.pt"
#: Arguments that do not change what is learnt, or whose content is compared in place of their names.
_FREE = frozenset(
    [
        "model",
        "data",
        "validation",
        "general",
        "split_by",
        "threads",
        "resume",
        "start",
        "text",
        "label",
        "pair",
        "report_to",
    ]
)


def training_folder(out: Path) -> Path:
    """Where the state of a training of the adapter ``out`` is kept."""
    out = out.absolute()
    return out.with_name(f".{out.name}.training")


def is_unfinished(out: Path) -> bool:
    """Whether a training of ``out`` was broken off and can go on."""
    return (training_folder(out) / _CALL).is_file()


def call_of(arguments: Mapping[str, Any], base_identity: str, rows: Sequence[Any]) -> dict[str, Any]:
    """What must be the same for a training to go on: its settings, the base and the rows as tokens.

    Args:
        arguments: Of the training function, as its record has them.
        base_identity: Of the base.
        rows: Whatever says exactly what is learnt and measured, as JSON can hold it.
    """
    text = json_text(rows, indent=None, default=_plain)
    count = launched()[1]
    return {
        **({"processes": count} if count > 1 else {}),
        **{name: value for name, value in arguments.items() if name not in _FREE},
        "base": base_identity,
        "rows": hashlib.sha256(text.encode()).hexdigest(),
    }


def row_contents(rows: Sequence[Row]) -> list[Any]:
    """What :func:`call_of` takes of encoded rows."""
    return [[row.features, row.target] for row in rows]


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else str(value)


class Keeper:
    """Keeps the state of one training run, of the adapter ``name``. Of several processes the first one writes it.

    Args:
        out: The adapter's folder; states are kept beside it.
        call: What :func:`call_of` gives.
        resume: Whether a state that is there is taken; else it is removed.
        every_s: Seconds between two states; by default 30.

    Raises:
        InputError: The state is of another call. The message names what differs.
    """

    def __init__(self, out: Path, call: Mapping[str, Any], *, resume: bool, every_s: float | None = None) -> None:
        self.folder = training_folder(out)
        self.name = out.name
        self._call = json.loads(json_text(call))
        self._every_s = EVERY_S if every_s is None else every_s
        self._last = time.monotonic()
        self.going_on = resume and (self.folder / _CALL).is_file()
        if self.going_on:
            self._check(out)
        elif is_first():
            shutil.rmtree(self.folder, ignore_errors=True)

    def _check(self, out: Path) -> None:
        before = read_object(self.folder / _CALL, advice="begin anew without --resume")
        names = {"rows": "the rows or their tokens", "base": "the base's weights"}
        if differing := sorted(key for key in {*before, *self._call} if before.get(key) != self._call.get(key)):
            told = [
                names.get(key) or f"{key} (was {before.get(key)!r}, is {self._call.get(key)!r})" for key in differing
            ]
            raise InputError(
                f"the training of {out} that was broken off cannot go on: {'; '.join(told)} changed since. Call it as it was, or "
                "without --resume to begin anew"
            )

    @property
    def due(self) -> bool:
        """Whether it is time for the next state."""
        return time.monotonic() - self._last >= self._every_s

    def begin(self) -> Path:
        """Make the folder, and say in it which call it belongs to."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot keep the state of the training in {self.folder}: {error}") from error
        if is_first() and not (self.folder / _CALL).is_file():
            self.write(_CALL, (json_text(self._call) + "\n").encode())
        return self.folder

    @contextmanager
    def folder_until_broken_off(self, state_in: Callable[[Path], Path | None]) -> Iterator[Path]:
        """:meth:`begin`; the folder goes where an error comes before there is anything to go on from."""
        folder = self.begin()
        try:
            yield folder
        except BaseException:
            if state_in(folder) is None:
                self.done()
            raise

    def write(self, name: str, content: bytes) -> None:
        """Put one file of the state in the place of the one before it, whole or not at all.

        Raises:
            InputError: It cannot be written.
        """
        if not is_first():
            self._last = time.monotonic()
            return
        target = self.folder / name
        scratch = target.with_name(f".{target.name}.new")
        try:
            scratch.write_bytes(content)
            scratch.replace(target)
        except OSError as error:
            raise InputError(f"cannot keep the state of the training in {self.folder}: {error}") from error
        self._last = time.monotonic()

    def save(self, state: Mapping[str, Any]) -> None:
        """Keep ``state``: tensors, numbers and text, in mappings and lists."""
        import io

        import torch

        whole = io.BytesIO()
        if is_first():
            torch.save(dict(state), whole)
            self.begin()
        self.write(_STATE, whole.getvalue())

    def load(self) -> dict[str, Any] | None:
        """The last state; ``None`` where the training begins anew."""
        import torch

        if not self.going_on or not (self.folder / _STATE).is_file():
            return None
        try:
            found: dict[str, Any] = torch.load(self.folder / _STATE, weights_only=True, map_location="cpu")
        except Exception as error:  # a damaged file raises whatever its bytes lead to
            raise InputError(
                f"the state {self.folder / _STATE} of the training cannot be read ({error}); begin anew without --resume"
            ) from error
        return found

    def done(self) -> None:
        """The adapter is written: the state is of no use any more."""
        if is_first():
            shutil.rmtree(self.folder, ignore_errors=True)


def random_state() -> dict[str, Any]:
    """The state of torch's generators (the GPU's among them), numpy's and Python's."""
    import torch

    state: Any = np.random.get_state(legacy=False)
    return {
        "torch": torch.get_rng_state(),
        "device": device_random_state(),
        "numpy": json_text(state, indent=None, default=_plain),
        "python": json_text(random.getstate(), indent=None),
    }


def restore_random(state: Mapping[str, Any]) -> None:
    """Put :func:`random_state` back."""
    import torch

    torch.set_rng_state(state["torch"])
    restore_device_random(state["device"])
    found = json.loads(state["numpy"])
    found["state"]["key"] = np.array(found["state"]["key"], dtype=np.uint32)
    np.random.set_state(found)
    version, words, gauss = json.loads(state["python"])
    random.setstate((version, tuple(words), gauss))
