"""Every byte that a bundle's model is made of is verified: what is damaged, swapped or unlisted is refused by name, at once.

For an encoder, a causal language model and an encoder-decoder, in every mode of ``runtime.open(verify=)``.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from causal import build_causal_bundle
from click.testing import CliRunner
from encoder_decoder import build_encoder_decoder_bundle

from edgepeft import pipeline, runtime
from edgepeft.adapters.bundle_weights import BundleWeights
from edgepeft.bundle import Bundle, graphs, hash_file, loaded_files, read_bundle, variant_graphs, verified
from edgepeft.cli import main
from edgepeft.errors import BundleError, CorruptBundleError, EdgepeftError
from edgepeft.pipeline import quantize, write_input_style
from edgepeft.runtime import sessions
from edgepeft.runtime.views import View

KINDS = ["encoder", "causal", "encoder-decoder"]
TEXTS = ["the film was very good .", "bad plot"]


@pytest.fixture(scope="module")
def originals(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {"encoder": bundle}

    def get(kind: str) -> Path:
        if kind not in made:
            root = tmp_path_factory.mktemp(kind)
            if kind == "causal":
                made[kind] = build_causal_bundle(root)
            else:
                made[kind] = build_encoder_decoder_bundle(root, "T5")
        return made[kind]

    return get


@pytest.fixture
def own(originals: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a kind's bundle, for the test to damage."""
    return lambda kind: Path(shutil.copytree(originals(kind), tmp_path / "bundle"))


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise where the block hangs: on a pipe nobody writes to, on a device without an end."""

    def stop(number: int, frame: object) -> None:
        raise TimeoutError(f"nothing after {seconds} s")

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def grow(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(1 << 40)


def instead(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        path.unlink()
        make(path)

    return damage


def device(path: Path) -> None:
    try:
        os.mknod(path, 0o600 | 0o020000, os.makedev(1, 5))  # /dev/zero
    except OSError:
        pytest.skip("devices cannot be made here")


def link_out(path: Path) -> None:
    outside = path.parents[2] / "outside"
    outside.write_bytes(path.read_bytes())
    path.unlink()
    path.symlink_to(outside)


#: What a file becomes → the words of the refusal; the first is seen by its hash alone.
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "edited": (flip, "was changed after the bundle was written"),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:-1]), "bytes, the manifest says"),
    "grown": (grow, "bytes, the manifest says"),
    "removed": (Path.unlink, "is missing"),
    "a pipe": (instead(os.mkfifo), "is a pipe"),
    "a folder": (instead(Path.mkdir), "is a folder"),
    "a device": (instead(device), "is a device"),
    "a link to a device": (instead(lambda path: path.symlink_to("/dev/zero")), "link that leaves"),
    "a link out": (link_out, "link that leaves"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_every_file_that_is_loaded(damage: str, kind: str, own: Callable[[str], Path]) -> None:
    """Refused when the bundle is opened, by the file's name, in every mode that can see it.

    What an adapter's file holds is looked at when it is first used, unless everything is to be hashed at once.
    """
    folder = own(kind)
    change, says = DAMAGES[damage]
    opened = read_bundle(folder)
    files = opened.loaded_files(opened.variant()[0])
    assert {*opened.manifest.variants["fp32"].files(), "tokenizer.json", "tokenizer_config.json", "config.json"} <= {
        *files
    }
    for name in files:
        path, saved = folder / name, folder.parent / "saved"
        shutil.copy2(path, saved)
        change(path)
        for verify in ("always", "changed") if damage == "edited" else ("always", "changed", "never"):
            adapter = {entry.onnx_adapter: each for each, entry in opened.manifest.adapters.items()}.get(name)
            later = adapter is not None and (damage, verify) == ("edited", "changed")
            with within(20), pytest.raises(CorruptBundleError, match=says) as refused:
                runtime.open(folder, verify=verify).adapter(adapter) if later else runtime.open(folder, verify=verify)
            assert str(path) in str(refused.value)
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink(missing_ok=True)
        shutil.copy2(saved, path)
    runtime.open(folder)


@pytest.mark.parametrize("damage", ["a pipe", "a link to a device", "a folder", "grown"])
def test_the_manifest_itself(damage: str, own: Callable[[str], Path]) -> None:
    folder = own("encoder")
    DAMAGES[damage][0](folder / "edgepeft.json")
    with within(20), pytest.raises(BundleError, match=r"edgepeft\.json"):
        read_bundle(folder)


def test_never_takes_content_as_it_is(own: Callable[[str], Path]) -> None:
    """As documented: only what is no file, or has another size, is seen."""
    folder = own("encoder")
    flip(folder / "onnx" / "model.onnx_data")
    runtime.open(folder, verify="never").predict(TEXTS)
    with pytest.raises(CorruptBundleError):
        runtime.open(folder)


def test_the_command_line(own: Callable[[str], Path]) -> None:
    folder = own("encoder")
    for mode in ("always", "changed", "never"):
        assert CliRunner().invoke(main, ["run", str(folder), "a film", "--verify", mode]).exit_code == 0
    flip(folder / "onnx" / "model.onnx_data")
    assert CliRunner().invoke(main, ["run", str(folder), "a film", "--verify", "never"]).exit_code == 0
    refused = CliRunner().invoke(main, ["run", str(folder), "a film"])
    assert refused.exit_code == 2
    assert "model.onnx_data was changed" in refused.output


@pytest.mark.parametrize("slots", ["overridable", "input"])
def test_one_function_says_what_is_loaded(slots: Any, own: Callable[[str], Path]) -> None:
    """An encoder-decoder's four graphs in both styles; defaults only where slots are inputs."""
    folder = own("encoder-decoder")
    write_input_style(folder)
    manifest = read_bundle(folder).manifest
    entry = manifest.variants["fp32"]
    assert set(entry.graphs()) == {*variant_graphs(manifest, "fp32"), *variant_graphs(manifest, "fp32", "input")}
    assert len(entry.graphs()) == 4
    files = loaded_files(manifest, "fp32", slots)
    assert set(variant_graphs(manifest, "fp32", slots)) | set(entry.data) <= set(files) <= set(manifest.files)
    assert not any(name.endswith(".onnx") and name.startswith("adapters/") for name in files)


