"""``relabel``: what the outputs of a bundle's heads mean, changed in place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..adapters.files import read_adapter_onnx
from ..bundle import LOCK_TIMEOUT, AdapterEntry, Bundle, Head, Manifest, head_of
from ..bundle.adapter_forms import rank_axes
from ..bundle.heads import check_count
from ..bundle.manifest_heads import head_width
from ..errors import InputError
from ..json_text import config_text
from ..spelling import did_you_mean
from ._adapter_files import write_adapter
from ._edit import Edit, edit
from ._heads import said
from ._refitted_files import with_refits

#: What the base's own head is called here, where no adapter has that name.
BASE = "base"


def relabel(bundle: str | Path, heads: Mapping[str, Head], *, lock_timeout: float = LOCK_TIMEOUT) -> Bundle:
    """Name the labels of adapters, and say what their outputs mean. No weight changes.

    Args:
        bundle: The bundle's folder.
        heads: What is said of each adapter's head; ``None`` in one leaves it as it is. ``base`` is the base's own head; a merged
            bundle's goes by ``base`` or by the adapter's name.
        lock_timeout: Seconds to wait for another process that changes the bundle.

    Returns:
        The bundle as it is now.

    Raises:
        InputError: There is no such adapter, it has no labels, or there are more or fewer names than outputs.
        BusyBundleError: Another process changes the bundle and did not end in time.

    Example:
        >>> relabel("bundle", {"reviews": Head(labels=("negative", "positive"))})
    """
    if not heads:
        raise InputError(
            "nothing to change: give --labels NAME=a,b,…, --problem-type NAME=TYPE or --activation NAME=FUNCTION"
        )
    with edit(bundle, lock_timeout=lock_timeout) as change:
        for name, head in heads.items():
            if name in change.manifest.adapters:
                _adapter(change, name, head)
            elif name in {BASE, change.manifest.merged}:
                _base(change, head)
            else:
                known = ", ".join((*change.manifest.adapters, *filter(None, [change.manifest.merged]), BASE))
                close = did_you_mean(name, change.manifest.adapters)
                raise InputError(f"{change.before.path} has no adapter {name!r}; it has: {known}{close}")
    return change.after


def _check(what: str, manifest: Manifest, adapter: str | None, head: Head, width: int | None) -> None:
    now = head_of(manifest, adapter)
    width = width or len(now.labels or ())
    if not width:
        raise InputError(f"{what} is for {now.task}, whose outputs have no labels")
    if head.labels is not None and (wrong := check_count(head.labels, width, what)):
        raise InputError(wrong)


def _adapter(change: Edit, name: str, head: Head) -> None:
    entry: AdapterEntry = change.manifest.adapters[name]
    _check(f"adapter {name!r}", change.manifest, name, head, head_width(change.manifest, entry))
    # The contract travels in the adapter's own file too.
    found = read_adapter_onnx(change.folder / entry.onnx)
    written = write_adapter(
        change.folder,
        name,
        found.tensors,
        {**found.metadata, **said(head)},
        form=entry.form,
        axes=rank_axes(change.manifest.slots),
    )
    written = with_refits(change.folder, name, entry, written, rank_axes(change.manifest.slots))
    adapters = {**change.manifest.adapters, name: written}
    change.stage(written={*entry.files(), *written.files()}, adapters=adapters)


def _base(change: Edit, head: Head) -> None:
    manifest = change.manifest
    _check(f"the head of {change.before.path}", manifest, None, head, None)
    fields = said(head)
    config = {**change.before.read_json("config.json")}
    if head.labels is not None:
        config["id2label"] = {str(place): label for place, label in enumerate(head.labels)}
        config["label2id"] = {label: place for place, label in enumerate(head.labels)}
    if head.problem_type is not None:
        config["problem_type"] = head.problem_type
    path = change.folder / "config.json"
    path.unlink()
    path.write_text(config_text(config), encoding="utf-8")
    change.stage(written=("config.json",), **fields)


def merged_heads(first: Mapping[str, Head], **more: Mapping[str, Any]) -> dict[str, Head]:
    """Heads by name out of what each option says by name: ``labels={"a": …}, activation={"a": …}``."""
    heads = dict(first)
    for key, values in more.items():
        for name, value in values.items():
            heads[name] = replace(heads.get(name, Head()), **{key: value})
    return heads
