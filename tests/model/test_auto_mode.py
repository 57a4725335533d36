"""``export --mode auto``: both ways are made and judged, and what is nearer to the adapter in fp32 is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from causal import build_causal
from click.testing import CliRunner
from conftest import save_lora

from edgepeft import runtime
from edgepeft.bundle import read_bundle
from edgepeft.cli import main
from edgepeft.data import Examples
from edgepeft.errors import InputError
from edgepeft.pipeline import ModeChoice, _auto_mode, export_auto

OPTIONS: dict[str, Any] = {"task": "text-generation", "task_type": "CAUSAL_LM", "target_modules": "all-linear"}
TEXT = Examples(("the film was very good and the end of the book was not, " * 60,), None)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("auto")
    model = build_causal(root / "model")
    return {
        "model": model,
        **{n: save_lora(root / n, model, scale=0.25, seed=s, **OPTIONS) for n, s in (("a", 1), ("b", 2))},
    }


@pytest.mark.parametrize("variant", ["q4", "int8"])
def test_both_ways_are_judged_and_one_is_kept(variant: str, folders: dict[str, Path], tmp_path: Path) -> None:
    said: list[str] = []
    out = tmp_path / "out"
    done, choice = export_auto(
        variant, folders["model"], {"a": folders["a"]}, out, task="text-generation",
        data={"a": TEXT} if variant == "q4" else None, announce=said.append,
    )  # fmt: skip
    assert choice.swap is not None
    assert choice.merge is not None
    assert choice.swap > 0
    assert choice.merge > 0
    assert said[-1] == f"mode {choice.mode}: {choice.why}"
    (bundle,) = done.bundles
    bundle.verify()
    assert list(bundle.manifest.variants) == [variant]
    assert bundle.manifest.mode == choice.mode == ("merge" if bundle.manifest.merged else "swap")
    kept = bundle.manifest.provenance["mode_choice"]
    assert (kept["mode"], kept["why"]) == (choice.mode, choice.why)
    assert [p.name for p in tmp_path.iterdir() if not p.name.startswith(".")] == ["out"]
    model = runtime.open(out)
    view = model.adapter("a") if choice.mode == "swap" else model.base
    assert view.generate("the film", max_new_tokens=3).text is not None


@pytest.mark.parametrize(("swap", "merge", "mode"), [(1.0, 3.0, "swap"), (3.0, 1.0, "merge"), (1.0, 1.0, "merge")])
def test_the_nearer_one_is_kept(
    swap: float, merge: float, mode: str, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The verdict follows the divergences, and noise is no reason."""
    found = np.array([[10.0, swap + 0.01 * i, merge + 0.01 * i] for i in range(8)])
    monkeypatch.setattr(_auto_mode, "_writes", lambda *_: found)
    _, choice = export_auto("int8", folders["model"], {"a": folders["a"]}, tmp_path / "out", task="text-generation")
    assert choice.mode == read_bundle(tmp_path / "out").manifest.mode == mode
    assert (choice.swap, choice.merge) == pytest.approx((found[:, 1].mean() / 10, found[:, 2].mean() / 10))


def test_several_adapters_share_one_base(folders: dict[str, Path], tmp_path: Path) -> None:
    both = {name: folders[name] for name in ("a", "b")}
    done, choice = export_auto("int8", folders["model"], both, tmp_path / "out", task="text-generation")
    assert choice == ModeChoice("swap", "2 adapters share one base")
    assert list(done.bundles[0].manifest.adapters) == ["a", "b"]


def test_a_classifier_is_judged_by_its_texts(models: Any, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    folder, given = models("bert"), {"head": checkpoints["head"]}
    with pytest.raises(InputError, match=r"judges head by what it answers: give texts for it, --data head=FILE"):
        export_auto("int8", folder, given, tmp_path / "out", task="text-classification")
    assert not (tmp_path / "out").exists()
    texts = Examples(tuple(f"good film {i}" for i in range(80)), None)
    _, choice = export_auto("int8", folder, given, tmp_path / "out", task="text-classification", data={"head": texts})
    assert choice.swap is not None
    assert choice.mode == read_bundle(tmp_path / "out").manifest.mode


@pytest.mark.parametrize("options", [(), ("--variant", "q4", "--variant", "int8"), ("--target", "web-wasm")])
def test_one_precision_is_compared(options: tuple[str, ...], folders: dict[str, Path], tmp_path: Path) -> None:
    call = ["export", "--model", str(folders["model"]), "--adapter", f"a={folders['a']}", "--out", str(tmp_path / "o")]
    run = CliRunner().invoke(main, [*call, "--mode", "auto", *options])
    assert run.exit_code == 2
    assert "give one --variant, and no --target" in run.output


def test_from_the_command_line(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call = ["export", "--model", str(folders["model"]), "--adapter", f"a={folders['a']}", "--out", str(tmp_path / "o")]
    monkeypatch.setattr(_auto_mode, "_writes", lambda *_: np.array([[10.0, 1.0, 3.0]] * 4))
    run = CliRunner().invoke(
        main, [*call, "--task", "text-generation", "--mode", "auto", "--variant", "int8", "--adapter-form", "fp16"]
    )
    assert run.exit_code == 0, run.output
    assert "mode swap: int8 with a beside it is 0.1000 nats a token" in run.output
    (entry,) = read_bundle(tmp_path / "o").manifest.adapters.values()
    assert entry.form == "fp16"
