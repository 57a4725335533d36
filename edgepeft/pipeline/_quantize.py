"""``quantize``: another precision of the base in the same bundle, for all of its adapters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import onnx_ir as ir

from .. import runtime as runtimes
from ..bundle import LOCK_TIMEOUT, Bundle, Manifest, Variant, read_bundle, scratch
from ..bundle.transaction import left_as_it_was
from ..errors import BundleError, InputError
from ..quantize import recipe
from ..quantize.counts import Quantized, count_quantized, total
from ..quantize.merge_error import NOTABLE, key_of
from ..quantize.recipes import WHOLE, Recipe
from ..runtime.sessions import open_session
from ._calibrate import ROWS, check_texts, measure_ranges, measured_without
from ._calibration import held_bytes, runs_of
from ._calibration_data import Data, texts_of
from ._calibration_runs import Runs
from ._edit import Edit, copy_files, edit
from ._fitting import Fitting, choose_fitting, require_possible
from ._halves import graphs_in_fp32, halve
from ._manifest import require_onnx
from ._mixed_bits import Front, make_mixed
from ._mixed_variant import Goal, Graph
from ._quality import Quality
from ._quality_crossed import quality_of
from ._quantize_room import require_room
from ._refitted_files import without_refits
from ._web_graph import add_input_style

Announce = Callable[[str], None]

#: What stands before the names of matrices where a model has two graphs.
_LABELS = {"file": "encoder/", "decoder_file": "decoder/"}


@dataclass(frozen=True)
class QuantizedBundle:
    """The bundle with its new variant, what was quantized, and the sizes of both variants' files in bytes."""

    bundle: Bundle
    variant: str
    quantized: Quantized
    bytes_before: int
    bytes_after: int
    #: For a base merged with an adapter: the relative error with which the adapter's change survives this rounding; ``None``
    #: where weights are fitted to texts, for which ``quality`` says what is lost.
    merge_error: float | None = None
    #: How the weights were rounded, a name of ``METHODS``; ``None`` where a recipe has one way.
    method: str | None = None
    #: How far the variant is from fp32, for the base and each adapter; empty where that is not measured.
    quality: tuple[Quality, ...] = ()
    #: What else could have been had, where bits were chosen for a goal.
    front: Front | None = None

    @property
    def warning(self) -> str:
        """What rounding took of a merged adapter, in words; empty where that is little or nothing was merged."""
        if self.merge_error is None or self.merge_error < NOTABLE:
            return ""
        return (
            f"adapter {self.bundle.manifest.merged!r} is merged into these weights, and rounding to {self.variant} leaves its "
            f"change of them with a relative error of {self.merge_error:.2f} (0 is exact; from 1 on the noise of rounding is "
            "larger than the change). Exported with --mode swap and quantized then, it stays in fp32 beside the same base"
        )


