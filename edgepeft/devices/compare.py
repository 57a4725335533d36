"""``targets compare``: one bundle against every target, in one table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ..bundle import read_bundle, rereading
from ..data import Examples, PromptRows
from ..errors import EdgepeftError
from ..report.gate import Gate, Report, Table
from ..report.partial import Keep, keep_nothing
from ..targets import Target, list_targets
from .checks.reference import check_data, find_peft
from .checks.static import EXECUTED, static_report
from .place import choose_variants, deployed_mb, find_place
from .validate import TASKS, validate_on


@rereading
def compare_targets(
    bundle: str | Path,
    targets: Sequence[Target] | None = None,
    *,
    data: Mapping[str, Examples] | Mapping[str, PromptRows] | None = None,
    rows: int | None = None,
    reference: bool = True,
    execute: bool = True,
    progress: Callable[[str], None] = lambda message: None,
    keep: Keep = keep_nothing,
) -> Report:
    """Validate a bundle for each target (all that ship by default): executed where something can, else statically.

    ``execute=False`` makes static checks only. One gate a target; that nothing executed a target is said in the table and
    does not make the whole inconclusive. A target whose executor breaks fails with its message. ``keep`` is given what makes
    the report of the targets so far.

    Raises:
        InputError: Data are for no adapter of the bundle, ``rows`` is below 1, or what PEFT needs is not at hand.
    """
    opened = read_bundle(bundle)
    table: list[tuple[str, str, float, str, str, str]] = []
    gates: list[Gate] = []
    reports: dict[str, object] = {}

    def so_far() -> Report:
        return Report(
            kind="compare",
            title=f"{opened.path} for every target",
            gates=tuple(gates),
            tables=(Table("Targets", ("target", "variant", "MB", "how", "verdict", "why"), tuple(table)),),
            data={"targets": reports},
        )

    if execute and opened.manifest.task in TASKS:
        # What is wrong for every target is an error of the call, and no finding about the bundle.
        check_data(opened, (None, *opened.manifest.adapters), data or {}, 1 if rows is None else rows)
        if reference:
            find_peft(opened, {}, None)
    keep(lambda: so_far() if gates else None)
    for target in list_targets() if targets is None else targets:
        place = find_place(target, task=opened.manifest.task)
        chosen = choose_variants(opened.manifest, target, executor=place.executor)
        size = deployed_mb(opened.manifest, chosen[0])
        run = place.executor if execute and opened.manifest.task in TASKS else None
        progress(f"{target.name}: {'static checks' if run is None else run.name}")
        unable = f"{opened.manifest.task} is not executed on devices" if execute else "not asked for"
        why = place.why_static or unable
        try:
            if run is None:
                report = static_report(opened, target, chosen, why)
            else:
                report = validate_on(
                    opened, target, data=data, rows=rows, reference=reference, variants=chosen, progress=progress
                )
        except EdgepeftError as error:
            how = "static" if run is None else run.name
            gate = Gate.holds(target.name, False, str(error))
            gates.append(gate)
            table.append((target.name, chosen[0], size, how, gate.verdict.value, gate.detail))
            continue
        how = "static only" if run is None else f"executed: {run.name}"
        # That a target's executor is not here, or was not asked for, is no finding about the bundle.
        judged = [gate for gate in report.gates if run is not None or not gate.name.startswith(EXECUTED)]
        gate = Gate.whole(target.name, judged, how)
        gates.append(gate)
        said = gate.detail if not gate.ok else why if run is None else ""
        table.append((target.name, chosen[0], size, how, gate.verdict.value, said))
        reports[target.name] = report.data
    return so_far()
