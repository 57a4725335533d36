"""The demo's two language adapters on SmolLM2-135M: ``support`` answers technical questions, ``austen`` writes novels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from . import assets
from .corpora import NOVELS
from .fetch import derive

if TYPE_CHECKING:
    from ..train import TrainedLanguageAdapter

#: The novel that `austen` never sees.
HELD_OUT = "emma"

#: Settings that differ from :func:`edgepeft.train.train_language_adapter`'s own.
SETTINGS: dict[str, dict[str, Any]] = {
    # Prompts and completions through the chat template; of 118 distinct exchanges 29 are held out.
    "support": {"max_length": 256, "batch_size": 4, "epochs": 2, "learning_rate": 1e-3, "validation_fraction": 0.25},
    # Five novels; 4,080 tokens of the sixth are measured. 32 steps of 4 x 256 tokens are a twentieth of an epoch.
    "austen": {
        "max_length": 256,
        "batch_size": 4,
        "max_steps": 32,
        "learning_rate": 1e-3,
        "max_validation_tokens": 4096,
    },
}


def train_language_demo(
    name: str, out: str | Path, *, progress: bool | None = None, threads: int | None = None
) -> TrainedLanguageAdapter:
    """Train ``support`` or ``austen`` (:data:`SETTINGS`) over :func:`.assets.smollm2` into the folder ``out``."""
    from ..train import train_language_adapter

    if name not in SETTINGS:
        raise InputError(f"no language adapter {name!r} in the demo; there are {', '.join(SETTINGS)}")
    train: Callable[..., TrainedLanguageAdapter] = train_language_adapter
    options = {**SETTINGS[name], "progress": progress, "threads": threads}
    if name == "support":
        return train(assets.smollm2(), assets.chatterbot() / "support.jsonl", out, **options)
    return train(assets.smollm2(), _novels(), out, validation=assets.austen() / f"{HELD_OUT}.txt", **options)


def _novels() -> Path:
    """Folder of the five novels to train on."""
    files = tuple(f"{novel}.txt" for novel in NOVELS if novel != HELD_OUT)

    def make(folder: Path, _: Path) -> None:
        for file in files:
            (folder / file).write_bytes((assets.austen() / file).read_bytes())

    return derive(f"austen-without-{HELD_OUT}", ("janeaustenr",), "1", files, make)
