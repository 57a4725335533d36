"""The C# example, compiled by mono against declarations of what it uses; and these, looked up in the binding's source.

Nothing here runs it: the binding takes a newer compiler than Debian has.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from .npm_packages import BINDINGS, package

pytestmark = pytest.mark.e2e

EXAMPLE = Path(__file__).parents[2] / "examples" / "csharp" / "Classify.cs"
DECLARATIONS = Path(__file__).parent / "csharp" / "OnnxRuntime.cs"


def compiled(example: Path, out: Path) -> subprocess.CompletedProcess[str]:
    if shutil.which("mcs") is None:
        pytest.skip("mono's compiler is not installed: apt-get install mono-mcs")
    return subprocess.run(
        ["mcs", "-langversion:latest", "-warnaserror", f"-out:{out}", DECLARATIONS, example],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_it_compiles(tmp_path: Path) -> None:
    done = compiled(EXAMPLE, tmp_path / "classify.exe")
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_name_that_the_binding_does_not_have_is_seen(tmp_path: Path) -> None:
    wrong = tmp_path / "Wrong.cs"
    wrong.write_text(EXAMPLE.read_text(encoding="utf-8").replace("AddActiveLoraAdapter", "AddLoraAdapter"))
    done = compiled(wrong, tmp_path / "wrong.exe")
    assert done.returncode != 0
    assert "AddLoraAdapter" in done.stdout + done.stderr


def plain(text: str) -> str:
    """Code in one line, with what the declarations say otherwise made alike."""
    return (
        re.sub(r"\s+", " ", text)
        .replace("where T : unmanaged", "where T : struct")
        .replace(" : base(IntPtr.Zero, true)", "")
    )


@pytest.mark.slow
def test_the_declarations_are_the_bindings() -> None:
    sources = plain("\n".join(path.read_text("utf-8-sig") for path in (package(BINDINGS) / "Runtime").glob("*.cs")))
    code = plain(DECLARATIONS.read_text(encoding="utf-8"))
    heads = [head.strip() for head in re.findall(r"(public [^{};]+?) \{", code) if "override" not in head]
    # A class may name more interfaces than the example needs.
    wanted = [head.partition(" : ")[0] if " class " in head else head for head in heads]
    assert len(wanted) >= 18
    assert [head for head in wanted if head not in sources] == []
