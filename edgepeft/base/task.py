"""The tasks a base is exported for, and which one a model or an adapter is for."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from ..errors import AdapterMismatchError, InputError
from .language_part import is_multimodal

TASKS = (
    "text-classification",
    "token-classification",
    "feature-extraction",
    "fill-mask",
    "text-generation",
    "text2text-generation",
    "image-classification",
    "audio-classification",
    "question-answering",
    "zero-shot-image-classification",
    "automatic-speech-recognition",
)

#: PEFT's task types and the task each one's adapters are for.
PEFT_TASKS = {
    "SEQ_CLS": "text-classification",
    "TOKEN_CLS": "token-classification",
    "FEATURE_EXTRACTION": "feature-extraction",
    "CAUSAL_LM": "text-generation",
    "SEQ_2_SEQ_LM": "text2text-generation",
    "QUESTION_ANS": "question-answering",
}


#: Tasks that adapters of another PEFT task type are trained for: PEFT has no types for images, sound and masked words.
_ALSO_SERVES = {
    "image-classification": {"text-classification"},
    "audio-classification": {"text-classification"},
    "zero-shot-image-classification": {"feature-extraction"},
    # Whisper's adapters are saved with no task type, with that of encoder-decoders, or as what extracts features
    "automatic-speech-recognition": {"text2text-generation", "feature-extraction"},
    "fill-mask": {"token-classification", "feature-extraction", "text-generation"},
}


SPEECH = "automatic-speech-recognition"
#: Tasks that write tokens one after another.
WRITING = frozenset({"text-generation", "text2text-generation", SPEECH})


def task_of(peft_task: str | None) -> str | None:
    """The task of a PEFT task type; ``None`` where there is none."""
    if not peft_task:
        return None
    task = PEFT_TASKS.get(peft_task)
    if task is None:
        raise InputError(f"PEFT task type {peft_task!r} is unknown; give --task, one of: {', '.join(TASKS)}")
    return task


def check_task(adapter: str, source: str, peft_task: str | None, served: Collection[str], what: str) -> None:
    """Refuse an adapter that was trained for a task which a base is not captured for: its outputs would mean something else.

    Args:
        adapter: The adapter's name.
        source: Where its checkpoint is.
        peft_task: The task type in its ``adapter_config.json``; without one nothing is refused.
        served: The tasks of the base.
        what: The bundle, as the message names it.

    Raises:
        AdapterMismatchError: Names both tasks, and what to do.
    """
    task = PEFT_TASKS.get(peft_task or "")
    if task is None or task in served or any(task in _ALSO_SERVES.get(each, ()) for each in served):
        return
    raise AdapterMismatchError(
        f"adapter {adapter!r} ({source}) was trained for {task} (task_type {peft_task} in its adapter_config.json); {what} is for "
        f"{', '.join(served)}, and what it gives would not be this adapter's answer. Export the base with an adapter of each "
        "task together (edgepeft export --adapter … --adapter …), or this adapter into a bundle of its own."
    )


def infer_task(config: Any, peft_task: str | None, heads: Collection[str] = ()) -> str:
    """The task of a base: from an adapter's PEFT task type, else from the architecture in its config.

    Args:
        config: The base's configuration.
        peft_task: The task type that adapters name.
        heads: Parameters of heads that adapters without a task type bring (``classifier.weight``). Over a bare encoder of
            images or sound they say that it is to classify; over one of texts they may be any of several.
    """
    task = task_of(peft_task) or _of_architecture(config)
    if task in _ALSO_SERVES[SPEECH] and _writes_down(config):
        return SPEECH
    sense = _sense(config)
    if task == "text-classification" and sense is not None:
        return f"{sense}-classification"
    if peft_task or task != "feature-extraction" or not heads:
        return task
    if sense is not None:
        return f"{sense}-classification"
    raise InputError(
        f"an adapter brings a head ({sorted(heads)[0]}) and neither it nor the base says for which task: give "
        "--task text-classification (a label for a text) or --task token-classification (a label for each token)"
    )


def _sense(config: Any) -> str | None:
    """``image`` or ``audio`` for a model that classifies these and no texts; ``None`` for any other."""
    from transformers import (
        MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING,
        MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    )

    kind = type(config)
    if kind in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        return None
    if kind in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
        return "image"
    return "audio" if kind in MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING else None


def _writes_down(config: Any) -> bool:
    """Whether a model with a decoder was saved to write down speech."""
    from transformers import MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING

    name = (getattr(config, "architectures", None) or [""])[0]
    return type(config) in MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING and name.endswith("ForConditionalGeneration")


def _of_architecture(config: Any) -> str:
    name = (getattr(config, "architectures", None) or [""])[0]
    if is_multimodal(config) and name.endswith("ForConditionalGeneration"):
        return "text-generation"  # the language part: images and sound are not read here
    for suffix, task in (
        ("ForSequenceClassification", "text-classification"),
        ("ForTokenClassification", "token-classification"),
        ("ForQuestionAnswering", "question-answering"),
        ("ForMaskedLM", "fill-mask"),
        ("ForPreTraining", "fill-mask"),
        ("ForImageClassification", "image-classification"),
        ("ForAudioClassification", "audio-classification"),
        ("CLIPModel", "zero-shot-image-classification"),
        ("SiglipModel", "zero-shot-image-classification"),
        ("ForConditionalGeneration", "text2text-generation"),
        ("ForCausalLM", "text-generation"),
        ("LMHeadModel", "text-generation"),
        ("Model", "feature-extraction"),
    ):
        if name.endswith(suffix):
            return task
    raise InputError(f"cannot tell the task from architecture {name!r}; give --task, one of: {', '.join(TASKS)}")
