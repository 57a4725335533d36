"""``refit``: adapters fitted once more, in closed form, to the rounded base of one variant."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from .. import runtime as runtimes
from ..adapters.files import read_adapter_onnx
from ..bundle import LOCK_TIMEOUT, Bundle, Manifest, Refit, read_bundle, scratch
from ..bundle.adapter_forms import rank_axes
from ..bundle.transaction import left_as_it_was
from ..errors import InputError
from ..quantize.recipes import WHOLE, recipe
from ..quantize.refit import refit as solve
from ..runtime.sessions import open_session
from ._calibration_data import Data
from ._calibration_runs import slot_tensors
from ._edit import copy_files, edit
from ._manifest import require_onnx, write_manifest
from ._refit_runs import Loss, RefitRuns, cannot_refit, measure, refit_runs
from ._refitted_files import write_refit

Announce = Callable[[str], None]
T = TypeVar("T")


@dataclass(frozen=True)
class Refitted:
    """What fitting an adapter to a variant did, on texts that it was not fitted to.

    ``loss`` is how far the adapter on the variant is from the adapter on fp32, before and after: the divergence in nats of a model
    that chooses tokens or labels, else the root mean square of outputs. ``perplexities`` are those of fp32, of the variant
    before, and after; ``None`` for a model that writes nothing. Where ``kept`` is false, the bundle is as it was.
    """

    adapter: str
    variant: str
    sites: int
    texts: int
    loss: tuple[float, float]
    perplexities: tuple[float, float, float] | None
    kept: bool

    def __str__(self) -> str:
        """As it is printed."""
        before, after = self.loss
        found = f"adapter {self.adapter} on {self.variant}: {before:.4f} from fp32, refitted {after:.4f}"
        if self.perplexities is not None:
            whole, first, second = self.perplexities
            found += f"; perplexity {first:.3f}, refitted {second:.3f}, on fp32 {whole:.3f}"
        end = "kept" if self.kept else "not kept, since it does not help beyond the noise"
        return f"{found} ({self.texts} texts apart): {end}"


def refit(
    bundle: str | Path,
    variant: str,
    adapters: Iterable[str] = (),
    *,
    data: Mapping[str, Data] | None = None,
    lock_timeout: float = LOCK_TIMEOUT,
    announce: Announce = lambda message: None,
) -> tuple[Refitted, ...]:
    """Fit adapters to the rounded base of a variant, so that they do there what they do on fp32.

    The second factors are solved for in closed form on activations, and judged on a fifth of the texts, which is kept apart. What
    helps is stored beside the adapter, for this variant alone; the files that serve all variants stay as they are.

    Args:
        bundle: The bundle's folder.
        variant: The variant that has rounded weights.
        adapters: Names; all by default.
        data: Texts by adapter (``"*"``: for all): rows of a language model, else texts. A model that writes takes a text that
            ships with edgepeft where it has none.
        lock_timeout: Seconds to wait for another process that changes the bundle.
        announce: Is called with a line of text for each step.

    Returns:
        What was done, in the order of ``adapters``.

    Raises:
        InputError: There is no such variant, it rounds nothing, or an adapter has no factors.
        DataError: There are too few texts.
        UnknownAdapterError: The bundle has no adapter of that name.
        BundleError: The bundle was changed meanwhile, or an activation is not finite.
        BusyBundleError: Another process changes the bundle and did not end in time.

    Example:
        >>> refit("bundle", "q4", ["support"], data={"support": read_language_rows("chats.jsonl")})[0].kept
        True
    """
    opened = read_bundle(bundle)
    names = tuple(adapters) or tuple(opened.manifest.adapters)
    check_refit(opened, variant, names, data or {})
    with left_as_it_was(opened.path), scratch(opened.path) as folder:
        copy = copy_files(bundle, folder, lambda manifest: _needed(manifest, variant))
        read = copy.manifest
        done: list[Refitted] = []
        made: dict[str, Refit] = {}
        for name in names:
            given = (data or {}).get(name, (data or {}).get("*"))
            result, entry = _refit(copy, read, name, variant, given, announce)
            announce(str(result))
            done.append(result)
            if result.kept:
                made[name] = entry
        if made:
            _put(bundle, read, copy.path, variant, made, lock_timeout)
    return tuple(done)


def check_wanted(
    bundle: str | Path, name: str, variants: Collection[str], data: Collection[str], *, dry_run: bool
) -> None:
    """Refuse what :func:`refit` would refuse of an adapter that is still to be added.

    ``data`` are the ``--data`` options as they were given.

    Raises:
        InputError: Data without a variant, a dry run, or a variant that is not there or rounds nothing.
    """
    if not variants:
        if data:
            raise InputError("--data is what --refit VARIANT fits the adapter to; name the variant too")
        return
    if dry_run:
        raise InputError("a dry run refits nothing: leave --refit out, or --dry-run")
    if other := next((each for each in data if each.partition("=")[0] not in (name, "*")), None):
        raise InputError(f"--data {other}: the texts are for the adapter that is added, {name}")
    opened = read_bundle(bundle)
    if not data and not opened.manifest.writes:
        raise InputError(f"{opened.path} is for {opened.manifest.task}: --refit wants texts, --data {name}=FILE")
    for variant in variants:
        check_refit(opened, variant, (), {})


def check_refit(bundle: Bundle, variant: str, adapters: Iterable[str], data: Mapping[str, Data]) -> None:
    """Refuse what cannot be refitted, before anything is run; see :func:`refit`."""
    manifest = bundle.manifest
    require_refits(bundle)
    if manifest.mode != "swap":
        raise InputError(f"{bundle.path} is merged with {manifest.merged!r}: there is no adapter to refit")
    bundle.variant(variant)
    if variant == WHOLE or WHOLE not in manifest.variants:
        raise InputError(
            f"an adapter is refitted to rounded weights, against fp32, and {bundle.path} has {', '.join(manifest.variants)}: name "
            "a variant beside fp32"
        )
    if manifest.variants[variant].half:
        raise InputError(
            f"{variant} computes in float16, and adapters are fitted to variants that compute in float32: "
            f"{', '.join(name for name, each in manifest.variants.items() if name != WHOLE and not each.half) or 'make q4'}"
        )
    for name in (WHOLE, variant):
        require_onnx(bundle.path, manifest.variants[name])
    for name in (*adapters, *(name for name in data if name != "*")):
        bundle.adapter(name)
    for name in adapters:
        if why := cannot_refit(bundle, name):
            raise InputError(f"adapter {name!r} cannot be refitted: {why}")


def require_refits(bundle: Bundle) -> None:
    """Refuse a base whose adapters are not fitted to rounded weights: one that writes down speech."""
    if bundle.manifest.hears:
        raise InputError(
            f"{bundle.path} writes down speech, and adapters are fitted to rounded weights over texts only: leave --refit out; the "
            "adapter runs on every variant as it is"
        )


def calibrating(variant: str, method: str | None, data: Mapping[str, T]) -> dict[str, T]:
    """Of texts that are for refitting too, those that rounding takes: all, or none where the recipe runs nothing."""
    rule = recipe(variant)
    runs = rule.calibrated or rule.halves or (rule.fitted is not None and method in {None, "gptq"})
    return dict(data) if runs else {}


def refittable(bundle: Bundle, data: Collection[str]) -> tuple[str, ...]:
    """The adapters that have factors, and texts where their task wants some; ``data`` names those with texts."""
    given = bundle.manifest.writes or "*" in data
    return tuple(
        name for name in bundle.manifest.adapters if not cannot_refit(bundle, name) and (given or name in data)
    )


def _needed(manifest: Manifest, variant: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*manifest.deployed(WHOLE), *manifest.deployed(variant))))


def _refit(
    copy: Bundle, read: Manifest, name: str, variant: str, data: Data | None, announce: Announce
) -> tuple[Refitted, Refit]:
    """Fit one adapter, in a copy of the bundle."""
    plain = _staged(copy, read, name, variant, None)
    announce(f"adapter {name}: fitting to {variant}")
    runs, before = _before(plain, name, variant, data)
    tensors = slot_tensors(plain, name)
    changed: dict[str, np.ndarray] = {}
    for field, feeds in runs.feeds.items():
        files = [copy.path / getattr(read.variants[each], field) for each in (WHOLE, variant)]
        changed |= solve(files[0], files[1], read.slots, tensors, feeds, open_session)
    if not changed:
        raise InputError(f"adapter {name!r} cannot be refitted: none of its sites is one layer of {variant} alone")
    own = read_adapter_onnx(copy.path / read.adapters[name].onnx)
    entry = write_refit(
        copy.path,
        name,
        variant,
        {**own.tensors, **changed},
        own.metadata,
        loss=(0.0, 0.0),
        form=read.adapters[name].form,
        axes=rank_axes(read.slots),
    )
    after = _after(_staged(copy, read, name, variant, entry), name, variant, runs)
    entry = entry.model_copy(update={"loss": (before.mean, after.mean)})
    perplexities = None
    if (first := before.perplexities) is not None and (second := after.perplexities) is not None:
        perplexities = (*first, second[1])
    result = Refitted(
        adapter=name,
        variant=variant,
        sites=len(changed),
        texts=len(runs.apart),
        loss=entry.loss,
        perplexities=perplexities,
        kept=after.less_than(before),
    )
    return result, entry


def _staged(copy: Bundle, read: Manifest, name: str, variant: str, entry: Refit | None) -> Bundle:
    """The copy with one adapter as it is for all variants, or with ``entry`` for this one."""
    variants = {each: read.variants[each] for each in (WHOLE, variant)}
    adapters = {each: other.only(()) for each, other in read.adapters.items()}
    if entry is not None:
        adapters[name] = adapters[name].model_copy(update={"refits": {variant: entry}})
    staged = read.model_copy(update={"variants": variants, "adapters": adapters})
    known = {file: read.files[file] for each in variants.values() for file in each.files()}  # the large ones
    return Bundle(path=copy.path, manifest=write_manifest(copy.path, staged, known))


def _before(plain: Bundle, name: str, variant: str, data: Data | None) -> tuple[RefitRuns, Loss]:
    with runtimes.open(plain.path, variant=WHOLE) as whole:
        view = whole.adapter(name)
        runs = refit_runs(view, data)
        with runtimes.open(plain.path, variant=variant) as rounded:
            return runs, measure(runs, view, rounded.adapter(name))


def _after(staged: Bundle, name: str, variant: str, runs: RefitRuns) -> Loss:
    with runtimes.open(staged.path, variant=WHOLE) as whole, runtimes.open(staged.path, variant=variant) as rounded:
        return measure(runs, whole.adapter(name), rounded.adapter(name))


def _put(
    bundle: str | Path, read: Manifest, folder: Path, variant: str, made: Mapping[str, Refit], lock_timeout: float
) -> None:
    """Put the files of what helped into the bundle, and open each once."""
    with edit(bundle, lock_timeout=lock_timeout, room=folder) as change:
        what = "adapters were being refitted"
        change.refuse_another_base(read, what)
        for name in made:
            change.before.adapter(name)
        own = (read.adapters[name].onnx_adapter for name in made)
        change.refuse_other_files(read, (*read.variants[variant].files(), *own), what)
        adapters = dict(change.manifest.adapters)
        for name, entry in made.items():
            for file in (entry.onnx_adapter, entry.onnx):
                target = change.folder / file
                target.parent.mkdir(parents=True, exist_ok=True)
                (folder / file).replace(target)
            adapters[name] = adapters[name].model_copy(update={"refits": {**adapters[name].refits, variant: entry}})
        written = [file for entry in made.values() for file in (entry.onnx_adapter, entry.onnx)]
        staged = change.stage(written=written, adapters=adapters)
        with runtimes.open(staged.path, variant=variant) as model:
            for name in made:
                model.adapter(name)
