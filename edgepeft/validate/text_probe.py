"""The part of a probe that is text: through the tokenizer and template that ship with an adapter, and through the adapter's own."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..adapters.checkpoint import Checkpoint
from ..base.lengths import switches
from ..base.load import quiet
from ..base.parity_causal import CausalBatch
from ..base.parity_seq2seq import following_tokens
from ..bundle import Bundle, OwnText
from ..errors import ContextLengthError, InputError
from ..runtime import TextEncoder
from ..runtime.files import read_object, read_text
from ..runtime.generation import PromptEncoder
from ..runtime.generation.decoder import padded
from .probe import BatchProbe, CausalProbe, Probe, Seq2SeqProbe

#: Words, numbers, scripts without spaces, what tokenizers normalize, and what is in no vocabulary.
_TEXTS = ("The film was not very good, was it?", "naïve café №42 — 日本語 👍", "  two spaces and a line\nend ")
_PAIR = ("Was it good?", "It was not.")
#: Added and special tokens that are put into texts: all that an adapter usually brings.
_TOKENS = 24
_CHAT = (
    {"role": "user", "content": "Was it good?"},
    {"role": "assistant", "content": "No."},
    {"role": "user", "content": "Why?"},
)
#: Tasks whose base reads one text, or a pair of them, at once.
_READS = {"text-classification", "token-classification", "feature-extraction", "fill-mask"}

#: What a tokenizer gives. Boxes of words and images come from elsewhere.
_TOKENIZED = {"input_ids", "attention_mask", "token_type_ids"}

#: Token ids of a text, of a pair of texts, or of the messages of a chat.
Encode = Callable[[Any], list[int]]


@dataclass(frozen=True)
class Texts:
    """What is encoded, by the tokenizer that ships and by the one that the adapter was trained with."""

    samples: tuple[Any, ...]
    #: Token ids of each sample, as the bundle gives them.
    ids: tuple[list[int], ...]

    def difference(self, encode: Encode) -> str:
        """The first sample that ``encode`` gives other tokens for, in words; empty where all are the same."""
        for sample, mine in zip(self.samples, self.ids, strict=True):
            theirs = encode(sample)
            if theirs != mine:
                what = "a chat" if isinstance(sample, list) else repr(sample)
                return f"the tokens of {what} are {mine[:40]} in the bundle, and {theirs[:40]} by the adapter's own tokenizer"
        return ""


def with_text(probe: Probe, bundle: Bundle, name: str | None) -> tuple[Probe, Texts | None]:
    """``probe`` with a batch of texts as the adapter ``name`` reads them, and these; unchanged for what reads no text."""
    own = bundle.text_of(name if bundle.manifest.mode == "swap" else None)
    if bundle.manifest.hears or read_text(bundle, "tokenizer.json", own) is None:
        return probe, None
    required = {value.name for value in bundle.manifest.inputs if not value.optional}
    if isinstance(probe, BatchProbe) and bundle.manifest.task in _READS and required <= _TOKENIZED:
        return _read(probe, bundle, own)
    if isinstance(probe, CausalProbe):
        return _prompts(probe, bundle, own, name)
    if isinstance(probe, Seq2SeqProbe):
        return _written(probe, bundle, own)
    return probe, None


def _read(probe: BatchProbe, bundle: Bundle, own: OwnText) -> tuple[Probe, Texts]:
    encoder = TextEncoder(bundle, own)
    samples = (*_sentences(bundle, own), _PAIR)
    batch = encoder.encode(samples)  # type: ignore[arg-type] # a mixture of texts and pairs
    batches = [*probe.batches, batch]
    if read_object(bundle, "tokenizer_config.json", own).get("padding_side") == "left":
        batches.append(_left(batch))
    return replace(probe, batches=batches), Texts(samples, _rows(batch))


def _written(probe: Seq2SeqProbe, bundle: Bundle, own: OwnText) -> tuple[Probe, Texts]:
    samples = _sentences(bundle, own)
    batch = TextEncoder(bundle, own).encode(samples)
    config = bundle.read_json("config.json")
    following = following_tokens(batch, int(config["vocab_size"]), int(config["decoder_start_token_id"]))
    return replace(probe, batches=[*probe.batches, batch], following=[*probe.following, following]), Texts(
        samples, _rows(batch)
    )


def _prompts(probe: CausalProbe, bundle: Bundle, own: OwnText, name: str | None) -> tuple[Probe, Texts | None]:
    encoder = PromptEncoder(bundle, own)
    entry = bundle.manifest.adapters.get(name or "")
    before = 0 if entry is None else entry.prefix_length
    samples: list[Any] = []
    ids: list[list[int]] = []
    chats: list[Any] = [*_sentences(bundle, own), [dict(message) for message in _CHAT]]
    for sample in chats:
        chat = isinstance(sample, list)
        if chat and encoder.template is None:
            continue
        try:
            encoded = encoder.encode(sample, chat=chat, before=before)
            encoder.new_tokens(len(encoded), 2, before)
        except ContextLengthError:
            continue  # a context of a few tokens has no room for it
        except InputError:
            if not chat:
                raise
            continue  # a template that refuses this order of roles, in its own words
        switch = bundle.manifest.rope_switch
        if switch is not None and len(encoded) + 2 > switch:
            continue  # a batch is computed by its longest row; what lies beyond the switch is probed by itself
        samples.append(sample)
        ids.append(encoded)
    if not ids:
        return probe, None
    config = bundle.read_json("config.json")
    following = np.random.default_rng(11).integers(0, int(config["vocab_size"]), (len(ids), 2), np.int64)
    switched = switches(config)
    # Beyond a switch the positions of a whole batch are computed otherwise: there each text is a batch of its own, and one
    # that would cross a switch with the tokens that follow is only encoded.
    rows = [slice(row, row + 1) for row in range(len(ids))] if switched else [slice(len(ids))]
    batches = [
        CausalBatch(*padded(ids[part]), following[part])
        for part in rows
        if not any(len(ids[part][0]) + before <= at < len(ids[part][0]) + before + 2 for at in switched)
    ]
    return replace(probe, batches=[*probe.batches, *batches]), Texts(tuple(samples), tuple(ids))


def _sentences(bundle: Bundle, own: OwnText) -> tuple[str, ...]:
    """Plain texts, and one with the special and added tokens of the tokenizer among words."""
    added = json.loads(read_text(bundle, "tokenizer.json", own) or "{}").get("added_tokens") or ()
    tokens = [str(each["content"]) for each in added][-_TOKENS:]  # what was added last is the adapter's
    return (*_TEXTS, *([" ".join(f"word {token}" for token in tokens)] if tokens else []))


def _rows(batch: Mapping[str, np.ndarray]) -> tuple[list[int], ...]:
    pairs = zip(batch["input_ids"], batch["attention_mask"], strict=True)
    return tuple(ids[mask == 1].tolist() for ids, mask in pairs)


def _left(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same rows, padded on the left."""
    shifts = batch["attention_mask"].shape[1] - batch["attention_mask"].sum(axis=1)
    return {
        name: np.stack([np.roll(row, shift) for row, shift in zip(array, shifts, strict=True)])
        for name, array in batch.items()
    }


