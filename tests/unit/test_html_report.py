"""report.html: what it shows, that it is one file without a request or script, and what is said of files that are no reports."""

from __future__ import annotations

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgepeft.cli import main
from edgepeft.errors import InputError, MissingExtraError
from edgepeft.html_report import read_report, write_html_report
from edgepeft.html_report.figures import Choice, pareto
from edgepeft.report import write_reports
from edgepeft.report.gate import Gate, Report, Table, Verdict

HOST = {
    "cpu": "A CPU", "cores": 2, "machine": "x86_64", "os": "Linux", "python": "3.11", "onnxruntime": "1.32.0", "threads": 1,
}  # fmt: skip
HOSTILE = '評価 $x^$ </style><script>alert(1)</script><img src="http://example.org/x.png">'


def case(variant: str, adapter: str | None, p50: float) -> dict[str, object]:
    return {
        "variant": variant, "adapter": adapter, "shape": "1x32", "process_p50_ms": [p50, p50 * 1.1], "iterations": 200,
        "p50_ms": p50, "p95_ms": p50 * 1.4, "p99_ms": None, "tokens_per_s": None, "not_finite": "",
    }  # fmt: skip


def bench_of(p50: float, *, gates: tuple[Gate, ...] = (), adapter: str = "a") -> Report:
    data = {
        "schema_version": 1, "kind": "bench", "target": "t", "host": HOST,
        "bundle": {
            "path": "b", "mode": "swap", "base_identity": "0" * 64, "bundle_mb": 1.0, "variants_mb": {}, "adapters_mb": {},
        },
        "sampling": {"warmup_s": 0.1, "measure_s": 0.1, "min_iterations": 6},
        "cases": [case("fp32", adapter, p50), case("int8", adapter, p50 / 2)], "variants": [],
    }  # fmt: skip
    return Report(
        "bench", "Bench of b", gates, (Table("Load", ("variant", "ms"), (("fp32", 3.25),)),), ("a note",), data
    )


CHECK = Report(
    "check",
    "Check of b",
    (Gate.within("latency ratio fp32/a 1x32", 1.3, (1.2, 1.4), 1.1, "ratio"), Gate.undecided("int8", "too few rounds")),
    data={
        "rules": {"latency_tolerance": 0.1},
        "paired": True,
        "cases": [
            {"variant": "fp32", "adapter": "a", "shape": "1x32", "ratio": 1.3, "lower": 1.2, "upper": 1.4, "verdict": "fail"},
            {
                "variant": "int8", "adapter": None, "shape": "1x32", "ratio": 1.0, "lower": None, "upper": None,
                "verdict": "inconclusive",
            },
        ],
        "accuracy": [
            {"variant": "fp32", "adapter": "a", "drop": 0.01, "drop_lower": -0.01, "drop_upper": 0.03, "accuracy": 0.8},
        ],
    },
)  # fmt: skip
VALIDATE = Report(
    "validate",
    "Validation of b",
    (Gate.at_most("parity a", 1e-6, 1e-4, "logit"),),
    (Table("Accuracy", ("adapter", "accuracy"), (("a", 0.81),)),),
    data={"accuracy": [{"adapter": "a", "variant": v, "rows": 200, "accuracy": 0.81} for v in ("fp32", "int8")]},
)