class TestAdaptersOfAnOpenModel:
    """What a bundle was opened with is what is used, whatever is written into its folder meanwhile."""

    def test_replaced(self, own: Callable[[str], Path], checkpoints: dict[str, Path]) -> None:
        folder = own("encoder")
        opened = runtime.open(folder)
        held = opened.adapter("dora").logits(TEXTS)
        pipeline.add(folder, "plain", str(checkpoints["head"]), replace=True)  # five labels where there were three
        assert read_bundle(folder).manifest.adapters["plain"].labels == ("a", "b", "c", "d", "e")
        for use in (
            lambda: opened.adapter("plain"),
            lambda: opened.adapter("plain", scale=0.5),
            lambda: opened.adapter({"plain": 0.5, "head": 0.5}, head="head"),
            lambda: opened.predict(TEXTS, adapters=["plain", None]),
        ):
            with pytest.raises(CorruptBundleError, match=r"plain\.onnx_adapter.*since the bundle was opened.*again"):
                use()
        np.testing.assert_array_equal(opened.adapter("dora").logits(TEXTS), held)
        assert opened.adapter("head").labels == ("a", "b", "c", "d", "e")  # the same content, in a new folder
        assert runtime.open(folder).adapter("plain").labels == ("a", "b", "c", "d", "e")

    def test_held_and_then_replaced(self, own: Callable[[str], Path], checkpoints: dict[str, Path]) -> None:
        """The mapped file stays; what is read of it anew, for a scale, is refused."""
        folder = own("encoder")
        opened = runtime.open(folder)
        view = opened.adapter("plain")
        before = view.logits(TEXTS)
        pipeline.add(folder, "plain", str(checkpoints["dora"]), replace=True)
        np.testing.assert_array_equal(view.logits(TEXTS), before)
        np.testing.assert_array_equal(opened.use("plain").logits(TEXTS), before)
        with pytest.raises(CorruptBundleError, match="since the bundle was opened"):
            opened.adapter("plain", scale=0.5)

    @pytest.mark.parametrize("kind", ["causal", "encoder-decoder"])
    @pytest.mark.parametrize("verify", ["always", "changed", "never"])
    def test_of_models_that_write(self, verify: Any, kind: str, own: Callable[[str], Path]) -> None:
        folder = own(kind)
        opened = runtime.open(folder, verify=verify)
        name = opened.adapters[0]
        before = tokens(opened.base)
        path = folder / opened.manifest.adapters[name].onnx_adapter
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(CorruptBundleError, match="since the bundle was opened"):
            tokens(opened.adapter(name))
        assert tokens(opened.base) == before
        path.write_bytes(content)
        assert tokens(opened.adapter(name)) != before

    def test_a_decoder_replaced_before_it_is_used(self, own: Callable[[str], Path]) -> None:
        folder = own("encoder-decoder")
        opened = runtime.open(folder)
        flip(folder / str(opened.manifest.variants["fp32"].decoder_file))
        with pytest.raises(CorruptBundleError, match="since the bundle was opened"):
            tokens(opened.base)


