"""The canonical form of an adapter: its edits, by site, and what they were made for.

Every PEFT method is lowered to these five edits when it is read; graphs and the runtime know nothing else.
Arrays are float32, C-contiguous and laid out as the graph uses them (``x @ A``), not as PyTorch stores them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..bundle.heads import Activation, ProblemType
from ..errors import AdapterError
from .folder_text import NO_FOLDER_TEXT, FolderText

#: float32 once an edit holds it; what is given to one may be wider.
Array = np.ndarray[Any, np.dtype[Any]]


def _float32(array: np.ndarray, ndim: int | None, what: str) -> Array:
    if ndim is not None and array.ndim != ndim:
        raise AdapterError(f"{what} must have {ndim} dimension(s), found shape {array.shape}")
    result = np.ascontiguousarray(array, dtype=np.float32)
    if not np.isfinite(result).all():
        raise AdapterError(f"{what} holds NaN or infinite numbers; the adapter was damaged or training diverged")
    return result


@dataclass(frozen=True)
class LowRank:
    """``y += (x A) B`` with the scaling folded into B. ``a``: ``[in, rank]``, ``b``: ``[rank, out]``."""

    a: Array
    b: Array

    def __post_init__(self) -> None:
        object.__setattr__(self, "a", _float32(self.a, 2, "LowRank.a"))
        object.__setattr__(self, "b", _float32(self.b, 2, "LowRank.b"))
        if self.a.shape[1] != self.b.shape[0]:
            raise AdapterError(f"LowRank: A {self.a.shape} and B {self.b.shape} differ in rank")

    @property
    def rank(self) -> int:
        """The inner dimension."""
        return int(self.a.shape[1])

    def delta(self) -> Array:
        """What is added to the weight, as ``[in, out]``."""
        return self.a @ self.b


@dataclass(frozen=True)
class OutGain:
    """``y = g * (W x + (x A) B) + b``. ``gain``: ``[out]``."""

    gain: Array

    def __post_init__(self) -> None:
        object.__setattr__(self, "gain", _float32(self.gain, 1, "OutGain.gain"))


@dataclass(frozen=True)
class InGain:
    """``x = l * x`` before the site. ``gain``: ``[in]``."""

    gain: Array

    def __post_init__(self) -> None:
        object.__setattr__(self, "gain", _float32(self.gain, 1, "InGain.gain"))


@dataclass(frozen=True)
class Override:
    """``tensor`` replaces the base's parameter of that name, in PyTorch's layout (a linear weight is ``[out, in]``)."""

    tensor: Array

    def __post_init__(self) -> None:
        object.__setattr__(self, "tensor", _float32(self.tensor, None, "Override.tensor"))


@dataclass(frozen=True)
class Prefix:
    """Key/value states that stand before the sequence: ``[layers, 2, heads, length, head_dim]``."""

    states: Array

    def __post_init__(self) -> None:
        object.__setattr__(self, "states", _float32(self.states, 5, "Prefix.states"))


@dataclass(frozen=True)
class SiteEdit:
    """All edits at one linear site, applied in the order of the house formula ``y = g * (W (l x) + (l x A) B) + b``."""

    low_rank: LowRank | None = None
    out_gain: OutGain | None = None
    in_gain: InGain | None = None

    def __post_init__(self) -> None:
        if self.low_rank is None and self.out_gain is None and self.in_gain is None:
            raise AdapterError("a SiteEdit needs at least one edit")
        widths = {e.b.shape[1] if isinstance(e, LowRank) else e.gain.shape[0] for e in self._outs()}
        heights = {e.a.shape[0] if isinstance(e, LowRank) else e.gain.shape[0] for e in self._ins()}
        if len(widths) > 1 or len(heights) > 1:
            raise AdapterError(f"edits at one site disagree on its sizes: in {sorted(heights)}, out {sorted(widths)}")

    def _outs(self) -> list[LowRank | OutGain]:
        return [edit for edit in (self.low_rank, self.out_gain) if edit is not None]

    def _ins(self) -> list[LowRank | InGain]:
        return [edit for edit in (self.low_rank, self.in_gain) if edit is not None]

    @property
    def in_features(self) -> int | None:
        """Input width where an edit fixes it."""
        return next((int(e.a.shape[0] if isinstance(e, LowRank) else e.gain.shape[0]) for e in self._ins()), None)

    @property
    def out_features(self) -> int | None:
        """Output width where an edit fixes it."""
        return next((int(e.b.shape[1] if isinstance(e, LowRank) else e.gain.shape[0]) for e in self._outs()), None)

    @property
    def rank(self) -> int:
        """Rank of the low-rank part, 0 without one."""
        return self.low_rank.rank if self.low_rank is not None else 0


@dataclass(frozen=True)
class Exactness:
    """How closely an adapter's edits repeat what PEFT computes."""

    #: The largest ``||Δ - AB|| / ||Δ||`` (Frobenius) of any site that was factored by SVD; 0 where nothing was cut off.
    residual: float = 0.0
    #: The largest rank that an SVD chose, 0 where none was needed.
    rank: int = 0

    @property
    def exact(self) -> bool:
        """Whether the edits are a closed form of the method, exact up to float32 rounding."""
        return self.rank == 0

    def __str__(self) -> str:
        return "exact" if self.exact else f"SVD, rank {self.rank}, residual {self.residual:.1e}"


