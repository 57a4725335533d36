"""Recipes that turn the fp32 variant of a base into another one: one entry adds one. Slots and adapters are never touched.

Nothing heavy is imported before a recipe runs, so that help and messages can list them anywhere.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from ..errors import InputError

if TYPE_CHECKING:
    import numpy as np

#: The precision that recipes begin with.
WHOLE = "fp32"


@dataclass(frozen=True)
class Recipe:
    """A named way to quantize, and all that the rest of the package knows of it.

    ``variant`` names it, and its files: ``onnx/model_<variant>.onnx``. ``summary`` stands in the manifest, ``purpose`` in help.
    ``apply(source file, target file, slots)`` writes the new graph and its weights; one that is ``calibrated`` also takes
    ``ranges=``, measured on texts (:func:`~edgepeft.quantize.w8a16.with_extremes`). ``rounded`` gives what a linear weight
    ``[out, in]`` is after it, in float32: by that it is judged how much of a merged adapter survives. ``fitted`` writes the same
    variant by GPTQ from runs of the model (:func:`~edgepeft.quantize.calibrated.calibrated`), where it can be had, and ``searched``
    by the grids with the smallest squared error. ``in_graph(model, slots)`` does what ``apply`` does in a graph, and rounds
    numbers that are deferred (:mod:`edgepeft.graph.deferred`) when they are written: a recipe that has it needs no data, and makes
    its variant of a base of any size. ``weight_bytes`` is about what a weight takes in the file. ``browsers`` and ``genai`` say
    whether transformers.js, and onnxruntime-genai, should open this variant first where there are several. ``halves`` names the
    variant that this one is in float16: ``apply`` then takes a prepared graph, and the plan for it (:mod:`.halves`).
    """

    variant: str
    summary: str
    purpose: str
    apply: Callable[..., None]
    rounded: Callable[[np.ndarray], np.ndarray]
    calibrated: bool = False
    fitted: Callable[..., None] | None = None
    in_graph: Callable[..., None] | None = None
    weight_bytes: float = 1.0
    searched: Callable[..., None] | None = None
    browsers: bool = False
    genai: bool = False
    halves: str = ""

    def graph_file(self, source: str) -> str:
        """``onnx/model.onnx`` of this variant: ``onnx/model_int8.onnx``, as transformers.js names it."""
        path = PurePosixPath(source)
        return path.with_name(f"{path.stem}_{self.variant}{path.suffix}").as_posix()


def _in(module: str, name: str) -> Callable[..., Any]:
    """The function ``name`` of a module of this package, imported when it is called."""

    def call(*args: Any, **options: Any) -> Any:
        return getattr(importlib.import_module(f".{module}", __package__), name)(*args, **options)

    return call


#: Ways to round, by the name that ``--method`` takes: what each does, as the manifest says it.
METHODS: dict[str, str] = {
    "gptq": "GPTQ with zero points, and biases for what rounding moves on average",
    "mse": "the nearest number of grids with zero points and the smallest squared error",
    "rtn": "round to nearest",
}

#: By variant, in the order in which they are preferred.
RECIPES: dict[str, Recipe] = {
    recipe.variant: recipe
    for recipe in (
        Recipe(
            "int8",
            "8 bits: weights per output channel, activations per token at run time",
            "8 bits, for encoders",
            apply=_in("int8", "int8"),
            rounded=_in("int8", "round_channels"),
            in_graph=_in("int8", "int8_graph"),
            browsers=True,
        ),
        Recipe(
            "q4",
            "4 bits in blocks of 32, round to nearest: linear layers and embeddings",
            "4 bits, for language models",
            apply=_in("q4", "q4"),
            rounded=_in("q4", "round_to_blocks"),
            fitted=_in("calibrated", "calibrated"),
            in_graph=_in("q4", "q4_graph"),
            weight_bytes=0.5 + 4 / 32,
            searched=_in("searched", "least_error"),
            browsers=True,
            genai=True,
        ),
        Recipe(
            "q8",
            "8 bits in blocks, grids with zero points and the smallest squared error: linear layers and embeddings",
            "8 bits in blocks, next to nothing lost",
            apply=_in("searched", "q8"),
            rounded=_in("searched", "round_to_grids"),
            in_graph=_in("searched", "q8_graph"),
            weight_bytes=1.06,
        ),
        Recipe(
            "w8a16",
            "8 bits: weights per output channel; activations in 16 bits, ranges measured",
            "weights in 8 bits, for NPUs; wants --data",
            apply=_in("w8a16", "w8a16"),
            rounded=_in("w8a16", "round_symmetric"),
            calibrated=True,
        ),
        Recipe(
            "q4f16",
            "q4, all else in float16 but for what it does not hold: activations, norms, the key/value cache",
            "q4, the rest in float16, for GPUs",
            apply=_in("halves.write", "write_halves"),
            rounded=_in("q4", "round_to_blocks"),
            weight_bytes=0.5 + 2 / 32,
            halves="q4",
        ),
        Recipe(
            "fp16",
            "float16 but for what it does not hold: weights, activations, the key/value cache",
            "float16, for GPUs",
            apply=_in("halves.write", "write_halves"),
            rounded=_in("halves.write", "round_half"),
            weight_bytes=2.0,
            halves=WHOLE,
        ),
    )
}


def recipe(variant: str) -> Recipe:
    """The recipe of a variant; :class:`InputError` lists those there are."""
    try:
        return RECIPES[variant]
    except KeyError:
        raise InputError(f"no recipe makes a variant {variant!r}; there are: {', '.join(RECIPES)}") from None


def preferred(where: str) -> tuple[str, ...]:
    """Variants in the order in which ``"browsers"`` or ``"genai"`` should open them, fp32 last."""
    return (*(name for name, each in RECIPES.items() if getattr(each, where)), WHOLE)


def preferred_variant(variants: Collection[str], *, writes: bool) -> str:
    """The one of a bundle's variants that is run where nobody names one, as its configurations for others say it too.

    Args:
        variants: The bundle's variants, the first one made first.
        writes: Whether the bundle is a language model's.
    """
    return next(
        (name for name in preferred("genai" if writes else "browsers") if name in variants), next(iter(variants))
    )


def preferred_on_gpu(variants: Collection[str], *, halves: bool) -> str:
    """The one of a bundle's variants that a GPU runs where nobody names one.

    Args:
        variants: The bundle's variants, the first one made first.
        halves: Whether the GPU computes in float16. Integer products are no operators of WebGPU, so int8 comes last.
    """
    own = [name for name, each in RECIPES.items() if each.halves] if halves else []
    return next((name for name in (*own, "q4", WHOLE) if name in variants), next(iter(variants)))


def with_texts() -> str:
    """The variants that measure activations on texts, ``w8a16``."""
    return ", ".join(name for name, each in RECIPES.items() if each.calibrated)


def without_texts() -> str:
    """The others, ``int8, q4 and q8``."""
    *first, last = (name for name, each in RECIPES.items() if not each.calibrated)
    return f"{', '.join(first)} and {last}" if first else last
