"""Which task a call to train is for, where it is not said."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from ..data_files import is_row_file, read_rows
from ..errors import DataError, InputError
from ..strict_json import read_object
from .corpus import Columns, kind_of, text_files

TASKS = ("text-classification", "text-generation")


def choose_task(model: str | Path, data: str | Path, *, label: str, columns: Columns) -> str:
    """``text-generation`` or ``text-classification``: as the columns of ``data`` say, else as ``model`` is built.

    Conversations, prompts with completions and text files are for generation, rows with a label for classification. Of
    bare texts and of ``datasets`` ids nothing is known before they are loaded: there the architecture decides.
    """
    path = Path(data)
    if text_files(path):
        return "text-generation"
    if is_row_file(path):
        if not path.is_file():
            return "text-classification"  # whose reader says that there is no such file
        try:
            row = next((row for _, row in read_rows(path)), {})
        except DataError:
            row = {}  # the reader of the task says what is wrong with the file
        if label in row:
            return "text-classification"
        if kind_of(row, columns) in {"messages", "completion"}:
            return "text-generation"
    return "text-generation" if _is_causal(model) else "text-classification"


def _is_causal(model: str | Path) -> bool:
    """By the model's ``config.json`` alone, so that what is wrong with the rows is said before transformers is imported."""
    if find_spec("transformers") is None:
        return False  # training itself says which extra is missing
    from ..base.load import check_source

    check_source(str(model))
    from ..base.sources import model_source

    try:
        if Path(model).exists():
            config = Path(model_source(str(model))) / "config.json"
        else:
            from huggingface_hub import hf_hub_download

            config = Path(hf_hub_download(str(model), "config.json"))
        architectures = read_object(config, finite=False).get("architectures")
    except (OSError, InputError):
        return False  # loading the model for a task says what is wrong with it
    return isinstance(architectures, list) and any(is_causal(str(name)) for name in architectures)


def is_causal(architecture: str) -> bool:
    """Whether a class name from a config's ``architectures`` is that of a causal language model."""
    return architecture.endswith(("ForCausalLM", "LMHeadModel"))
