"""``edgepeft demo``: the whole way from data to a gated bundle, on real weights and real data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..bench import BenchResult, bench, bench_report, budget_gates
from ..bundle import Bundle, hash_file, read_bundle
from ..data import read_examples
from ..errors import BundleError
from ..html_report import write_html_report
from ..json_text import json_text
from ..pipeline import export, quantize, train_adapter
from ..report import write_reports
from ..report.gate import Gate, Table, Verdict, overall
from ..runtime import open as open_bundle
from ..targets import Target, load_target
from ..validate import Validation, validate, validation_report
from .assets import minilm
from .vader import DatasetFiles, write_datasets

ADAPTERS = ("reviews", "movies", "register")
SENTENCES = (
    "The battery died after two days and the seller never answered.",
    "A moving, beautifully acted film that stays with you.",
    "omg sooo happy with my new phone :)",
)
TARGET = "linux-x64-cpu"
#: LoRA in the upper three of MiniLM's six layers: the lower three are then run once a sentence. Mean held-out accuracy of the three
#: adapters is .830 (.864, .804, .822), with LoRA in all layers .828 (.886, .782, .816), at 0.63 times its CPU time.
TARGET_MODULES = tuple(f"layer.{number}.attention.self.{part}" for number in (3, 4, 5) for part in ("query", "value"))

Announce = Callable[[str], None]


@dataclass(frozen=True)
class DemoResult:
    """What the demo found: tables and closing lines for people, and the verdicts.

    ``verdict`` is over parity, accuracy and sizes: what must hold anywhere. ``latency`` is over the target's budgets of time, which
    a machine with other things to do may miss.
    """

    tables: tuple[Table, ...]
    lines: tuple[str, ...]
    verdict: Verdict
    latency: Verdict
    validation: Validation
    measured: BenchResult

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "verdict": self.verdict.value,
            "latency": self.latency.value,
            "validation": self.validation.as_dict(),
            "bench": self.measured.model_dump(mode="json"),
        }


def run_demo(out: Path, *, fresh: bool = False, announce: Announce = lambda message: None) -> DemoResult:
    """Train, export, swap, quantize, validate and measure below ``out``; what is there already is used again.

    Fetches the pinned model and data first where the cache lacks them (:class:`AssetError`). With ``fresh`` training and
    export are repeated.
    """
    announce("fetching all-MiniLM-L6-v2 and the VADER sentences (once)")
    model = minilm()
    data = write_datasets(out / "data")
    adapters = {name: _train(model, data[name], out / "adapters" / name, fresh, announce) for name in ADAPTERS}
    bundle = _export(model, adapters, out / "bundle", fresh, announce)
    spoken = _speak(bundle, announce)
    heldout = {name: read_examples(data[name].heldout) for name in ADAPTERS}
    announce("validating against PEFT on held-out rows")
    validation = validate(bundle, data=heldout, adapters=adapters, base=str(model), progress=announce)
    target = load_target(TARGET)
    announce("measuring in fresh processes")
    measured = bench(
        bundle.path,
        target,
        variants=list(bundle.manifest.variants),
        processes=2,
        progress=lambda done, total, what: announce(f"measuring {done}/{total} {what}"),
    )
    reports = validation_report(validation), bench_report(measured, target)
    for report in reports:
        write_reports(bundle.path / "report", report.kind, report)
    page = write_html_report([bundle.path])
    gates = [gate for report in reports for gate in report.gates]
    verdict, latency = verdicts(gates)
    return DemoResult(
        tables=(spoken, _results(validation, measured, target), _sizes(bundle)),
        lines=_closing(bundle, gates, verdict, latency, measured, page.path),
        verdict=verdict,
        latency=latency,
        validation=validation,
        measured=measured,
    )


def verdicts(gates: Sequence[Gate]) -> tuple[Verdict, Verdict]:
    """The verdict over what must hold anywhere, and that over times, which depend on what else the machine does."""
    checked, timed = (overall(gate.verdict for gate in gates if (gate.unit == "ms") is late) for late in (False, True))
    return checked, timed


def _train(model: Path, data: DatasetFiles, folder: Path, fresh: bool, announce: Announce) -> Path:
    if not fresh and (folder / "edgepeft_adapter.json").is_file():
        announce(f"adapter {data.name}: trained already")
        return folder
    announce(f"training {data.name} on {data.train_rows} rows")
    result = train_adapter(
        model,
        data.train,
        folder,
        epochs=2,
        max_length=64,
        patience=None,
        progress=False,
        target_modules=TARGET_MODULES,
    )
    announce(f"adapter {data.name}: validation accuracy {result.after.accuracy:.3f} after {result.seconds:.0f} s")
    return folder


def _export(model: Path, adapters: Mapping[str, Path], folder: Path, fresh: bool, announce: Announce) -> Bundle:
    wanted = {name: hash_file(path / "adapter_model.safetensors").sha256 for name, path in adapters.items()}
    bundle = None if fresh else _existing(folder, announce)
    if bundle is None or bundle.manifest.provenance.get("checkpoints") != wanted:
        announce("exporting one base with three swappable adapters")
        (bundle,) = export(model, adapters, folder, announce=announce).bundles
    if "int8" not in bundle.manifest.variants:
        bundle = quantize(folder, "int8", announce=announce).bundle
    return bundle


def _existing(folder: Path, announce: Announce) -> Bundle | None:
    """The bundle of an earlier run, if it is whole."""
    try:
        bundle = read_bundle(folder)
        bundle.verify()
    except BundleError as error:
        if folder.exists():
            announce(f"the earlier bundle is not used: {error}")
        return None
    announce("bundle: exported already")
    return bundle


def _speak(bundle: Bundle, announce: Announce) -> Table:
    announce("running the same sentences through all three adapters")
    runtime = open_bundle(bundle.path)
    rows: list[list[str]] = [[sentence] for sentence in SENTENCES]
    for name in ADAPTERS:
        for row, prediction in zip(rows, runtime.use(name).predict(SENTENCES), strict=True):
            row.append(f"{prediction.label} {prediction.score:.2f}")
    return Table("The same sentences, one base, three adapters", ("sentence", *ADAPTERS), tuple(map(tuple, rows)))


def _results(validation: Validation, measured: BenchResult, target: Target) -> Table:
    p50 = {(c.variant, c.adapter, c.shape): c.p50_ms for c in measured.cases}
    swaps = {v.variant: v.swap_p50_ms for v in measured.variants}
    budget = {gate.name: gate.verdict for gate in budget_gates(measured, target)}
    quality = {gate.name: gate.verdict for gate in validation.gates}
    rows = []
    for row in validation.accuracy:
        latency = [verdict for name, verdict in budget.items() if f"{row.variant}/{row.adapter} " in name]
        accuracy = [verdict for name, verdict in quality.items() if name == f"accuracy {row.adapter} {row.variant}"]
        rows.append(
            (
                row.adapter or "(base)",
                row.variant,
                row.peft_accuracy,
                row.accuracy,
                None if row.peft is None else f"{row.peft.same_label}/{row.rows}",
                swaps.get(row.variant),
                p50.get((row.variant, row.adapter, "1x32")),
                p50.get((row.variant, row.adapter, "1x128")),
                overall([*latency, *accuracy]).value,
            )
        )
    columns = (
        "adapter", "variant", "accuracy PyTorch", "accuracy ONNX", "same label", "swap ms", "p50 ms 1x32", "p50 ms 1x128",
        "verdict",
    )  # fmt: skip
    threads = f"{measured.host.threads} thread" + ("" if measured.host.threads == 1 else "s")
    return Table(f"Held-out accuracy and steady latency ({threads})", columns, tuple(rows))


def _sizes(bundle: Bundle) -> Table:
    manifest = bundle.manifest
    base = bundle.size(bundle.variant_files("fp32")) / 1e6
    parts = [(f"base {name}", bundle.size(bundle.variant_files(name)) / 1e6) for name in manifest.variants]
    parts += [(f"adapter {name}", entry.bytes / 1e6) for name, entry in manifest.adapters.items()]
    together = base + sum(entry.bytes for entry in manifest.adapters.values()) / 1e6
    return Table(
        "Sizes",
        ("part", "MB"),
        (
            *parts,
            ("fp32 base with three adapters", together),
            ("three merged fp32 models would take", 3 * base),
        ),
    )


def _closing(
    bundle: Bundle, gates: list[Gate], verdict: Verdict, latency: Verdict, measured: BenchResult, page: Path
) -> tuple[str, ...]:
    host = measured.host
    lines = [f"{gate.verdict.value}: {gate.name} {gate.value} {gate.unit}" for gate in gates if not gate.ok]
    passed = sum(gate.ok for gate in gates)
    lines.append(f"measured on {host.cpu}, {host.cores} cores, onnxruntime {host.onnxruntime}")
    lines.append(
        f"{passed} of {len(gates)} gates pass; verdict: {verdict.value}. Reports are in {bundle.path / 'report'}"
    )
    if latency is not Verdict.PASS:
        lines.append(
            f"latency on this machine, as it is now: {latency.value} by the budgets of {TARGET}, which the verdict leaves out; "
            f"`edgepeft bench {bundle.path} --target {TARGET}` gates on it"
        )
    lines.append(f"look at it: {page.resolve().as_uri()}")
    lines.append(
        f"try it: edgepeft run {bundle.path} --adapter reviews {json_text('I would buy it again', indent=None)}"
    )
    return tuple(lines)