class Page(HTMLParser):
    """The parts of a page, and a failure for a tag that is not closed."""

    VOID = frozenset({"meta", "br", "hr", "img", "input", "link"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    reports = tmp_path / "reports"
    budget = Gate.at_most("p50 fp32/a 1x32", 12.0, 9.0, "ms", best=8.0)
    write_reports(reports, "bench-1", bench_of(10.0))
    write_reports(reports, "bench-2", bench_of(12.0, gates=(budget,)))
    write_reports(reports, "check", CHECK)
    write_reports(reports, "validate", VALIDATE)
    set_created(reports / "bench-1.json", "2026-01-01T00:00:00+00:00")
    set_created(reports / "bench-2.json", "2026-01-02T00:00:00+00:00")
    return reports


def set_created(path: Path, created: str) -> None:
    raw = json.loads(path.read_text(encoding="utf-8"))
    raw["created"] = created
    path.write_text(json.dumps(raw), encoding="utf-8")


def test_one_file_that_needs_nothing_else(folder: Path) -> None:
    written = write_html_report([folder])
    assert written.path == folder / "report.html"
    assert written.bytes == written.path.stat().st_size < 400_000
    page = Page(written.path.read_text(encoding="utf-8"))
    assert not {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "object", "video", "image"}
    pointers = [
        value for _, attrs in page.tags for name, value in attrs.items() if name in {"src", "href", "xlink:href"}
    ]
    assert pointers
    assert all(value and value.startswith("#") for value in pointers)
    identifiers = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(identifiers) == len(set(identifiers)), "two charts must not share an identifier"
    missing = {value[1:] for value in pointers if value} - set(identifiers)
    assert not missing, "every pointer has its target"
    text = written.path.read_text(encoding="utf-8")
    assert set(re.findall(r"url\(#([^)]+)\)", text)) <= set(identifiers)
    assert not re.search(r"#0([1-7])0\1", text), "each stand-in became a colour of the page"


def test_the_verdict_comes_first_and_what_fails_before_what_passes(folder: Path) -> None:
    written = write_html_report([folder])
    assert written.verdict is Verdict.FAIL
    page = Page(written.path.read_text(encoding="utf-8"))
    rest = page.text
    for words in (
        "1 of 4 gates pass, 1 fail, 2 inconclusive.",
        "What does not pass",
        "latency ratio fp32/a 1x32: 1.3 ratio, limit ≤ 1.1 ratio",
        "too few rounds",
        "1 gate that passes",
        "parity a",
        "Against the baseline",
        "Steady latency, 1x32",
        "Quality",
        "History",
        "Provenance",
    ):
        assert words in rest, f"{words!r} is there, after what belongs before it"
        rest = rest.partition(words)[2]


def test_charts_say_their_numbers_to_a_screen_reader_and_in_a_table(folder: Path) -> None:
    page = Page(write_html_report([folder]).path.read_text(encoding="utf-8"))
    labels = [str(attrs.get("aria-label")) for tag, attrs in page.tags if tag == "svg"]
    assert len(labels) == 5
    assert any("fp32/a 1x32: 1.3, interval 1.2 to 1.4" in label for label in labels)
    assert any("fp32/a: median 12 ms" in label for label in labels), "the newest run of two is shown"
    assert "1: 2026-01-01 00:00 b 10.0" in page.text
    assert "2: 2026-01-02 00:00 b 12.0" in page.text
    for label in labels:
        assert page.text.count(label.partition(". ")[0]) >= 2, "heading and table"


def test_what_is_lost_out_of_domain_is_drawn(tmp_path: Path) -> None:
    def row(domain: str, data: str, drop: object) -> dict[str, object]:
        return {"adapter": "a", "variant": "fp32", "data": data, "domain": domain, "drop": drop, "forgetting": None}

    ends = {"value": 0.2, "lower": 0.15, "upper": 0.25}
    rows = [row("in", "in.csv", None), row("out", "far.csv", ends), row("out", "none.csv", {**ends, "lower": None})]
    write_reports(tmp_path, "validate", Report("validate", "Validation", data={"generalization": rows}))
    page = write_html_report([tmp_path], tmp_path / "r.html").path.read_text(encoding="utf-8")
    assert 'aria-label="Lost out of domain. a fp32, far.csv: 20, interval 15 to 25"' in page
    assert "Lost out of domain" in page
    assert "none.csv" not in page
    assert "Taken from the base" not in page


def test_runs_of_other_hosts_are_not_joined(folder: Path) -> None:
    raw = json.loads((folder / "bench-2.json").read_text(encoding="utf-8"))
    raw["data"]["host"]["cpu"] = "Another CPU"
    (folder / "bench-2.json").write_text(json.dumps(raw), encoding="utf-8")
    page = Page(write_html_report([folder]).path.read_text(encoding="utf-8"))
    assert "History" not in page.text


def test_names_cannot_write_html(tmp_path: Path) -> None:
    gate = Gate.holds(HOSTILE, False, HOSTILE)
    report = bench_of(3.0, gates=(gate,), adapter=HOSTILE)
    tables = (Table(HOSTILE, (HOSTILE,), ((HOSTILE,),)),)
    write_reports(tmp_path, "bench", Report("bench", HOSTILE, report.gates, tables, (HOSTILE,), report.data))
    page = Page(write_html_report([tmp_path / "bench.json"]).path.read_text(encoding="utf-8"))
    assert not {tag for tag, _ in page.tags} & {"script", "img"}
    assert page.text.count("alert(1)") > 3


def test_the_front_keeps_what_nothing_beats() -> None:
    def choice(name: str, cost: float, accuracy: float) -> Choice:
        return Choice(name, "a", cost, accuracy, accuracy, accuracy)

    rows = [choice("fp32", 90, 0.90), choice("int8", 23, 0.89), choice("q8", 30, 0.88), choice("q4", 15, 0.80)]
    assert [row.variant for row in pareto(rows)] == ["q4", "int8", "fp32"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: [], "is no report of edgepeft"),
        (lambda raw: {**raw, "gates": None}, "is no report of edgepeft"),
        (lambda raw: {**raw, "schema_version": 2}, "schema_version 2; this edgepeft reads 1"),
        (lambda raw: {**raw, "created": "yesterday"}, "created is 'yesterday'"),
        (lambda raw: {**raw, "gates": [{"name": "x"}]}, "KeyError: 'value'"),
        (lambda raw: {**raw, "gates": [{**raw["gates"][0], "value": "high"}]}, "'high' where a number belongs"),
        (lambda raw: {**raw, "gates": [{**raw["gates"][0], "verdict": "good"}]}, "'good' is not a valid Verdict"),
        (
            lambda raw: {**raw, "tables": [{"title": "t", "columns": ["a"], "rows": [[1, 2]]}]},
            "has 2 cells, expected 1",
        ),
        (lambda raw: {**raw, "data": {"cases": "many"}}, "data.cases is no list of objects"),
    ],
)
def test_files_that_are_no_reports(change, message: str, folder: Path) -> None:  # type: ignore[no-untyped-def]
    path = folder / "check.json"
    path.write_text(json.dumps(change(json.loads(path.read_text(encoding="utf-8")))), encoding="utf-8")
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        write_html_report([path])
    assert "check.json" in str(caught.value)


