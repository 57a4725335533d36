"""Tiny models are traced once a run of the tests: torch.export and its conversion take seconds, and most tests share a model.

A graph is known by whatever its trace is made of: the function, the model's class, its config, every number and setting of
its modules, the inputs. Where a test exchanges a part of the tracing, nothing is kept. What happens to a graph before and
after (markers, locating, comparing with PyTorch, slots) is done anew each time.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

#: Models of more bytes are traced each time: their graphs would fill the memory.
LARGEST = 16_000_000
#: What is in no graph: where a model was read from, and what its outputs are called.
LEFT_OUT = {
    "_name_or_path",
    "name_or_path",
    "architectures",
    "id2label",
    "label2id",
    "problem_type",
    "transformers_version",
}


def settings_of(model: Any) -> list[str]:
    """Numbers, words and choices that the modules of ``model`` hold beside their tensors."""
    return [
        f"{name}.{key}={value!r}"
        for name, module in model.named_modules()
        for key, value in sorted(vars(module).items())
        if key not in LEFT_OUT and isinstance(value, bool | int | float | str | tuple | type(None))
    ]


def known_by(loaded: Any, *more: object) -> str | None:
    """A hash of all that a trace of ``loaded`` depends on; ``None`` where that is too large to keep."""
    tensors = {**dict(loaded.model.named_buffers()), **loaded.model.state_dict()}  # some buffers are in no state
    if sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) > LARGEST:
        return None
    digest = hashlib.sha256(repr((type(loaded.model), loaded.task, loaded.inputs, loaded.max_length, more)).encode())
    config = {key: value for key, value in loaded.model.config.to_dict().items() if key not in LEFT_OUT}
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    digest.update("\n".join(settings_of(loaded.model)).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().contiguous().view(-1).numpy().tobytes())
    return digest.hexdigest()


def once(
    trace: Callable[..., Any], folder: Path, parts: Callable[[], tuple[object, ...]] = tuple
) -> Callable[..., Any]:
    """``trace(loaded, fusions=…)``, which gives a graph or several, as a function that makes each of them once.

    Graphs are kept in ``folder``, which processes may share. ``parts`` are what ``trace`` calls and tests exchange.
    """
    own = parts()

    @functools.wraps(trace)
    def traced(loaded: Any, *, fusions: bool = True) -> Any:
        key = known_by(loaded, trace.__module__, trace.__qualname__, fusions) if parts() == own else None
        if key is None:
            return trace(loaded, fusions=fusions)
        kept = folder / key
        if not kept.is_file():
            found = trace(loaded, fusions=fusions)
            graphs = found if isinstance(found, tuple) else (found,)
            unfinished = folder / f"{key}.{os.getpid()}"
            unfinished.write_bytes(
                pickle.dumps([ir.serde.serialize_model(each).SerializeToString() for each in graphs])
            )
            unfinished.replace(kept)
            return found
        contents: list[bytes] = pickle.loads(kept.read_bytes())
        copies = tuple(ir.serde.deserialize_model(onnx.ModelProto.FromString(content)) for content in contents)
        return copies if len(copies) > 1 else copies[0]

    return traced


def install(folder: Path) -> None:
    """Let the routes of :func:`edgepeft.base.capture.capture` trace each model once; baking traces each time."""
    from edgepeft.base.routes import traced, traced_causal, traced_seq2seq

    folder.mkdir(exist_ok=True)
    traced.export_graph = once(traced.export_graph, folder)
    traced_seq2seq._trace_both = once(traced_seq2seq._trace_both, folder)
    traced_causal.export_causal = once(
        traced_causal.export_causal, folder, lambda: (traced_causal._windows_by_position,)
    )
