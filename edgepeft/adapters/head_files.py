"""What the outputs of an adapter's head mean, as files and options say it: PEFT itself saves no names with an adapter."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..bundle import Head
from ..bundle.heads import ACTIVATIONS, PROBLEM_TYPES, Activation, ProblemType, is_numbered
from ..errors import AdapterError, InputError
from ..strict_json import kind, read_json, read_object
from .checkpoint import Checkpoint

#: Files beside an adapter that hold nothing but label names.
LABEL_FILES = ("labels.txt", "labels.json", "id2label.json")
#: Most labels and characters of one: what a manifest takes.
_MAX_LABELS, _MAX_CHARACTERS = 2**20, 4096
#: The class that a config of sentence-transformers' CrossEncoder names, and what it computes.
_MODULES: dict[str, Activation] = {"Identity": "identity", "Sigmoid": "sigmoid", "Softmax": "softmax"}


def labels_in(value: Any, where: str) -> tuple[str, ...]:
    """Label names in order, from a list, from ``{"0": "no", "1": "yes"}`` or from ``{"no": 0, "yes": 1}``.

    Raises:
        InputError: Names ``where`` and what is wrong: another type, a number that is missing, a name that stands twice.
    """
    if isinstance(value, Mapping):
        by_name = bool(value) and all(isinstance(each, int) and not isinstance(each, bool) for each in value.values())
        pairs = {number: name for name, number in value.items()} if by_name else dict(value)
        try:
            numbers = {int(number): name for number, name in pairs.items()}
        except (TypeError, ValueError):
            raise InputError(f'{where}: expected label names by number, such as {{"0": "no"}}') from None
        if sorted(numbers) != list(range(len(value))):
            raise InputError(f"{where}: labels must be numbered 0 to {len(value) - 1}, found {sorted(numbers)[:8]}")
        value = [numbers[number] for number in range(len(numbers))]
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise InputError(f"{where}: expected a list of label names, found {kind(value)}")
    for name in value:
        if not isinstance(name, str) or not name.strip() or len(name) > _MAX_CHARACTERS:
            raise InputError(
                f"{where}: a label name is a text of 1 to {_MAX_CHARACTERS} characters, found {name!r:.60}"
            )
    if not 0 < len(value) <= _MAX_LABELS:
        raise InputError(f"{where} names {len(value)} labels; 1 to {_MAX_LABELS:,} can be named")
    twice = (
        next((name for place, name in enumerate(value) if name in value[:place]), None) if len(value) < 4096 else None
    )
    if twice is not None:
        raise InputError(f"{where} names the label {twice!r} twice")
    return tuple(value)


def read_label_file(path: Path) -> tuple[str, ...]:
    """Label names from a file: one a line (``.txt``), a JSON list or mapping, or the ``id2label`` of a ``config.json``."""
    if path.suffix.lower() != ".json":
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read label names from {path}: {error}") from error
        return labels_in([line.strip() for line in lines if line.strip()], str(path))
    value = read_json(path)
    if isinstance(value, dict) and isinstance(value.get("id2label") or value.get("labels"), (dict, list)):
        value = value.get("id2label") or value["labels"]
    return labels_in(value, str(path))


def parse_labels(value: str, where: str) -> tuple[str, ...]:
    """The labels that an option names: ``a,b,c``, or a file of them."""
    path = Path(value)
    if path.is_file():
        return read_label_file(path)
    if path.suffix.lower() in {".txt", ".json"}:
        raise InputError(f"{where}: there is no file {value}")
    return labels_in([name.strip() for name in value.split(",")], where)


def parse_problem_type(value: str, where: str) -> ProblemType:
    """A problem type by its name or by a short form of it (``multi_label``)."""
    found = next((name for name in PROBLEM_TYPES if value in (name, name.removesuffix("_classification"))), None)
    if found is None:
        raise InputError(f"{where}: problem type {value!r} is unknown; it is one of: {', '.join(PROBLEM_TYPES)}")
    return found


def parse_activation(value: str, where: str) -> Activation:
    """An activation by its name."""
    found = next((name for name in ACTIVATIONS if value == name), None)
    if found is None:
        raise InputError(f"{where}: activation {value!r} is unknown; it is one of: {', '.join(ACTIVATIONS)}")
    return found


def head_in_config(config: Mapping[str, Any]) -> Head:
    """What a model's ``config.json`` says of its head: ``id2label``, ``problem_type``, the activation of a cross-encoder.

    Names that are only numbered (``LABEL_0``) are none. An activation that is none of ours is left out.
    """
    names = config.get("id2label")
    labels = labels_in(names, "id2label") if isinstance(names, Mapping) and names else None
    problem = next((each for each in PROBLEM_TYPES if config.get("problem_type") == each), None)
    marks = config.get("sentence_transformers")
    module = marks.get("activation_fn") if isinstance(marks, Mapping) else None
    module = module or config.get("sbert_ce_default_activation_function") or config.get("activation_fn")
    activation = _MODULES.get(str(module).rpartition(".")[2]) if module else None
    return Head(None if is_numbered(labels) else labels, problem, activation)


def head_beside(checkpoint: Checkpoint) -> tuple[Head, str]:
    """What the folder of an adapter says of its head, and the name of the file that has its labels (or is empty).

    edgepeft's own record of a training run comes first, then a ``config.json`` that lies in the folder, then a file of names. Of a
    ``checkpoint-500`` that Trainer wrote, the folder of the run is read too.

    Raises:
        AdapterError: A file there cannot be read.
    """
    record = checkpoint.record
    own = Head(checkpoint.labels)
    try:
        if isinstance(record.get("problem_type"), str):
            own = replace(own, problem_type=parse_problem_type(record["problem_type"], "edgepeft_adapter.json"))
        found = "edgepeft_adapter.json" if own.labels is not None else ""
        run = (
            [checkpoint.path.resolve().parent]
            if re.fullmatch(r"checkpoint-[0-9]+", checkpoint.path.resolve().name)
            else []
        )
        for folder in (checkpoint.path, *run):
            config = folder / "config.json"
            if config.is_file():
                said = head_in_config(read_object(config, finite=False))
                found = found or ("config.json" if said.labels is not None else "")
                own = Head(
                    own.labels or said.labels, own.problem_type or said.problem_type, own.activation or said.activation
                )
            for name in LABEL_FILES:
                if own.labels is None and (folder / name).is_file():
                    own, found = replace(own, labels=read_label_file(folder / name)), name
    except InputError as error:
        raise AdapterError(f"{checkpoint.path}: {error}") from error
    return own, found