def own_tokenizer(checkpoint: Checkpoint, base: str, max_length: int | None) -> Encode | None:
    """Token ids as transformers gives them to who trained the adapter: by its folder's tokenizer and template, else the base's.

    Args:
        checkpoint: The adapter's checkpoint.
        base: Folder or id of the base.
        max_length: Where texts are cut.

    Returns:
        A function; ``None`` where transformers finds no tokenizer.
    """
    from transformers import AutoTokenizer

    from ..base.remote_code import trusted
    from ..base.sources import embedding_of, model_source
    from ..embedding.folder import is_sentence_folder

    folder = model_source(base) if checkpoint.text.tokenizer is None else str(checkpoint.path)
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trusted())
    except (OSError, ValueError, KeyError, AttributeError, ImportError):
        return None  # nothing to compare with: the bundle's tokenizer is not made from one that transformers opens
    template = checkpoint.text.templates.get("default")
    if template is not None:
        tokenizer.chat_template = template

    embeds = checkpoint.config.get("task_type") in (None, "FEATURE_EXTRACTION") and is_sentence_folder(base)
    modules = embedding_of(base, "feature-extraction") if embeds else None
    # sentence-transformers lowers the case itself where its folder asks for that; the bundle's tokenizer does then.
    lower = modules is not None and modules.lower_case and checkpoint.text.tokenizer is None

    def encode(sample: Any) -> list[int]:
        if lower and not isinstance(sample, list):
            sample = sample.lower() if isinstance(sample, str) else tuple(part.lower() for part in sample)
        if isinstance(sample, list):
            text = tokenizer.apply_chat_template(sample, tokenize=False, add_generation_prompt=True)
            return list(tokenizer(text, add_special_tokens=False)["input_ids"])
        given: Sequence[str] = (sample,) if isinstance(sample, str) else sample
        with quiet():
            limits = {} if max_length is None else {"truncation": True, "max_length": max_length}
            return list(tokenizer(*given, **limits)["input_ids"])

    return encode
