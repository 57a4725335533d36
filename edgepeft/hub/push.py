"""``push``: a bundle to a repository of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..bundle import read_bundle
from ..pipeline._edit import copy_files
from ..scratch import scratch_folder
from .calls import check_repo, hub_call
from .card import is_local, model_card

#: What of an older bundle in the repository goes where the new one does not have it.
_OURS = ["edgepeft.json", "onnx/*", "adapters/*", "embedding/*"]


@dataclass(frozen=True)
class Pushed:
    """Where the bundle is now, the commit, and how many files it has with the card."""

    url: str
    commit: str
    files: int


def push(
    bundle: str | Path,
    repo: str,
    *,
    private: bool = False,
    license: str | None = None,
    revision: str | None = None,
    message: str = "Upload an edgepeft bundle",
    announce: Callable[[str], None] = lambda message: None,
) -> Pushed:
    """Upload a bundle to a repository, which is made where it is not there, with a model card.

    Every file is verified and the copy that was verified is uploaded. Files of an older bundle that this one does not have are
    removed from the repository; others in it are left alone, but for README.md, which is the card.

    Args:
        bundle: The bundle's folder.
        repo: The repository, ``OWNER/NAME``.
        private: Make a new repository private.
        license: The identifier of the licence for the card (``apache-2.0``).
        revision: The branch; by default ``main``.
        message: The commit's message.
        announce: Is called with a line of text for each step.

    Returns:
        The address, the commit and the number of files.

    Raises:
        BundleError: There is no bundle, or a file is not the manifest's.
        HubError: The hub refused, or cannot be reached; the repository is as it was.
        InputError: ``repo`` is no repository's name, or the hub is switched off.

    Example:
        >>> push("bundle", "me/reviews-bundle", license="apache-2.0").url
        'https://huggingface.co/me/reviews-bundle'
    """
    check_repo(repo)
    opened = read_bundle(bundle)
    sources = [opened.manifest.base.source, *(entry.source for entry in opened.manifest.adapters.values())]
    for source in filter(is_local, dict.fromkeys(sources)):
        announce(f"WARNING the manifest names a path of this machine, which everybody will see: {source}")
    with scratch_folder("push") as scratch, hub_call(f"uploading {opened.path} to {repo}"):
        from huggingface_hub import HfApi

        folder = Path(scratch) / "bundle"
        announce(f"verifying {len(opened.manifest.files)} files")
        copied = copy_files(opened.path, folder, lambda manifest: manifest.files)
        # The reports lie in the bundle's own folder.
        (folder / "README.md").write_text(model_card(opened, repo, license=license), encoding="utf-8")
        api = HfApi(library_name="edgepeft")
        made = api.create_repo(repo, private=private or None, exist_ok=True)
        if revision is not None:
            api.create_branch(repo, branch=revision, exist_ok=True)
        announce(f"uploading to {made}")
        done = api.upload_folder(
            repo_id=repo, folder_path=folder, revision=revision, commit_message=message, delete_patterns=_OURS
        )
    return Pushed(url=str(made), commit=str(done.oid), files=len(copied.manifest.files) + 2)
