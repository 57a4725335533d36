"""What quantizing takes of memory and disk, and that it is not begun where either is short."""

from __future__ import annotations

from ..bundle import Bundle
from ..errors import InputError
from ..quantize.recipes import Recipe
from ..units import MB
from ._room import free_disk_mb, free_memory_mb

#: Peak memory of the process's own over the weights in fp32: of recipes that run nothing, of weights fitted to texts (1.5 to 1.7
#: from 135 to 506 million weights, with the table against fp32 or without: benchmarks/quantize_growth.py), and of bits chosen for a
#: goal.
PLAIN, FITTED, CHOSEN = 1.4, 1.9, 3.3
#: What Python and its libraries take by themselves, in MB.
LIBRARIES_MB = 250.0


def memory_mb(method: str | None, weight_bytes: float, *, goal: bool = False) -> float:
    """About how much memory quantizing ``weight_bytes`` of float32 takes at its peak; ``goal``: within a size or a divergence."""
    factor = PLAIN if method != "gptq" else CHOSEN if goal else FITTED
    return LIBRARIES_MB + factor * weight_bytes / MB


def require_room(
    bundle: Bundle, rule: Recipe, source: str, method: str | None, *, goal: bool = False, beside: int = 0
) -> None:
    """Raise :class:`InputError` where quantizing would run out of memory or disk.

    Args:
        bundle: The bundle, which is copied and added to in its own folder's place.
        rule: The recipe.
        source: The variant that it begins with.
        method: How weights are rounded, a name of ``METHODS``, or ``None``.
        goal: Whether bits are chosen for a size or a divergence.
        beside: Bytes of disk that what is run takes besides.
    """
    manifest = bundle.manifest
    whole = sum(manifest.files[name].bytes for name in manifest.variants[source].files())
    disk = (whole * (1 + min(1.0, rule.weight_bytes / 4)) + beside) / MB
    if disk > (free := free_disk_mb(bundle.path)):
        raise InputError(
            f"{bundle.path}: making {rule.variant} takes about {disk:.0f} MB of disk at its peak, and {free:.0f} MB are free "
            "there. Free some, or copy the bundle to a larger disk"
        )
    memory, left = memory_mb(method, whole, goal=goal), free_memory_mb()
    if left is not None and memory > left:
        raise InputError(
            f"{bundle.path}: making {rule.variant} takes about {memory / 1e3:.1f} GB of memory at its peak, and "
            f"{left / 1e3:.1f} GB are free. Close what takes it, or quantize on a machine with more"
        )
