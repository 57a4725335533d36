"""The tasks a base is exported for, and which one a model or an adapter is for."""

from __future__ import annotations

from typing import Any

from ..errors import InputError

TASKS = (
    "text-classification",
    "token-classification",
    "feature-extraction",
    "fill-mask",
    "text-generation",
    "text2text-generation",
    "image-classification",
    "audio-classification",
    "zero-shot-image-classification",
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


def infer_task(config: Any, peft_task: str | None) -> str:
    """The task of a base: from an adapter's PEFT task type, else from the architecture in its config."""
    if peft_task:
        task = PEFT_TASKS.get(peft_task)
        if task is None:
            raise InputError(f"PEFT task type {peft_task!r} is unknown; give --task, one of: {', '.join(TASKS)}")
        return task
    name = (getattr(config, "architectures", None) or [""])[0]
    for suffix, task in (
        ("ForSequenceClassification", "text-classification"),
        ("ForTokenClassification", "token-classification"),
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