def tokens(view: View) -> list[int]:
    return list(view.generate("the film was", max_new_tokens=12, temperature=0).tokens)


class TestWhatAGraphNames:
    def rewrite(self, folder: Path, change: Callable[[dict[str, Any]], object], *files: str) -> None:
        """Change the manifest, and hash files again: the bundle is consistent, as its author wants it."""
        path = folder / "edgepeft.json"
        manifest = json.loads(path.read_text())
        for name in files:
            manifest["files"][name] = hash_file(folder / name).model_dump()
        change(manifest)
        path.write_text(json.dumps(manifest))

    @pytest.mark.parametrize("kind", KINDS)
    def test_weights_that_are_not_listed(self, kind: str, own: Callable[[str], Path]) -> None:
        folder = own(kind)
        data = read_bundle(folder).manifest.variants["fp32"].data[-1]

        def unlist(manifest: dict[str, Any]) -> None:
            manifest["variants"]["fp32"]["data"].remove(data)
            del manifest["files"][data]

        self.rewrite(folder, unlist)
        for use in (
            lambda: tokens(runtime.open(folder).base) if kind != "encoder" else runtime.open(folder),
            lambda: read_bundle(folder).verify(),
            lambda: quantize(folder, "int8"),
            lambda: [BundleWeights(read_bundle(folder))(f"{site}.weight") for site in sites(folder)],
        ):
            with pytest.raises(CorruptBundleError, match=f"names the weights file {data}, which the manifest does not"):
                use()

    @pytest.mark.parametrize("location", ["../../secret", "/etc/passwd", "*/_ORT_MEM_ADDR_/*", "sub/../../../secret"])
    def test_locations_outside(self, location: str, own: Callable[[str], Path]) -> None:
        folder = own("encoder")
        (folder.parent / "secret").write_bytes(b"\0" * (1 << 16))
        graph = folder / "onnx" / "model.onnx"
        model = onnx.load(graph, load_external_data=False)
        tensor = next(t for t in model.graph.initializer if t.external_data)
        next(entry for entry in tensor.external_data if entry.key == "location").value = location
        graph.write_bytes(model.SerializeToString())
        self.rewrite(folder, lambda manifest: None, "onnx/model.onnx")
        for verify in ("changed", "never"):
            with pytest.raises(CorruptBundleError, match=r"names the weights file"):
                runtime.open(folder, verify=verify)
        with pytest.raises(CorruptBundleError, match=r"names the weights file"):
            read_bundle(folder).verify()

    def test_a_graph_that_is_none(self, own: Callable[[str], Path]) -> None:
        folder = own("encoder")
        (folder / "onnx" / "model.onnx").write_bytes(b"\xff" * 100)
        self.rewrite(folder, lambda manifest: None, "onnx/model.onnx")
        with pytest.raises(CorruptBundleError, match="is not an ONNX graph"):
            runtime.open(folder)


def sites(folder: Path) -> list[str]:
    return [part.site for slot in read_bundle(folder).manifest.slots.linear for part in slot.parts]


