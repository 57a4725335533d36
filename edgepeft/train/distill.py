"""What an adapter says on the base's own weights, to be said on rounded ones: the target of ``--distill``.

Labels tell a network one token a place; what another network makes of the same place tells it the odds of all tokens, also where
the prompt stands, so few rows are enough (Hinton et al. 2015; for rounded weights Liu et al. 2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .encode import Tokens, collate

if TYPE_CHECKING:
    import torch

#: The likeliest tokens that are kept of each place; the rest of the odds counts as one token more.
_KEPT = 64
#: The most memory that they may take, in bytes.
_MOST_BYTES = 1 << 30
_BYTES = 4 + 4
#: Rest of the odds below which it is not told apart from none: float32 sums of 64 odds are exact to some 1e-6.
_LEAST = 1e-6


class Teacher:
    """The odds that a language model gives the next token at each place of each sequence.

    Args:
        model: The network as it is to be imitated.
        sequences: What is trained on.
        pad_id: A token to fill rows with.

    Raises:
        InputError: They would take more than 1 GiB.
    """

    def __init__(self, model: Any, sequences: Sequence[Tokens], pad_id: int) -> None:
        import torch

        tokens = sum(len(sequence.ids) for sequence in sequences)
        kept = min(_KEPT, int(model.get_input_embeddings().num_embeddings) - 1)
        if tokens * kept * _BYTES > _MOST_BYTES:
            raise InputError(
                f"--distill keeps {kept * _BYTES} bytes for each of {tokens:,} training tokens, more than "
                f"{_MOST_BYTES / 2**30:g} GiB; give fewer rows, for it needs few"
            )
        self._known: dict[int, tuple[Any, Any]] = {}
        training = model.training
        model.eval()
        try:
            with torch.no_grad():
                for sequence in sequences:
                    inputs = collate([[sequence]], pad_id)
                    inputs.pop("labels")
                    logits = model(**{name: value.to(model.device) for name, value in inputs.items()}).logits
                    logits = logits[0, -len(sequence.ids) : -1]  # virtual tokens stand before the text's own
                    odds, ids = torch.log_softmax(logits.float(), dim=-1).topk(kept)
                    self._known[id(sequence)] = odds.cpu(), ids.to(torch.int32).cpu()
        finally:
            model.train(training)

    def of(self, blocks: Sequence[Sequence[Tokens]], length: int) -> dict[str, torch.Tensor]:
        """The targets of ``blocks`` as :func:`.collate` lays them out: ``places``, ``odds`` and ``ids``.

        ``places`` ``[count]`` of ``[rows * length]`` are those of tokens that another one of the same sequence follows; ``odds``
        ``[count, kept]`` are logarithms, of the tokens ``ids``.
        """
        import torch

        places, odds, ids = [], [], []
        for row, block in enumerate(blocks):
            at = row * length
            for sequence in block:
                places.append(torch.arange(at, at + len(sequence.ids) - 1))
                mine = self._known[id(sequence)]
                odds.append(mine[0])
                ids.append(mine[1].long())
                at += len(sequence.ids)
        return {"places": torch.cat(places), "odds": torch.cat(odds), "ids": torch.cat(ids)}


def divergence(logits: torch.Tensor, target: dict[str, torch.Tensor]) -> torch.Tensor:
    """The sum over places of how far the odds of ``logits`` ``[rows, length, vocabulary]`` are from a teacher's, in nats.

    The Kullback-Leibler divergence from the teacher's odds, over its likeliest tokens and one that stands for all others: a lower
    bound of that over all tokens.
    """
    import torch

    mine = logits.flatten(0, 1)[target["places"]].float()
    log_odds = mine.gather(1, target["ids"]) - torch.logsumexp(mine, dim=1, keepdim=True)
    theirs = target["odds"]
    rest = (1 - theirs.exp().sum(dim=1)).clamp(min=_LEAST)
    my_rest = (1 - log_odds.exp().sum(dim=1)).clamp(min=_LEAST)
    told = (theirs.exp() * (theirs - log_odds)).sum(dim=1) + rest * (rest.log() - my_rest.log())
    return told.sum()
