"""What validations of every task are given: PEFT checkpoints to compare with, and data by adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...bundle import Bundle
from ...errors import InputError
from ...spelling import did_you_mean


@dataclass(frozen=True)
class Peft:
    """PEFT checkpoints by adapter, and the model that they are of."""

    sources: Mapping[str, str | Path]
    base: str


def find_peft(bundle: Bundle, given: Mapping[str, str | Path], base: str | None) -> Peft:
    """The checkpoints that are at hand: as given, else where the manifest says. Raises :class:`InputError` as
    :func:`edgepeft.validate.parity.adapter_sources`, and for a base that is not to be had."""
    from ...validate.parity import adapter_sources
    from ...validate.reference import check_base

    found = Peft(adapter_sources(bundle, given), base or bundle.manifest.base.source)
    if found.sources:
        check_base(found.base)  # now, and not after minutes on a device
    return found


def check_data(bundle: Bundle, names: Sequence[str | None], data: Mapping[str, object], rows: int) -> None:
    """:class:`InputError` where ``data`` names something else than ``names``' adapters, ``"*"`` or the merged one."""
    merged = bundle.manifest.merged
    unknown = sorted(set(data) - {name or merged or "*" for name in names} - {"*"})
    if unknown:
        known = ", ".join(name or merged or "*" for name in names)
        close = did_you_mean(unknown[0], bundle.manifest.adapters)
        raise InputError(f"{bundle.path} has no adapter {unknown[0]!r}; it has: {known}{close}")
    if rows < 1:
        raise InputError(f"rows must be at least 1, found {rows}")
