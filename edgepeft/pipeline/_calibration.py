"""The runs that calibrate a bundle: over texts, over texts with their answers, or over sound."""

from __future__ import annotations

from collections.abc import Mapping

from ..bundle import Bundle
from ..quantize.recipes import WHOLE
from ._calibration_crossed import crossed_runs
from ._calibration_data import Data, sounds_of, texts_of
from ._calibration_runs import Runs, calibration_runs, check_runs
from ._calibration_sound import check_sounds, disk_bytes, sound_runs


def runs_of(bundle: Bundle, data: Mapping[str, Data], *, rows: int) -> Runs:
    """What a bundle's fp32 graphs run to be calibrated.

    Args:
        bundle: The bundle; :func:`~edgepeft.pipeline._calibration_runs.can_calibrate` was empty.
        data: Texts or rows of sound by adapter (``"*"``: for all).
        rows: How many of each adapter are run.

    Raises:
        DataError: What is run holds nothing, or cannot be read.
        InputError: The rows are of another kind than the bundle's.
        UnknownAdapterError: A name in ``data`` is no adapter.
    """
    if bundle.manifest.hears:
        return sound_runs(bundle, sounds_of(bundle, data), rows=rows)
    crossed = bundle.manifest.variants[WHOLE].decoder_file is not None
    return (crossed_runs if crossed else calibration_runs)(bundle, texts_of(bundle, data), rows=rows)


def check_data(bundle: Bundle, data: Mapping[str, Data], *, rows: int) -> None:
    """Raise what :func:`runs_of` would of these rows, before anything is copied or run."""
    if bundle.manifest.hears:
        check_sounds(bundle, sounds_of(bundle, data), rows=rows)
    else:
        check_runs(bundle, texts_of(bundle, data), rows=rows)


def held_bytes(bundle: Bundle, data: Mapping[str, Data], *, rows: int) -> int:
    """About what :func:`runs_of` holds on disk, at most."""
    return disk_bytes(bundle, sounds_of(bundle, data), rows=rows) if bundle.manifest.hears else 0