def quantize(
    bundle: str | Path,
    variant: str,
    *,
    data: Mapping[str, Data] | None = None,
    rows: int = ROWS,
    method: str | None = None,
    heal: int = 0,
    head_bits: int | None = None,
    layer_bits: int | None = None,
    goal: Goal | None = None,
    measure: bool = True,
    replace: bool = False,
    lock_timeout: float = LOCK_TIMEOUT,
    announce: Announce = lambda message: None,
) -> QuantizedBundle:
    """Add a variant to a bundle, made from its fp32 one. Adapters and slots are unchanged and serve both.

    Other processes may change the bundle while weights are rounded: the result is put into the bundle as it is then. Where
    anything raises, the bundle stays as it was.

    Args:
        bundle: The bundle's folder.
        variant: The recipe's name: ``"int8"``, ``"q4"``, ``"fp16"`` and the others of :data:`~edgepeft.quantize.RECIPES`.
        data: Texts by adapter (``"*"``: for all), for recipes that run the model (``w8a16``, ``q4`` by GPTQ, ``fp16``, ``q4f16``);
            of a model that writes down speech rows of sound (:func:`~edgepeft.validate.read_language_rows`, ``sounds=True``).
        rows: How many texts or sounds of each adapter are run to measure.
        method: How ``q4`` rounds: ``"gptq"``, ``"mse"`` or ``"rtn"`` (:data:`~edgepeft.quantize.recipes.METHODS`). By default
            GPTQ where the bundle can be calibrated: a language model by a text that ships with edgepeft, others by ``data``
            (without which a model that writes down speech takes ``"mse"``, and others ``"rtn"``).
        heal: Rank of a correction that each linear layer gets in floats, for GPTQ; 0 for none.
        head_bits: 4 or 8 bits for a head that writes tokens, for GPTQ; 4 by default, 8 of speech.
        layer_bits: 4 or 8 bits for the other linear layers, so not for tables of embeddings, for GPTQ.
        goal: A size, or a divergence from fp32: each matrix then gets the bits that reach it best, for GPTQ.
        measure: Compare the variant of a model that writes with fp32, on texts or sounds kept apart.
        replace: Replace a variant of that name.
        lock_timeout: Seconds to wait for another process that changes the bundle.
        announce: Is called with a line of text for each step.

    Returns:
        The bundle with the variant, what was quantized, and the bytes of both variants' files.

    Raises:
        InputError: The variant is unknown or exists already, its recipe wants texts and has none, a method does not apply, or
            memory or disk is short.
        ParityError: In half precision the base would compute something else.
        BundleError: Nothing was quantized, ONNX Runtime cannot open the result, or the base was exported again meanwhile.
        BusyBundleError: Another process changes the bundle and did not end in time.

    Example:
        >>> done = quantize("bundle", "int8")
        >>> done.bytes_after < done.bytes_before
        True
    """
    rule = recipe(variant)
    opened = read_bundle(bundle)
    fitting = choose_fitting(
        opened, rule, data or {}, method=method, heal=heal, head_bits=head_bits, layer_bits=layer_bits, goal=goal
    )
    method, whole = fitting.method, source_of(opened.manifest, rule)
    if rule.calibrated:
        check_texts(opened, data or {})

    _check_wanted(opened.manifest, opened.path, variant, replace, whole)
    require_possible(opened, fitting, data or {}, rows)
    beside = held_bytes(opened, data or {}, rows=rows) if method == "gptq" else 0
    require_room(opened, rule, whole, method, goal=goal is not None, beside=beside)

    def needs(manifest: Manifest) -> tuple[str, ...]:
        _check_wanted(manifest, opened.path, variant, replace, whole)
        runs = rule.calibrated or rule.halves or method == "gptq"
        return manifest.deployed(whole) if runs else _weights(manifest, whole)

    with left_as_it_was(opened.path), scratch(opened.path) as folder:
        copy = copy_files(bundle, folder, needs)
        made = _make(copy, rule, fitting, data or {}, rows, announce)
        with edit(bundle, lock_timeout=lock_timeout, room=folder) as change:
            _check_wanted(change.manifest, opened.path, variant, replace, whole)
            _check_same(change, copy, variant, whole, made, announce)
            _put(change, folder, variant, made, announce)
    result = change.after
    quality: tuple[Quality, ...] = ()
    if measure and made.runs is not None and result.manifest.decodes:
        announce(f"comparing with fp32 on {'sounds' if result.manifest.hears else 'texts'} kept apart")
        quality = quality_of(result, variant, made.runs)
    return QuantizedBundle(
        bundle=result,
        variant=variant,
        quantized=made.counted,
        bytes_before=result.size(result.variant_files(whole)),
        bytes_after=result.size(result.variant_files(variant)),
        merge_error=result.manifest.provenance.get("merge_error", {}).get(key_of(variant, method)),
        method=method,
        quality=quality,
        front=made.front,
    )


def source_of(manifest: Manifest, rule: Recipe) -> str:
    """The variant that a recipe begins with: fp32, or for half precision of another variant that one where there is one."""
    return rule.halves if rule.halves in manifest.variants else WHOLE


def _check_wanted(manifest: Manifest, path: Path, variant: str, replace: bool, whole: str = WHOLE) -> None:
    if variant in manifest.variants and not replace:
        raise InputError(f"{path} already has a variant {variant!r}; replace it with --replace")
    if variant in manifest.variants:
        weights = set(manifest.variants[variant].data)
        other = next((n for n, each in manifest.variants.items() if n != variant and weights & set(each.data)), None)
        if other is not None:
            raise InputError(
                f"{path}: {other} runs over the weights of {variant}, which would be replaced. Remove it first (edgepeft remove "
                f"--variant {other}), and make it again afterwards"
            )
    if whole not in manifest.variants:
        raise BundleError(
            f"{path} has no fp32 variant to quantize, only {', '.join(manifest.variants)}: it was made from a file that is "
            "quantized already. Export the model itself, without --onnx, to choose a precision."
        )
    require_onnx(path, manifest.variants[whole])


