"""A classifier's teacher: what another network says of each training row, learnt in place of the labels.

``--distill`` imitates on rounded weights what the adapter that is started from says on the base's own; ``--teacher`` a whole model,
larger or fine-tuned whole. Odds tell more of a row than its label does (Hinton et al. 2015).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..bundle.heads import ProblemType
from ..errors import InputError
from .batches import Collator, Row, sorted_batches
from .device import training_device
from .problem import Problem
from .processes import group
from .tokenizer import HubTokenizer

if TYPE_CHECKING:
    import torch

    from .source import Split
    from .steps import Run

#: What logits are divided by before they become odds. A network that has learnt its rows is sure of nearly all of them, and odds of
#: one against thousands tell little.
_TEMPERATURE = 2.0
#: Tokens of a row that a teacher reads at most.
_MOST_TOKENS = 512
_EVALUATION_BATCH = 32


@dataclass(frozen=True)
class Taught:
    """What an adapter learnt from.

    ``score`` is the teacher's accuracy on the validation rows (of numbers: its mean error). ``same`` is the share of these rows of
    which the adapter says what the teacher says: its label, or its set of labels; of numbers it is ``None``.
    """

    teacher: str
    score: float
    same: float | None

    def __str__(self) -> str:
        """As it is printed."""
        if self.same is None:
            return f"taught by {self.teacher} (mean error {self.score:.3f})"
        return (
            f"taught by {self.teacher} (accuracy {self.score:.3f}); the adapter says the same of {100 * self.same:.1f} % of the "
            "validation rows"
        )


class Teacher:
    """What a network says of the rows: ``[rows, labels]`` of the training rows, and ``[held, labels]`` of the validation rows.

    Args:
        name: The network, as messages name it.
        identity: Of its weights.
        rows: The training rows.
        said: Its logits of them.
        said_of_held: Its logits of the validation rows.
        kind: What a row's label is.
    """

    def __init__(
        self,
        name: str,
        identity: str,
        rows: Sequence[Row],
        said: npt.NDArray[np.float32],
        said_of_held: npt.NDArray[np.float32],
        kind: ProblemType,
    ) -> None:
        self.name, self.identity, self.said_of_held, self._kind = name, identity, said_of_held, kind
        self._known = {id(row): mine for row, mine in zip(rows, said, strict=True)}

    def loss(self, run: Run, rows: Sequence[Row]) -> torch.Tensor:
        """How far ``run`` is from the teacher on a batch: what :class:`.Run` takes as ``loss_of``."""
        import torch

        logits = run.forward(rows).logits
        theirs = torch.from_numpy(np.stack([self._known[id(row)] for row in rows])).to(logits.device)
        return distance(logits, theirs, self._kind)

    def taught(self, mine: npt.NDArray[np.floating], held: Sequence[Row], problem: Problem) -> Taught:
        """The teacher beside the adapter, whose logits of the validation rows ``held`` are ``mine`` ``[held, labels]``."""
        targets = np.array([row.target for row in held])
        score = float(problem.row_scores(self.said_of_held, targets).mean())
        if self._kind == "regression":
            return Taught(self.name, score, None)
        if self._kind == "single_label_classification":
            same = mine.argmax(axis=1) == self.said_of_held.argmax(axis=1)
        else:
            same = ((mine > 0) == (self.said_of_held > 0)).all(axis=1)
        return Taught(self.name, score, float(same.mean()))


def distance(mine: torch.Tensor, theirs: torch.Tensor, kind: ProblemType) -> torch.Tensor:
    """How far logits ``mine`` ``[rows, labels]`` are from a teacher's: the mean over rows, 0 where they say the same.

    The Kullback-Leibler divergence from the teacher's odds, both at a temperature and times its square, so that gradients are as
    large as without (Hinton et al. 2015); of any number of labels the sum over them; of numbers the squared difference.
    """
    from torch.nn import functional

    mine, theirs = mine.float(), theirs.float()
    if kind == "regression":
        return functional.mse_loss(mine, theirs)
    mine, theirs = mine / _TEMPERATURE, theirs / _TEMPERATURE
    if kind == "single_label_classification":
        found = functional.kl_div(
            functional.log_softmax(mine, -1), functional.log_softmax(theirs, -1), reduction="batchmean", log_target=True
        )
    else:
        odds = theirs.sigmoid()
        each = functional.binary_cross_entropy_with_logits(mine, odds, reduction="none")
        least = functional.binary_cross_entropy_with_logits(theirs, odds, reduction="none")
        found = (each - least).sum(dim=1).mean()
    return _TEMPERATURE**2 * found


def logits_now(model: Any, tokenizer: HubTokenizer, rows: Sequence[Row]) -> npt.NDArray[np.float32]:
    """Logits ``[rows, labels]`` of a network as it is, in the order of ``rows``. Several processes share the rows."""
    import torch

    device = training_device()
    collate = Collator(tokenizer, device)
    training = model.training
    model.to(device).eval()
    mine = []
    try:
        with torch.no_grad():
            for places, part in group().share(list(sorted_batches(rows, _EVALUATION_BATCH))):
                batch = collate(part)
                batch.pop("labels")
                mine += list(zip(places, model(**batch).logits.float().cpu().numpy(), strict=True))
    finally:
        model.train(training)
    return np.stack([logits for _, logits in sorted(chain(*group().gathered(mine)), key=itemgetter(0))])


def model_teacher(source: str | Path, split: Split, rows: Sequence[Row]) -> Teacher:
    """A whole classifier as the teacher: it reads the texts with its own tokenizer, up to 512 tokens.

    Args:
        source: Its folder or Hugging Face id.
        split: The rows as texts.
        rows: The training rows, encoded for the network that learns.

    Raises:
        InputError: It cannot be loaded, has no trained head, or has not all of the labels.
    """
    from ..base.load import check_source

    try:
        check_source(str(source))
    except InputError as error:
        raise InputError(f"cannot load --teacher {source}: {error}") from error
    from .base import load_base, token_limit
    from .workbench import encode

    problem = split.problem
    names = _label_names(source, problem)
    base = load_base(source, names, problem.kind)
    if base.fresh:
        raise InputError(
            f"--teacher {source} has no trained head ({', '.join(base.fresh)} is not in its checkpoint): it says nothing. Give a "
            "model that was fine-tuned for these labels"
        )
    places = [names.index(label) for label in problem.labels]
    limit = min(_MOST_TOKENS, token_limit(base.tokenizer, base.model.config))
    own = Problem(problem.kind, tuple(names))

    def said(texts: Any) -> npt.NDArray[np.float32]:
        return np.ascontiguousarray(
            logits_now(base.model, base.tokenizer, encode(base.tokenizer, texts, own, limit)[0])[:, places]
        )

    return Teacher(str(source), base.identity, rows, said(split.train), said(split.validation), problem.kind)


def _label_names(source: str | Path, problem: Problem) -> list[str]:
    """A classifier's labels in the order of its logits, which must hold those of ``problem``."""
    from transformers import AutoConfig

    from ..base.sources import model_source

    try:
        config: Any = AutoConfig.from_pretrained(model_source(str(source)), trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"cannot load --teacher {source}: {error}") from error
    names = [str(config.id2label[place]) for place in sorted(config.id2label)]
    if problem.kind == "regression":
        if len(names) != 1:
            raise InputError(f"--teacher {source} has {len(names)} outputs, and a number a row needs one")
        return list(problem.labels)
    if lacking := [label for label in problem.labels if label not in names]:
        raise InputError(
            f"--teacher {source} does not know the label{'s' if len(lacking) > 1 else ''} {', '.join(lacking)}; it has "
            f"{', '.join(names)}. Write the labels of the rows into id2label of its config.json, in the order of its outputs"
        )
    return names


def check_teacher(distill: bool, teacher: str | Path | None, deploy_variant: str | None, starts: bool) -> None:
    """Refuse what cannot be taught, before anything is loaded.

    Raises:
        InputError: ``distill`` without an adapter to start from or without a variant; two teachers.
    """
    if distill and (deploy_variant is None or not starts):
        raise InputError(
            "--distill needs --from, the adapter that was trained on the base's own weights and is imitated, and --deploy-variant, "
            "the rounded weights on which it is"
        )
    if distill and teacher is not None:
        raise InputError("--distill imitates the adapter of --from, and --teacher another model; leave one of them out")
