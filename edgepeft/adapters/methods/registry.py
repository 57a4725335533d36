"""Every PEFT method, one entry each: how it ships, how exactly, and why not better.

Adding a method is one entry here and one row in ``tests/model/test_methods.py``. ``python docs/methods_page.py``
prints ``docs/methods.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from ..base_weights import BaseWeights
from ..checkpoint import Checkpoint
from ..edits import Adapter
from . import dense, direct, factors, lora, tracing
from .tracing import PLAIN, Tracing
from .training import USUAL, Training

#: ``swap``: closed form in the five edits. ``svd``: a change of weights, swapped where its SVD is smaller than the weights
#: and merged otherwise. ``merge``: a change of weights of full rank. ``bake``: no change of weights, but it can be traced.
#: ``refuse``: neither.
Mode = Literal["swap", "svd", "merge", "bake", "refuse"]


class Lowering(Protocol):
    """A closed form, without torch."""

    def __call__(self, name: str, checkpoint: Checkpoint, weights: BaseWeights) -> Adapter:
        """The adapter; raises :class:`NeedsPeftError` for an option that the closed form does not cover."""


class DenseLowering(Protocol):
    """A closed form of the delta weight, which an SVD factors."""

    def __call__(
        self,
        name: str,
        checkpoint: Checkpoint,
        weights: BaseWeights,
        *,
        max_rank: int | None = None,
        mode: Literal["swap", "merge"] = "swap",
    ) -> Adapter:
        """The adapter: factors of at most rank ``max_rank``, or whole weights for ``merge``."""


@dataclass(frozen=True)
class Method:
    """One PEFT method. ``edits`` says what it becomes; ``reason`` why nothing better is possible, empty where it is best."""

    peft_type: str
    title: str
    mode: Mode
    edits: str
    reason: str = ""
    lower: Lowering | None = None
    lower_dense: DenseLowering | None = None
    #: How the names of its tensors begin in a checkpoint, where that is not the type's own name.
    prefix: str = ""
    #: What it puts before the sequence of a causal language model, where it is swapped as a ``Prefix``: key/value states, or
    #: virtual tokens that become states in the base. ``mode`` is then how it ships elsewhere.
    virtual: Literal["", "states", "tokens"] = ""
    #: The option of its config that counts the tasks it holds, where each is an adapter of its own (``PATH#task=N``).
    tasks: str = ""
    #: How it is traced, where its layers cannot be traced as they are.
    tracing: Tracing = PLAIN
    #: How it is trained here.
    training: Training = USUAL
    #: Whether a token's result depends on all tokens of its call, padding among them.
    averages_over_tokens: bool = False
    #: Whether PEFT leaves the base's numbers as they are when it loads a checkpoint of this config; none where it may not.
    leaves_base_alone: Callable[[Mapping[str, Any]], bool] | None = None
    #: What a site becomes and its rank, told by a checkpoint's tensors; none where only ``edits`` can be said.
    edits_at: Callable[[Checkpoint, str], tuple[str, int] | None] | None = None

    @property
    def tensor_prefix(self) -> str:
        """How the names of its tensors begin, behind the module path."""
        return self.prefix or f"{self.peft_type.lower()}_"

    @property
    def without_torch(self) -> bool:
        """Whether it is lowered from the checkpoint's tensors alone."""
        return self.lower is not None or self.lower_dense is not None or self.virtual == "states"

    def before_sequence(self, checkpoint: Checkpoint) -> bool:
        """Whether ``checkpoint`` puts states before the sequence of a causal language model."""
        return bool(self.virtual) and checkpoint.config.get("task_type") == "CAUSAL_LM"


_ORTHOGONAL = "it multiplies the weight by an orthogonal matrix: the change has full rank"
_VIRTUAL = (
    "it puts trained states before the sequence (a Prefix), for which encoders have no key/value cache; encoder-decoders are "
    "not started from one"
)
_DRAWN = "its places are drawn by torch's generator at load, so reading it needs PEFT and the base"
_RANK_R = "rank r, by SVD"

