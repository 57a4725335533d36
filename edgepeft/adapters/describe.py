"""``describe_adapter``: what a checkpoint is, how it will ship, and why not better."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from ..errors import UnsupportedAdapterError
from .base_weights import BaseWeights
from .checkpoint import Checkpoint, Source, read_checkpoint
from .edits import Adapter, SiteEdit
from .methods.lora_targets import named_parameters
from .methods.registry import Method
from .read import BaseModule, method_of, read_adapter


@dataclass(frozen=True)
class SitePlan:
    """What happens at one site: ``edits`` in the words of the canonical form."""

    site: str
    edits: str
    rank: int | None = None


@dataclass(frozen=True)
class AdapterPlan:
    """How an adapter will ship.

    ``measured`` is true where it was lowered over its base; otherwise ``mode`` and ``exactness`` are what the registry
    expects of the method, and ``bytes`` are those of the checkpoint's tensors.
    """

    source: str
    peft_type: str
    method: str
    mode: Literal["swap", "merge", "bake", "refuse"]
    exactness: str
    reason: str
    sites: tuple[SitePlan, ...]
    overrides: tuple[str, ...]
    #: What the adapter adds to a bundle in fp32; a merged adapter adds nothing.
    bytes: int
    measured: bool
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def _edits(edit: SiteEdit) -> str:
    parts = {"LowRank": edit.low_rank, "OutGain": edit.out_gain, "InGain": edit.in_gain}
    return " + ".join(name for name, part in parts.items() if part is not None)


def _by_number(site: str | tuple[str, SiteEdit]) -> list[tuple[int, str]]:
    """Sorts layer 10 behind layer 9."""
    path = site if isinstance(site, str) else site[0]
    return [(int(part), "") if part.isdigit() else (-1, part) for part in path.split(".")]


def _sites(adapter: Adapter) -> tuple[SitePlan, ...]:
    return tuple(
        SitePlan(site, _edits(edit), edit.rank or None) for site, edit in sorted(adapter.sites.items(), key=_by_number)
    )


def _together(adapter: Adapter) -> tuple[SitePlan, ...]:
    """The sites of an adapter on raw parameters, the experts of one parameter in one row (``experts.*.down_proj``)."""
    counts: Counter[SitePlan] = Counter()
    for plan in _sites(adapter):
        counts[replace(plan, site=re.sub(r"\.\d+(\.[^.]+)$", r".*\1", plan.site))] += 1
    return tuple(
        replace(p, edits=f"{p.edits} for each of {n} experts" if n > 1 else p.edits) for p, n in counts.items()
    )


def _unlowered(checkpoint: Checkpoint, method: Method, site: str) -> SitePlan:
    """A site by its tensors where they say what it becomes, else in the registry's words."""
    told = method.edits_at(checkpoint, site) if method.edits_at is not None else None
    return SitePlan(site, method.edits) if told is None else SitePlan(site, *told)


def _expected(checkpoint: Checkpoint, method: Method) -> AdapterPlan:
    """What the registry and the names of the tensors say, without a base."""
    sites: dict[str, None] = {}
    whole = []
    for name in checkpoint.tensors:
        path = name.split(".")
        at = next((i for i, part in enumerate(path) if part.startswith(method.tensor_prefix)), None)
        if at is None:
            whole.append(name)
        elif at > 1 or path[0] != "base_model":
            sites[".".join(path[:at])] = None
    expected: dict[str, tuple[Literal["swap", "merge", "bake", "refuse"], str]] = {
        "swap": ("swap", "exact"),
        "svd": ("swap", "by SVD, to be measured over the base"),
        "merge": ("merge", "exact"),
        "bake": ("bake", "exact"),
        "refuse": ("refuse", "-"),
    }
    before = method.before_sequence(checkpoint)
    notes: tuple[str, ...] = ()
    if method.tasks and checkpoint.task is None:
        count = checkpoint.config.get(method.tasks)
        notes = (f"it holds {count} tasks, each of which is an adapter of its own: {checkpoint.path}#task=N",)
    mode, exactness = expected["swap" if before else method.mode]
    return AdapterPlan(
        source=checkpoint.source,
        peft_type=method.peft_type,
        method=method.title,
        mode=mode,
        exactness=exactness,
        reason="" if before else method.reason,
        sites=tuple(
            _unlowered(checkpoint, method, site)
            for site in sorted(named_parameters(list(sites), checkpoint.config), key=_by_number)
        ),
        overrides=tuple(name for name in whole if not name.startswith("base_model.")),
        bytes=0 if mode != "swap" else sum(4 * tensor.size for tensor in checkpoint.tensors.values()),
        measured=False,
        notes=notes,
    )


def _measured(checkpoint: Checkpoint, method: Method, adapter: Adapter) -> AdapterPlan:
    merge = bool(adapter.merge_only)
    return AdapterPlan(
        source=checkpoint.source,
        peft_type=method.peft_type,
        method=adapter.method,
        mode="merge" if merge else "swap",
        exactness=str(adapter.exactness),
        reason=adapter.merge_only or ("" if adapter.exactness.exact else method.reason),
        sites=_together(adapter) if checkpoint.config.get("target_parameters") else _sites(adapter),
        overrides=tuple(adapter.overrides),
        bytes=0 if merge else 4 * adapter.parameters,
        measured=True,
        notes=adapter.notes,
    )


def describe_adapter(
    source: Source,
    *,
    weights: BaseWeights | None = None,
    module: BaseModule | None = None,
    max_rank: int | None = None,
    layers: Sequence[Sequence[int]] = (),
) -> AdapterPlan:
    """How the PEFT checkpoint at ``source`` will ship.

    With ``weights`` (and ``module``) of its base it is lowered, and the plan says what came out; without, what the
    registry expects. ``layers`` are the ranges of layers that the base was rebuilt from. A refusal is a plan too, with its
    reason. Raises :class:`AdapterError` for a checkpoint that cannot be read and for one that does not fit the base.
    """
    checkpoint = read_checkpoint(source)
    method = method_of(checkpoint)
    expected = _expected(checkpoint, method)
    if weights is None or (method.mode in {"bake", "refuse"} and not method.before_sequence(checkpoint)):
        return expected
    try:
        adapter = read_adapter(
            checkpoint, name="adapter", weights=weights, module=module, max_rank=max_rank, layers=layers
        )
    except UnsupportedAdapterError as error:
        values = {
            **vars(expected),
            "mode": "refuse",
            "exactness": "-",
            "reason": str(error),
            "bytes": 0,
            "measured": True,
        }
        return AdapterPlan(**values)
    return _measured(checkpoint, method, adapter)
