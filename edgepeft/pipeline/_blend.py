"""``blend``: a weighted sum of a bundle's adapters as an adapter of its own, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..adapters.files import write_adapter_onnx, write_onnx_adapter
from ..bundle import LOCK_TIMEOUT, Bundle, check_name, read_bundle, rereading
from ..bundle.embedding import travelling
from ..errors import InputError
from ..runtime.blend import blend as blend_tensors
from ..runtime.blend import describe
from ._add import Added, put_adapter
from ._edit import edit
from ._text import text_hashes, write_text


def blend(
    bundle: str | Path,
    weights: Mapping[str, float],
    out: str,
    *,
    head: str | None = None,
    replace: bool = False,
    lock_timeout: float = LOCK_TIMEOUT,
) -> Added | Path:
    """Write the weighted sum of a bundle's adapters: into the bundle, or to a file.

    Args:
        bundle: The bundle's folder.
        weights: Adapters with their weights, which may be negative: the sum of their changes is exact.
        out: The new adapter's name; or a file, where it ends in ``.onnx_adapter`` or ``.onnx``. Both forms are then written
            side by side, and ``add`` takes them into any copy of the base.
        head: The adapter whose replaced parameters (head, biases, norms) are taken where they differ.
        replace: Replace an adapter or a file of that name.
        lock_timeout: Seconds to wait for another process that changes the bundle.

    Returns:
        What :func:`add` returns, or the path of the file.

    Raises:
        InputError: The adapters have no weighted sum, or the name or file exists and ``replace`` is false.
        UnknownAdapterError: The bundle has no adapter of that name.
        BusyBundleError: Another process changes the bundle and did not end in time.

    Example:
        >>> blend("bundle", {"reviews": 0.7, "topics": 0.3}, "mix", head="reviews")
    """
    path = Path(out)
    if path.suffix in {".onnx", ".onnx_adapter"}:
        opened, tensors, metadata, text = _sum(bundle, weights, head)
        files = path.with_suffix(".onnx_adapter"), path.with_suffix(".onnx")
        existing = next((file for file in files if file.exists()), None)
        if existing is not None and not replace:
            raise InputError(f"{existing} exists; choose another --out, or replace it with --replace")
        if not path.parent.is_dir():
            raise InputError(f"{path.parent} is not a folder")
        base = opened.manifest.base
        write_onnx_adapter(files[0], tensors, base_identity=base.identity, slots_hash=opened.manifest.slots.hash)
        write_text(path.with_suffix(""), text)
        write_adapter_onnx(files[1], tensors, {**metadata, "text": text_hashes(text)})
        return path
    try:
        check_name(out)
    except ValueError as error:
        raise InputError(f"--out: {error}") from error
    if out in weights:
        raise InputError(f"--out {out!r} is one of the blended adapters; choose another name")
    with edit(bundle, lock_timeout=lock_timeout) as change:  # around the sum too: it is of these adapters
        _, tensors, metadata, text = _sum(change.before, weights, head)
        entry, changes = put_adapter(change, out, tensors, metadata, text, replace=replace)
    return Added(bundle=change.after, entry=entry, changes_output=changes)


@rereading
def _sum(
    bundle: str | Path | Bundle, weights: Mapping[str, float], head: str | None
) -> tuple[Bundle, dict[str, Any], dict[str, Any], dict[str, str]]:
    """The sum's slot tensors, contract and text."""
    opened = bundle if isinstance(bundle, Bundle) else read_bundle(bundle)
    manifest = opened.manifest
    if manifest.mode != "swap":
        raise InputError(
            f"{opened.path} is merged with {manifest.merged!r}; only a bundle with slots has adapters to blend"
        )
    opened.verify([entry.onnx_adapter for entry in manifest.adapters.values()])
    summed = blend_tensors(opened, weights, head=head)
    metadata: dict[str, Any] = {
        "method": "blend",
        "source": f"blend of {describe(weights)}" + (f", head {head}" if head else ""),
        "base_identity": manifest.base.identity,
        "slots_hash": manifest.slots.hash,
        "ranks": summed.ranks,
        "labels": summed.head.labels,
        "problem_type": summed.head.problem_type,
        "activation": summed.head.activation,
        "task": next(iter({manifest.adapters[name].task for name in weights})),
        "scalable": True,
        "per_row": summed.per_row,
        "residual": summed.residual,
    }
    own = any(manifest.adapters[name].embedding for name in weights)
    if own and summed.embedding is not None:
        says = summed.embedding.says
        metadata["embedding"] = travelling(says, opened.read(says.graph))
    text = {name: opened.read_text(file) for name, file in opened.text_of(summed.text).paths}
    return opened, dict(summed.tensors), metadata, text
