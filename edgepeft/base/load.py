"""Loading the PyTorch side of a base: model, config, tokenizer files, sample inputs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from ..adapters.contract import original_of
from ..adapters.folder_text import FolderText, folder_text
from ..embedding.modules import EmbeddingModules
from ..errors import CaptureError, InputError, MissingExtraError
from .forward_inputs import check_inputs
from .identity import identity_of_model
from .language_part import is_multimodal, load_language_part
from .limits import longest, positions
from .missing import check_missing
from .pad_token import needs_pad_token, settle_pad_token
from .remote_code import refuse_remote_code, trusted
from .replicate import LayerMap, replicate_layers
from .samples import Shapes, input_shapes, model_shapes, random_batches, speech_shapes, vocabulary
from .sources import embedding_of, embeds_texts, model_class, model_source
from .task import SPEECH, TASKS, WRITING, infer_task
from .tokenizer_files import lower_cased, model_files


@dataclass(frozen=True)
class Loaded:
    """A Hugging Face model in fp32 eval mode with what a capture needs to know of it."""

    model: Any
    source: str
    task: str
    fresh: tuple[str, ...]
    identity: str
    #: Inputs by name; strings are free dimensions.
    inputs: Shapes
    max_length: int | None
    files: Mapping[str, bytes]
    #: Ranges of the checkpoint's layers that the model was rebuilt from, where they were repeated.
    layers: tuple[tuple[int, int], ...] = ()
    #: Weights of the checkpoint that the model has no place for (another task's head, most often).
    unexpected: tuple[str, ...] = ()
    #: How texts are embedded, of a base that sentence-transformers saved for that.
    embedding: EmbeddingModules | None = None
    #: How many tokens the model has positions for; ``max_length`` may be less.
    positions: int | None = None
    #: The multimodal model whose language part this is, by its ``model_type``.
    part_of: str | None = None

    @property
    def writes(self) -> bool:
        """Whether the task is to write tokens one after another."""
        return self.task in WRITING

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the inputs."""
        return tuple(self.inputs)


@contextmanager
def quiet() -> Any:
    """Hold back transformers' log lines and progress bars while it loads or traces; restored afterwards."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def check_source(source: str) -> None:
    """:class:`InputError` for a model that is not there, in a second and before torch is imported.

    transformers itself tries an id that cannot be fetched for half a minute.
    """
    if Path(source).exists():
        return
    if source.startswith((".", "/", "~")) or source.count("/") > 1 or "\\" in source:
        raise InputError(
            f"base model {source!r} is neither a folder with config.json nor a Hugging Face id: there is nothing at this path"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        snapshot_download(source, allow_patterns=["config.json"])
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"base model {source!r} is neither a folder with config.json nor a Hugging Face id that can be fetched: {first}"
        ) from error


def base_text(files: Mapping[str, bytes], source: str) -> FolderText:
    """What a base's files say about text."""

    def read(name: str) -> str | None:
        return files[name].decode("utf-8") if name in files else None

    return folder_text(read, Path(source), InputError)


def float_options(source: str, config: Any) -> dict[str, Any]:
    """What ``from_pretrained`` is asked for a checkpoint that is stored in few bits, so that it gives floats.

    transformers itself unpacks MXFP4 (gpt-oss as published). Of any other kind the weights cannot be read without the tool that
    packed them: :class:`InputError` says so.
    """
    settings = getattr(config, "quantization_config", None)
    if not settings:
        return {}
    said = settings if isinstance(settings, dict) else vars(settings)
    method = str(getattr(said.get("quant_method"), "value", said.get("quant_method") or "an unknown method"))
    if method == "mxfp4":
        from transformers import Mxfp4Config

        return {"quantization_config": Mxfp4Config(dequantize=True)}
    bits = said.get("bits") or (4 if said.get("load_in_4bit") else 8 if said.get("load_in_8bit") else None)
    stored = f"in {bits} bits by {method}" if bits else f"quantized by {method}"
    original = original_of(source)
    over = (
        f"the model it was quantized from ({original}, by its name)" if original else "the model it was quantized from"
    )
    raise InputError(
        f"base model {source!r} is stored {stored}, which only {method} itself can read. An adapter trained over it is exported "
        f"over {over} (--mode swap, then `edgepeft quantize --variant q4`: the adapter stays in fp32), "
        "or, to have the very numbers it was trained over, over a float copy: load it where that tool is installed, "
        "model.dequantize(), save_pretrained(FOLDER). An ONNX file of it in 4 or 8 bits is taken with --onnx."
    )


