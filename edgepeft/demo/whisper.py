"""Whisper base, whose only packaged form is CTranslate2's, converted once to what Hugging Face writes.

CTranslate2 joins the projections that read the same input: query, key and value of self-attention, key and value of
cross-attention, in that order along the rows; it fills in the key's bias, which Whisper has not, with zeros.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import AssetError, MissingExtraError
from ..json_text import json_text
from .ctranslate2_file import read_arrays
from .fetch import derive
from .gguf import join

SHA256 = "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9"
_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
_SPECIAL = ("<|endoftext|>", "<|startoftranscript|>", "<|startofprev|>", "<|notimestamps|>", "<|translate|>")
#: Timestamps go from 0.00 to 30.00 s in steps of 0.02 s.
_TIMESTAMPS = tuple(f"<|{step / 50:.2f}|>" for step in range(1501))

Arrays = dict[str, NDArray[Any]]


def whisper_base() -> Path:
    """See :func:`edgepeft.demo.assets.whisper_base`."""

    def make(folder: Path, first: Path, second: Path) -> None:
        whole = folder.parent / "model.bin"
        join([first / "model.bin.part1", second / "model.bin.part2"], whole, SHA256)
        convert(read_arrays(whole, "WhisperSpec"), first, folder)

    return derive("whisper-base", ("whisper-base-1", "whisper-base-2"), "1", _FILES, make)


def convert(arrays: Arrays, source: Path, folder: Path) -> None:
    """Write the model in ``arrays`` and the tokenizer and settings in ``source`` to ``folder``, weights as float32.

    Args:
        arrays: what :func:`.ctranslate2_file.read_arrays` finds in a multilingual Whisper's ``model.bin``.
        source: folder with CTranslate2's ``config.json`` and the ``tokenizer.json`` that goes with it.
        folder: where ``config.json``, ``generation_config.json``, ``model.safetensors``, ``preprocessor_config.json``,
            ``tokenizer.json`` and ``tokenizer_config.json`` go.

    Raises:
        MissingExtraError: without torch and transformers.
        AssetError: arrays that are not those of a Whisper model, or a tokenizer that is not Whisper's.
    """
    try:
        import torch
        from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration
    except ImportError as error:
        raise MissingExtraError(
            f"converting Whisper needs {error.name}, which is not installed: pip install 'edgepeft[demo]'"
        ) from error
    from ..base.load import quiet

    vocabulary, width = arrays["decoder/embeddings/weight"].shape
    layers = {part: sum(bool(re.fullmatch(rf"{part}/layer_\d+/ffn/linear_0/weight", name)) for name in arrays)
              for part in ("encoder", "decoder")}  # fmt: skip
    with quiet():
        tokenizer = _tokenizer(source / "tokenizer.json", vocabulary)
        end, start = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|startoftranscript|>"])
        ids = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end, "decoder_start_token_id": start}
        config = WhisperConfig(
            vocab_size=vocabulary,
            num_mel_bins=arrays["encoder/conv1/weight"].shape[1],
            d_model=width,
            encoder_layers=layers["encoder"],
            decoder_layers=layers["decoder"],
            encoder_attention_heads=int(arrays["encoder/num_heads"]),
            decoder_attention_heads=int(arrays["decoder/num_heads"]),
            encoder_ffn_dim=len(arrays["encoder/layer_0/ffn/linear_0/bias"]),
            decoder_ffn_dim=len(arrays["decoder/layer_0/ffn/linear_0/bias"]),
            max_source_positions=len(arrays["encoder/position_encodings/encodings"]),
            max_target_positions=len(arrays["decoder/position_encodings/encodings"]),
            begin_suppress_tokens=None,  # belongs to the generation config
            **ids,
        )
        with torch.device("meta"):
            model = WhisperForConditionalGeneration(config)
        weights = {name: torch.from_numpy(values.astype(np.float32)) for name, values in renamed(arrays).items()}
        try:
            model.load_state_dict(weights, strict=True, assign=True)
        except RuntimeError as error:
            raise AssetError(f"the arrays are not those of a Whisper model: {error}") from error
        model.tie_weights()
        model.generation_config = _generation_config(json.loads((source / "config.json").read_text()), tokenizer, ids)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        WhisperFeatureExtractor(feature_size=config.num_mel_bins).save_pretrained(folder)


def renamed(arrays: Arrays) -> Arrays:
    """The weights among CTranslate2's ``arrays`` by transformers' names, joined projections taken apart.

    Args:
        arrays: by names such as ``decoder/layer_0/attention/linear_1/weight``, ``[2 * width, width]``.

    Returns:
        By names such as ``model.decoder.layers.0.encoder_attn.k_proj.weight``, ``[width, width]``; the embeddings
        under ``proj_out.weight``, too, which is tied to them.

    Raises:
        AssetError: a bias of a key that is not zero, or an output matrix that is not the embeddings.

    Example::

        renamed(read_arrays(file, "WhisperSpec"))["model.encoder.conv1.weight"].shape  # (512, 80, 3)
    """
    weights: Arrays = {}
    for name, values in arrays.items():
        part, _, rest = name.partition("/")
        if rest in _ONE_TO_ONE:
            weights[f"model.{part}.{_ONE_TO_ONE[rest]}"] = values
        elif match := re.fullmatch(r"layer_(\d+)/(\w+)/(layer_norm|linear_\d)/(\w+)", rest):
            layer, block, inner, kind = match.groups()
            own, joined = _BLOCKS[block, inner]
            pieces = np.split(values, len(joined))
            for piece, module in zip(pieces, joined, strict=True):
                target = f"model.{part}.layers.{layer}.{own}{module}.{_KINDS.get(kind, kind)}"
                if not target.endswith("k_proj.bias"):
                    weights[target] = piece
                elif piece.any():
                    raise AssetError(f"{name}: the bias of the key is not zero, and Whisper has none")
    if not np.array_equal(arrays["decoder/projection/weight"], arrays["decoder/embeddings/weight"]):
        raise AssetError("decoder/projection/weight differs from the embeddings, to which Whisper ties it")
    return {**weights, "proj_out.weight": weights["model.decoder.embed_tokens.weight"]}


_KINDS = {"gamma": "weight", "beta": "bias"}
_ONE_TO_ONE = {
    "conv1/weight": "conv1.weight",
    "conv1/bias": "conv1.bias",
    "conv2/weight": "conv2.weight",
    "conv2/bias": "conv2.bias",
    "embeddings/weight": "embed_tokens.weight",
    "position_encodings/encodings": "embed_positions.weight",
    "layer_norm/gamma": "layer_norm.weight",
    "layer_norm/beta": "layer_norm.bias",
}
#: What stands before a module's name in transformers' layer, and the modules that one array holds, in its rows' order.
_BLOCKS: dict[tuple[str, str], tuple[str, tuple[str, ...]]] = {
    ("self_attention", "layer_norm"): ("", ("self_attn_layer_norm",)),
    ("self_attention", "linear_0"): ("self_attn.", ("q_proj", "k_proj", "v_proj")),
    ("self_attention", "linear_1"): ("self_attn.", ("out_proj",)),
    ("attention", "layer_norm"): ("", ("encoder_attn_layer_norm",)),
    ("attention", "linear_0"): ("encoder_attn.", ("q_proj",)),
    ("attention", "linear_1"): ("encoder_attn.", ("k_proj", "v_proj")),
    ("attention", "linear_2"): ("encoder_attn.", ("out_proj",)),
    ("ffn", "layer_norm"): ("", ("final_layer_norm",)),
    ("ffn", "linear_0"): ("", ("fc1",)),
    ("ffn", "linear_1"): ("", ("fc2",)),
}


def _tokenizer(file: Path, vocabulary: int) -> Any:
    """Whisper's tokenizer with every merge and every timestamp; the packaged file lacks the first merge and all of those.

    Merge ``i`` makes token ``256 + i``, as 256 tokens are single bytes. Without the first, ``Ġ t``, the tokenizer cuts
    `` there`` in two, which the model never writes so: its own answers would not be what it is trained on.
    """
    from tokenizers import AddedToken, Tokenizer
    from transformers import WhisperTokenizer

    content = json.loads(file.read_text(encoding="utf-8"))
    merges, tokens = content["model"]["merges"], {i: token for token, i in content["model"]["vocab"].items()}
    if merges[0] == "Ġ a":
        merges.insert(0, "Ġ t")
    if wrong := [i for i, merge in enumerate(merges) if merge.replace(" ", "") != tokens[256 + i]]:
        raise AssetError(
            f"{file}: merge {wrong[0]} is {merges[wrong[0]]!r}, which does not make token {256 + wrong[0]}"
        )
    backend = Tokenizer.from_str(json_text(content, indent=None))
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in _TIMESTAMPS])
    missing = [token for token in _SPECIAL if backend.token_to_id(token) is None]
    if missing or backend.get_vocab_size() != vocabulary:
        raise AssetError(
            f"{file} makes {backend.get_vocab_size()} tokens with the timestamps and lacks {missing}; "
            f"expected {vocabulary}, with {list(_SPECIAL)}"
        )
    # In the order of their ids: transformers takes what follows the last one for the first timestamp.
    special = [token.content for _, token in sorted(backend.get_added_tokens_decoder().items()) if token.special]
    return WhisperTokenizer(
        tokenizer_object=backend, pad_token=special[0], extra_special_tokens=special, model_max_length=1024
    )


def _generation_config(stored: dict[str, Any], tokenizer: Any, ids: dict[str, int]) -> Any:
    """What transformers needs to know to generate: CTranslate2 stores a part, and the rest follows from the tokenizer."""
    from transformers import GenerationConfig

    def number(token: str) -> int:
        return int(tokenizer.convert_tokens_to_ids(token))

    return GenerationConfig(
        **ids,
        max_length=448,
        is_multilingual=True,
        lang_to_id={tokenizer.convert_ids_to_tokens(i): i for i in stored["lang_ids"]},
        task_to_id={task: number(f"<|{task}|>") for task in ("transcribe", "translate")},
        no_timestamps_token_id=number("<|notimestamps|>"),
        prev_sot_token_id=number("<|startofprev|>"),
        return_timestamps=False,
        max_initial_timestamp_index=50,
        suppress_tokens=stored["suppress_ids"],
        begin_suppress_tokens=stored["suppress_ids_begin"],
        alignment_heads=stored["alignment_heads"],
    )
