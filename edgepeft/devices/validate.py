"""``validate --target``: what a bundle answers on the device, natively here and under PEFT."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ..bundle import Bundle, read_bundle, rereading
from ..data import Examples, PromptRows
from ..errors import InputError
from ..report.gate import Report
from ..report.partial import Keep, keep_nothing
from ..targets import Target
from ..validate.generalization import adapters_of, with_generalization
from ..validate.quality import Rows
from .checks.classification import Announce, validate_labels
from .checks.generation import NEW_TOKENS, validate_tokens
from .checks.reference import find_peft
from .checks.static import static_report
from .place import choose_variants, find_place, require_size

#: Tasks whose bundles are executed on devices.
TASKS = ("text-classification", "text-generation")


@rereading
def validate_on(
    bundle: str | Path | Bundle,
    target: Target,
    *,
    on: str | None = None,
    data: Mapping[str, Examples] | Mapping[str, PromptRows] | None = None,
    rows: int | None = None,
    adapters: Mapping[str, str | Path] | None = None,
    base: str | None = None,
    variants: Sequence[str] | None = None,
    reference: bool = True,
    max_drop: float = 0.01,
    new_tokens: int = NEW_TOKENS,
    general: Sequence[Rows] = (),
    inside: Mapping[str, Rows] | None = None,
    progress: Announce = lambda message: None,
    keep: Keep = keep_nothing,
) -> Report:
    """Execute a bundle on ``target`` and compare what it answers with a native run here and with PEFT.

    Of a classifier, ``data`` maps an adapter to labelled rows (:class:`Examples`), and labels and logits are compared. Of a
    causal language model it maps one to :class:`PromptRows` (``"*"``: the others and the base), and ``new_tokens`` greedy
    tokens after each prompt are compared. ``rows`` of them (the executor's number by default) are run, spread evenly;
    adapters without data run a handful of fixed texts. The base must come back bit for bit on the device. Where nothing can
    execute the target the report says "static only". Raises :class:`TargetError` where ``on`` names an executor that is not
    ready or cannot run the bundle's task, or the bundle is over the size budget (nothing is copied), :class:`InputError` for
    a task or data that are not run on devices, and :class:`DeviceError` where the device fails.

    ``general`` are rows that no adapter was trained for, ``inside`` such as it was, by adapter: they are run natively here, and the
    target's ``[generalization]`` says what may be lost. ``keep`` is called when all is known to be right, before anything runs,
    and given what makes the report of all that was compared so far: ``None`` before the first variant ran on the device.
    """
    opened = bundle if isinstance(bundle, Bundle) else read_bundle(bundle)
    task = opened.manifest.task
    if task not in TASKS:
        raise InputError(f"validate --target runs {' and '.join(TASKS)} bundles; this one's task is {task}")
    choose_variants(opened.manifest, target, variants)  # a variant that there is not is said first
    place = find_place(target, on, task)
    chosen = choose_variants(opened.manifest, target, variants, place.executor)
    fitting = adapters_of(opened, inside or {}, general, set(opened.manifest.adapters))

    def said(report: Report) -> Report:
        return replace(report, notes=(*report.notes, *_not_judged(target, bool(data), bool(general))))

    def finished(report: Report) -> Report:
        return with_generalization(
            said(report), opened, inside or {}, fitting, chosen, target.generalization, progress, keep
        )

    def keep_answered(make: Callable[[], Report | None]) -> None:
        keep(lambda: None if (so_far := make()) is None else said(so_far))

    if place.executor is None:
        return finished(static_report(opened, target, chosen, place.why_static, "validate"))
    executor = place.executor
    if executor.copies:
        require_size(opened, target, chosen)
    generates = task == "text-generation"
    examples = {name: each for name, each in (data or {}).items() if isinstance(each, Examples)}
    prompts = {name: each for name, each in (data or {}).items() if isinstance(each, PromptRows)}
    if examples if generates else prompts:
        raise InputError(f"{opened.path} is for {task}: its data are {'prompts' if generates else 'labelled rows'}")
    peft = find_peft(opened, adapters or {}, base) if reference else None
    if generates:
        return finished(
            validate_tokens(opened, target, executor, chosen, prompts, rows, new_tokens, peft, progress, keep_answered)
        )
    return finished(
        validate_labels(opened, target, executor, chosen, examples, rows, peft, max_drop, progress, keep_answered)
    )


def _not_judged(target: Target, data: bool, general: bool) -> list[str]:
    """What to say of limits that the target sets and nothing was given to judge by."""
    said = []
    if not data and target.accuracy:
        said.append("the target's accuracy floors were not judged: no --data was given")
    if not general and target.generalization.model_dump(exclude_none=True):
        said.append("the target's [generalization] limits were not judged: no --general was given")
    return said
