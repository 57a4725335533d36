"""``train``, ``tune`` and ``search`` by the command line on bad input: what is said, and that it is said before torch is imported.

One fresh process makes all calls, and looks after each whether one of the large libraries was imported.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROWS = [{"text": f"row {i}", "label": "ab"[i % 2]} for i in range(40)]
OTHERS = [{"text": f"other {i}", "label": "ab"[i % 2]} for i in range(10)]
TALK = [{"prompt": f"question {i}", "completion": f"answer {i}"} for i in range(20)]
TABLE = "text,label\r\n" + "".join(f"café {i},{'ab'[i % 2]}\r\n" for i in range(40))
FILES: dict[str, Any] = {
    "good.jsonl": ROWS,
    "held.jsonl": OTHERS,
    "one.jsonl": [{**row, "label": "a"} for row in ROWS],
    "tiny.jsonl": [*ROWS, {"text": "alone", "label": "c"}],
    "unseen.jsonl": [*OTHERS, {"text": "alone", "label": "c"}],
    "lacking.jsonl": OTHERS[::2],
    "empty-label.jsonl": [*ROWS, {"text": "x", "label": "  "}],
    "nan-label.jsonl": [*ROWS, {"text": "x", "label": float("nan")}],
    "no-label.jsonl": [{"text": row["text"], "lable": row["label"]} for row in ROWS],
    "latin.csv": TABLE.encode("latin-1"),
    "utf16.csv": TABLE.replace(",b", ",a").encode("utf-16"),
    "semicolons.csv": TABLE.replace(",b", ",a").replace(",", ";").encode(),
    "array.json": json.dumps([{**row, "label": "a"} for row in ROWS]).encode(),
    "open-array.json": json.dumps(ROWS).encode()[:-9],
    "header.csv": b"text,label\n",
    "talk.jsonl": TALK,
    "one-prompt.jsonl": [{"prompt": "Why?", "completion": each} for each in ("So.", "Thus.")],
    "silent.jsonl": [*TALK, {"prompt": "Why?", "completion": " "}],
    "empty.txt": b" \n",
}
STUDIES: dict[str, dict[str, str]] = {
    "one": {"data": "one.jsonl"},
    "tiny": {"data": "tiny.jsonl"},
    "unseen": {"held": "unseen.jsonl"},
    "lacking": {"held": "lacking.jsonl"},
    "same": {"held": "good.jsonl"},
    "empty-label": {"data": '["good.jsonl", "empty-label.jsonl"]'},
    "latin": {"data": "latin.csv"},
    "absent": {"data": "absent.jsonl"},
    "xlora": {"more": 'method = ["lora", "xlora"]'},
    "variant": {"more": 'variant = ["fp32", "q3"]'},
    "base": {"model": "./absent"},
    "postgres": {"storage": "postgresql://me:secret@127.0.0.1:1/studies"},
    "address": {"storage": "mysql://me:sec/ret@127.0.0.1/studies"},
    "sqlite": {"storage": "sqlite:////absent/folder/studies.db"},
}
#: What is said of data by both commands.
DATA = {
    "--data one.jsonl": "all 40 rows have the label 'a'",
    "--data empty-label.jsonl": "line 41: the label is empty",
    "--data nan-label.jsonl": "line 41: no column 'label' that holds anything: the label is empty",
    "--data no-label.jsonl": "no column 'label'; this row has: text, lable; --label COLUMN names another; did you mean 'lable'?",
    "--data latin.csv": "line 2: byte 0xe9 is not valid UTF-8",
    "--data utf16.csv": "all 40 rows have the label 'a'",
    "--data semicolons.csv": "all 40 rows have the label 'a'",
    "--data array.json": "all 40 rows have the label 'a'",
    "--data open-array.json": "line 1: the array is not closed",
    "--data header.csv": "header.csv has no data rows",
    "--data absent.csv": "cannot read data file absent.csv",
    "--data good.jsonl --validation unseen.jsonl": "label(s) ['c'] are not among the training labels ['a', 'b']",
    "--data good.jsonl --validation lacking.jsonl": "label(s) ['b'] have fewer than 2 validation rows",
    "--data good.jsonl --validation good.jsonl": "40 of the 40 training rows of good.jsonl have the same text",
}
CALLS = {
    **{f"train --model encoder --out out {call}": says for call, says in DATA.items()},
    **{f"tune --model encoder --out out {call}": says for call, says in DATA.items()},
    "train --model encoder --out out --data tiny.jsonl": "label 'c' has 1 distinct row(s), too few",
    "tune --model encoder --out out --data tiny.jsonl": "label(s) ['c'] have fewer than 4 distinct rows",
    "train --model encoder --out out --data good.jsonl --method xlora": "X-LoRA cannot be trained for a bundle",
    "train --model encoder --data good.jsonl --compare lora,xlora": "X-LoRA cannot be trained for a bundle",
    "train --model encoder --out out --data good.jsonl --method cpt": "CPT cannot ship a classifier",
    "train --model encoder --out out --data good.jsonl --method boft --ship swap": "BOFT cannot be swapped, only shipped as merge",
    "train --model encoder --data one.jsonl --verdict": "all 40 rows have the label 'a'",
    "train --model encoder --out out --data one.jsonl --modules auto": "all 40 rows have the label 'a'",
    "train --model writer --out out --data no-label.jsonl --text words": "or 'messages', or 'words'",
    "train --model writer --out out --data one-prompt.jsonl": "2 row(s) and only one distinct prompt, so none can be held out",
    "train --model writer --out out --data silent.jsonl": "line 21: 'completion' is empty",
    "train --model writer --out out --data empty.txt": "there is nothing to train on",
    "train --model writer --out out --data talk.jsonl --validation talk.jsonl": "20 of the 20 training rows",
    "train --model writer --out out --data talk.jsonl --validation good.jsonl": "both must be of one kind",
    "train --model ./absent --out out --data talk.jsonl": "there is nothing at this path",
    "search one.toml": "one.jsonl: all 40 rows have the label 'a'",
    "search tiny.toml": "label 'c' has 1 distinct row(s), too few",
    "search unseen.toml": "label(s) ['c'] are not among the training labels",
    "search lacking.toml": "label(s) ['b'] have fewer than 2 validation rows",
    "search same.toml": "40 of the 40 training rows",
    "search empty-label.toml": "line 41: the label is empty",
    "search latin.toml": "line 2: byte 0xe9 is not valid UTF-8",
    "search absent.toml": "cannot read data file absent.jsonl",
    "search xlora.toml": "X-LoRA cannot be trained for a bundle",
    "search variant.toml": "no recipe makes a variant 'q3'",
    "search base.toml": "there is nothing at this path",
    "search postgres.toml": "postgresql://127.0.0.1:1/studies cannot be reached: nothing takes a connection at 127.0.0.1:1",
    "search address.toml": "at the address given cannot be reached: it is no address",
    "search sqlite.toml": "there is no folder /absent/folder",
}
PROCESS = """
import json, shlex, sys
from click.testing import CliRunner
from edgepeft.cli import main

