"""Adapters of several tasks over one tiny encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

#: Adapter → auto class, PEFT's task type, labels.
KINDS: dict[str, tuple[str, str, int | None]] = {
    "intent": ("AutoModelForSequenceClassification", "SEQ_CLS", 3),
    "topics": ("AutoModelForSequenceClassification", "SEQ_CLS", 4),
    "entities": ("AutoModelForTokenClassification", "TOKEN_CLS", 5),
    "answers": ("AutoModelForQuestionAnswering", "QUESTION_ANS", None),
    "search": ("AutoModel", "FEATURE_EXTRACTION", None),
}
TARGETS = {"bert": ["query", "value"], "distilbert": ["q_lin", "v_lin"], "roberta": ["query", "value"]}
#: What a task's model has of its own before its classifier.
BEFORE = {"distilbert": ["pre_classifier"]}


def load(base: Path, kind: str) -> Any:
    import transformers

    auto, _, labels = KINDS[kind]
    return getattr(transformers, auto).from_pretrained(base, **({} if labels is None else {"num_labels": labels}))


def save_adapter(base: Path, folder: Path, kind: str, architecture: str = "bert") -> Path:
    import torch
    from peft import LoraConfig, get_peft_model

    _, task_type, _ = KINDS[kind]
    saved = ["classifier", *BEFORE.get(architecture, [])] if task_type == "SEQ_CLS" else None
    config = LoraConfig(task_type=task_type, r=4, target_modules=TARGETS[architecture], modules_to_save=saved)
    wrapped = get_peft_model(load(base, kind), config)
    generator = torch.Generator().manual_seed(list(KINDS).index(kind))
    with torch.no_grad():
        for name, parameter in sorted(wrapped.named_parameters()):
            if "lora_" in name or "modules_to_save" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    wrapped.save_pretrained(folder)
    return folder
