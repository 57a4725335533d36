"""What stands between a bundle and a device: the variant, the size, and whether anything can execute it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..bundle import Bundle, Manifest
from ..errors import InputError, TargetError
from ..spelling import did_you_mean
from ..targets import Target, list_targets
from ..units import MB
from .executors.protocol import Executor
from .executors.registry import executor_for


@dataclass(frozen=True)
class Place:
    """A target with its executor, or why it has none that can run now."""

    target: Target
    executor: Executor | None
    #: Why nothing is executed; empty where something is.
    why_static: str = ""


def find_place(target: Target, on: str | None = None, task: str | None = None) -> Place:
    """Where bundles for ``target``, of ``task`` where one is given, are executed.

    A target whose executor is not ready, or cannot run the task, is static only; an executor that was asked for by ``on``
    and is not ready is a :class:`TargetError`, since quietly doing less would look like success.
    """
    executor = executor_for(target, on)
    if executor is None:
        return Place(target, None, f"there is no executor for {target.name}")
    refused: Mapping[str, str] = getattr(executor, "refuses", {})
    if task is not None and task in refused:
        why = f"{executor.name} does not run {task}: {refused[task]}"
    elif missing := executor.missing():
        why = "; ".join(f"{each.what} ({each.remedy})" for each in missing)
    else:
        return Place(target, executor)
    if on is not None:
        raise TargetError(f"--on {on} cannot execute {target.name} here: {why}")
    return Place(target, None, why)


def choose_variants(
    manifest: Manifest, target: Target, asked: Sequence[str] | None = None, executor: Executor | None = None
) -> tuple[str, ...]:
    """The variants to look at: those ``asked`` for, else the target's preferred one, else the bundle's first.

    One in half precision is not preferred where ``executor`` has no float16.
    """
    for name in asked or ():
        if name not in manifest.variants:
            close = did_you_mean(name, manifest.variants)
            raise InputError(f"no variant {name!r} in the bundle; it has: {', '.join(manifest.variants)}{close}")
    if asked:
        return tuple(dict.fromkeys(asked))
    return (preferred_variant(manifest, target, halves=getattr(executor, "halves", True)),)


def preferred_variant(manifest: Manifest, target: Target, *, halves: bool = True) -> str:
    """The first of the target's variants that the bundle has; where it has none of them, the bundle's first.

    Without ``halves`` those in half precision come last.
    """
    wanted = target_variants(manifest, target) or list(manifest.variants)
    return next((name for name in wanted if halves or not manifest.variants[name].half), wanted[0])


def target_variants(manifest: Manifest, target: Target, executor: Executor | None = None) -> list[str]:
    """The target's variants that the bundle has and the executor can compute, the preferred one first."""
    halves = getattr(executor, "halves", True)
    mine = [name for name in target.variants if name in manifest.variants]
    return [name for name in mine if halves or not manifest.variants[name].half]


def deployed_mb(manifest: Manifest, variant: str) -> float:
    """What one device gets, in MB."""
    return sum(manifest.files[name].bytes for name in manifest.deployed(variant)) / MB


def require_size(bundle: Bundle, target: Target, variants: Sequence[str]) -> None:
    """:class:`TargetError` where a bundle is over the target's size budget: before a byte of it is copied."""
    limit = target.budgets.bundle_mb
    for variant in variants:
        size = deployed_mb(bundle.manifest, variant)
        if limit is not None and size > limit:
            smaller = [v for v in bundle.manifest.variants if deployed_mb(bundle.manifest, v) <= limit]
            fits = f"use --variant {smaller[0]}" if smaller else "quantize it: edgepeft quantize BUNDLE --variant int8"
            raise TargetError(
                f"{bundle.path} with {variant} has {size:.1f} MB, {target.name} allows bundle_mb = {limit:g}; "
                f"nothing was copied. {fits}, or raise the budget in a target file of your own"
            )


def refused_shapes(manifest: Manifest, target: Target) -> str:
    """Why a target of fixed shapes cannot take a bundle that writes texts; empty where it can."""
    if target.graph.shapes != "static" or not manifest.writes:
        return ""
    return (
        f"{target.name} takes fixed shapes only ({', '.join(target.graph.buckets)}), and the key/value cache of a bundle for "
        f"{manifest.task} is longer with every token"
    )


def require_shapes(manifest: Manifest, target: Target) -> None:
    """:class:`TargetError` where a target of fixed shapes cannot take the bundle; it says what can."""
    if not (why := refused_shapes(manifest, target)):
        return
    others = [each.name for each in list_targets() if (each.machine, each.graph.shapes) == (target.machine, "dynamic")]
    raise TargetError(
        f"{why}; nothing was written. "
        + (f"Use --target {others[0]}, or write" if others else "Write")
        + f' a target file of your own: a name, a summary, extends = "{target.name}", shapes = "dynamic" and buckets = [] below '
        '[graph], providers = ["CPUExecutionProvider"] below [runtime]'
    )
