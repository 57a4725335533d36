"""What quantization could have had: divergence against size, and the matrices that bits are worth most in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..bundle import Bundle
from ..report.gate import Table
from . import charts
from .figures import Chart


def bits_charts(bundle: Bundle) -> tuple[Chart, ...]:
    """A chart for each variant of a bundle whose bits were chosen by what each matrix is worth."""
    measured = bundle.manifest.provenance.get("calibration") or {}
    return tuple(
        bits_chart(f"{variant} of {bundle.path.name}: divergence against size", kept["bits"])
        for variant, kept in measured.items()
        if variant in bundle.manifest.variants and isinstance(kept, Mapping) and "bits" in kept
    )


def bits_chart(title: str, kept: Mapping[str, Any]) -> Chart:
    """The front as a line, what was chosen as a cross; ``kept`` is what ``quantize`` wrote into the manifest."""
    points = [(float(mb), float(loss)) for mb, loss in kept["front_mb_divergence"]]
    chosen, measured = float(kept["mb"]), float(kept["measured_divergence"])
    names = ["expected", "made, as measured"]
    with charts.drawing(6, names=names) as (figure, axes, out):
        axes.plot(
            [mb for mb, _ in points],
            [loss for _, loss in points],
            "-o",
            color=charts.colour(0),
            markersize=3,
            label=names[0],
        )
        axes.plot([chosen], [measured], "x", color=charts.colour(1), markersize=9, markeredgewidth=2, label=names[1])
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")  # as a decimal: the page draws no powers
        axes.set_xlabel("MB of the variant's files")
        axes.set_ylabel("divergence from fp32, nats")
        axes.margins(x=0.08, y=0.12)
        charts.legend(figure, axes, names)
    label = f"{chosen:.1f} MB chosen with a measured divergence of {measured:.4f}; " + "; ".join(
        f"{mb:.1f} MB: {loss:.4f}" for mb, loss in points
    )
    worth = "; ".join(f"{charts.short(name)} {loss:.2g}" for name, loss in list(kept["most_sensitive"].items())[:5])
    forms = "; ".join(f"{count:,} in {form}" for form, count in kept["forms"].items())
    numbers = Table(title, ("MB", "expected divergence"), tuple(points))
    return Chart(title, out[0], label, numbers, f"Weights: {forms}. Worth most in 4 bits by themselves: {worth}.")
