"""llama.cpp through its C interface: what ``quantize_peers.py`` and ``lm_llama.py`` need of it.

The library is the file that ``LLAMA_LIBRARY`` names (npm's ``@node-llama-cpp/linux-x64`` has a prebuilt ``libllama*.so``), or the
one inside PyPI's ``xllamacpp``, a prebuilt wheel that runs models and has no quantizer in it. Structures that are passed by value
are declared larger than they are: they go through memory, and each side touches its own fields only. Of those that differ between
releases none is touched here.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

#: ``llama_ftype`` by name.
FORMATS = {"F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q4_K_S": 14, "Q4_K_M": 15, "Q5_K_M": 17}
_LARGE = 1024


class _Opaque(ctypes.Structure):
    """Parameters by value: room for those of any release."""

    _fields_ = (("data", ctypes.c_uint8 * _LARGE),)


class _Batch(ctypes.Structure):
    """``llama_batch``."""

    _fields_ = (
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.c_void_p),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    )


def find() -> Path:
    """The library's file; :class:`ModuleNotFoundError` where there is none."""
    if named := os.environ.get("LLAMA_LIBRARY"):
        return Path(named)
    spec = importlib.util.find_spec("xllamacpp")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("no llama.cpp here: pip install xllamacpp, or name its library in LLAMA_LIBRARY")
    return next(iter(sorted(Path(spec.origin).parent.glob("xllamacpp*.so"))))


_LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
_QUIET = _LOG(lambda level, text, data: None)


@cache
def library() -> Any:
    """The library, its functions declared."""
    path = find()
    found = ctypes.CDLL(str(path))
    for beside in sorted(path.parent.glob("libggml.*so*")):  # kernels by processor, in libraries of their own
        loader = ctypes.CDLL(str(beside)).ggml_backend_load_all_from_path
        loader.restype, loader.argtypes = None, [ctypes.c_char_p]
        loader(str(path.parent).encode())
    pointer, integer = ctypes.c_void_p, ctypes.c_int32
    for name, result, arguments in (
        ("llama_backend_init", None, []),
        ("llama_log_set", None, [_LOG, pointer]),
        ("llama_model_default_params", _Opaque, []),
        ("llama_context_default_params", _Opaque, []),
        ("llama_model_quantize_default_params", _Opaque, []),
        ("llama_model_load_from_file", pointer, [ctypes.c_char_p, _Opaque]),
        ("llama_init_from_model", pointer, [pointer, _Opaque]),
        ("llama_set_n_threads", None, [pointer, integer, integer]),
        ("llama_model_get_vocab", pointer, [pointer]),
        ("llama_vocab_n_tokens", integer, [pointer]),
        ("llama_batch_init", _Batch, [integer, integer, integer]),
        ("llama_decode", integer, [pointer, _Batch]),
        ("llama_get_logits", ctypes.POINTER(ctypes.c_float), [pointer]),
        ("llama_get_memory", pointer, [pointer]),
        ("llama_memory_clear", None, [pointer, ctypes.c_bool]),
        ("llama_adapter_lora_init", pointer, [pointer, ctypes.c_char_p]),
        (
            "llama_set_adapters_lora",
            integer,
            [pointer, ctypes.POINTER(pointer), ctypes.c_size_t, ctypes.POINTER(ctypes.c_float)],
        ),
        ("llama_model_quantize", ctypes.c_uint32, [ctypes.c_char_p, ctypes.c_char_p, ctypes.POINTER(_Opaque)]),
    ):
        function = getattr(found, name, None)
        if function is None and name.startswith("llama_model_quantize"):
            continue  # said where it is needed
        if function is None:
            raise ModuleNotFoundError(f"{path} has no {name}: name another library in LLAMA_LIBRARY")
        function.restype, function.argtypes = result, arguments
    found.llama_log_set(_QUIET, None)
    found.llama_backend_init()
    return found


def quantize(source: Path, target: Path, form: str, threads: int) -> None:
    """Write ``target`` in one of :data:`FORMATS`, as the program ``llama-quantize`` does without an importance matrix."""
    if not hasattr(library(), "llama_model_quantize"):
        raise ModuleNotFoundError(f"{find()} has no quantizer: name another library in LLAMA_LIBRARY")
    options = library().llama_model_quantize_default_params()
    numbers = ctypes.cast(ctypes.byref(options), ctypes.POINTER(ctypes.c_int32))
    numbers[0], numbers[1] = threads, FORMATS[form]
    failed = library().llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(options))
    if failed:
        raise RuntimeError(f"llama.cpp could not write {target}: {failed}")


class Model:
    """A GGUF file; logits of every token of a window, or of the last one as a sequence grows."""

    def __init__(self, path: Path, window: int, threads: int) -> None:
        self._library = library()
        self._model = self._library.llama_model_load_from_file(
            str(path).encode(), self._library.llama_model_default_params()
        )
        if not self._model:
            raise RuntimeError(f"llama.cpp could not load {path}")
        options = self._library.llama_context_default_params()
        numbers = ctypes.cast(ctypes.byref(options), ctypes.POINTER(ctypes.c_uint32))
        numbers[0] = numbers[1] = numbers[2] = window  # context, and tokens of a batch
        self._context = self._library.llama_init_from_model(self._model, options)
        if not self._context:
            raise RuntimeError(f"llama.cpp could not make a context for {path}")
        self._library.llama_set_n_threads(self._context, threads, threads)
        self._batch = self._library.llama_batch_init(window, 0, 1)
        self.choices = self._library.llama_vocab_n_tokens(self._library.llama_model_get_vocab(self._model))

    def logits(self, tokens: list[int]) -> np.ndarray:
        """float32 ``[tokens, vocabulary]``."""
        self.forget()
        return self._run(tokens, 0, every=True)

    def use(self, adapter: Path) -> None:
        """Run with a LoRA (a GGUF file) at its own scale."""
        loaded = self._library.llama_adapter_lora_init(self._model, str(adapter).encode())
        if not loaded:
            raise RuntimeError(f"llama.cpp could not load {adapter}")
        adapters, scales = (ctypes.c_void_p * 1)(loaded), (ctypes.c_float * 1)(1.0)
        if self._library.llama_set_adapters_lora(self._context, adapters, 1, scales):
            raise RuntimeError(f"llama.cpp could not use {adapter}")

    def forget(self) -> None:
        """Begin a sequence."""
        self._library.llama_memory_clear(self._library.llama_get_memory(self._context), True)

    def next(self, tokens: list[int], place: int) -> np.ndarray:
        """Logits behind the last of ``tokens``, float32 ``[vocabulary]``; the first of them stands at ``place``."""
        return self._run(tokens, place, every=False)[0]

    def _run(self, tokens: list[int], first: int, *, every: bool) -> np.ndarray:
        batch = self._batch
        batch.n_tokens = len(tokens)
        for place, token in enumerate(tokens):
            batch.token[place], batch.pos[place], batch.n_seq_id[place] = token, first + place, 1
            batch.seq_id[place][0], batch.logits[place] = 0, every or place + 1 == len(tokens)
        if self._library.llama_decode(self._context, batch):
            raise RuntimeError("llama.cpp could not run the window")
        rows = len(tokens) if every else 1
        found = np.ctypeslib.as_array(self._library.llama_get_logits(self._context), (rows, self.choices))
        return np.array(found)