def _weights(manifest: Manifest, name: str) -> tuple[str, ...]:
    """What the recipes read: the graphs of a variant, and their weights."""
    whole = manifest.variants[name]
    return (*_graphs(whole).values(), *whole.data)


def _graphs(variant: Variant) -> dict[str, str]:
    """The graph files of a variant by their field of :class:`Variant`: one, or two of an encoder-decoder."""
    return {"file": variant.file} | ({"decoder_file": variant.decoder_file} if variant.decoder_file else {})


@dataclass(frozen=True)
class _Made:
    """A variant that a recipe made: its entry, what was quantized, how many texts each adapter ran, and those of a fitted one."""

    entry: Variant
    counted: Quantized
    texts: Mapping[str, int]
    runs: Runs | None
    front: Front | None = None
    #: What is known of a variant in float16.
    half: Mapping[str, Any] | None = None


def _make(
    copy: Bundle, rule: Recipe, fitting: Fitting, data: Mapping[str, Data], rows: int, announce: Announce
) -> _Made:
    """Run a recipe beside the fp32 graphs of ``copy``."""
    if rule.halves:
        return _halve(copy, rule, fitting, data, rows, announce)
    slots, whole, folder = copy.manifest.slots, copy.manifest.variants["fp32"], copy.path
    apply, summary = rule.apply, fitting.summary(rule)
    if fitting.method == "mse" and rule.searched is not None:
        apply = rule.searched
    ways: dict[str, Callable[..., None]] = dict.fromkeys(_graphs(whole), apply)
    texts: Mapping[str, int] = {}
    runs: Runs | None = None
    if rule.calibrated:
        ranges, texts = measure_ranges(copy, texts_of(copy, data), rows=rows, announce=announce)
        ways = dict.fromkeys(ways, partial(rule.apply, ranges=ranges))
    elif fitting.method == "gptq":
        runs = _runs(copy, data, rows, announce)
        texts = runs.counts
        ways = {field: _fit(rule, fitting, runs, field) for field in ways}
    announce(f"quantizing to {rule.variant}: {summary}")
    made = {field: rule.graph_file(file) for field, file in _graphs(whole).items()}
    front = None
    if fitting.goal is not None and runs is not None:
        several = len(made) > 1
        graphs = [
            Graph(
                source=folder / file,
                target=folder / made[field],
                feeds=runs.feeds_of(field),
                label=_LABELS[field] if several else "",
                counted=runs.counted_of(field),
            )
            for field, file in _graphs(whole).items()
        ]
        front = make_mixed(graphs, slots, runs=runs, goal=fitting.goal, announce=announce)
    else:
        for field, file in _graphs(whole).items():
            ways[field](folder / file, folder / made[field], slots)
    counted = _counted(copy, rule, made)
    entry = _entry(copy, made, whole, recipe=fitting.summary(rule, front), counted=counted)
    return _Made(entry, counted, texts, runs, front)


def _halve(
    copy: Bundle, rule: Recipe, fitting: Fitting, data: Mapping[str, Data], rows: int, announce: Announce
) -> _Made:
    """A variant in float16, of the one that it is made of; that is made first where the bundle has none."""
    source = copy.manifest.variants.get(rule.halves)
    if source is None:
        source = _make(
            copy, recipe(rule.halves), fitting, data if fitting.method == "gptq" else {}, rows, announce
        ).entry
    announce(f"halving to {rule.variant}: {rule.summary}")
    halved = halve(copy, source, rule, data, rows, announce)
    whole = Variant.model_validate({**source.model_dump(), **graphs_in_fp32(source, rule)})
    made = {field: rule.graph_file(file) for field, file in _graphs(whole).items()}
    counted = _counted(copy, rule, made)
    summary = (
        rule.summary if rule.halves == WHOLE else f"{source.recipe}; all else in float16 but for what it does not hold"
    )
    entry = _entry(copy, made, source, recipe=summary, counted=counted).model_copy(
        update={"half": True, "cache_dtype": "float16" if halved.cache else None}
    )
    return _Made(entry, counted, halved.texts, None, half=halved.told())


