"""The language part of a model that also sees or hears: what people adapt for text, and what a text bundle holds."""

from __future__ import annotations

from typing import Any

from ..errors import CaptureError, InputError

#: Language parts that transformers has no causal model of, and the causal model that computes the same over text: with text
#: alone the three rotary positions of Qwen's vision models are one.
_SAME_OVER_TEXT = {"qwen2_vl_text": "qwen2", "qwen2_5_vl_text": "qwen2", "qwen3_vl_text": "qwen3"}
#: Rotary settings that only place images.
_FOR_IMAGES = {"mrope_section", "mrope_interleaved"}
#: Largest difference of logits from the whole model that rounding may make, relative to the largest logit.
_TOLERANCE = 1e-4


def is_multimodal(config: Any) -> bool:
    """Whether a model reads texts beside images or sound, with a language model inside."""
    return getattr(config, "text_config", None) is not None and any(
        getattr(config, part, None) is not None for part in ("vision_config", "audio_config")
    )


def load_language_part(source: str, config: Any) -> tuple[Any, dict[str, Any]]:
    """The language model inside a multimodal one, as a causal language model, in fp32 and eval mode.

    Args:
        source: A folder or a Hugging Face id.
        config: Its configuration.

    Returns:
        The model, and what transformers said of loading the whole (``missing_keys``, ``unexpected_keys``, …) by the names
        that the language model gives its parameters; those of other parts are left out.

    Raises:
        InputError: transformers has no causal model of this language part.
        CaptureError: The part does not compute what the whole does over text.
    """
    import torch
    from transformers import AutoModelForImageTextToText

    text = config.text_config
    whole, info = AutoModelForImageTextToText.from_pretrained(source, dtype=torch.float32, output_loading_info=True)
    whole = whole.eval()
    inner = whole.get_decoder()
    path = next((name for name, module in whole.named_modules() if module is inner), None)
    if path is None:
        raise CaptureError(f"{source!r}: {type(whole).__name__} does not say which of its parts reads texts")
    model = _causal_model(source, text)
    prefix = f"{path}."
    state = {
        f"model.{name.removeprefix(prefix)}": value
        for name, value in whole.state_dict().items()
        if name.startswith(prefix)
    }
    head = next((name for name, module in whole.named_modules() if module is whole.get_output_embeddings()), "lm_head")
    state |= {
        f"lm_head.{name.removeprefix(head + '.')}": value
        for name, value in whole.state_dict().items()
        if name.startswith(f"{head}.")
    }
    missing, unexpected = model.load_state_dict(state, strict=False)
    tied = {name for name in missing if name in (model._tied_weights_keys or ())}
    if set(missing) - tied or unexpected:
        odd = sorted({*missing, *unexpected} - tied)
        raise CaptureError(
            f"{source!r}: its language part does not fit {type(model).__name__}, which differs in {odd[0]}"
        )
    model.tie_weights()
    _check_same(source, whole, model)
    return model, {
        **info,
        "missing_keys": [f"model.{n.removeprefix(prefix)}" for n in info["missing_keys"] if n.startswith(prefix)],
        "unexpected_keys": [],
    }


def _causal_model(source: str, text: Any) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    kind = text.model_type
    if kind in _SAME_OVER_TEXT:
        settings = {
            name: value for name, value in text.to_dict().items() if name not in {"model_type", "architectures"}
        }
        rotary = dict(settings.pop("rope_parameters", None) or settings.pop("rope_scaling", None) or {})
        rotary = {name: value for name, value in rotary.items() if name not in _FOR_IMAGES}
        for name in ("type", "rope_type"):
            if rotary.get(name) == "mrope":
                rotary[name] = "default"
        settings["rope_parameters"] = rotary
        text = AutoConfig.for_model(_SAME_OVER_TEXT[kind], **settings)
    elif kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise InputError(
            f"{source!r}: transformers has no causal language model of the language part {kind!r}, so it cannot be exported for "
            "text alone. Export a model that reads texts only"
        )
    with torch.random.fork_rng():
        model = AutoModelForCausalLM.from_config(text, dtype=torch.float32).eval()
    model.config.architectures = [type(model).__name__]
    return model


def _check_same(source: str, whole: Any, model: Any) -> None:
    """The part must give the whole's logits over texts, padded ones too."""
    import torch

    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, int(model.config.vocab_size), (2, 9), generator=generator)
    # What stands for images is no text.
    for name in (
        "image_token_id",
        "video_token_id",
        "audio_token_id",
        "image_token_index",
        "boi_token_index",
        "eoi_token_index",
    ):
        number = getattr(whole.config, name, None)
        if number is not None:
            ids[ids == number] = 0
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    with torch.no_grad():
        expected = whole(input_ids=ids, attention_mask=mask).logits
        found = model(input_ids=ids, attention_mask=mask).logits
    difference = ((expected - found) * mask[:, :, None]).abs().max() / max(1.0, float(expected.abs().max()))
    if not float(difference) <= _TOLERANCE:
        raise CaptureError(
            f"{source!r}: its language part alone gives other logits over text than the whole model (difference "
            f"{float(difference):.1e}), so it cannot be exported for text alone"
        )
