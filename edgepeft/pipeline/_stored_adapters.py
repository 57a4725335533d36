"""The form in which a bundle's adapters are stored: asked for, or the smallest that keeps what they do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from .. import runtime as runtimes
from ..adapters.files import read_adapter_onnx
from ..bundle import LOCK_TIMEOUT, AdapterEntry, Bundle
from ..bundle.adapter_forms import FORMS, AdapterForm, is_scale, rank_axes, stored
from ..errors import AdapterError, InputError
from ..validate.probe import bundle_probe
from ._adapter_files import write_adapter
from ._edit import Edit, edit
from ._refitted_files import with_refits

#: What may be asked for: a form, or the smallest that keeps what the adapter does.
Wanted = Literal["auto", "fp32", "fp16", "int8"]
#: Of what an adapter does to the outputs, a form that ``auto`` takes changes at most this share (root mean squares).
KEPT = 0.02

Announce = Callable[[str], None]
Outputs = list[dict[str, np.ndarray]]


@dataclass(frozen=True)
class StoredAdapter:
    """How an adapter is stored now.

    ``change`` is what the form does to the bundle's outputs, as a share of what the adapter does to them (root mean squares over
    the probe's texts); ``bytes_before`` and ``bytes_after`` are those of its ``.onnx_adapter`` file.
    """

    name: str
    form: AdapterForm
    change: float
    bytes_before: int
    bytes_after: int


def store_adapters(
    bundle: str | Path,
    form: Wanted,
    adapters: Iterable[str] = (),
    *,
    lock_timeout: float = LOCK_TIMEOUT,
    announce: Announce = lambda message: None,
) -> tuple[StoredAdapter, ...]:
    """Store adapters of a bundle in another form. Where anything raises, the bundle stays as it was.

    Args:
        bundle: The bundle's folder.
        form: ``"fp32"``, ``"fp16"``, ``"int8"`` (factors in 8 bits, a scale for each rank), or ``"auto"``: the smallest one
            that changes at most 2 % of what the adapter does.
        adapters: Names; all by default.
        lock_timeout: Seconds to wait for another process that changes the bundle.
        announce: Is called with a line of text for each adapter.

    Returns:
        What was done, in the order of ``adapters``.

    Raises:
        InputError: The form would be larger than one with more digits; the message has the arithmetic.
        AdapterError: The form cannot hold a number of an adapter.
        UnknownAdapterError: The bundle has no adapter of that name.
        BusyBundleError: Another process changes the bundle and did not end in time.

    Example:
        >>> store_adapters("bundle", "auto")[0].form
        'int8'
    """
    with edit(bundle, lock_timeout=lock_timeout) as change:
        names = tuple(adapters) or tuple(change.manifest.adapters)
        for name in names:
            change.before.adapter(name)
        return tuple(store(change, name, form, announce) for name in names)


def store(change: Edit, name: str, wanted: Wanted, announce: Announce) -> StoredAdapter:
    """Store one adapter in another form, in a change of a bundle that holds it already."""
    entry = change.manifest.adapters[name]
    if wanted == entry.form:
        return StoredAdapter(name, entry.form, 0.0, entry.bytes, entry.bytes)
    judged = _Judged(change, name)
    for form in reversed(FORMS) if wanted == "auto" else (wanted,):
        if form == entry.form:  # nothing smaller keeps it
            judged.put(form)
            return StoredAdapter(name, form, 0.0, entry.bytes, entry.bytes)
        try:
            _check_smaller(name, judged.tensors, form, rank_axes(change.manifest.slots))
            written = judged.put(form)
        except (InputError, AdapterError) as error:
            if wanted != "auto":
                raise
            announce(f"adapter {name}: {error}")
            continue
        share = judged.share()
        if wanted != "auto" or share <= KEPT:
            announce(
                f"adapter {name}: stored in {form}, {written.bytes / 1e6:.2f} MB instead of {entry.bytes / 1e6:.2f}; that changes "
                f"{share:.2%} of what it does"
            )
            return StoredAdapter(name, form, share, entry.bytes, written.bytes)
        announce(f"adapter {name}: {form} would change {share:.1%} of what it does, and at most {KEPT:.0%} is taken")
    raise AssertionError("fp32 is among the forms")  # pragma: no cover


class _Judged:
    """An adapter of a staged bundle with what it does there, before its form is changed."""

    def __init__(self, change: Edit, name: str) -> None:
        self.change, self.name = change, name
        self.entry: AdapterEntry = change.manifest.adapters[name]
        found = read_adapter_onnx(change.folder / self.entry.onnx)
        self.tensors, self._metadata = found.tensors, found.metadata
        self._text = {
            str(file): (change.folder / path).read_bytes().decode("utf-8") for file, path in self.entry.text.items()
        }
        self._reference = self._run(name)
        self._effect = _rms(self._reference, self._run(None))

    def put(self, form: AdapterForm) -> AdapterEntry:
        """Stage the adapter in a form."""
        change, now = self.change, self.change.manifest.adapters[self.name]
        written = write_adapter(
            change.folder,
            self.name,
            self.tensors,
            self._metadata,
            self._text,
            form=form,
            axes=rank_axes(change.manifest.slots),
        )
        written = with_refits(change.folder, self.name, now, written, rank_axes(change.manifest.slots))
        adapters = {**change.manifest.adapters, self.name: written}
        change.stage(written={*now.files(), *written.files()}, adapters=adapters)
        return written

    def share(self) -> float:
        """How far outputs are from those of before, as a share of what the adapter does."""
        error = _rms(self._run(self.name), self._reference)
        return error / self._effect if self._effect else float(error > 0)

    def _run(self, name: str | None) -> Outputs:
        staged = Bundle(path=self.change.folder, manifest=self.change.manifest)
        with runtimes.open(staged.path) as runtime:
            mine = runtime.adapter(self.name)
            return bundle_probe(staged).run(mine if name is not None else runtime.adapter(None, task=mine.task))


def _rms(one: Outputs, other: Outputs) -> float:
    """Root mean square of the differences; where the other has no such output (a head of other labels), of the output itself."""
    squares, count = 0.0, 0
    for mine, theirs in zip(one, other, strict=True):
        for name, array in mine.items():
            there = name in theirs and theirs[name].shape == array.shape
            difference = array.astype(np.float64) - (theirs[name] if there else 0.0)
            finite = np.isfinite(difference)
            squares += float(np.square(difference[finite]).sum())
            count += int(finite.sum())
    return float(np.sqrt(squares / count)) if count else 0.0


def _check_smaller(name: str, tensors: Mapping[str, np.ndarray], form: AdapterForm, axes: Mapping[str, int]) -> None:
    """Refuse a form that takes no less than the next larger one, with the arithmetic."""
    if form == "fp32":
        return
    wider = FORMS[FORMS.index(form) - 1]
    try:
        held = stored(tensors, form, axes)
    except ValueError:
        return  # said where it is written
    numbers = sum(a.nbytes for n, a in held.items() if a.dtype == np.int8)
    scales = sum(a.nbytes + _entry_bytes(n) for n, a in held.items() if is_scale(n, held))
    others = sum(a.nbytes for n, a in held.items() if a.dtype != np.int8 and not is_scale(n, held))
    mine, theirs = numbers + scales + others, sum(a.nbytes for a in tensors.values()) // (2 if wider == "fp16" else 1)
    if mine >= theirs:
        raise InputError(
            f"adapter {name!r} in {form} would not be smaller: {numbers:,} bytes of factors, {scales:,} of their scales and "
            f"{others:,} of other tensors are {mine:,}, and {wider} takes {theirs:,}. Take --adapter-form {wider}"
        )


def _entry_bytes(name: str) -> int:
    """About what one more tensor takes in the file beside its numbers: its name, its shape, and where they lie."""
    return len(name) + 64
