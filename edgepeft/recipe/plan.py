"""A recipe file as the steps it stands for, each a call of the command line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..errors import InputError
from ..spelling import did_you_mean
from ..toml_file import read_toml

#: The steps in their order: what stands in the file, the command, and whether a table stands for each by name.
_STEPS = (
    ("train", ("train",), True),
    ("export", ("export",), False),
    ("quantize", ("quantize",), True),
    ("validate", ("validate",), False),
    ("bench", ("bench",), False),
    ("check", ("check",), False),
    ("report", ("report",), False),
    ("pack", ("targets", "pack"), True),
)
_TABLES = ("recipe", "adapters", *(name for name, _, _ in _STEPS))
#: What the recipe itself says, and a step's table may not.
_GIVEN = {
    "train": {"model", "out"},
    "export": {"model", "adapter", "out", "dry-run"},
    "quantize": {"variant", "replace"},
    "pack": {"target", "out", "dry-run"},
}


class Options(Protocol):
    """What the command line knows of a command's options: their names without dashes, those that are flags, and repeatable ones."""

    @property
    def names(self) -> frozenset[str]: ...  # noqa: D102 - said above

    @property
    def flags(self) -> frozenset[str]: ...  # noqa: D102

    @property
    def repeatable(self) -> frozenset[str]: ...  # noqa: D102


@dataclass(frozen=True)
class Step:
    """One call: its name (``quantize.int8``), the arguments, and what it leaves behind.

    ``makes`` is a folder that it writes by itself, ``changes`` the bundle that it changes, both relative to the recipe's folder.
    """

    name: str
    arguments: tuple[str, ...]
    makes: str | None = None
    changes: str | None = None


@dataclass(frozen=True)
class Recipe:
    """A recipe: the folder that its paths are relative to, where results go, and the steps in their order."""

    folder: Path
    out: str
    steps: tuple[Step, ...]

    @property
    def bundle(self) -> str:
        """The bundle's folder, relative to the recipe's."""
        return f"{self.out}/bundle"


def read_recipe(path: str | Path, options: Mapping[tuple[str, ...], Options]) -> Recipe:
    """Read a recipe. Every table and key is checked before anything is run.

    Args:
        path: The TOML file.
        options: What each command takes, by its words: ``("targets", "pack")``.

    Returns:
        The recipe with its steps.

    Raises:
        InputError: The file is not there, is no TOML, or holds a table, key or value that nothing takes.
    """
    path = Path(path)
    tables = read_toml(path, "a recipe is a TOML file (docs/recipes.md shows one)")
    for name, table in tables.items():
        if name not in _TABLES:
            raise InputError(
                f"{path}: there is no step [{name}]{did_you_mean(name, _TABLES)}; steps: {', '.join(_TABLES[2:])}"
            )
        if not isinstance(table, dict):
            raise InputError(f"{path}: {name} must be a table, [{name}]")
    head = tables.get("recipe", {})
    if unknown := sorted(set(head) - {"model", "out"}):
        raise InputError(f"{path}: [recipe] has no key {unknown[0]!r}; it takes model and out")
    model, out = _text(path, "recipe.model", head.get("model")), _text(path, "recipe.out", head.get("out", "build"))
    trained = {name: f"{out}/adapters/{name}" for name in tables.get("train", {})}
    given = {name: _text(path, f"adapters.{name}", value) for name, value in tables.get("adapters", {}).items()}
    if twice := sorted(trained.keys() & given.keys()):
        raise InputError(
            f"{path}: adapter {twice[0]!r} is trained and given; leave out one of [train.{twice[0]}] and adapters.{twice[0]}"
        )
    bundle = f"{out}/bundle"
    steps: list[Step] = []
    for name, command, each in _STEPS:
        if name == "export":
            tables.setdefault("export", {})  # whatever follows is done to its bundle
        if name not in tables:
            continue
        for key, table in (tables[name] if each else {"": tables[name]}).items():
            where = f"{name}.{key}" if key else name
            if not isinstance(table, dict):
                raise InputError(f"{path}: {where} must be a table, [{where}]")
            own = _arguments(path, where, table, options[command], _GIVEN.get(name, set()))
            match name:
                case "train":
                    steps.append(
                        Step(where, (*command, "--model", model, "--out", trained[key], *own), makes=trained[key])
                    )
                case "export":
                    pairs = [f"--adapter={n}={source}" for n, source in {**trained, **given}.items()]
                    start = (*command, "--model", model, *pairs, "--out", bundle)
                    steps.append(Step(where, (*start, *own), changes=bundle))
                case "quantize":
                    steps.append(Step(where, (*command, bundle, "--variant", key, "--replace", *own), changes=bundle))
                case "pack":
                    to = f"{out}/{Path(key).stem}"
                    steps.append(Step(where, (*command, bundle, "--target", key, "--out", to, *own), makes=to))
                case _:
                    steps.append(Step(where, (*command, bundle, *own)))
    return Recipe(path.parent, out, tuple(steps))


def _text(path: Path, key: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        said = "is missing" if value is None else f"must be a text, found {value!r}"
        raise InputError(f"{path}: {key} {said}")
    return value


def _arguments(path: Path, where: str, table: Mapping[str, Any], options: Options, given: Iterable[str]) -> list[str]:
    """A step's keys as arguments: ``max_drop = 0.01``, a list for an option that is repeated, a table for NAME=VALUE pairs."""
    found: list[str] = []
    for key, value in table.items():
        name = key.replace("_", "-")
        if name in given:
            raise InputError(f"{path}: [{where}] {key}: the recipe says that itself")
        if name not in options.names or name in {"json", "verbose", "quiet", "log-file", "help"}:
            raise InputError(f"{path}: [{where}] has no key {key!r}{did_you_mean(name, options.names)}")
        if name in options.flags:
            if not isinstance(value, bool):
                raise InputError(f"{path}: [{where}] {key} must be true or false, found {value!r}")
            found += [f"--{name}"] if value else []
            continue
        if isinstance(value, dict):
            values = [f"{inner}={each}" for inner, each in value.items()]
        else:
            values = [str(each) for each in (value if isinstance(value, list) else [value])]
        if isinstance(value, bool) or (len(values) != 1 and name not in options.repeatable):
            raise InputError(f"{path}: [{where}] {key} takes one value, found {value!r}")
        found += [f"--{name}={each}" for each in values]
    return found
