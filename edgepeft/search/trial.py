"""One trial: an adapter trained, exported, rounded and measured, in a folder of its own; what is done there is not done again."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..bundle import read_bundle
from ..bundle.manifest import MANIFEST_NAME
from ..data import Examples
from ..metrics.intervals import wilson
from ..train import ADAPTER_FILE
from ..units import MB
from .checked import training_rows
from .study_file import StudyFile

if TYPE_CHECKING:
    from ..train import Scores

ADAPTER = "adapter"
_WARM_RUNS = 10


@dataclass(frozen=True)
class Measured:
    """What a trial reached: right rows of the validation rows, the median in ms, and MB that a device stores."""

    right: int
    rows: int
    p50_ms: float
    mb: float

    @property
    def accuracy(self) -> float:
        """The share of right rows."""
        return self.right / self.rows

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the accuracy."""
        found = wilson(self.right, self.rows)
        return found.lower, found.upper


def run_trial(
    study: StudyFile,
    folder: Path,
    values: Mapping[str, Any],
    held: Examples,
    on_epoch: Callable[[int, Scores], None],
    announce: Callable[[str], None],
) -> Measured:
    """Train, export, round and measure in ``folder``; stages that a broken-off run has ended there are left out.

    Args:
        study: The study.
        folder: The trial's own folder.
        values: A value of each axis.
        held: The study's validation rows.
        on_epoch: Is called after each epoch of training with the scores on rows split off the training data.
        announce: Is called with a line of text for each stage.

    Raises:
        EdgepeftError: A stage cannot do what these values ask for.
    """
    from ..pipeline import export, quantize, train_adapter

    options = dict(values)
    model, data, variant = options.pop("model"), options.pop("data"), options.pop("variant", "fp32")
    targets = options.pop("target_modules", None)
    if targets is not None:
        options["target_modules"] = targets if targets == "all-linear" else targets.split(",")
    adapter, bundle = folder / ADAPTER, folder / "bundle"
    if not (adapter / ADAPTER_FILE).is_file():
        announce("train")
        train_adapter(
            model,
            training_rows(study, data, held),
            adapter,
            text=study.text,
            label=study.label,
            pair=study.pair,
            threads=study.threads,
            progress=False,
            resume=True,
            on_epoch=on_epoch,
            **options,
        )
    if not (bundle / MANIFEST_NAME).is_file():
        announce("export")
        export(model, {ADAPTER: adapter}, bundle)
    if variant not in read_bundle(bundle).manifest.variants:
        announce(f"quantize {variant}")
        quantize(bundle, variant, measure=False)
    announce("measure")
    return measure(study, bundle, variant, held)


def measure(study: StudyFile, bundle: Path, variant: str, held: Examples) -> Measured:
    """Accuracy, latency and size of a variant with the trial's adapter, as ONNX Runtime runs it here."""
    from .. import runtime

    with runtime.open(bundle, variant=variant, threads=study.threads) as model:
        view = model.adapter(ADAPTER)
        texts: list[Any] = list(held.texts) if held.pairs is None else list(zip(held.texts, held.pairs, strict=True))
        answers = view.predict(texts)
        right = sum(answer.label == label for answer, label in zip(answers, held.labels or (), strict=True))
        arrays = {
            name: np.ascontiguousarray(np.resize(array[:1], (study.rows, study.tokens)))
            for name, array in view.encoder.encode(texts[:1]).items()
        }
        times = []
        for number in range(_WARM_RUNS + study.runs):
            start = time.perf_counter()
            view.forward(arrays)
            if number >= _WARM_RUNS:
                times.append(1000 * (time.perf_counter() - start))
    manifest = read_bundle(bundle).manifest
    size = sum(manifest.files[file].bytes for file in manifest.deployed(variant)) / MB
    return Measured(right, len(held), float(np.median(times)), size)
