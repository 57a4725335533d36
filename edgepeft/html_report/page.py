"""Writing ``report.html``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from ..bundle import Bundle, read_bundle
from ..bundle.manifest import MANIFEST_NAME
from ..errors import InputError
from ..report import format_cell
from ..report.gate import Gate, Table, Verdict, overall
from ..report.write import replace_text
from . import charts
from .figures import Chart
from .saved import SavedReport, find_reports, read_reports
from .sections import sections
from .training import RECORD, read_training

_ORDER = [Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.PASS]


@dataclass(frozen=True)
class HtmlReport:
    """A page that was written: where, what it says over all, and what it was made from."""

    path: Path
    verdict: Verdict
    reports: tuple[SavedReport, ...]
    bytes: int


def write_html_report(sources: Sequence[str | Path], out: str | Path | None = None) -> HtmlReport:
    """Join saved reports and bundles into one HTML page.

    Args:
        sources: Bundles (their ``report`` folder is read, and their sizes and provenance are shown), folders of
            reports, trained adapters (their learning curves are shown), or ``.json`` reports.
        out: The page; by default ``report/report.html`` of the first bundle, or ``report.html`` beside the first report.

    Returns:
        Where the page is, and the verdict over the newest report of each title.

    Raises:
        InputError: There is no source or no report in one, a file is no report, or the page cannot be written.
        MissingExtraError: matplotlib is not installed.

    Example:
        >>> write_html_report(["demo-out/bundle"]).path.name  # doctest: +SKIP
        'report.html'
    """
    if not sources:
        raise InputError("no bundle and no report was given")
    bundles, paths = [], []
    for source in map(Path, sources):
        found, bundle = _read_source(source)
        paths += found
        bundles += [bundle] if bundle is not None else []
    if not paths:
        names = " ".join(map(str, sources))
        raise InputError(
            f"{names} has no reports; make one with: edgepeft validate BUNDLE, edgepeft bench BUNDLE, "
            "or edgepeft check BUNDLE --baseline OLD"
        )
    own = dict.fromkeys(path.resolve() for path in paths)
    reports = [*map(read_training, (path for path in own if path.name == RECORD))]
    reports += read_reports(path for path in own if path.name != RECORD)
    out = Path(out) if out is not None else _default(Path(sources[0]))
    text = render(reports, bundles)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        replace_text(out, text)
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror or error}") from error
    judged = [saved.report.verdict for saved in current(reports)]
    return HtmlReport(out, overall(judged), tuple(reports), len(text.encode()))


def _read_source(source: Path) -> tuple[list[Path], Bundle | None]:
    if source.is_file():
        return [source], None
    if not source.is_dir():
        raise InputError(f"{source} is neither a bundle, nor a folder of reports, nor a report")
    bundle = read_bundle(source) if (source / MANIFEST_NAME).is_file() else None
    found = find_reports(source)
    if bundle is None and (source / RECORD).is_file():
        found.append(source / RECORD)
    return found, bundle


def _default(source: Path) -> Path:
    if source.is_file():
        return source.with_name("report.html")
    return (source / "report" if (source / "report").is_dir() else source) / "report.html"


def current(reports: Sequence[SavedReport]) -> list[SavedReport]:
    """The newest report of each kind and title: what holds now."""
    return list({(saved.kind, saved.report.title): saved for saved in reports}.values())


def render(reports: Sequence[SavedReport], bundles: Sequence[Bundle]) -> str:
    """The page as text: no script, no request, nothing outside of it."""
    now = current(reports)
    gates = [(saved, gate) for saved in now for gate in saved.report.gates]
    counts = {verdict.value: sum(gate.verdict is verdict for _, gate in gates) for verdict in _ORDER}
    shown = sections(reports, bundles)
    return _template().render(
        title=", ".join(bundle.path.resolve().name for bundle in bundles) or "edgepeft report",
        about=[_about(bundle) for bundle in bundles],
        verdict=overall(saved.report.verdict for saved in now).value if gates else "",
        counts=counts,
        bad=_sorted([pair for pair in gates if not pair[1].ok]),
        good=[pair for pair in gates if pair[1].ok],
        reports=now,
        sections=shown,
        numbered=_Inlined(),
        provenance=[provenance(bundle) for bundle in bundles],
        hosts=_hosts(now),
        version=version("edgepeft"),
    )


def _about(bundle: Bundle) -> str:
    """A bundle in a line."""
    manifest = bundle.manifest
    adapters = ", ".join(manifest.adapters) or manifest.merged or "no adapter"
    return f"{bundle.path}: {manifest.task}; {adapters}; {', '.join(manifest.variants)}"


def _sorted(gates: list[tuple[SavedReport, Gate]]) -> list[tuple[SavedReport, Gate]]:
    return sorted(gates, key=lambda pair: _ORDER.index(pair[1].verdict))


class _Inlined:
    """Gives each chart's SVG as an element, with identifiers that no other chart of the page has."""

    def __init__(self) -> None:
        self.number = 0

    def __call__(self, chart: Chart) -> Any:
        from markupsafe import Markup

        self.number += 1
        return Markup(charts.inline(chart.svg, self.number, f"{chart.title}. {chart.label}"))


def _hosts(reports: Sequence[SavedReport]) -> list[str]:
    """What the measuring reports say of their host."""
    return list(dict.fromkeys(note for saved in reports for note in saved.report.notes if "onnxruntime" in note))


def provenance(bundle: Bundle) -> Table:
    """What a bundle was made of, and the hashes that bind its parts."""
    manifest, base = bundle.manifest, bundle.manifest.base
    rows = [
        ("bundle", str(bundle.path)),
        ("task", manifest.task),
        ("base", f"{base.source}: {base.architecture}, {base.parameters:,} parameters, captured by {base.captured_by}"),
        ("base identity", base.identity),
        ("slots", manifest.slots.hash),
        *(
            (f"variant {name}", f"{v.recipe}; {v.file} sha256 {manifest.files[v.file].sha256}")
            for name, v in manifest.variants.items()
        ),
        *(
            (f"adapter {name}", f"{a.method} from {a.source}; sha256 {manifest.files[a.onnx_adapter].sha256}")
            for name, a in manifest.adapters.items()
        ),
        *((f"made with {name}", str(version)) for name, version in dict(manifest.provenance.get("versions") or {}).items()),
    ]  # fmt: skip
    return Table(f"Provenance of {bundle.path.resolve().name}", ("what", "which"), tuple(rows))


@cache
def _template() -> Any:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["cell"] = format_cell
    environment.filters["numeric"] = lambda table: [
        bool(table.rows) and all(not isinstance(row[at], str) for row in table.rows) for at in range(len(table.columns))
    ]
    return environment.from_string(files(__package__).joinpath("page.html.j2").read_text(encoding="utf-8"))
