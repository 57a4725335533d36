"""``validate --target``: the same rows on the device, natively here and under PEFT."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..bench import Job, RowLogits, Rows, WorkerResult, floor_gate, run_worker
from ..bundle import Bundle, Manifest, read_bundle
from ..data import Examples
from ..errors import DeviceError, InputError
from ..targets import Gate, Report, Table, Target, Verdict
from .place import choose_variants, find_place, require_size
from .protocol import Executor
from .static import size_gates, static_report

Announce = Callable[[str], None]

#: max |logit difference| of an fp32 variant on the device, relative where logits exceed 1: as parity with PEFT allows.
TOLERANCE = 1e-4
#: Share of rows where a quantized variant must choose the label that it chooses natively: its kernels may round otherwise.
QUANTIZED_SAME = 0.99
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


@dataclass(frozen=True)
class DeviceRows:
    """One adapter and variant on the device, beside what it gives natively here and under PEFT."""

    adapter: str | None
    variant: str
    rows: int
    #: Rows with the label that the same variant gives natively, and the largest logit difference.
    same_native: int
    native_difference: float
    #: The same against PEFT fp32, where its checkpoint is at hand.
    same_peft: int | None = None
    peft_difference: float | None = None
    #: Accuracy on labelled rows.
    hits: int | None = None
    peft_hits: int | None = None


def validate_on(
    bundle: str | Path | Bundle,
    target: Target,
    *,
    on: str | None = None,
    data: Mapping[str, Examples] | None = None,
    rows: int | None = None,
    adapters: Mapping[str, str | Path] | None = None,
    base: str | None = None,
    variants: Sequence[str] | None = None,
    reference: bool = True,
    max_drop: float = 0.01,
    progress: Announce = lambda message: None,
) -> Report:
    """Execute a bundle on ``target`` and compare labels and logits with a native run here and with PEFT.

    ``data`` maps an adapter to labelled rows, of which ``rows`` (the executor's number by default) are run, spread evenly;
    adapters without data run a handful of fixed sentences. The base must come back bit for bit on the device. Where
    nothing can execute the target the report says "static only". Raises :class:`TargetError` where ``on`` names an
    executor that is not ready or the bundle is over the size budget (nothing is copied), and :class:`DeviceError` where
    the device fails.
    """
    opened = bundle if isinstance(bundle, Bundle) else read_bundle(bundle)
    if opened.manifest.task != "text-classification":
        raise InputError(
            f"validate --target runs text-classification bundles; this one's task is {opened.manifest.task}"
        )
    chosen = choose_variants(opened.manifest, target, variants)
    place = find_place(target, on)
    if place.executor is None:
        return static_report(opened, target, chosen, place.why_static, "validate")
    executor = place.executor
    if executor.copies:
        require_size(opened, target, chosen)
    examples = _examples(opened, data or {}, executor.rows if rows is None else rows)
    results: dict[str, WorkerResult] = {}
    table: list[DeviceRows] = []
    modules = _Peft(opened, adapters or {}, base) if reference else None
    for variant in chosen:
        job = Job(
            bundle=str(opened.path),
            variant=variant,
            threads=target.runtime.threads,
            rows=tuple(Rows(adapter=name, texts=e.texts, pairs=e.pairs, batch=4) for name, e in examples.items()),
            restore=bool(opened.manifest.adapters),
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
            table.append(_compare(opened, name, variant, each, there, here, modules))
    return _report(opened, target, executor, results, table, max_drop)


def _examples(bundle: Bundle, data: Mapping[str, Examples], rows: int) -> dict[str | None, Examples]:
    names: tuple[str | None, ...] = (*bundle.manifest.adapters,) or (None,)
    merged = bundle.manifest.merged
    unknown = sorted(set(data) - {name or merged or "*" for name in names} - {"*"})
    if unknown:
        known = ", ".join(name or merged or "*" for name in names)
        raise InputError(f"{bundle.path} has no adapter {unknown[0]!r}; it has: {known}")
    if rows < 1:
        raise InputError(f"rows must be at least 1, found {rows}")
    found: dict[str | None, Examples] = {}
    for name in names:
        each = data.get(name or merged or "*", data.get("*")) or Examples(texts=SENTENCES, labels=None)
        step = max(1, len(each) / rows)
        found[name] = each.select([int(i * step) for i in range(min(rows, len(each)))])
    return found


def _checked(result: WorkerResult, job: Job, executor: Executor) -> tuple[RowLogits, ...]:
    """The device's rows, if they are those that were asked for."""
    asked = [(rows.adapter, len(rows.texts)) for rows in job.rows]
    came = [(rows.adapter, len(rows.logits)) for rows in result.rows]
    if asked != came:
        raise DeviceError(f"{executor.name} answered with rows {came}, asked for {asked}")
    return result.rows


class _Peft:
    """PEFT's logits for rows, where a checkpoint is at hand; made once an adapter."""

    def __init__(self, bundle: Bundle, given: Mapping[str, str | Path], base: str | None) -> None:
        from ..validate.parity import adapter_sources

        self._bundle = bundle
        self._sources = adapter_sources(bundle, given)
        self._base = base or bundle.manifest.base.source
        self._known: dict[str, np.ndarray | None] = {}

    def logits(self, adapter: str | None, examples: Examples) -> np.ndarray | None:
        name = adapter or self._bundle.manifest.merged
        if name is None or name not in self._sources:
            return None
        if name not in self._known:
            self._known[name] = self._run(name, examples)
        return self._known[name]

    def _run(self, name: str, examples: Examples) -> np.ndarray | None:
        from ..base.check import reference_outputs
        from ..runtime.text import TextEncoder
        from ..validate.reference import head_width, peft_model

        manifest = self._bundle.manifest
        labels = manifest.labels if manifest.mode != "swap" else manifest.adapters[name].labels
        source = self._sources[name]
        module = peft_model(self._base, source, task=manifest.task, num_labels=head_width(source, labels))
        encoder = TextEncoder(self._bundle)
        texts: Any = (
            examples.texts if examples.pairs is None else tuple(zip(examples.texts, examples.pairs, strict=True))
        )
        parts = [
            reference_outputs(module, encoder.encode(texts[start : start + 16]), ["logits"])["logits"]
            for start in range(0, len(texts), 16)
        ]
        return np.concatenate(parts)


def labels_of(manifest: Manifest, adapter: str | None, width: int) -> tuple[str, ...]:
    """The labels of an adapter's logits, or of the base's; numbered as Hugging Face does where there are no names."""
    named = manifest.adapters[adapter].labels if adapter else manifest.labels
    return named or tuple(f"LABEL_{i}" for i in range(width))


def _difference(found: np.ndarray, expected: np.ndarray) -> float:
    return float((np.abs(found - expected) / np.maximum(1.0, np.abs(expected))).max())


def _compare(
    bundle: Bundle,
    adapter: str | None,
    variant: str,
    examples: Examples,
    there: RowLogits,
    here: RowLogits,
    modules: _Peft | None,
) -> DeviceRows:
    device, native = np.array(there.logits), np.array(here.logits)
    peft = modules.logits(adapter, examples) if modules else None
    truth = None
    if examples.labels is not None:
        from ..validate.accuracy import label_ids

        truth = label_ids(examples, labels_of(bundle.manifest, adapter, device.shape[1]))
    return DeviceRows(
        adapter=adapter or bundle.manifest.merged,
        variant=variant,
        rows=len(examples),
        same_native=int((device.argmax(1) == native.argmax(1)).sum()),
        native_difference=_difference(device, native),
        same_peft=None if peft is None else int((device.argmax(1) == peft.argmax(1)).sum()),
        peft_difference=None if peft is None else _difference(device, peft),
        hits=None if truth is None else int((device.argmax(1) == truth).sum()),
        peft_hits=None if truth is None or peft is None else int((peft.argmax(1) == truth).sum()),
    )


def _least(name: str, value: int, limit: int, rows: int, detail: str = "") -> Gate:
    verdict = Verdict.PASS if value >= limit else Verdict.FAIL
    return Gate(name, verdict, float(value), float(limit), "rows", detail or f"of {rows}", bound="min")


def _row_gates(row: DeviceRows, quantized: bool, target: Target, max_drop: float) -> list[Gate]:
    key = f"{row.adapter or '(base)'} {row.variant}"
    gates = [
        _least(
            f"same label as native {key}",
            row.same_native,
            math.ceil(row.rows * QUANTIZED_SAME) if quantized else row.rows,
            row.rows,
        )
    ]
    if not quantized:
        # PEFT where it is at hand; the native run of the same graph otherwise.
        value = row.native_difference if row.peft_difference is None else row.peft_difference
        against = "native" if row.peft_difference is None else "PEFT"
        verdict = Verdict.PASS if value <= TOLERANCE else Verdict.FAIL
        gates.append(Gate(f"logits against {against} {key}", verdict, value, TOLERANCE, "logit"))
        if row.same_peft is not None:
            gates.append(_least(f"same label as PEFT {key}", row.same_peft, row.rows, row.rows))
    if row.hits is not None and row.peft_hits is not None:
        limit = row.peft_hits / row.rows - max_drop
        share = row.hits / row.rows
        # One row more or less is not a drop: with few rows it is more than max_drop, and says nothing.
        lost = row.peft_hits - row.hits
        missed = Verdict.FAIL if lost > max(2, max_drop * row.rows * 2) else Verdict.INCONCLUSIVE
        verdict = Verdict.PASS if share >= limit else missed
        detail = f"{row.hits} of {row.rows} rows, PEFT {row.peft_hits}"
        gates.append(Gate(f"accuracy {key}", verdict, share, limit, "share", detail, bound="min"))
    if row.hits is not None and (floor := target.floor(row.adapter)) is not None:
        gates.append(floor_gate(f"accuracy floor {key}", row.hits, row.rows, floor, target.check.confidence))
    return gates


def memory_gate(name: str, result: WorkerResult, target: Target, emulated: bool) -> tuple[Gate, ...]:
    """Peak memory; an emulator's own share counts in, so only staying within the budget is conclusive there."""
    value, limit = result.peak_rss_mb, target.budgets.peak_rss_mb
    if value is None or limit is None:
        return ()
    over = Verdict.INCONCLUSIVE if emulated else Verdict.FAIL
    detail = "the emulator's own memory included" if emulated else ""
    return (Gate(f"peak RSS {name}", Verdict.PASS if value <= limit else over, value, limit, "MB", detail),)


def _report(
    bundle: Bundle,
    target: Target,
    executor: Executor,
    results: Mapping[str, WorkerResult],
    rows: Sequence[DeviceRows],
    max_drop: float,
) -> Report:
    gates: list[Gate] = [Gate(f"executed on {executor.name}", Verdict.PASS, None, None, "", target.name)]
    for row in rows:
        reduced = bool(getattr(executor, "reduced_precision", False))
        quantized = reduced or bundle.manifest.variants[row.variant].quantized_share > 0
        gates += _row_gates(row, quantized, target, max_drop)
    for variant, result in results.items():
        if result.base_restored is not None:
            verdict = Verdict.PASS if result.base_restored else Verdict.FAIL
            gates.append(Gate(f"base restored bit for bit {variant}", verdict, None, None, ""))
        gates += memory_gate(variant, result, target, executor.emulated)
    gates += size_gates(bundle, target, tuple(results))
    notes = []
    for variant, result in results.items():
        host = result.host
        notes.append(
            f"{variant}: {executor.name}, {host.cpu}, {host.os} {host.machine}, onnxruntime {host.onnxruntime}, "
            f"{host.threads} thread{'s' if host.threads != 1 else ''}"
        )
        notes += result.notes
    if executor.emulated:
        notes.append("emulated: what was measured of time there says nothing about the device, and was not judged")
    columns = (
        "adapter", "variant", "rows", "same label as native", "max |difference|", "same label as PEFT", "max |difference| to PEFT",
        "accuracy", "accuracy PEFT",
    )  # fmt: skip
    return Report(
        kind="validate",
        title=f"Validation of {bundle.path} on {target.name}, executed by {executor.name}",
        gates=tuple(gates),
        tables=(
            Table(
                "Rows on the device",
                columns,
                tuple(
                    (r.adapter or "(base)", r.variant, r.rows, r.same_native, r.native_difference, r.same_peft, r.peft_difference,
                     None if r.hits is None else r.hits / r.rows, None if r.peft_hits is None else r.peft_hits / r.rows)
                    for r in rows
                ),
            ),
        ),
        notes=tuple(notes),
        data={
            "target": target.name,
            "executor": executor.name,
            "emulated": executor.emulated,
            "executed": True,
            "rows": [asdict(row) for row in rows],
            "base_restored": {v: r.base_restored for v, r in results.items()},
            "host": {v: r.host.model_dump(mode="json") for v, r in results.items()},
        },
    )  # fmt: skip