large = {"torch", "transformers", "peft", "datasets", "optuna", "accelerate"}
for call in json.load(sys.stdin):
    before = set(sys.modules)
    done = CliRunner().invoke(main, shlex.split(call))
    print(json.dumps([done.exit_code, done.stderr, sorted(large & set(sys.modules) - before)]))
"""


def write_files(folder: Path) -> None:
    """What the calls name: rows, bases of which there is a configuration alone, studies."""
    for name, content in FILES.items():
        lines = content if isinstance(content, bytes) else "".join(json.dumps(row) + "\n" for row in content).encode()
        (folder / name).write_bytes(lines)
    for name, architecture in (("encoder", "BertModel"), ("writer", "LlamaForCausalLM")):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    for name, given in STUDIES.items():
        data, storage = given.get("data", "good.jsonl"), given.get("storage")
        (folder / f"{name}.toml").write_text(
            f"[study]\ntrials = 2\n{f'storage = {json.dumps(storage)}' if storage else ''}\n"
            f"[data]\nvalidation = {json.dumps(given.get('held', 'held.jsonl'))}\n"
            f"[space]\ndata = {data if data.startswith('[') else json.dumps(data)}\n"
            f"model = {json.dumps(given.get('model', 'encoder'))}\n{given.get('more', '')}\n"
        )


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Exit code, standard error and the large libraries that it imported, by call."""
    folder = tmp_path_factory.mktemp("bad")
    write_files(folder)
    done = subprocess.run(
        [sys.executable, "-c", PROCESS], input=json.dumps([*CALLS]), cwd=folder, capture_output=True, text=True, check=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    return dict(zip(CALLS, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("call", CALLS)
def test_bad_input_is_named_before_torch_is_imported(told: dict[str, Any], call: str) -> None:
    code, stderr, imported = told[call]
    assert CALLS[call] in " ".join(stderr.split())
    assert (code, imported) == (2, [])
    assert "secret" not in stderr
    assert "ret@" not in stderr