def _counted(copy: Bundle, rule: Recipe, made: Mapping[str, str]) -> Quantized:
    """How much of the base a recipe quantized; :class:`BundleError` where that is nothing, or a slot is gone."""
    slots = copy.manifest.slots
    graphs = [ir.load(copy.path / file) for file in made.values()]
    counted = total(count_quantized(graph, slots, halves=bool(rule.halves)) for graph in graphs)
    if counted.quantized == 0:
        raise BundleError(
            f"recipe {rule.variant} quantized none of {counted.total} weights; the bundle was left as it was"
        )
    present = {name for graph in graphs for name in graph.graph.initializers}
    lost = sorted(set(slots.tensors()) - present)
    if lost:
        raise BundleError(f"recipe {rule.variant} dropped slot {lost[0]}; the bundle was left as it was")
    return counted


def _entry(copy: Bundle, made: Mapping[str, str], whole: Variant, *, recipe: str, counted: Quantized) -> Variant:
    """The manifest's entry for graphs that were made, with the weights beside them."""
    beside = [sorted((copy.path / "onnx").glob(f"{Path(file).name}_data*")) for file in made.values()]
    return Variant(
        file=made["file"],
        decoder_file=made.get("decoder_file"),
        data=tuple(f"onnx/{path.name}" for paths in beside for path in paths),
        slots=whole.slots,
        recipe=recipe,
        quantized_share=round(counted.share, 6),
    )


def _runs(copy: Bundle, data: Mapping[str, Data], rows: int, announce: Announce) -> Runs:
    """What calibrates the bundle, told."""
    runs = runs_of(copy, data, rows=rows)
    source = (
        f"the given {'sounds' if copy.manifest.hears else 'texts'}" if data else "the text that ships with edgepeft"
    )
    each = ", ".join(f"{count} of {'the base' if name == '*' else name}" for name, count in runs.counts.items())
    announce(f"calibrating on {source}: runs {each}")
    for name, count in runs.short.items():
        who = "the base" if name == "*" else name
        announce(
            f"the texts for {who} hold {count} tokens, less than a window can keep apart: they are both fitted to and judged by. "
            "Give more"
        )
    return runs


def _fit(rule: Recipe, fitting: Fitting, runs: Runs, field: str) -> Callable[..., None]:
    """What writes one graph of a variant by GPTQ."""
    assert rule.fitted is not None
    return partial(
        rule.fitted, batches=runs.feeds_of(field), counted=runs.counted_of(field), open_session=open_session,
        heal=fitting.heal, head_bits=fitting.head_bits, layer_bits=fitting.layer_bits,
    )  # fmt: skip


def _check_same(change: Edit, copy: Bundle, variant: str, whole: str, made: _Made, announce: Announce) -> None:
    """Refuse a variant of what the bundle no longer holds; tell which adapters came too late to be measured."""
    read, what = copy.manifest, "it was being quantized"
    change.refuse_another_base(read, what)
    change.refuse_other_files(read, _weights(read, whole), what)
    if made.texts or made.half:
        change.refuse_other_files(read, (entry.onnx_adapter for entry in read.adapters.values()), what)
        for name in sorted(change.manifest.adapters.keys() - read.adapters.keys()):
            announce(measured_without(variant, name))


def _put(change: Edit, folder: Path, variant: str, made: _Made, announce: Announce) -> None:
    """Stage the files in ``folder`` as a variant of the bundle, and open it once."""
    manifest = change.manifest
    old = manifest.variants.get(variant)
    others = {file for name, entry in manifest.variants.items() if name != variant for file in entry.files()}
    change.drop(set(old.files() if old is not None else ()) - others)
    for name, adapter in manifest.adapters.items():
        if variant in adapter.refits:
            announce(
                f"adapter {name} was refitted to the {variant} of before and runs on this one as it is: refit it again"
            )
    for file in made.entry.files():
        (folder / file).replace(change.folder / file)
    provenance = dict(manifest.provenance)
    if made.texts or made.half:
        chosen = {"bits": made.front.told()} if made.front else {}
        chosen |= {"half": dict(made.half)} if made.half else {}
        provenance["calibration"] = {**provenance.get("calibration", {}), variant: {"texts": made.texts, **chosen}}
    staged = change.stage(
        written=made.entry.files(),
        variants={**manifest.variants, variant: made.entry},
        adapters=without_refits(change, variant),
        provenance=provenance,
    )
    runtimes.open(staged.path, variant=variant)
    if old is not None and old.input_file is not None:
        add_input_style(change, [variant], announce)