class TestWhileASessionIsMade:
    @pytest.mark.parametrize("how", ["replaced", "written", "removed"])
    def test_weights_that_change(self, how: str, own: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
        """What ONNX Runtime opens by name is what was hashed, or the bundle is refused."""
        folder = own("encoder")
        data = folder / "onnx" / "model.onnx_data"
        other = folder / "other"
        content = data.read_bytes()
        other.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        real = sessions.open_session

        def swapped(*arguments: Any, **more: Any) -> Any:
            time.sleep(0.02)  # a tick of the file system's clock after the copy
            if how == "replaced":
                other.replace(data)
            elif how == "removed":
                data.unlink()
            else:
                flip(data)
            return real(*arguments, **more)

        monkeypatch.setattr(sessions, "open_session", swapped)
        with pytest.raises(EdgepeftError, match=r"model\.onnx"):
            runtime.open(folder, verify="never")

    @pytest.mark.parametrize("kind", KINDS)
    def test_without_paths_of_descriptors(
        self, kind: str, own: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As on macOS and Windows, where files are opened by their own paths."""
        folder = own(kind)
        expected = outputs(folder)
        for module in (verified, graphs):
            monkeypatch.setattr(module, "descriptor_path", lambda descriptor: None)
        assert outputs(folder) == expected
        flip(folder / "onnx" / read_bundle(folder).manifest.variants["fp32"].data[0].split("/")[-1])
        with pytest.raises(CorruptBundleError, match="was changed"):
            runtime.open(folder)

    def test_weights_inside_a_graph_too_large_to_copy(
        self, own: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = own("encoder")
        expected = outputs(folder)
        graph = folder / "onnx" / "model.onnx"
        whole = onnx.load(graph)
        for tensor in whole.graph.initializer:
            tensor.ClearField("external_data")
            tensor.data_location = onnx.TensorProto.DEFAULT
        graph.write_bytes(whole.SerializeToString())
        TestWhatAGraphNames().rewrite(folder, lambda m: m["variants"]["fp32"].update(data=[]), "onnx/model.onnx")
        assert outputs(folder) == expected
        monkeypatch.setattr(graphs, "_BYTES_LIMIT", 100)
        with read_bundle(folder).open_graph("onnx/model.onnx") as opened:
            assert isinstance(opened.model, str)
        assert outputs(folder) == expected


def outputs(folder: Path) -> list[Any]:
    with runtime.open(folder) as model:
        views = [model.base, *(model.adapter(name) for name in model.adapters)]
        return [tokens(v) if model.manifest.writes else [p.probabilities for p in v.predict(TEXTS)] for v in views]


def test_every_door_verifies_the_decoder(own: Callable[[str], Path]) -> None:
    """The encoder is as it was: what looks at one graph alone would not see it."""
    folder = own("encoder-decoder")
    flip(folder / str(read_bundle(folder).manifest.variants["fp32"].decoder_file))
    before = sorted(path.name for path in folder.parent.iterdir())
    for use in (
        lambda: runtime.open(folder),
        lambda: read_bundle(folder).verify(),
        lambda: quantize(folder, "int8"),
        lambda: write_input_style(folder),
        lambda: [BundleWeights(read_bundle(folder))(f"{site}.weight") for site in sites(folder)],
    ):
        with pytest.raises(CorruptBundleError, match=r"decoder.*was changed"):
            use()
    assert sorted(path.name for path in folder.parent.iterdir()) == before


def test_a_bundle_made_in_memory_reads_its_own_files(own: Callable[[str], Path]) -> None:
    """JSON that is none, or holds no object, and text that is not UTF-8, are refused by name."""
    folder = own("encoder")
    rewrite = TestWhatAGraphNames().rewrite
    for content, says in (
        (b"{", "is not JSON"),
        (b"[1]", "holds an array"),
        (b"\xff", "is not UTF-8"),
        (b"[" * 9999, "nested without end"),
    ):
        (folder / "config.json").write_bytes(content)
        rewrite(folder, lambda manifest: None, "config.json")
        opened: Bundle = read_bundle(folder)
        with pytest.raises(BundleError, match=says) as refused:
            opened.read_json("config.json")
        assert "config.json" in str(refused.value)


def test_a_file_on_its_way_while_the_folder_is_exchanged(
    own_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tokenizer is first opened by the first text: no retry of the open is left around it then."""
    from edgepeft.bundle import opening
    from edgepeft.bundle.transaction import replace_folder

    model = runtime.open(own_bundle)
    successor = Path(shutil.copytree(own_bundle, tmp_path / "successor"))
    plain, exchanged = opening._open_root, []

    def exchange(root: Path) -> int:
        folder = plain(root)
        if not exchanged:
            exchanged.append(root)
            replace_folder(successor, own_bundle)
            shutil.rmtree(successor, ignore_errors=True)
        return folder

    monkeypatch.setattr(opening, "_open_root", exchange)
    assert model.predict(["the film"])
    assert exchanged
