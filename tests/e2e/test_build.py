"""Recipes: the steps that something changed for run, and no others."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from edgepeft.bundle import read_bundle

pytestmark = pytest.mark.e2e


@pytest.fixture
def folder(encoder: Path, adapters: dict[str, Path], rows: Path, tmp_path: Path) -> Path:
    """A folder with everything that a recipe names."""
    shutil.copytree(encoder, tmp_path / "model")
    shutil.copytree(adapters["reviews"], tmp_path / "reviews")
    shutil.copyfile(rows, tmp_path / "rows.jsonl")
    return tmp_path


RECIPE = """
[recipe]
model = "model"

[adapters]
reviews = "reviews"

[export]
force = true

[quantize.int8]

[validate]
no_reference = true
data = { reviews = "rows.jsonl" }
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text)
    return path


def built(cli: Any, path: Path, *more: str, code: int = 0) -> dict[str, str]:
    done = cli("build", path, "--json", *more)
    assert done.exit_code == code, done.stderr
    return {each["name"]: each["status"] for each in json.loads(done.stdout)}


@pytest.mark.slow
def test_only_what_changed_runs(cli: Any, folder: Path) -> None:
    recipe = write(folder, RECIPE)
    names = ["export", "quantize.int8", "validate"]
    assert built(cli, recipe, "--dry-run") == dict.fromkeys(names, "would run")
    assert not (folder / "build/bundle").exists()
    assert built(cli, recipe) == dict.fromkeys(names, "done")
    assert {"fp32", "int8"} == set(read_bundle(folder / "build/bundle").manifest.variants)
    assert built(cli, recipe) == dict.fromkeys(names, "up to date")
    # other rows: only validate reads them
    with (folder / "rows.jsonl").open("a") as rows:
        rows.write('{"text": "one more good film", "label": "good"}\n')
    assert built(cli, recipe) == {"export": "up to date", "quantize.int8": "up to date", "validate": "done"}
    # the variant is gone: it is made again, and what follows it
    assert cli("remove", folder / "build/bundle", "--variant", "int8").exit_code == 0
    assert built(cli, recipe) == {"export": "up to date", "quantize.int8": "done", "validate": "done"}
    # new times over the same contents change nothing; another adapter changes everything
    for path in (folder / "reviews").iterdir():
        path.touch()
    assert set(built(cli, recipe).values()) == {"up to date"}
    config = json.loads((folder / "reviews/adapter_config.json").read_text())
    (folder / "reviews/adapter_config.json").write_text(json.dumps({**config, "lora_alpha": config["lora_alpha"] * 2}))
    assert built(cli, recipe) == dict.fromkeys(names, "done")
    assert built(cli, recipe, "--again", "--dry-run") == dict.fromkeys(names, "would run")


@pytest.mark.slow
def test_it_trains_and_packs(cli: Any, folder: Path) -> None:
    recipe = write(
        folder,
        '[recipe]\nmodel = "model"\nout = "out"\n[train.mine]\ndata = "rows.jsonl"\nepochs = 1\n[pack.web-wasm]\n[export]\n'
        'slots = "all-linear"\n',
    )
    assert built(cli, recipe) == {"train.mine": "done", "export": "done", "pack.web-wasm": "done"}
    assert list(read_bundle(folder / "out/web-wasm").manifest.adapters) == ["mine"]
    assert set(built(cli, recipe).values()) == {"up to date"}
    (folder / "out/adapters/mine/adapter_model.safetensors").unlink()
    assert built(cli, recipe) == {"train.mine": "done", "export": "done", "pack.web-wasm": "done"}


def test_a_failed_step_ends_it_and_runs_again(cli: Any, folder: Path) -> None:
    """Its exit code is the build's; what is fixed goes on where it stopped."""
    recipe = write(folder, RECIPE + 'text = "no-such-column"\n[report]\n')
    assert built(cli, recipe, code=2) == {"export": "done", "quantize.int8": "done", "validate": "failed"}
    assert built(cli, recipe, code=2) == {"export": "up to date", "quantize.int8": "up to date", "validate": "failed"}
    write(folder, RECIPE)
    assert built(cli, recipe) == {"export": "up to date", "quantize.int8": "up to date", "validate": "done"}


@pytest.mark.slow
def test_a_killed_build_goes_on(folder: Path, cli: Any) -> None:
    recipe = write(folder, RECIPE)
    process = subprocess.Popen([sys.executable, "-m", "edgepeft", "build", str(recipe)], stderr=subprocess.DEVNULL)
    notes = folder / "build/.recipe.json"
    until = time.monotonic() + 120
    while not (notes.is_file() and "export" in notes.read_text()):
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.05)
    process.kill()
    process.wait(30)
    after = built(cli, recipe)
    assert after["export"] == "up to date"
    read_bundle(folder / "build/bundle").verify()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("not toml", "not valid TOML"),
        ("[recipe]\n", "recipe.model is missing"),
        ('[recipe]\nmodel = "m"\nmodle = "x"\n', "has no key 'modle'"),
        ('[recipe]\nmodel = "m"\n[quantise.int8]\n', "did you mean 'quantize'?"),
        ('[recipe]\nmodel = "m"\n[validate]\nmax_dorp = 1\n', "did you mean 'max-drop'?"),
        ('[recipe]\nmodel = "m"\n[export]\nout = "x"\n', "the recipe says that itself"),
        ('[recipe]\nmodel = "m"\n[export]\nslots = ["a", "b"]\n', "takes one value"),
        ('[recipe]\nmodel = "m"\n[validate]\nno_reference = "yes"\n', "must be true or false"),
        ('[recipe]\nmodel = "m"\n[adapters]\na = "x"\n[train.a]\ndata = "d"\n', "is trained and given"),
        ('validate = 1\n[recipe]\nmodel = "m"\n', "must be a table"),
    ],
)
def test_mistakes_are_named_before_anything_runs(cli: Any, tmp_path: Path, text: str, says: str) -> None:
    done = cli("build", write(tmp_path, text))
    assert done.exit_code == 2
    assert says in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.toml"]


def test_no_recipe(cli: Any, tmp_path: Path) -> None:
    done = cli("build", tmp_path / "none.toml")
    assert done.exit_code == 2
    assert "a recipe is a TOML file" in done.stderr


def test_the_documented_recipe_is_one() -> None:
    """Each table and key of docs/recipes.md is taken."""
    import re

    from edgepeft.cli import main
    from edgepeft.cli.build import _options
    from edgepeft.recipe import read_recipe

    page = (Path(__file__).parents[2] / "docs/recipes.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"^```toml\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder), text)
        words = [*((name,) for name in main.commands), ("targets", "pack")]
        steps = read_recipe(path, {each: _options(main, each) for each in words}).steps
    assert [step.name for step in steps] == [
        "train.reviews", "export", "quantize.int8", "validate", "check", "pack.android-arm64-cpu"
    ]  # fmt: skip
    assert "--data=reviews=reviews.heldout.jsonl" in steps[3].arguments
