"""What an export gives, and what every mode of it says and records."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..adapters import Adapter
from ..adapters.checkpoint import Checkpoint
from ..base.base import Base
from ..base.task import task_of
from ..bundle import Bundle
from ..embedding.modules import EmbeddingModules
from ..validate.result import AdapterParity
from ._embedding import read_embedding

Announce = Callable[[str], None]
#: :func:`write_bundle` with what all bundles of one export share.
Write = Callable[..., Bundle]


@dataclass(frozen=True)
class Exported:
    """The bundles that were written (merge writes one an adapter) and each adapter's difference from PEFT."""

    bundles: tuple[Bundle, ...]
    parity: tuple[AdapterParity, ...]
    capture_parity: float


def embeddings_of(base: Base, checkpoints: Mapping[str, Checkpoint], announce: Announce) -> dict[str, EmbeddingModules]:
    """How adapters embed texts, those whose folders say so."""
    found = {}
    for name, checkpoint in checkpoints.items():
        task = task_of(checkpoint.config.get("task_type")) or base.task
        modules = read_embedding(name, checkpoint, task, base.files, base.max_length, announce)
        if modules is not None:
            found[name] = modules
    return found


def checkpoint_hashes(read: list[Adapter]) -> dict[str, str]:
    """sha256 of each checkpoint's weights: which training run a bundle holds."""
    return {adapter.name: adapter.checkpoint_sha256 for adapter in read}


def announce_parity(parity: list[AdapterParity], announce: Announce) -> None:
    """Say how far each adapter is from PEFT, and which changes nothing."""
    for result in parity:
        why = f", allowed {result.allowed:.1e}: {result.noise}" if result.noise else ""
        announce(f"adapter {result.adapter}: {result.max_difference:.1e} from PEFT{why}")
        if not result.changes_output:
            announce(
                f"adapter {result.adapter}: WARNING, it changes nothing (its B matrices are zero: was it trained?)"
            )
