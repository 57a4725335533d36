"""Inputs that a model's ``forward`` takes and a graph would lack: served, or refused by name.

A model runs without most of its optional inputs as it is used. Without others it computes something else and says nothing: LayoutLM
takes the place of every word on the page, and puts all words into one corner where it is given none.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

from ..bundle.slots import Dim
from ..errors import CaptureError
from .task import WRITING

#: What training, generation and debugging give; and what a model has a default for that says the same as its tokenizer would.
_HARMLESS = re.compile(
    r"(\w+_)?labels|(\w+_)?inputs_embeds|(\w+_)?position_ids|head_mask|cross_attn_head_mask|decoder_\w+|encoder_\w+|output_\w+|return_\w+"
    r"|use_\w+|kwargs|args|past_key_values|cache_position|cache|mems|state|logits_to_keep|attention_mask|token_type_ids|task_type_ids"
    # parts of images, sounds and texts that are hidden while a model is pre-trained
    r"|bool_masked_pos|mask_time_indices|perm_mask|target_mapping|input_mask|noise"
    # masks of what all is there where nothing pads it, and sizes that follow from the input
    r"|pixel_mask|interpolate_pos_encoding|lengths|global_attention_mask|num_hashes|past_buckets_states|do_pooling|sequence_id"
    # the language and the entities that a text is about, of models that read texts without
    r"|lang_ids|entity_\w+|bbox_first_token_mask|next_sentence_label|sentence_order_label|start_positions|end_positions|is_longer"
)

#: What users call inputs that are refused.
_WORDS = {
    "bbox": "boxes of words",
    "image": "an image of the page",
    "pixel_values": "an image",
    "pixel_values_videos": "a video",
    "input_shape_ids": "shapes of characters",
    "input_pronunciation_ids": "pronunciations of characters",
    "visual_feats": "features of image regions",
    "visual_embeds": "features of image regions",
    "xpath_tags_seq": "places in a web page",
    "langs": "the language of each token",
}


def box_shape(model: Any, text: tuple[Dim, ...]) -> tuple[Dim, ...] | None:
    """The shape of ``bbox``, a place on the page for each token, of a model that reads it beside tokens alone; else ``None``."""
    accepted = inspect.signature(model.forward).parameters
    if "bbox" not in accepted or "input_ids" not in accepted or {"pixel_values", "image"} & accepted.keys():
        return None
    return (*text, int(getattr(model.config, "dim_bbox", 4)))


def check_inputs(model: Any, served: Any, task: str) -> None:
    """Refuse a model that takes more than the inputs that are ``served``, by name.

    Raises:
        CaptureError: Names the inputs. Tasks that write are not looked at: their text is read without images and sounds.
    """
    if task in WRITING:
        return
    variadic = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
    accepted = inspect.signature(model.forward).parameters
    parameters = {name: each for name, each in accepted.items() if each.kind not in variadic}
    lacking = [name for name in parameters if name not in served and not _HARMLESS.fullmatch(name)]
    if "langs" in lacking and not getattr(model.config, "use_lang_emb", False):
        lacking.remove("langs")
    if (
        {"bbox", "image", "pixel_values"} & {*served}
        and "bbox" in parameters
        and {"pixel_values", "image"} & parameters.keys()
    ):
        lacking += [name for name in ("bbox", "pixel_values", "image") if name in parameters and name not in lacking]
    if lacking:
        named = ", ".join(f"{name} ({_WORDS[name]})" if name in _WORDS else name for name in lacking)
        beside = ", ".join(name for name in served if name not in lacking)
        raise CaptureError(
            f"{type(model).__name__} takes {named} beside {beside}, which edgepeft does not serve: without it the model computes "
            "something else than it was trained for. It is not exported."
        )
