"""Classification on a device: the same rows there, natively here and under PEFT."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ...bench import Job, RowLogits, Rows, WorkerResult, run_worker
from ...bundle import Bundle, head_of
from ...data import Examples, evenly
from ...errors import DeviceError
from ...report.accuracy import NO_LABEL, Accuracy, Beside, chosen_labels, count_same
from ...report.answers import expected_answers, given_answers
from ...report.gate import Report
from ...report.partial import Keep, keep_nothing
from ...targets import Target
from ..executors.protocol import Executor
from .classification_gates import rows_report
from .reference import Peft, check_data

Announce = Callable[[str], None]

#: Run where no data is given: enough to see that every adapter is the adapter.
SENTENCES = (
    "The battery died after two days and the seller never answered.",
    "A moving, beautifully acted film that stays with you.",
    "omg sooo happy with my new phone :)",
    "It is fine.",
    "I would not recommend this to anyone, and I have tried them all over many years.",
    "The committee will meet on Thursday to discuss the budget.",
    "Great value",
    "Two hours that felt like four.",
)


def validate_labels(
    bundle: Bundle,
    target: Target,
    executor: Executor,
    variants: Sequence[str],
    data: Mapping[str, Examples],
    rows: int | None,
    reference: Peft | None,
    max_drop: float,
    progress: Announce,
    keep: Keep = keep_nothing,
) -> Report:
    """Run rows of each adapter on ``executor``; see :func:`edgepeft.devices.validate_on`."""
    examples = _examples(bundle, data, executor.rows if rows is None else rows)
    results: dict[str, WorkerResult] = {}
    table: list[Accuracy] = []

    def so_far() -> Report:
        return rows_report(bundle, target, executor, results, table, max_drop)

    keep(lambda: so_far() if results else None)
    modules = _PeftLogits(bundle, reference) if reference else None
    for variant in variants:
        job = Job(
            bundle=str(bundle.path),
            variant=variant,
            threads=target.runtime.threads,
            rows=tuple(
                Rows(adapter=name, texts=tuple(e.texts), pairs=e.pairs and tuple(e.pairs), batch=4)
                for name, e in examples.items()
            ),
            restore=bool(bundle.manifest.adapters),
        )
        progress(f"{variant}: running {sum(map(len, examples.values()))} rows on {executor.name}")
        results[variant] = device = executor.run(job)
        progress(f"{variant}: running the same rows natively")
        native = run_worker(job.model_copy(update={"restore": False, "threads": 1}))
        for (name, each), there, here in zip(
            examples.items(), _checked(device, job, executor), native.rows, strict=True
        ):
            wide, narrow = np.shape(there.logits), np.shape(here.logits)
            if wide != narrow:
                raise DeviceError(
                    f"{executor.name} gave logits of shape {wide} for {name or 'the base'}, a native run gives {narrow}"
                )
            table.append(_compare(bundle, name, variant, each, there, here, modules))
    return so_far()


def _examples(bundle: Bundle, data: Mapping[str, Examples], rows: int) -> dict[str | None, Examples]:
    names: tuple[str | None, ...] = (*bundle.manifest.adapters,) or (None,)
    merged = bundle.manifest.merged
    check_data(bundle, names, data, rows)
    found: dict[str | None, Examples] = {}
    for name in names:
        each = data.get(name or merged or "*", data.get("*")) or Examples(texts=SENTENCES, labels=None)
        found[name] = each.select(evenly(len(each), rows))
    return found


def _checked(result: WorkerResult, job: Job, executor: Executor) -> tuple[RowLogits, ...]:
    """The device's rows, if they are those that were asked for."""
    asked = [(rows.adapter, len(rows.texts)) for rows in job.rows]
    came = [(rows.adapter, len(rows.logits)) for rows in result.rows]
    if asked != came:
        raise DeviceError(f"{executor.name} answered with rows {came}, asked for {asked}")
    return result.rows


class _PeftLogits:
    """PEFT's logits for rows, where a checkpoint is at hand; made once an adapter."""

    def __init__(self, bundle: Bundle, reference: Peft) -> None:
        self._bundle = bundle
        self._sources = reference.sources
        self._base = reference.base
        self._known: dict[str, np.ndarray | None] = {}

    def logits(self, adapter: str | None, examples: Examples) -> np.ndarray | None:
        name = adapter or self._bundle.manifest.merged
        if name is None or name not in self._sources:
            return None
        if name not in self._known:
            self._known[name] = self._run(name, examples)
        return self._known[name]

    def _run(self, name: str, examples: Examples) -> np.ndarray | None:
        from ...base.parity import reference_outputs
        from ...runtime.text import TextEncoder
        from ...validate.parity import pad_token_of
        from ...validate.reference import head_width, peft_model

        manifest = self._bundle.manifest
        labels = manifest.labels if manifest.mode != "swap" else manifest.adapters[name].labels
        source = self._sources[name]
        width, pad = head_width(source, labels), pad_token_of(self._bundle)
        module = peft_model(self._base, source, task=manifest.task, num_labels=width, pad=pad)
        encoder = TextEncoder(self._bundle, self._bundle.text_of(name if manifest.mode == "swap" else None))
        texts: Any = (
            examples.texts if examples.pairs is None else tuple(zip(examples.texts, examples.pairs, strict=True))
        )
        parts = [
            reference_outputs(module, encoder.encode(texts[start : start + 16]), ["logits"])["logits"]
            for start in range(0, len(texts), 16)
        ]
        return np.concatenate(parts)


def _difference(found: np.ndarray, expected: np.ndarray) -> float:
    return float((np.abs(found - expected) / np.maximum(1.0, np.abs(expected))).max())


def _compare(
    bundle: Bundle,
    adapter: str | None,
    variant: str,
    examples: Examples,
    there: RowLogits,
    here: RowLogits,
    modules: _PeftLogits | None,
) -> Accuracy:
    device, native = np.array(there.logits), np.array(here.logits)
    peft = modules.logits(adapter, examples) if modules else None
    truth = None
    head = head_of(bundle.manifest, adapter)
    if examples.labels is not None and head.kind(device.shape[1]) != "regression":
        truth = expected_answers(examples, head, device.shape[1])
    chosen = given_answers(device, head)

    def beside(other: np.ndarray) -> Beside:
        theirs = given_answers(other, head)
        return Beside(
            hits=None if truth is None else count_same(theirs, truth),
            same_label=count_same(chosen, theirs),
            max_difference=_difference(device, other),
        )

    return Accuracy(
        adapter=adapter or bundle.manifest.merged,
        variant=variant,
        rows=len(examples),
        hits=None if truth is None else count_same(chosen, truth),
        data=examples.source,
        not_finite=int((chosen_labels(device) == NO_LABEL).sum()),
        native=beside(native),
        peft=None if peft is None else beside(peft),
    )
