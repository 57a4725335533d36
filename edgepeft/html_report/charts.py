"""Charts as inline SVG, drawn by matplotlib in colours that the page's style sheet decides.

matplotlib knows one colour a line; a page has a light and a dark form. So each colour is drawn as a stand-in that nothing
else uses, and becomes a CSS variable in the text of the SVG.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GRID, PASS, FAIL, UNSURE = (f"#0{i}0{i}0{i}" for i in range(1, 7))
#: Series are told apart by marker as well as by colour.
SERIES = tuple(f"#07070{i}" for i in range(1, 7))
MARKERS = ("o", "s", "D", "^", "v", "P")

_VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--grid", PASS: "--pass", FAIL: "--fail", UNSURE: "--unsure"} | {
    colour: f"--series-{number}" for number, colour in enumerate(SERIES, 1)
}

#: Inches. A phone shows a chart of this width almost without shrinking it; wide screens put two beside each other.
WIDTH = 4.6

#: ``Any``: matplotlib types its keys as one literal each.
_STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 8.5,
    # A name may hold a dollar sign, which would start a formula.
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "lines.markersize": 5,
}


#: Characters of a name that a chart shows; its table has it whole.
_NAME_LENGTH = 30


def short(name: str) -> str:
    """A name as a chart shows it: one line, its middle left out where it is long.

    Example:
        >>> short("int8/" + "a" * 40)
        'int8/aaaaaaaaa…aaaaaaaaaaaaaaa'
    """
    name = " ".join(name.split())
    if len(name) <= _NAME_LENGTH:
        return name
    half = (_NAME_LENGTH - 1) // 2
    return f"{name[:half]}…{name[-(_NAME_LENGTH - 1 - half) :]}"


def colour(position: int) -> str:
    """The stand-in of the series at ``position``; they repeat after six."""
    return SERIES[position % len(SERIES)]


def marker(position: int) -> str:
    """The marker of the series at ``position``."""
    return MARKERS[position % len(MARKERS)]


#: Letters of a legend that stand beside each other in a chart, marks and gaps counted as letters.
_LEGEND_WIDTH = 62
_MARK_WIDTH = 8


def _legend_columns(names: Sequence[str]) -> int:
    longest = max((len(short(name)) for name in names), default=0)
    return max(1, min(len(names), _LEGEND_WIDTH // (longest + _MARK_WIDTH)))


def legend(figure: Figure, axes: Axes, names: Sequence[str]) -> None:
    """The names of a chart's series below it, in as many columns as fit."""
    figure.legend(handles=axes.get_legend_handles_labels()[0], loc="outside lower center", ncols=_legend_columns(names))


@contextmanager
def drawing(rows: float, *, extra: float = 0.7, names: Sequence[str] = ()) -> Iterator[tuple[Figure, Axes, list[str]]]:
    """A chart with room for ``rows`` rows of marks; when the block ends, the list holds its SVG.

    Args:
        rows: How many rows (or for a chart with two axes, how many rows' height) it has.
        extra: Inches for the axis below.
        names: The series that :func:`legend` will name, which need room.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure as NewFigure
    except ImportError as error:
        raise MissingExtraError(
            "report.html has charts, and matplotlib draws them; it is not installed: pip install 'edgepeft[report]'"
        ) from error
    out: list[str] = []
    with mpl.rc_context(_STYLE):
        lines = -(-len(names) // _legend_columns(names)) if names else 0
        figure = NewFigure(figsize=(WIDTH, extra + 0.26 * rows + 0.2 * lines), layout="constrained")
        yield figure, figure.add_subplot(), out
        out.append(_svg(figure))


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    with warnings.catch_warnings():
        # The browser has the glyphs: matplotlib only measures with its own font.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        _save(figure, buffer)
    return buffer.getvalue()


def _save(figure: Figure, buffer: io.StringIO) -> None:
    # No date and no creator: the same numbers give the same page.
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})


_TAG = re.compile(r"<svg[^>]*viewBox=\"([^\"]+)\"[^>]*>")
_STAND_IN = re.compile(r"#0[1-7]0[1-7]0[1-7]")
_IDENTIFIER = re.compile(r'id="([^"]+)"')


def inline(svg: str, number: int, label: str) -> str:
    """An SVG document as an element of a page.

    Args:
        svg: What :func:`drawing` gave.
        number: The chart's position on the page, which keeps its identifiers apart from those of others.
        label: What a screen reader says in the chart's place; the table beside it has the numbers.

    Returns:
        The ``<svg>`` element, without a declaration, with the page's colours and fonts.
    """
    from markupsafe import escape

    start = _TAG.search(svg)
    if start is None:
        raise ValueError("matplotlib gave no <svg> with a viewBox")
    body = svg[start.end() :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    used = set(re.findall(r"(?:#|xlink:href=\"#)([\w.-]+)", body))
    # Group names such as "axes_1" repeat on a page of several charts and nothing points to them.
    body = _IDENTIFIER.sub(lambda m: f'id="c{number}-{m[1]}"' if m[1] in used else "", body)
    body = re.sub(r'(url\(#|xlink:href="#)', rf"\1c{number}-", body)
    body = _STAND_IN.sub(lambda m: f"var({_VARIABLES[m[0]]})" if m[0] in _VARIABLES else m[0], body)
    body = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font: \1 var(--sans)", body)
    return f'<svg viewBox="{start[1]}" role="img" aria-label="{escape(label)}" xmlns:xlink="http://www.w3.org/1999/xlink">{body}'
