"""Running many forward passes of a large PyTorch model with one block of its numbers in memory at a time.

Every pass is a thread that waits at the door of each block (a decoder layer) until its numbers are there. When all wait, the block
that most of them wait for is read, they pass through it, as many at a time as there are cores, and its numbers are dropped. So the
numbers are read once for all passes, and the model itself needs no change: PEFT's layers inside a block run as they are.
"""

from __future__ import annotations

import copy
import inspect
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from .numbers import Numbers

T = TypeVar("T")

#: Numbers of a linear layer beyond which it is multiplied in pieces of rows, and of a table of which only used rows are read.
LARGE = 1 << 23


class _Abandoned(BaseException):
    """Ends a pass whose results nobody wants any more."""


@dataclass
class _Unit:
    """A part of the model whose numbers are read together; in every copy of the model the same names."""

    #: Module path → leaf → the parameter's name.
    parameters: dict[str, dict[str, str]] = field(default_factory=dict)
    #: The module whose call is the door, and whether it is a linear layer that is multiplied in pieces.
    door: str = ""
    in_pieces: bool = False


class _Pass(threading.Thread):
    """One forward pass, or several behind each other."""

    def __init__(self, work: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self.work = work
        self.turn, self.waits = threading.Event(), threading.Event()
        self.unit: _Unit | None = None
        self.given: Any = None
        self.result: Any = None
        self.error: BaseException | None = None
        self.abandoned = False

    def run(self) -> None:
        """Wait for the first turn, and work."""
        import torch

        try:
            self._sleep()
            with torch.no_grad():
                self.result = self.work()
        except BaseException as error:  # handed to who asked for the result
            self.error = error
        self.unit = None
        self.waits.set()

    def _sleep(self) -> None:
        import torch

        self.turn.wait()
        self.turn.clear()
        if self.abandoned:
            raise _Abandoned
        torch.set_num_threads(1)  # passes share the cores; teams of threads of their own would only wait for each other

    def wait_at(self, unit: _Unit, given: Any = None) -> Any:
        """Let others run until ``unit`` may be passed; what was made of ``given`` meanwhile."""
        self.unit, self.given = unit, given
        self.waits.set()
        self._sleep()
        return self.given

    def resume(self) -> None:
        """Run towards the next door, or the end, where ``waits`` is set."""
        self.waits.clear()
        self.turn.set()


class Lockstep:
    """A model's copies that share one block of numbers at a time.

    Args:
        model: A model whose parameters are empty (:func:`~edgepeft.base.streamed.load.load_in_place`).
        numbers: Its numbers.
    """

    def __init__(self, model: Any, numbers: Numbers) -> None:
        self._model, self._numbers = model, numbers
        self._units = _units(model)
        self._copies: list[dict[str, Any]] = []

    def copy(self) -> Any:
        """One more model to run, which PEFT may wrap."""
        shared = {id(parameter): parameter for parameter in self._model.parameters()}
        made = copy.deepcopy(self._model, shared)
        modules = dict(made.named_modules())
        self._copies.append({path: modules[path] for unit in self._units for path in unit.parameters})
        for unit in self._units:
            module = modules[unit.door]
            if unit.in_pieces:
                module.forward = _asking(unit)
            elif _is_large_table(module):
                module.forward = self._looking_up(module, unit)
            else:
                module.register_forward_pre_hook(_door(unit))
        return made

    def run(self, works: Sequence[Callable[[], T]]) -> list[T]:
        """What each of ``works`` returns; they may call any copies of the model.

        Raises:
            Exception: The first that one of them raises; the others are ended.
        """
        import torch

        cores = torch.get_num_threads()
        passes = [_Pass(work) for work in works]
        for each in passes:
            each.start()
        try:
            _go_on(passes, cores)
            while waiting := [each for each in passes if each.is_alive() and each.unit is not None]:
                _raise(passes)
                unit = max(self._units, key=lambda unit: sum(each.unit is unit for each in waiting))
                here = [each for each in waiting if each.unit is unit]
                torch.set_num_threads(cores)
                if unit.in_pieces:
                    self._multiply(unit, here)
                else:
                    self._fill(unit)
                _go_on(here, cores)
                if not unit.in_pieces:
                    self._empty(unit)
            _raise(passes)
        finally:
            for each in passes:
                each.abandoned = True
                each.turn.set()
            for each in passes:
                each.join()
            torch.set_num_threads(cores)
        return [each.result for each in passes]

    def _fill(self, unit: _Unit) -> None:
        import torch

        made: dict[str, Any] = {}
        for modules in self._copies:
            for path, leaves in unit.parameters.items():
                for leaf, name in leaves.items():
                    if name not in made:
                        made[name] = torch.nn.Parameter(_tensor(self._numbers.whole(name)), requires_grad=False)
                    modules[path]._parameters[leaf] = made[name]

    def _empty(self, unit: _Unit) -> None:
        empty = dict(self._model.named_parameters())
        for modules in self._copies:
            for path, leaves in unit.parameters.items():
                for leaf, name in leaves.items():
                    modules[path]._parameters[leaf] = empty[name]

    def _multiply(self, unit: _Unit, here: Sequence[_Pass]) -> None:
        """Give each pass the product of what it gave with a large linear layer."""
        import torch

        ((_, leaves),) = unit.parameters.items()
        count, columns = (int(dim) for dim in dict(self._model.named_parameters())[leaves["weight"]].shape)
        results = [torch.empty((*each.given.shape[:-1], count)) for each in here]
        step = max(1, LARGE // 2 // columns)
        for start in range(0, count, step):
            weight = _tensor(self._numbers.rows(leaves["weight"], slice(start, start + step)))
            for each, result in zip(here, results, strict=True):
                result[..., start : start + step] = torch.nn.functional.linear(each.given, weight)
        for each, result in zip(here, results, strict=True):
            if "bias" in leaves:
                result += _tensor(self._numbers.whole(leaves["bias"]))
            each.given = result

    def _looking_up(self, module: Any, unit: _Unit) -> Callable[..., Any]:
        """The forward of a table of which only the rows that are asked for are read."""
        import torch

        own, alone = type(module).forward, threading.Lock()
        name = unit.parameters[unit.door]["weight"]

        def forward(ids: Any) -> Any:
            used, places = torch.unique(ids, return_inverse=True)
            rows = torch.nn.Parameter(_tensor(self._numbers.rows(name, used.numpy())), requires_grad=False)
            with alone:
                empty, pad = module._parameters["weight"], module.padding_idx
                # What it pads with is a row of the whole table, and matters to training only.
                module._parameters["weight"], module.padding_idx = rows, None
                try:
                    return own(module, places)
                finally:
                    module._parameters["weight"], module.padding_idx = empty, pad

        return forward


def _tensor(numbers: np.ndarray) -> Any:
    """A tensor over an array that nobody writes into, read from its file or not."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that a mapped file cannot be written to
        return torch.from_numpy(np.ascontiguousarray(numbers))


def _go_on(passes: Sequence[_Pass], cores: int) -> None:
    """Let each pass run to its next door, so many at a time."""
    for start in range(0, len(passes), cores):
        together = passes[start : start + cores]
        for each in together:
            each.resume()
        for each in together:
            each.waits.wait()


def _raise(passes: Sequence[_Pass]) -> None:
    for each in passes:
        if each.error is not None:
            raise each.error


def _current() -> _Pass:
    thread = threading.current_thread()
    if not isinstance(thread, _Pass):
        raise RuntimeError("a model that is read block by block runs inside Lockstep.run only")
    return thread


def _door(unit: _Unit) -> Callable[..., None]:
    def wait(module: Any, arguments: Any) -> None:
        _current().wait_at(unit)

    return wait


def _asking(unit: _Unit) -> Callable[..., Any]:
    def forward(value: Any) -> Any:
        return _current().wait_at(unit, value)

    return forward


def _is_large_table(module: Any) -> bool:
    import torch

    if not isinstance(module, torch.nn.Embedding) or module.weight.numel() <= LARGE:
        return False
    return len(inspect.signature(type(module).forward).parameters) == 2  # the ids are the rows, and nothing else is


def _blocks(model: Any) -> Iterator[str]:
    """Paths of the model's layers: the entries of its outermost lists of modules."""
    import torch

    inside: list[str] = []
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.ModuleList) and not any(path.startswith(f"{other}.") for other in inside):
            inside.append(path)
            yield from (f"{path}.{number}" for number in range(len(module)))


def _units(model: Any) -> list[_Unit]:
    """The parts whose numbers are read together: each layer, and each module outside of them that has numbers of its own."""
    import torch

    names = {id(parameter): name for name, parameter in model.named_parameters()}
    blocks = {path: _Unit(door=path) for path in _blocks(model)}
    units: list[_Unit] = []
    for path, module in model.named_modules():
        own = {leaf: names[id(p)] for leaf, p in module._parameters.items() if p is not None}
        around = next((block for block in blocks if path == block or path.startswith(f"{block}.")), None)
        if path in blocks:
            units.append(blocks[path])
        if not own:
            continue
        if around is not None:
            blocks[around].parameters[path] = own
        else:
            large = type(module) is torch.nn.Linear and module.weight.numel() > LARGE
            units.append(_Unit({path: own}, path, in_pieces=large))
    return [unit for unit in units if unit.parameters]
