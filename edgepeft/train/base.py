"""The model an adapter is trained on: loading it, what its checkpoint lacks, and where LoRA goes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..bundle.heads import ProblemType
from ..errors import InputError
from .task import is_causal
from .tokenizer import HubTokenizer

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class BaseModel:
    """A Hugging Face model in float32 with a classification head, and its tokenizer.

    ``missing`` are the parameters that the checkpoint does not hold, ``fresh`` the modules they are in.
    """

    source: str
    model: PreTrainedModel
    tokenizer: HubTokenizer
    missing: tuple[str, ...]
    fresh: tuple[str, ...]
    identity: str
    parameters: int


def load_base(
    source: str | Path, labels: Sequence[str], problem_type: ProblemType = "single_label_classification"
) -> BaseModel:
    """Load ``source`` (id or folder) with a head for ``labels``, whose loss is that of ``problem_type``.

    A head that the checkpoint brings is kept, and trained further, when it has as many labels. The base's own dropout
    is off: it is frozen, and without it a step on a CPU takes 0.17 s where it took 0.30 s (MiniLM, 16 x 25 tokens).
    Raises :class:`InputError` when the model cannot be loaded, cannot classify sequences, or has no pad token, and
    :class:`CaptureError` when the checkpoint lacks weights of the base itself.
    """
    from ..base.load import check_source

    check_source(str(source))
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    from ..base.identity import identity_of_model
    from ..base.missing import check_missing
    from ..base.sources import model_source

    name = model_source(str(source))
    with quiet_transformers():
        try:
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
            config = AutoConfig.from_pretrained(
                name,
                trust_remote_code=False,
                num_labels=len(labels),
                id2label=dict(enumerate(labels)),
                label2id={label: i for i, label in enumerate(labels)},
                problem_type=problem_type,
            )
            _without_dropout(config)
            model, info = AutoModelForSequenceClassification.from_pretrained(
                name,
                config=config,
                trust_remote_code=False,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"cannot load {name!r} as a text classifier: {error}") from error
    if mismatched := sorted(str(entry[0] if isinstance(entry, tuple) else entry) for entry in info["mismatched_keys"]):
        raise InputError(
            f"{name}: the checkpoint's {', '.join(mismatched)} do not fit {len(labels)} labels ({', '.join(labels)}). "
            "Train on the encoder this checkpoint was made from, or on data with the same number of labels."
        )
    if tokenizer.pad_token_id is None:
        raise InputError(
            f"{name}: the tokenizer has no pad token, so texts of different length cannot share a batch. "
            "Set one and save the tokenizer beside the model: tokenizer.pad_token = tokenizer.eos_token"
        )
    if getattr(model.config, "pad_token_id", None) is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    missing = tuple(sorted(info["missing_keys"]))
    check_missing(model, name, "text-classification", missing, tuple(info.get("unexpected_keys") or ()))
    return BaseModel(
        source=str(source),
        model=model,
        tokenizer=tokenizer,
        missing=missing,
        fresh=_fresh_modules(model, missing),
        identity=identity_of_model(model, missing),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
    )


def load_language_base(source: str | Path, chat_template: str | None = None) -> BaseModel:
    """Load ``source`` (id or folder) as a causal language model, its dropout off, and its tokenizer.

    ``chat_template`` (Jinja text) takes the place of the tokenizer's own. Raises :class:`InputError` when the model
    cannot be loaded, is no decoder, lacks weights, or has fewer embeddings than the tokenizer has tokens.
    """
    from ..base.load import check_source

    check_source(str(source))
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from ..base.identity import identity_of_model
    from ..base.sources import model_source

    name = model_source(str(source))
    with quiet_transformers():
        try:
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
            config = AutoConfig.from_pretrained(name, trust_remote_code=False)
            architecture = (getattr(config, "architectures", None) or [""])[0]
            if config.is_encoder_decoder or (architecture and not is_causal(architecture)):
                raise InputError(
                    f"{name} is a {architecture or config.model_type}, not a causal language model (…ForCausalLM), so it "
                    "cannot be trained to continue text. For classification give rows with a label"
                )
            _without_dropout(config)
            model, info = AutoModelForCausalLM.from_pretrained(
                name, config=config, dtype=torch.float32, output_loading_info=True, trust_remote_code=False
            )
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"cannot load {name!r} as a causal language model: {error}") from error
    if lacking := sorted(info["missing_keys"]):
        raise InputError(
            f"{name}: the checkpoint lacks {len(lacking)} of the model's weights ({', '.join(lacking[:3])}, …); a language "
            "model with random parts cannot be adapted. Is it the checkpoint of another architecture?"
        )
    embeddings = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > embeddings:
        raise InputError(
            f"{name}: the tokenizer has {len(tokenizer)} tokens and the model embeddings for {embeddings}. An adapter "
            "trained on a vocabulary resized for it does not fit the base. Resize and save the base once "
            "(model.resize_token_embeddings(len(tokenizer)); model.save_pretrained(…)) and train on that, or remove the "
            "added tokens"
        )
    if not tokenizer.is_fast:
        raise InputError(
            f"{name}: no tokenizer.json, which is needed to tell prompts from completions; convert it first"
        )
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    model.config.use_cache = False  # a cache would also hide from transformers that rows are packed
    return BaseModel(
        source=str(source),
        model=model,
        tokenizer=tokenizer,
        missing=(),
        fresh=(),
        identity=identity_of_model(model),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
    )


def _without_dropout(config: PreTrainedConfig) -> None:
    for key, value in config.to_dict().items():
        if ("dropout" in key or "pdrop" in key) and isinstance(value, float):
            setattr(config, key, 0.0)


def token_limit(tokenizer: HubTokenizer, config: PreTrainedConfig) -> int:
    """The longest input in tokens; tokenizers without a limit of their own state a huge number."""
    positions = getattr(config, "max_position_embeddings", None) or 1 << 30
    return min(int(tokenizer.model_max_length), int(positions))


def _fresh_modules(model: PreTrainedModel, missing: Sequence[str]) -> tuple[str, ...]:
    """The modules that must be saved with the adapter: whole heads, encoder modules (a fresh pooler) one by one."""
    prefix = model.base_model_prefix
    modules = set()
    for parameter in missing:
        first, _, _ = parameter.partition(".")
        module = parameter.rpartition(".")[0] if first == prefix else first
        if module in {"", prefix} or not hasattr(model.get_submodule(module), "forward"):
            raise InputError(f"the checkpoint lacks {parameter}, which no module of its own holds; it cannot be saved")
        modules.add(module)
    return tuple(sorted(modules))


def resolve_targets(base: BaseModel, targets: str | Sequence[str] | None) -> str | list[str]:
    """``target_modules`` for PEFT: as asked, or what PEFT knows for this architecture, or all linear layers.

    Raises :class:`InputError` that names each unknown module and lists some that exist.
    """
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    if targets is None:
        known = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(base.model.config.model_type)
        targets = known if isinstance(known, list) else "all-linear"
    if targets == "all-linear":
        return "all-linear"
    wanted = [targets] if isinstance(targets, str) else list(targets)
    adaptable = [name for name, module in base.model.named_modules() if _adaptable(base, name, module)]
    unknown = [t for t in wanted if not any(name == t or name.endswith(f".{t}") for name in adaptable)]
    if unknown or not wanted:
        some = sorted({name.rpartition(".")[2] for name in adaptable})[:12]
        raise InputError(
            f"{base.source}: no linear, embedding or convolution module named "
            f"{', '.join(map(repr, unknown)) or '(none)'} to adapt; among those that exist: {', '.join(some)}. "
            "'all-linear' takes every linear layer."
        )
    return wanted


def _adaptable(base: BaseModel, name: str, module: nn.Module) -> bool:
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    if any(name == fresh or name.startswith(f"{fresh}.") for fresh in base.fresh):
        return False  # trained and saved in full
    return isinstance(module, nn.Linear | nn.Embedding | nn.Conv1d | nn.Conv2d | Conv1D)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Within: no loading bar and no report on the fresh head, which is expected here; restored after."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