def test_folders_without_reports_and_places_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no reports; make one with: edgepeft validate"):
        write_html_report([tmp_path])
    with pytest.raises(InputError, match="neither a bundle, nor a folder of reports, nor a report"):
        write_html_report([tmp_path / "nothing"])
    with pytest.raises(InputError, match="no bundle and no report was given"):
        write_html_report([])


def test_reports_of_earlier_versions_have_no_tables_and_are_read(folder: Path) -> None:
    path = folder / "validate.json"
    raw = json.loads(path.read_text(encoding="utf-8"))
    del raw["tables"], raw["created"]
    path.write_text(json.dumps(raw), encoding="utf-8")
    saved = read_report(path)
    assert saved.report.tables == ()
    assert saved.report.gates == VALIDATE.gates


def test_without_matplotlib_the_extra_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=re.escape("pip install 'edgepeft[report]'")):
        write_html_report([folder])


def test_the_command_says_where_and_what(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    done = CliRunner().invoke(main, ["report", str(folder), "--out", str(out)])
    assert (done.exit_code, done.output) == (0, f"{out}: 4 reports, verdict fail\n")
    done = CliRunner().invoke(main, ["report", str(folder / "validate.json"), "--json"])
    assert json.loads(done.output)["verdict"] == "pass"
    assert CliRunner().invoke(main, ["report"]).exit_code == 2


def test_learning_curves_of_a_trained_adapter(tmp_path: Path) -> None:
    folder = tmp_path / "reviews"
    folder.mkdir()
    record = {
        "format": 1, "task": "text-classification", "base_model": "org/<b>base</b>", "arguments": {"method": "lora"},
        "trainable_parameters": 1234, "start": {"folder": "old-lora"},
        "metrics": {
            "before": {"accuracy": 0.5, "macro_f1": 0.4}, "step_loss": [0.9, 0.8, 0.7, 0.6], "best_epoch": 2,
            "epoch_scores": [{"accuracy": 0.7, "macro_f1": 0.6}, {"accuracy": 0.8, "macro_f1": 0.7}],
            "verdict": "better", "train_rows": 40, "seconds": 3.5,
        },
    }  # fmt: skip
    (folder / "edgepeft_adapter.json").write_text(json.dumps(record))
    written = write_html_report([folder])
    assert written.path == folder / "report.html"
    page = Page(written.path.read_text())
    assert page.text.count("reviews: loss a step") >= 1
    assert "reviews: validation" in page.text
    assert "Epoch 0: before training. Kept: epoch 2." in page.text
    assert "old-lora" in page.text
    labels = [dict(attributes)["aria-label"] for tag, attributes in page.tags if tag == "svg"]
    assert labels == [
        "reviews: loss a step. 4 steps; smoothed loss 0.9 early and 0.673 in the end",
        "reviews: validation. accuracy: 0.5, 0.7, 0.8; macro F1: 0.4, 0.6, 0.7",
    ]
    (folder / "edgepeft_adapter.json").write_text("{}")
    with pytest.raises(InputError, match="no record of a training"):
        write_html_report([folder])


def map_site(kind: str, layer: int, worth: float, rank: int) -> dict[str, object]:
    return {"kind": kind, "layer": layer, "worth": worth, "rank": rank}


@pytest.mark.parametrize("layers", [3, 20], ids=["beside-each-other", "below-each-other"])
def test_a_sensitivity_map_is_drawn(tmp_path: Path, layers: int) -> None:
    """A cell a layer, its rank in it, and shades that only grow with its worth; none where it is not in this form."""
    from edgepeft.html_report.sensitivity import sensitivity_chart

    worths = [10.0 ** (-layer * 3 / layers) for layer in range(layers)]
    sites = [map_site("query", layer, worth, 30 + layer) for layer, worth in enumerate(worths)]
    sites += [map_site("output.dense", 0, 0.0, 0), map_site("pooler.dense", -1, 1e-9, 7)]
    record = {"format": 1, "metrics": {}, "sensitivity": {"measure": "eva", "kept": "uniform", "sites": sites}}
    chart = sensitivity_chart("map", record)
    assert chart is not None
    shades = [float(each) for each in re.findall(r"fill: #070701; opacity: ([0-9.]+)", chart.svg)]
    assert len(shades) == layers + 2
    assert shades[:layers] == sorted(shades[:layers], reverse=True)
    assert shades[0] == pytest.approx(0.7)
    assert shades[-2:] == pytest.approx([0.06, 0.06])
    for shown in (*(f">{30 + layer}<" for layer in range(layers)), ">7<", ">·<", ">–<", ">1.0e+00<"):
        assert shown in chart.svg
    assert "Measured by eva. Uniform ranks scored better" in chart.caption
    assert chart.label.startswith(
        f"{layers + 2} layers; worth most for their cost: query of layer 0 (rank 30), query of layer 1"
    )
    assert len(chart.numbers.rows) == layers + 2
    (tmp_path / "edgepeft_adapter.json").write_text(json.dumps(record))
    assert "what layers are worth" in write_html_report([tmp_path]).path.read_text()
    no_number = {**map_site("q", 0, 1.0, 1), "worth": "much"}
    for wrong in ({}, {"sites": 3}, {"sites": ["x"]}, {"sites": [no_number]}, {"sites": [map_site("q", 0, 0.0, 1)]}):
        assert sensitivity_chart("map", {"sensitivity": wrong}) is None
    assert sensitivity_chart("map", {"sensitivity": [1]}) is None
