"""``pull``: a bundle from a repository of the Hugging Face hub."""

from __future__ import annotations

import glob
import shutil
from collections.abc import Callable
from pathlib import Path

from ..bundle import LOCK_TIMEOUT, MANIFEST_NAME, Bundle, parse_manifest, read_bundle, replacing
from ..bundle.manifest import MAX_MANIFEST_BYTES
from ..errors import HubError, ManifestError
from ..pipeline._manifest import check_target_folder
from ..units import MB
from .calls import check_repo, hub_call


def pull(
    repo: str,
    out: str | Path,
    *,
    revision: str | None = None,
    lock_timeout: float = LOCK_TIMEOUT,
    announce: Callable[[str], None] = lambda message: None,
) -> Bundle:
    """Download a bundle. Only what its manifest lists is fetched, and every file is verified before it takes its place.

    Args:
        repo: The repository, ``OWNER/NAME``.
        out: The bundle's folder; an old bundle there is replaced.
        revision: A branch, tag or commit; a commit's hash pins what is downloaded.
        lock_timeout: Seconds to wait for another process that changes ``out``.
        announce: Is called with a line of text for each step.

    Returns:
        The bundle.

    Raises:
        HubError: There is no such repository, it holds no bundle, or the hub cannot be reached.
        BundleError: The manifest is wrong, or a file is not what it says; ``out`` is as it was.
        InputError: ``repo`` is no repository's name, ``out`` is no bundle, or the disk has too little room.

    Example:
        >>> pull("me/reviews-bundle", "bundle").manifest.adapters.keys()
        dict_keys(['reviews'])
    """
    check_repo(repo)
    target = Path(out)
    check_target_folder(target)
    with replacing(target, keep=False, lock_timeout=lock_timeout) as folder:
        with hub_call(f"downloading {repo}"):
            from huggingface_hub import HfApi, snapshot_download

            # One commit for the manifest and for what it lists, whatever is pushed meanwhile.
            commit = HfApi(library_name="edgepeft").model_info(repo, revision=revision).sha
            snapshot_download(repo, revision=commit, local_dir=folder, allow_patterns=[MANIFEST_NAME])
        manifest_file = folder / MANIFEST_NAME
        if not manifest_file.is_file():
            raise HubError(f"{repo} holds no bundle: it has no {MANIFEST_NAME}")
        if manifest_file.stat().st_size > MAX_MANIFEST_BYTES:
            raise ManifestError(f"{repo}: {MANIFEST_NAME} is larger than {MAX_MANIFEST_BYTES:,} bytes")
        manifest = parse_manifest(manifest_file.read_text(encoding="utf-8"), f"{repo}/{MANIFEST_NAME}")
        total = sum(entry.bytes for entry in manifest.files.values())
        free = shutil.disk_usage(folder).free
        if total > free:
            raise HubError(f"{repo} has {total / MB:,.0f} MB, and the disk at {target} has {free / MB:,.0f} MB free")
        announce(f"downloading {len(manifest.files)} files, {total / MB:.1f} MB")
        with hub_call(f"downloading {repo}"):
            snapshot_download(
                repo, revision=commit, local_dir=folder, allow_patterns=[glob.escape(name) for name in manifest.files]
            )
        shutil.rmtree(folder / ".cache", ignore_errors=True)  # what the library notes beside the files
        announce("verifying")
        read_bundle(folder).verify()
    return Bundle(path=target, manifest=manifest)
