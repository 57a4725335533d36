"""The browser's tokenizer on real text: every held-out row of the demo's data gives the ids that Python gives."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from edgepeft.devices.executors.web import packages

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        packages.find_node() is None or shutil.which("npm") is None,
        reason="no Node 20 with npm: `edgepeft targets doctor web-wasm --on node` says how to get them",
    ),
]

SCRIPT = """
import { readFileSync } from "node:fs";
import { TextEncoder } from "./src/tokenizer.js";
const [folder, texts] = process.argv.slice(2);
const read = (name) => readFileSync(`${folder}/${name}`);
const encoder = new TextEncoder(read("tokenizer.json"), read("tokenizer_config.json"), 128, folder);
console.log(JSON.stringify(JSON.parse(readFileSync(texts, "utf8")).map((text) => encoder.encode(text).ids)));
"""


def test_ids_of_real_text(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    from edgepeft.data import read_examples
    from edgepeft.demo.assets import minilm
    from edgepeft.demo.vader import write_datasets

    model = minilm()
    data = write_datasets(tmp_path / "data")
    texts = [text for files in data.values() for text in read_examples(files.heldout).texts]
    texts += ["".join(texts[i : i + 12]) for i in range(0, 120, 12)]  # beyond 128 tokens
    pairs = list(zip(texts[:100], texts[-100:], strict=True))
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.enable_truncation(128)
    tokenizer.no_padding()
    expected = [encoding.ids for encoding in tokenizer.encode_batch([*texts, *pairs])]
    shutil.copytree(packages.web_folder() / "src", tmp_path / "src")
    shutil.copyfile(packages.web_folder() / "package.json", tmp_path / "package.json")
    (tmp_path / "node_modules").symlink_to(packages.install() / "node_modules")
    (tmp_path / "ids.mjs").write_text(SCRIPT)
    (tmp_path / "texts.json").write_text(json.dumps([*texts, *pairs]))
    done = subprocess.run(
        ["node", str(tmp_path / "ids.mjs"), str(model), str(tmp_path / "texts.json")],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert len(found) == len(expected) > 1500
    wrong = [text for text, a, b in zip([*texts, *pairs], found, expected, strict=True) if a != b]
    assert wrong == []
    assert max(map(len, expected)) == 128