@dataclass(frozen=True)
class Adapter:
    """A name, its edits and its contract with one base.

    ``sites`` maps a Hugging Face module path to the edits of its linear map; ``overrides`` maps a parameter path
    (``classifier.weight``) to the tensor that replaces it. ``base_identity`` is known for adapters that edgepeft trained
    or exported; for a foreign checkpoint it is ``None`` and ``base_name`` (as PEFT recorded it) stands in.
    """

    name: str
    method: str
    sites: Mapping[str, SiteEdit]
    overrides: Mapping[str, Override] = field(default_factory=dict)
    prefix: Prefix | None = None
    labels: tuple[str, ...] | None = None
    #: What its head's outputs mean and what makes scores of them, where its folder or its user says so.
    problem_type: ProblemType | None = None
    activation: Activation | None = None
    #: The task it is for, as its checkpoint says.
    task: str | None = None
    base_identity: str | None = None
    base_name: str | None = None
    source: str = ""
    #: sha256 of the weights file it was read from, empty where there was none.
    checkpoint_sha256: str = ""
    #: What was done to lower it that its users should know, one sentence each.
    notes: tuple[str, ...] = ()
    exactness: Exactness = Exactness()
    #: What its folder says about text: tokenizer, special tokens, chat templates, generation defaults.
    text: FolderText = NO_FOLDER_TEXT
    #: Why the adapter can only be merged, empty where it can be swapped.
    merge_only: str = ""

    @property
    def scalable(self) -> bool:
        """Whether ``scale`` may be applied: true where every edit at a site is low-rank."""
        return self.prefix is None and all(e.out_gain is None and e.in_gain is None for e in self.sites.values())

    @property
    def parameters(self) -> int:
        """Numbers the adapter holds."""
        total = sum(o.tensor.size for o in self.overrides.values())
        for edit in self.sites.values():
            if edit.low_rank is not None:
                total += edit.low_rank.a.size + edit.low_rank.b.size
            total += sum(g.gain.size for g in (edit.out_gain, edit.in_gain) if g is not None)
        return int(total + (self.prefix.states.size if self.prefix is not None else 0))

    def over(self, task: str, names: Sequence[tuple[str, str]]) -> Adapter:
        """The same adapter with the names that a base of several tasks gives its sites and parameters."""
        from .base_weights import renamed

        return replace(
            self,
            task=task,
            sites={renamed(f"{site}.weight", names).removesuffix(".weight"): edit for site, edit in self.sites.items()},
            overrides={renamed(name, names): override for name, override in self.overrides.items()},
        )

    def renamed(self, name: str) -> Adapter:
        """The same adapter under another name."""
        return replace(self, name=name)
