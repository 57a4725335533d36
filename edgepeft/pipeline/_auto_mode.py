"""``--mode auto``: an adapter beside a rounded base, or rounded with it, by what each leaves of its answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import runtime as runtimes
from ..bundle import LOCK_TIMEOUT, Bundle, read_bundle, replacing, scratch
from ..data import Examples, evenly
from ..errors import InputError
from ..metrics.intervals import ratio_of_sums
from ..quantize import recipe
from ..quantize.recipes import WHOLE
from ..runtime.views import View
from ..validate.likelihood import log_softmax
from ._calibrate import ROWS, inputs_of
from ._calibration_data import Data, texts_of
from ._calibration_runs import calibration_runs
from ._edit import edit
from ._export import export
from ._exported import Announce, Exported
from ._manifest import check_asked
from ._quality import compare_window
from ._quantize import quantize
from ._remove import remove

#: By how many standard errors the merged model may be behind and still count as equal.
NOISE = 2.0
#: Texts that classifiers are judged by, none of which anything was fitted to.
JUDGED = 128


@dataclass(frozen=True)
class ModeChoice:
    """What was chosen, and the mean divergence from the adapter in fp32, in nats, of both."""

    mode: str
    why: str
    swap: float | None = None
    merge: float | None = None
    swap_mb: float | None = None
    merge_mb: float | None = None


def export_auto(
    variant: str,
    model: str | Path,
    adapters: Mapping[str, str | Path],
    out: str | Path,
    *,
    data: Mapping[str, Data] | None = None,
    lock_timeout: float = LOCK_TIMEOUT,
    announce: Announce = lambda message: None,
    **options: Any,
) -> tuple[Exported, ModeChoice]:
    """Export a base and its adapters in one precision, in the mode that keeps more of what the adapter does.

    One adapter is exported both ways. Beside the base it stays in float32 and the base is rounded alone; merged, both are rounded
    together. Each is compared with the adapter in fp32 on texts that nothing was fitted to, and the merged model, which is smaller,
    is taken where it is not further away (beyond twice the standard error of the difference). Several adapters share one base:
    they are exported beside it.

    Args:
        variant: The precision (:data:`~edgepeft.quantize.recipes.RECIPES`); the bundle gets this one only.
        model: The base: a folder or a Hugging Face id.
        adapters: PEFT checkpoints by the names that they get.
        out: The bundle's folder.
        data: Texts by adapter (``"*"``: for all): what calibrates, and a part that is kept apart to judge. A language model
            without any has a text that ships with edgepeft.
        lock_timeout: Seconds to wait for another process that changes the bundle.
        announce: Is called with a line of text for each step.
        options: Further options of :func:`edgepeft.pipeline.export`.

    Returns:
        What :func:`~edgepeft.pipeline.export` returns, and what was chosen and why, which the manifest's
        provenance has too (``mode_choice``).

    Raises:
        InputError: The variant is unknown, or a classifier has no texts to be judged by.
        EdgepeftError: Whatever :func:`~edgepeft.pipeline.export` and :func:`~edgepeft.pipeline.quantize` raise.

    Example:
        >>> _, choice = export_auto("q4", "org/model", {"support": "./support-lora"}, "bundle")
        >>> choice.mode
        'swap'
    """
    out, data = Path(out), dict(data or {})
    recipe(variant)
    check_asked(adapters, "merge", out)
    with scratch(out) as folder:
        swapped = export(model, adapters, folder / "swap", mode="swap", announce=announce, **options)
        if swapped.bundles[0].manifest.hears:
            raise InputError(
                f"--mode auto judges classifiers and language models, and {model} writes down speech: say --mode swap or merge"
            )
        texts = texts_of(swapped.bundles[0], data)
        made = {"swap": _rounded(swapped.bundles[0].path, variant, data, announce)}
        if len(adapters) > 1:
            choice = ModeChoice("swap", f"{len(adapters)} adapters share one base")
            exported = swapped
        else:
            (name,) = adapters
            merged = export(model, adapters, folder / "merge", mode="merge", announce=announce, **options)
            made["merge"] = _rounded(merged.bundles[0].path, variant, data, announce)
            choice = _judge(made["swap"], made["merge"], name, variant, texts)
            exported = swapped if choice.mode == "swap" else merged
        announce(f"mode {choice.mode}: {choice.why}")
        chosen = made[choice.mode]
        with edit(chosen.path) as change:
            noted = {key: value for key, value in vars(choice).items() if value is not None}
            change.stage(provenance={**change.manifest.provenance, "mode_choice": noted})
        if variant != WHOLE:
            remove(chosen.path, variant=WHOLE)
        with replacing(out, keep=False, lock_timeout=lock_timeout) as staging:
            for path in chosen.path.iterdir():
                path.rename(staging / path.name)
    return replace(exported, bundles=(read_bundle(out),)), choice


def _rounded(bundle: Path, variant: str, data: Mapping[str, Data], announce: Callable[[str], None]) -> Bundle:
    opened, rule = read_bundle(bundle), recipe(variant)
    merged = opened.manifest.merged
    known = {*opened.manifest.adapters, *([merged] if merged else []), "*"}
    runs_texts = rule.calibrated or rule.fitted is not None
    mine = {name: each for name, each in data.items() if name in known and runs_texts}
    return quantize(bundle, variant, data=mine, measure=False, announce=announce).bundle


def _judge(swap: Bundle, merge: Bundle, name: str, variant: str, data: Mapping[str, Examples]) -> ModeChoice:
    """Which of both is nearer to the adapter in fp32."""
    with (
        runtimes.open(swap.path, variant="fp32") as whole,
        runtimes.open(swap.path, variant=variant) as beside,
        runtimes.open(merge.path, variant=variant) as folded,
    ):
        reference, one, two = whole.adapter(name), beside.adapter(name), folded.base
        found = (_writes if swap.manifest.writes else _labels)(swap, name, data, reference, one, two)
    tokens = found[:, 0]
    first, second = (float(found[:, at].sum() / tokens.sum()) for at in (1, 2))
    difference, error = ratio_of_sums(found[:, 2] - found[:, 1], tokens)
    sizes = [b.size(b.manifest.deployed(variant)) / 1e6 for b in (swap, merge)]
    noise = NOISE * (error or 0.0)
    mode = "merge" if difference <= noise else "swap"
    unit = "token" if swap.manifest.writes else "text"
    why = (
        f"{variant} with {name} beside it is {first:.4f} nats a {unit} from {name} in fp32, rounded with it {second:.4f} "
        f"(a difference of {difference:+.4f} ± {error or 0.0:.4f}); "
        + (
            "the merged model is no further away, and has no adapter to load"
            if mode == "merge"
            else "rounding takes some of what was merged"
        )
    )
    return ModeChoice(mode, why, first, second, *sizes)


def _writes(
    bundle: Bundle, name: str, data: Mapping[str, Examples], reference: View, one: View, two: View
) -> np.ndarray:
    """Tokens and both divergences of each window kept apart, ``[windows, 3]``."""
    if bundle.manifest.variants["fp32"].decoder_file is not None:
        raise InputError(
            f"{bundle.path} has an encoder and a decoder: --mode auto compares models of one graph; say --mode swap or merge"
        )
    windows = calibration_runs(bundle, data, rows=ROWS).held_out[name]
    rows = []
    for window in windows:
        first, second = (compare_window(reference, each, window) for each in (one, two))
        rows.append((first[0], first[3], second[3]))
    return np.array(rows)


def _labels(
    bundle: Bundle, name: str, data: Mapping[str, Examples], reference: View, one: View, two: View
) -> np.ndarray:
    """One and both divergences of each text, ``[texts, 3]``; for heads of logits."""
    given = data.get(name, data.get("*"))
    if given is None or not bundle.manifest.task.endswith("classification"):
        raise InputError(
            f"--mode auto judges {name} by what it answers: give texts for it, --data {name}=FILE"
            if given is None
            else f"--mode auto judges classifiers and language models; {bundle.path} is for {bundle.manifest.task}: say --mode "
            "swap or merge"
        )
    texts = inputs_of(given)
    fitted = set(evenly(len(texts), ROWS))
    apart = [texts[i] for i in range(len(texts)) if i not in fitted] or texts
    apart = [apart[i] for i in evenly(len(apart), JUDGED)]
    rows = []
    for text in apart:
        whole, first, second = (
            log_softmax(np.asarray(view.logits([text]))).reshape(-1, view.logits([text]).shape[-1])
            for view in (reference, one, two)
        )
        rows.append((len(whole), *((np.exp(whole) * (whole - each)).sum() for each in (first, second))))
    return np.array(rows)
