"""push and pull against a stand-in for the hub, in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_server import Hub, commit_id, serving

from edgepeft.bundle import read_bundle
from edgepeft.hub import model_card
from edgepeft.hub.card import is_local

from .conftest import snapshot

yaml = pytest.importorskip("yaml")
pytestmark = pytest.mark.e2e


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving() as running:
        yield running


def edgepeft(hub: Hub, folder: Path, *arguments: object, **more: str) -> subprocess.CompletedProcess[str]:
    """``edgepeft ARGUMENTS`` with the stand-in as its hub: huggingface_hub reads its settings when it is imported."""
    settings = {
        **os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(folder / "hf"), "HF_TOKEN": "secret",
        "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", **more,
    }  # fmt: skip
    command = [sys.executable, "-m", "edgepeft", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=settings, timeout=120)


def good(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_there_and_back(hub: Hub, bundle: Path, tmp_path: Path) -> None:
    hub.token = "secret"
    pushed = good(edgepeft(hub, tmp_path, "push", bundle, "me/mine", "--license", "mit", "--private", "--json"))
    assert pushed["url"] == f"{hub.url}/me/mine"
    assert hub.private["me/mine"] is True
    files = hub.files("me/mine")
    assert set(files) == {"README.md", "edgepeft.json", *read_bundle(bundle).manifest.files}
    out = tmp_path / "pulled"
    pulled = good(edgepeft(hub, tmp_path, "pull", "me/mine", "--out", out, "--json"))
    assert pulled["adapters"] == ["reviews", "movies"]
    assert snapshot(out) == {name: content for name, content in files.items() if name != "README.md"}
    read_bundle(out).verify()


def test_a_second_push_removes_what_went(hub: Hub, cli: Any, bundle: Path, tmp_path: Path) -> None:
    good(edgepeft(hub, tmp_path, "push", bundle, "me/mine", "--json"))
    first = commit_id("me/mine", len(hub.commits["me/mine"]) - 1)
    hub.commits["me/mine"][-1]["notes/by-hand.txt"] = b"kept"
    assert cli("remove", bundle, "--adapter", "movies").exit_code == 0
    good(edgepeft(hub, tmp_path, "push", bundle, "me/mine", "--json"))
    assert set(hub.files("me/mine")) == {
        "README.md", "edgepeft.json", "notes/by-hand.txt", *read_bundle(bundle).manifest.files
    }  # fmt: skip
    assert "adapters/movies.onnx" not in hub.files("me/mine")
    old = good(edgepeft(hub, tmp_path, "pull", "me/mine", "--out", tmp_path / "old", "--revision", first, "--json"))
    assert old["adapters"] == ["reviews", "movies"]
    new = good(edgepeft(hub, tmp_path, "pull", "me/mine", "--out", tmp_path / "old", "--json"))
    assert new["adapters"] == ["reviews"]
    assert not (tmp_path / "old/notes").exists()


def test_what_is_damaged_on_the_way_is_refused(hub: Hub, bundle: Path, exported: Path, tmp_path: Path) -> None:
    """Neither pushed nor pulled, and an old bundle stays."""
    good(edgepeft(hub, tmp_path, "push", bundle, "me/mine", "--json"))
    name = "adapters/reviews.onnx_adapter"
    content = hub.files("me/mine")[name]
    hub.files("me/mine")[name] = content[:-1] + bytes([content[-1] ^ 1])
    before = snapshot(bundle)
    done = edgepeft(hub, tmp_path, "pull", "me/mine", "--out", bundle)
    assert done.returncode == 2
    assert name in done.stderr
    assert snapshot(bundle) == before
    (bundle / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    count = len(hub.commits["me/mine"])
    done = edgepeft(hub, tmp_path, "push", bundle, "me/mine")
    assert done.returncode == 2
    assert len(hub.commits["me/mine"]) == count


def test_only_what_the_manifest_lists_is_fetched(hub: Hub, bundle: Path, tmp_path: Path) -> None:
    good(edgepeft(hub, tmp_path, "push", bundle, "me/mine", "--json"))
    hub.commits["me/mine"][-1]["onnx/huge.onnx_data"] = b"x" * 1000
    hub.requests.clear()
    good(edgepeft(hub, tmp_path, "pull", "me/mine", "--out", tmp_path / "out", "--json"))
    assert not any("huge" in request or "README" in request for request in hub.requests)


@pytest.mark.parametrize(
    ("repo", "prepare", "says"),
    [
        ("me/nothing", None, "there is no such repository"),
        ("me/empty", {"README.md": b"x"}, "holds no bundle"),
        ("me/wrong", {"edgepeft.json": b'{"schema_version": 1}'}, "does not fit the schema"),
        ("nothing", None, "expected OWNER/NAME"),
    ],
)
def test_pull_refuses(hub: Hub, tmp_path: Path, repo: str, prepare: dict[str, bytes] | None, says: str) -> None:
    if prepare is not None:
        hub.commits[repo], hub.private[repo] = [prepare], False
    done = edgepeft(hub, tmp_path, "pull", repo, "--out", tmp_path / "out")
    assert done.returncode == 2, done.stderr
    assert says in done.stderr
    assert not (tmp_path / "out").exists()


def test_push_says_what_is_missing(hub: Hub, bundle: Path, tmp_path: Path) -> None:
    hub.token = "another"
    done = edgepeft(hub, tmp_path, "push", bundle, "me/mine")
    assert done.returncode == 2
    assert "hf auth login" in done.stderr
    done = edgepeft(hub, tmp_path, "push", bundle, "me/mine", HF_HUB_OFFLINE="1")
    assert done.returncode == 2
    assert "HF_HUB_OFFLINE is set" in done.stderr
    done = edgepeft(hub, tmp_path, "push", bundle, "me/mine", HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 2, done.stderr
    assert "me/mine" in done.stderr


def test_the_card(exported: Path, bundle: Path, cli: Any, rows: Path) -> None:
    """Its head is YAML, its tables name all there is, and what was measured is in it."""
    assert cli("validate", bundle, "--no-reference", "--data", f"reviews={rows}").exit_code == 0
    card = model_card(read_bundle(bundle), "me/mine", license="apache-2.0")
    _, head, body = card.split("---\n", 2)
    said = yaml.safe_load(head)
    assert (said["license"], said["pipeline_tag"]) == ("apache-2.0", "text-classification")
    assert {"edgepeft", "onnx", "lora"} <= set(said["tags"])
    assert "base_model" not in said, "the base is a folder of this machine"
    assert str(exported.parent) not in card
    assert "| reviews | LoRA |" in body
    assert "bad, good" in body
    assert "edgepeft pull me/mine --out mine" in body
    assert "`edgepeft validate`: pass." in body
    assert "| reviews | fp32 |" in body


def test_what_is_local() -> None:
    assert not is_local("sentence-transformers/all-MiniLM-L6-v2")
    assert not is_local("gpt2")
    assert is_local("/home/me/model")
    assert is_local("./model")
    assert is_local("C:\\model")
    assert is_local("a/b/c")
