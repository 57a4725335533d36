"""Ranges of a base's activations, measured on texts with each of its adapters."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..bundle import Bundle, Manifest
from ..data import Examples, evenly
from ..errors import BundleError, InputError, UnknownAdapterError
from ..quantize.recipes import without_texts
from ..runtime.active import load_adapter
from ..runtime.per_text import PerText
from ..runtime.sessions import open_session
from ..runtime.text import TextEncoder
from ..scratch import scratch_folder

if TYPE_CHECKING:
    from ..quantize.w8a16 import Ranges

#: Texts run for each adapter, spread evenly over those given.
ROWS = 64
_BATCH = 8
_TEXT_INPUTS = {"input_ids", "attention_mask", "token_type_ids"}


def measure_ranges(
    bundle: Bundle, data: Mapping[str, Examples], *, rows: int = ROWS, announce: Callable[[str], None]
) -> tuple[Ranges, dict[str, int]]:
    """The smallest and largest number of every activation of the fp32 variant, and how many texts each adapter ran.

    Each adapter runs the texts under its name in ``data``, or those of ``"*"``, or all there are; so does the base (``"*"``
    in the counts). Raises :class:`InputError` without texts or rows, or for a base that does not take texts alone, and
    :class:`UnknownAdapterError` for a name that is no adapter.
    """
    from ..quantize.w8a16 import with_extremes

    check_texts(bundle, data)
    manifest = bundle.manifest
    with scratch_folder("calibrate") as scratch:
        file = Path(scratch) / "extremes.onnx"
        names = with_extremes(bundle.file(manifest.variants["fp32"].file), file, manifest.slots)
        return _run(bundle, file, names, _texts(bundle, data, rows), announce)


def takes_texts(manifest: Manifest) -> bool:
    """Whether a base is fed by texts alone."""
    return {value.name for value in manifest.inputs if not value.optional} <= _TEXT_INPUTS


def check_texts(bundle: Bundle, data: Collection[str], *, language: bool = False) -> None:
    """Refuse what :func:`measure_ranges` cannot measure: a base that does not take texts alone, an unknown name, no texts.

    ``data`` are the names that texts are given for; ``language``: a language model is measured too.
    """
    manifest = bundle.manifest
    if (
        (manifest.writes and not language)
        or not (language or takes_texts(manifest))
        or "tokenizer.json" not in manifest.files
    ):
        raise InputError(
            f"{bundle.path} is for {manifest.task}: activations are measured for bases that take a text and give numbers "
            f"(classification, features). {without_texts()} need no texts"
        )
    check_names(bundle, data)
    if not data:
        raise InputError(
            "activations are measured on texts, and none are given: --data NAME=FILE, with texts as the adapter will see "
            "them (not those that it is judged by), or '*=FILE' for all"
        )


def check_names(bundle: Bundle, names: Collection[str]) -> None:
    """Refuse a name that is none of the bundle's adapters, nor ``"*"``."""
    manifest = bundle.manifest
    merged = manifest.merged
    if unknown := sorted(set(names) - {*manifest.adapters, "*", *([merged] if merged else [])}):
        raise UnknownAdapterError(
            f"{bundle.path} has no adapter {unknown[0]!r}; it has: {', '.join(manifest.adapters) or merged or 'none'} "
            '("*" is for all)'
        )


def measured_without(variant: str, name: str) -> str:
    """What to say of a calibrated variant that an adapter had no part in."""
    return (
        f"{variant} was measured without {name}: look at its accuracy (validate --variant {variant} --data {name}=FILE), or "
        f"make it again (quantize --variant {variant} --replace --data …)"
    )


def _texts(bundle: Bundle, data: Mapping[str, Examples], rows: int) -> dict[str | None, list[Any]]:
    everything = [text for examples in data.values() for text in inputs_of(examples)]
    found: dict[str | None, list[Any]] = {None: everything}
    for name in bundle.manifest.adapters:
        given = data.get(name, data.get("*"))
        found[name] = inputs_of(given) if given is not None else everything
    return {name: [texts[i] for i in evenly(len(texts), rows)] for name, texts in found.items()}


def inputs_of(examples: Examples) -> list[Any]:
    """Texts, or pairs of them."""
    return list(examples.texts if examples.pairs is None else zip(examples.texts, examples.pairs, strict=True))


def _run(
    bundle: Bundle,
    file: Path,
    names: tuple[str, ...],
    texts: Mapping[str | None, list[Any]],
    announce: Callable[[str], None],
) -> tuple[Ranges, dict[str, int]]:
    session = open_session(file)
    encoders = PerText(lambda own: TextEncoder(bundle, own))
    low, high = (np.zeros(len(names)) for _ in range(2))  # zero is always in a range: it must be exact
    outputs = [f"{name}/{part}" for part in ("min", "max") for name in names]
    for adapter, each in texts.items():
        announce(f"measuring activations of {adapter or 'the base'} on {len(each)} texts")
        active = load_adapter(bundle, adapter) if adapter else None
        for start in range(0, len(each), _BATCH):
            feeds: dict[str, Any] = {
                **encoders.get(bundle.text_of(adapter)).encode(each[start : start + _BATCH]),
                **(active.feeds if active else {}),
            }
            found = np.array(session.run(outputs, feeds, active.options if active else None), np.float64)
            low, high = np.minimum(low, found[: len(names)]), np.maximum(high, found[len(names) :])
    wrong = ~(np.isfinite(low) & np.isfinite(high))
    if wrong.any():
        raise BundleError(
            f"activation {names[int(wrong.argmax())]} of the fp32 variant is not finite on the given texts"
        )
    ranges = {name: (float(a), float(b)) for name, a, b in zip(names, low, high, strict=True)}
    return ranges, {adapter or "*": len(each) for adapter, each in texts.items()}
