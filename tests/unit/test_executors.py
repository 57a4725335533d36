"""The registry of executors: each entry leads to a class, and nothing else lists their names."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest
from click.testing import CliRunner

import edgepeft
from edgepeft import executors
from edgepeft.cli import main
from edgepeft.devices import executor_for, setup_target
from edgepeft.errors import InputError, TargetError
from edgepeft.executors import EXECUTORS, STATIC, ExecutorEntry, executor_entry, executor_names
from edgepeft.targets import Target, load_target

PACKAGE = Path(edgepeft.__file__).parent
ADDRESSES = {"ssh": "ssh://pi@board:22/srv", "adb": "adb://emulator-5554"}


@pytest.fixture
def target() -> Target:
    return load_target("linux-x64-cpu")


@pytest.mark.parametrize("name", EXECUTORS)
def test_each_entry_leads_to_an_executor(name: str, target: Target) -> None:
    entry = EXECUTORS[name]
    assert entry.name == name
    assert entry.summary
    assert bool(entry.address) == bool(entry.example)
    on = ADDRESSES[name] if entry.needs_address else name
    assert executor_entry(on) is entry
    made = executor_for(target, on)
    assert made is not None
    for fact in ("name", "emulated", "copies", "rows", "missing", "run"):
        assert hasattr(made, fact), f"{name} says nothing of {fact}"
    if entry.setup:
        module, function = entry.setup.split(":")
        assert callable(getattr(importlib.import_module(module, "edgepeft.devices.executors"), function))


@pytest.mark.parametrize("name", [name for name, entry in EXECUTORS.items() if entry.address])
def test_addresses(name: str) -> None:
    assert executor_entry(ADDRESSES[name]) is EXECUTORS[name]
    for wrong in (f"{name}://", f"{name}://a b", f"{name}://-x", f"x{ADDRESSES[name]}"):
        with pytest.raises(ValueError, match="no such executor; use local, cpp, "):
            executor_entry(wrong)


def test_static_is_none(target: Target) -> None:
    assert executor_entry(STATIC) is None
    assert executor_for(target, STATIC) is None


def test_one_entry_adds_an_executor(target: Target, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = tmp_path / "moon_executor.py"
    made.write_text(
        "class Moon:\n    def __init__(self, target, address):\n        self.name = address\n"
        "def set_up(announce, *, again):\n    announce(f'again {again}')\n",
        "utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path)
    entry = ExecutorEntry(
        "moon",
        "the moon",
        "moon_executor:Moon",
        address=r"moon://\w+",
        example="moon://CRATER",
        setup="moon_executor:set_up",
    )
    monkeypatch.setitem(executors.EXECUTORS, "moon", entry)
    there = executor_for(target, "moon://tycho")
    assert there is not None
    assert there.name == "moon://tycho"
    assert "moon, static, adb://SERIAL, ssh://user@host or moon://CRATER" in executor_names()
    with pytest.raises(InputError, match=r"--on 'mars': no such executor; use .*moon"):
        executor_for(target, "mars")
    said: list[str] = []
    setup_target(target.model_copy(update={"executor": "moon"}), said.append, again=True)
    assert said == ["again True"]
    with pytest.raises(TargetError, match="nothing to set up for linux-x64-cpu"):
        setup_target(target)


@pytest.mark.parametrize("command", ["bench", "check", "validate"])
def test_help_lists_them_all(command: str) -> None:
    text = " ".join(CliRunner().invoke(main, [command, "--help"], terminal_width=200).output.split())
    assert executor_names(static=False) in text


def test_nothing_else_lists_their_names() -> None:
    """No other module holds a collection, or a text, that names three of them or more."""
    names = set(EXECUTORS) - {"local"}
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        if path == PACKAGE / "executors.py":
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, (ast.Tuple, ast.List, ast.Set)):
                held = {each.value for each in node.elts if isinstance(each, ast.Constant)}
            elif isinstance(node, ast.Dict):
                held = {each.value for each in node.keys if isinstance(each, ast.Constant)}
            else:
                continue
            if len(names & {value for value in held if isinstance(value, str)}) >= 3:
                wrong.append(f"{path}:{node.lineno}")
    assert not wrong


def test_the_guide_has_a_row_for_each() -> None:
    guide = (PACKAGE.parent / "docs" / "targets.md").read_text("utf-8")
    rows = "\n".join(line.split("|")[1] for line in guide.splitlines() if line.startswith("| `"))
    for entry in EXECUTORS.values():
        assert f"`{entry.name}`" in rows or f"`{entry.name}://" in rows, f"docs/targets.md has no row for {entry.name}"