def load_model(
    source: str | Path,
    *,
    task: str | None = None,
    peft_task: str | None = None,
    layers: LayerMap = (),
    heads: Collection[str] = (),
    pad_token: str | int | None = None,
    texts: Mapping[str, FolderText] = MappingProxyType({}),
    announce: Callable[[str], None] = lambda message: None,
) -> Loaded:
    """Load a base in fp32, eval mode, on the CPU; a fresh head, which the checkpoint lacks, is set to zero.

    ``source`` is a folder or a Hugging Face id. ``task`` is inferred where it is not given. ``layers`` repeats the base's
    layers (LoRA's ``layer_replication``), and ``heads`` are parameters of heads that adapters bring. A classifier over a
    decoder without a padding token gets ``pad_token``, or what its tokenizer or the ``texts`` of adapters name, which ``announce``
    is told. Raises
    :class:`InputError` for an unknown task or a source that cannot be loaded, and :class:`CaptureError` for a checkpoint
    that lacks weights of the base itself.
    """
    source = str(source)
    if missing := [name for name in ("torch", "transformers") if find_spec(name) is None]:
        raise MissingExtraError(f"capturing a base needs {missing[0]}: pip install 'edgepeft[export]'")
    check_source(source)
    import torch
    from transformers import AutoConfig

    where, sentence = model_source(source), embeds_texts(source)
    with quiet():
        try:
            config = AutoConfig.from_pretrained(where, trust_remote_code=trusted())
        except (OSError, ValueError, KeyError) as error:
            refuse_remote_code(source, error)
            raise InputError(
                f"base model {source!r} is neither a folder with config.json nor a Hugging Face id that can be fetched: "
                f"{str(error).strip().splitlines()[0]}"
            ) from error
        unpacked = float_options(source, config)
        if task is None and sentence and not peft_task and not heads:
            task = "feature-extraction"
        task = task or infer_task(config, peft_task, heads)
        if task not in TASKS:
            raise InputError(f"task {task!r} is not supported yet; this version exports: {', '.join(TASKS)}")
        auto = model_class(config, task, sentence=sentence)
        options = {"dtype": torch.float32, "output_loading_info": True, "trust_remote_code": trusted()}
        part = task == "text-generation" and is_multimodal(config)
        try:
            if part:
                model, info = load_language_part(where, config)
            else:
                model, info = auto.from_pretrained(where, **options, **unpacked)
            if task == "feature-extraction" and any(name.startswith("pooler.") for name in info["missing_keys"]):
                # A pooler that nobody trained would be noise in PyTorch and zero here; the embedding does not need it.
                model, info = auto.from_pretrained(where, **options, add_pooling_layer=False)
        except (OSError, ValueError, RuntimeError) as error:
            refuse_remote_code(source, error)
            raise InputError(f"cannot load {source!r} for {task}: {str(error).strip().splitlines()[0]}") from error
    model = model.eval()
    fresh = tuple(sorted(info["missing_keys"]))
    if info.get("mismatched_keys"):
        raise CaptureError(
            f"{source!r}: the checkpoint's shapes differ from its config: {sorted(info['mismatched_keys'])}"
        )
    parameters = dict(model.named_parameters())
    if fresh and len(fresh) > len(parameters) // 2:
        raise CaptureError(
            f"{source!r} holds {len(parameters) - len(fresh)} of the {len(parameters)} parameters that {type(model).__name__} "
            f"needs for {task}; it is a checkpoint of another architecture"
        )
    unexpected = tuple(sorted(info.get("unexpected_keys") or ()))
    check_missing(model, where, task, fresh, unexpected)
    if layers:
        replicate_layers(model, layers, source)
        parameters = dict(model.named_parameters())
    identity = identity_of_model(model, fresh)
    with torch.no_grad():
        for name in fresh:
            if name in parameters:
                parameters[name].zero_()
    loaded = described(model, source, task, identity=identity, pad_token=pad_token, texts=texts, announce=announce)
    return replace(
        loaded,
        fresh=fresh,
        layers=tuple((int(start), int(end)) for start, end in layers),
        unexpected=unexpected,
        part_of=config.model_type if part else None,
    )


def described(
    model: Any,
    source: str,
    task: str,
    *,
    identity: str,
    pad_token: str | int | None = None,
    texts: Mapping[str, FolderText] = MappingProxyType({}),
    announce: Callable[[str], None] = lambda message: None,
) -> Loaded:
    """What a capture needs to know of ``model`` beside its numbers: inputs, files, lengths, padding; see :func:`load_model`."""
    generates = task in WRITING
    if not generates:
        model.config.use_cache = False  # these tasks read a sequence once
    where, embedding = model_source(source), embedding_of(source, task)
    inputs = speech_shapes(model, source) if task == SPEECH else input_shapes(model)
    check_inputs(model, inputs, task)
    reads = "input_ids" in inputs
    with quiet():
        files = model_files(where, source, texts=generates or reads)
    if embedding is not None and embedding.lower_case:
        files = lower_cased(files)
    if needs_pad_token(model.config, task):
        settle_pad_token(model.config, source, {source: base_text(files, source), **texts}, pad_token, announce)
    rows = (
        positions(model, inputs, generates=generates) if reads else getattr(model.config, "max_target_positions", None)
    )
    said = None if embedding is None else embedding.max_length
    return Loaded(
        model=model,
        source=source,
        task=task,
        fresh=(),
        identity=identity,
        inputs=inputs,
        max_length=longest(rows, files, said) if reads or generates else None,
        positions=rows,
        files=files,
        embedding=embedding,
    )


def sample_batches(loaded: Loaded, *, shapes: tuple[tuple[int, int], ...] | None = None) -> list[dict[str, np.ndarray]]:
    """Random batches that fit ``loaded``, by default of the lengths that matter; see :mod:`edgepeft.base.samples`."""
    if shapes is None:
        shapes = model_shapes(loaded.model, loaded.inputs, loaded.max_length)
    vocab, pad_id = vocabulary(loaded.model.config.to_dict())
    return random_batches(loaded.inputs, vocab=vocab, pad_id=pad_id, max_length=loaded.max_length, shapes=shapes)
