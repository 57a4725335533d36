"""Several corpora for one language model: how their sequences are packed, and the order in which a mixture draws them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from .encode import Tokens, pack
from .mixing import Mixture, mixture_of


def mixed_blocks(
    train: Sequence[Tokens], packed_length: int | None, temperature: float, seed: int
) -> tuple[list[list[Tokens]], Mixture | None]:
    """What a batch is made of, and how it is drawn; ``None`` for each block once an epoch.

    Without packing a block is one sequence. Packed blocks hold sequences of one source where sources are mixed, or a block could
    not be drawn for the one and not for the other.

    Args:
        train: Sequences of all sources.
        packed_length: Tokens of a block; ``None`` for no packing.
        temperature: Of the :class:`.Mixture`.
        seed: Of its orders.
    """
    if packed_length is None:
        blocks = [[sequence] for sequence in train]
    elif temperature == 1:
        blocks = pack(train, packed_length)
    else:
        sources = sorted({sequence.source for sequence in train})
        blocks = [
            block
            for source in sources
            for block in pack([sequence for sequence in train if sequence.source == source], packed_length)
        ]
    return blocks, mixture_of([block[0].source for block in blocks], temperature, seed)


def shares_of(train: Sequence[Tokens], mixture: Mixture | None) -> tuple[float, ...]:
    """Each source's part of the draws: of a mixture, else by its number of sequences."""
    if mixture is not None:
        return tuple(map(float, mixture.shares))
    counts = np.bincount([sequence.source for sequence in train])
    return tuple(map(float, counts / counts.sum()))


class MixedOrder:
    """A sampler that draws the blocks of an epoch from a mixture.

    The order follows from the seed and the number of the epoch alone, so a training that goes on within an epoch draws it again.

    Args:
        mixture: Says which blocks an epoch has.
        lengths: The length of each block, to put those of similar length into one batch; ``None`` for any order.
        together: How many blocks a step takes.
        seed: Of the order.
        epoch: Gives the number of the epoch that begins, from 0.
    """

    def __init__(
        self, mixture: Mixture, lengths: Sequence[int] | None, together: int, seed: int, epoch: Callable[[], int]
    ) -> None:
        self._mixture, self._lengths, self._together, self._seed, self._epoch = mixture, lengths, together, seed, epoch

    def __len__(self) -> int:
        return len(self._mixture)

    def __iter__(self) -> Iterator[int]:
        import torch
        from transformers.trainer_pt_utils import get_length_grouped_indices

        number = self._epoch()
        places = self._mixture.epoch(number)
        generator = torch.Generator().manual_seed(
            int(np.random.SeedSequence([self._seed, number]).generate_state(1)[0])
        )
        if self._lengths is None:
            order = torch.randperm(len(places), generator=generator).tolist()
        else:
            lengths = [self._lengths[place] for place in places]
            order = get_length_grouped_indices(lengths, self._together, generator=generator)
        return iter([places[each] for each in order])
