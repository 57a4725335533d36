"""Capture of decoder-only language models with mobius: graphs from definitions, in seconds, with GroupQueryAttention."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import onnx_ir as ir

from ...errors import CaptureError, MissingExtraError
from ...graph.mapped_weights import spill
from ..captured import Captured
from ..lengths import rope_switch
from ..load import Loaded, quiet
from ..markers import Built, capture_marked
from ..parity import graph_causal_parity
from .mobius_fixes import fixes_for


@contextmanager
def _quiet_mobius() -> Iterator[None]:
    logger = logging.getLogger("mobius")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with quiet():
            yield
    finally:
        logger.setLevel(level)


def _normalised(config: Any) -> Any:
    """A copy of a transformers 5 config in which rotary settings also stand where mobius 0.1 looks for them.

    transformers 5 nests them by layer type in ``rope_parameters``; mobius reads ``rope_theta`` and
    ``rope_local_base_freq`` from the top, and falls back to 10,000 without a word.
    """
    config = copy.deepcopy(config)
    rope = getattr(config, "rope_parameters", None)
    if not isinstance(rope, dict):
        return config
    if "full_attention" in rope:
        whole, local = rope["full_attention"], rope.get("sliding_attention")
        config.rope_parameters = dict(whole)
        config.rope_theta = whole.get("rope_theta")
        if local is not None:
            config.rope_local_base_freq = local.get("rope_theta")
    elif "rope_theta" in rope:
        config.rope_theta = rope["rope_theta"]
    return config


def skeleton(loaded: Loaded) -> tuple[Any, ir.Model]:
    """mobius' definition of the model, and its graph without weights; :class:`CaptureError` where mobius has none."""
    import dataclasses

    from mobius import build_from_module, registry

    config = _normalised(loaded.model.config)
    kind = config.model_type
    switch = rope_switch(loaded.model.config.to_dict())
    if switch is not None and (loaded.max_length or switch + 1) > switch:
        raise CaptureError(
            f"mobius builds one table of rotary frequencies, and {kind!r} has another for sequences of more than {switch} tokens"
        )
    if kind not in registry:
        raise CaptureError(f"mobius has no definition of {kind!r}")
    if (registry.get_task(kind) or "text-generation") != "text-generation":
        raise CaptureError(f"mobius builds {kind!r} for {registry.get_task(kind)}, not for text generation")
    module_class = registry.get(kind)
    config_class = registry.get_config_class(kind) or module_class.config_class
    settings = config_class.from_transformers(config)
    settings = dataclasses.replace(
        settings,
        dtype=ir.DataType.FLOAT,
        max_position_embeddings=loaded.max_length or settings.max_position_embeddings,
    )
    module = module_class(settings)
    package = build_from_module(module, settings, "text-generation", execution_provider="cpu")
    return module, package["model"]


def give_weights(module: Any, graph: ir.Model, state: dict[str, Any], kind: str) -> dict[str, Any]:
    """Give the graph of a definition the tensors of ``state``, laid out as the definition wants them; those, by initializer."""
    from mobius import apply_weights

    if hasattr(module, "preprocess_weights"):
        state = module.preprocess_weights(state)
    apply_weights(graph, state)
    missing = [n for n, v in graph.graph.initializers.items() if v.const_value is None]
    if missing:
        raise CaptureError(
            f"mobius' graph of {kind!r} has {len(missing)} weights that the model lacks, such as {missing[0]}"
        )
    return state


def _graph(loaded: Loaded) -> ir.Model:
    """The model's graph, with its weights."""
    module, graph = skeleton(loaded)
    give_weights(module, graph, dict(loaded.model.state_dict()), loaded.model.config.model_type)
    for name, value in graph.graph.initializers.items():
        assert value.const_value is not None
        value.const_value = ir.tensor(value.const_value.numpy(), name=name)
    return graph


@contextmanager
def building(loaded: Loaded) -> Iterator[None]:
    """Hold back what mobius logs, and give a type to what it raises: :class:`CaptureError`."""
    try:
        with _quiet_mobius():
            yield
    except CaptureError:
        raise
    except Exception as error:  # mobius raises whatever its builders and onnxscript raise
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise CaptureError(
            f"mobius cannot build {type(loaded.model).__name__}: {type(error).__name__}: {first}"
        ) from error


def _spilled_graph(loaded: Loaded) -> Built:
    """The model's graph as the bundle promises it, its weights in a scratch file."""
    with building(loaded):
        graph = _graph(loaded)
    for fix in fixes_for(loaded):
        fix(graph)
    spilled = spill(graph)
    for value in graph.graph.initializers.values():
        value.const_value = None  # something in mobius keeps its graph alive, and with it PyTorch's memory
    return Built((spilled.graph,), spilled)


def build(loaded: Loaded) -> Captured:
    """Build ``loaded``'s graph with mobius; raises :class:`CaptureError` where mobius cannot.

    mobius lays some parameters out so anew that they are not found again; it builds the graph once more without markers
    in those.
    """
    try:
        import mobius  # noqa: F401 - asked for here, so that the message names the extra
    except ImportError as error:
        raise MissingExtraError(f"capturing with mobius needs: pip install 'edgepeft[export]' ({error})") from error
    return capture_marked(
        loaded,
        lambda: _spilled_graph(loaded),
        lambda built: graph_causal_parity(built.graphs[0], loaded, built.spilled),
        rebuild=True,
    )