_METHODS = (
    Method("LORA", "LoRA", "swap", "LowRank; OutGain for DoRA; Override for biases and saved modules", lower=lora.lower_lora,
        leaves_base_alone=lora.leaves_base_alone, edits_at=lora.edits_at),
    Method("ADALORA", "AdaLoRA", "swap", "LowRank", lower=factors.lower_adalora, prefix="lora_",
        training=Training(ranked=False, plans_ranks=True),
    ),
    Method("ADAMSS", "AdaMSS", "svd", "LowRank by SVD", "subspaces come from an SVD and k-means of the base at load"),
    Method("BOFT", "BOFT", "merge", "merged weight", _ORTHOGONAL, tracing=tracing.BOFT),
    Method("IA3", "IA3", "swap", "OutGain and bias Override (keys, values), InGain (feed-forward)", lower=direct.lower_ia3,
        training=Training(rate=1e-2, modules="own"),
    ),
    Method("BEFT", "BEFT", "swap", "Override of biases", lower=direct.lower_beft,
        training=Training(rate=3e-3),
    ),
    Method(
        "LILY", "Lily", "bake", "traced as it is",
        "a router mixes its factors by all tokens of a call, so its sites are not linear in their input; over language models "
        "the prompt is a call and so is each token after it, as in PEFT", averages_over_tokens=True,
    ),
    Method(
        "LOHA", "LoHa", "swap", "LowRank at r²", "merged where r² factors outgrow the weights", lower=factors.lower_loha,
        prefix="hada_",
    ),
    Method(
        "LOKR", "LoKr", "swap", "LowRank at the product of its factors' ranks",
        "merged where that product outgrows the weights", lower=factors.lower_lokr,
    ),
    Method("OFT", "OFT", "merge", "merged weight", _ORTHOGONAL,
        training=Training(ranked=False),
    ),
    Method("POLY", "Poly", "swap", "LowRank (one task's mixture)", "one adapter a task", lower=factors.lower_poly, tasks="n_tasks",
        tracing=tracing.POLY),
    Method("LN_TUNING", "LN tuning", "swap", "Override of norms", lower=direct.lower_ln_tuning,
        training=Training(rate=3e-3, modules="norms"),
    ),
    Method("VERA", "VeRA", "swap", "LowRank", "through PEFT where save_projection is false", lower=factors.lower_vera,
        training=Training(rate=1e-2),
    ),
    Method("FROD", "FRoD", "merge", "merged weight", "its rotated sparse change has full rank", tracing=tracing.FROD),
    Method("PVERA", "PVeRA", "swap", "LowRank of the mean", "refused with sample_at_inference", lower=factors.lower_pvera),
    Method("FOURIERFT", "FourierFT", "svd", "LowRank by SVD", _DRAWN),
    Method("GLORA", "GLoRA", "merge", "merged weight and bias", "it scales the weight entry by entry: the change has full rank"),
    Method(
        "XLORA", "X-LoRA", "refuse", "", "peft 0.21 saves no whole checkpoint of it: its experts must be called 0, 1, …, "
        "and the weights layers.0 of its classifier are left out as if they were of one of them",
    ),
    Method("HRA", "HRA", "swap", "LowRank (compact WY form of its reflections)", lower=factors.lower_hra, tracing=tracing.HRA),
    Method(
        "VBLORA", "VB-LoRA", "swap", "LowRank", "through PEFT where only the top-k weights were saved", lower=factors.lower_vblora
    ),
    Method("UNILORA", "Uni-LoRA", "svd", f"LowRank ({_RANK_R})", _DRAWN),
    Method("MISS", "MiSS", "swap", "LowRank", "merged with init_weights='bat'", lower=factors.lower_miss),
    Method("RANDLORA", "RandLoRA", "svd", "LowRank by SVD", "a sum of random bases is usually of full rank, and then merged"),
    Method("ROAD", "RoAd", "merge", "merged weight and bias", "it rotates pairs of outputs: the change has full rank"),
    Method(
        "TRAINABLE_TOKENS", "Trainable tokens", "swap", "LowRank at the embedding, and at a head that is tied to it",
        "the whole embedding is shipped where more than half its width of tokens were trained",
        lower=direct.lower_trainable_tokens,
    ),
    Method("HIRA", "HiRA", "merge", "merged weight", "it scales the weight entry by entry: the change has full rank"),
    Method(
        "SHIRA", "SHiRA", "svd", "LowRank by SVD", "sparse entries seldom have a low rank, and are then merged",
        lower_dense=dense.lower_shira, tracing=tracing.SHIRA,
    ),
    Method(
        "C3A", "C3A", "svd", "LowRank by SVD", "circulant blocks are usually of full rank, and then merged",
        lower_dense=dense.lower_c3a, tracing=tracing.C3A,
    ),
    Method("WAVEFT", "WaveFT", "svd", "LowRank by SVD", _DRAWN),
    Method(
        "OSF", "OSF", "svd", "LowRank by SVD", "it trains half of the base's singular vectors, usually too many to swap"
    ),
    Method("DELORA", "DeLoRA", "swap", "LowRank", lower=factors.lower_delora),
    Method("GRALORA", "GraLoRA", "swap", "LowRank at k r", lower=factors.lower_gralora),
    Method(
        "TINYLORA", "TinyLoRA", "svd", f"LowRank ({_RANK_R})", "which vector serves which site follows from the base's modules"
    ),
    Method("PSOFT", "PSOFT", "svd", "LowRank by SVD", "it rotates a principal subspace; at a large rank it is merged",
        tracing=tracing.PSOFT),
    Method("PEANUT", "PEANuT", "merge", "merged weight", "a network over the base's weight makes the change, of full rank"),
    Method(
        "SUPERTUNING", "Super tuning", "svd", "LowRank by SVD", "sparse entries seldom have a low rank, and are then merged",
        lower_dense=dense.lower_supertuning,
    ),
    Method("DEFT", "DEFT", "svd", f"LowRank ({_RANK_R})", "its projection is applied to the base's weight by QR"),
    Method("PROMPT_TUNING", "Prompt tuning", "bake", "Prefix; over encoders traced as it is", _VIRTUAL, virtual="tokens"),
    Method(
        "MULTITASK_PROMPT_TUNING", "Multitask prompt tuning", "bake", "Prefix (one task's prompt); over encoders traced as it is",
        _VIRTUAL, virtual="tokens", tasks="num_tasks",
    ),
    Method("P_TUNING", "P-tuning", "bake", "Prefix; over encoders traced as it is", _VIRTUAL, virtual="tokens"),
    Method("PREFIX_TUNING", "Prefix tuning", "bake", "Prefix; over encoders traced as it is", _VIRTUAL, virtual="states"),
    Method(
        "CPT", "CPT", "refuse", "Prefix",
        "it puts trained states before the sequence (a Prefix), and PEFT offers it for language models only", virtual="tokens",
        training=Training(language_only=True),
    ),
    Method("CARTRIDGE", "Cartridge", "bake", "Prefix; over encoders traced as it is", _VIRTUAL, virtual="states"),
    Method(
        "ADAPTION_PROMPT", "LLaMA-Adapter", "bake", "traced as it is",
        "gated prompts inside attention change the layer itself; PEFT offers it for Llama, Mistral and GPT-2 only",
        training=Training(language_only=True),
    ),
    Method(
        "SHADOW", "Shadow", "bake", "traced as it is",
        "a second network, with a cache of its own, runs beside the base and changes its states; PEFT offers it for decoders only",
        tracing=tracing.SHADOW,
        training=Training(language_only=True),
    ),
)  # fmt: skip

#: By PEFT's name of the method.
METHODS: dict[str, Method] = {method.peft_type: method for method in _METHODS}


def method_in(model: Any) -> Method | None:
    """The method of PEFT's ``model`` (a torch module, which has no types); ``None`` where it is a plain one."""
    kind = getattr(model, "peft_type", None)
    return None if kind is None else METHODS.get(str(getattr(kind, "value", kind)))
