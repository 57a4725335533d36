"""What changed in a bundle's folder since it was opened: adapters may come and go, the base may not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..bundle import Bundle, Verify, head_of, read_bundle, rereading
from ..bundle.loads import TEXT_FILES
from ..errors import BundleError, UnknownAdapterError

#: What of the manifest an open session stands on.
_BASE = ("task", "mode", "merged", "base", "inputs", "outputs", "slots", "slot_defaults", "max_length")


@dataclass(frozen=True)
class Refreshed:
    """Names of the adapters that came, went, or are others under the same name since the bundle was opened or last read."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.replaced)


@rereading
def read_again(path: Path, verify: Verify) -> Bundle:
    """The bundle as it is in its folder now; each adapter's file is there and has its size."""
    bundle = read_bundle(path, verify=verify)
    bundle.look(adapter.onnx_adapter for adapter in bundle.manifest.adapters.values())
    return bundle


def compare(before: Bundle, now: Bundle, variant: str) -> Refreshed:
    """What became of the adapters; :class:`BundleError` where ``variant`` of ``before`` is not what ``now`` holds."""
    old, new = before.manifest, now.manifest
    what = next((name for name in _BASE if getattr(old, name) != getattr(new, name)), None)
    if what is None and old.variants[variant] != new.variants.get(variant):
        what = f"variant {variant}"
    if what is None:
        what = next((name for name in before.variant_files(variant) if old.files[name] != new.files.get(name)), None)
    if what is not None:
        raise BundleError(
            f"{now.path} holds another base than when it was opened ({what} differs), and its session is of the old one. Open the "
            "bundle again with runtime.open."
        )
    both = [name for name in new.adapters if name in old.adapters]
    return Refreshed(
        added=tuple(name for name in new.adapters if name not in old.adapters),
        removed=tuple(name for name in old.adapters if name not in new.adapters),
        replaced=tuple(name for name in both if not _same(before, now, name)),
    )


def same_text(before: Bundle, now: Bundle) -> bool:
    """Whether tokenizer, template and configuration are the same files."""
    return all(before.manifest.files.get(name) == now.manifest.files.get(name) for name in TEXT_FILES)


def _same(before: Bundle, now: Bundle, name: str) -> bool:
    old, new = before.adapter(name), now.adapter(name)
    same_head = head_of(before.manifest, name) == head_of(now.manifest, name)
    return old == new and same_head and all(before.manifest.files[f] == now.manifest.files[f] for f in old.files())


def added_since(bundle: Bundle, name: str) -> UnknownAdapterError | None:
    """The error for an adapter that ``bundle`` lacks and its folder holds by now; ``None`` where that lacks it too."""
    try:
        now = read_bundle(bundle.path)
    except BundleError:
        return None  # the folder is gone or unreadable: what was asked for is unknown all the same
    if name not in now.manifest.adapters:
        return None
    return UnknownAdapterError(
        f"{bundle.path} had no adapter {name!r} when it was opened, and has it now: call refresh() of the model first"
    )
