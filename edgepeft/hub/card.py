"""A bundle's model card: what it holds, how it is used, what was measured."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from ..bundle import Bundle
from ..json_text import json_text
from ..report import table_to_markdown
from ..report.gate import Table
from ..units import MB

#: Most bytes of a report that is looked at.
_MAX_REPORT = 16 * 2**20


_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def is_local(source: str) -> bool:
    """Whether a source is a path of the machine that made the bundle, which says nothing to others."""
    return not _HUB_ID.fullmatch(source) or Path(source).exists()


def model_card(bundle: Bundle, repo: str, *, license: str | None = None) -> str:
    """The text of ``README.md``: metadata of the hub, then tables of variants and adapters, use, and what was measured.

    Args:
        bundle: The bundle.
        repo: The repository's id, for the commands that are shown.
        license: The identifier of the licence that it comes under; left out where nobody says it.

    Returns:
        Markdown with a YAML head.
    """
    manifest = bundle.manifest
    name = repo.rpartition("/")[2]
    methods = sorted({entry.method for entry in manifest.adapters.values()})
    base = None if is_local(manifest.base.source) else manifest.base.source
    head: dict[str, Any] = {
        "library_name": "edgepeft",
        "pipeline_tag": manifest.task,
        "tags": ["edgepeft", "onnx", "onnxruntime", "peft", *dict.fromkeys(method.lower() for method in methods)],
        **({"base_model": base} if base else {}),
        **({"license": license} if license else {}),
    }
    # JSON is YAML, and needs no library to be written safely.
    lines = [
        "---",
        *(f"{key}: {json_text(value, indent=None)}" for key, value in head.items()),
        "---",
        "",
        f"# {name}",
        "",
    ]
    whose = f"[{base}](https://huggingface.co/{base})" if base else manifest.base.architecture
    how = f"with {manifest.merged} folded in" if manifest.merged else "with adapters that are swapped at run time"
    lines += [
        f"{whose} for {manifest.task} as an ONNX Runtime bundle {how}, made with "
        "[edgepeft](https://github.com/edgepeft/edgepeft).",
        "",
        "## Variants",
        "",
        table_to_markdown(
            Table(
                "",
                ("variant", "made by", "MB"),
                tuple((n, v.recipe, bundle.size(v.files()) / MB) for n, v in manifest.variants.items()),
            )
        ),
    ]
    if manifest.adapters:
        rows = tuple(
            (n, e.method, max(e.ranks.values(), default=0), ", ".join(e.labels or ()) or None, e.bytes / MB)
            for n, e in manifest.adapters.items()
        )
        table = Table("", ("adapter", "method", "largest rank of a slot", "labels", "MB"), rows)
        lines += ["", "## Adapters", "", table_to_markdown(table)]
    return "\n".join([*lines, "", *_use(bundle, repo, name), *_measured(bundle), ""])


def _use(bundle: Bundle, repo: str, name: str) -> list[str]:
    manifest = bundle.manifest
    variant = bundle.variant()[0]
    adapter = next(iter(manifest.adapters), None)
    choose = f" --adapter {adapter}" if adapter else ""
    view = f'model.adapter("{adapter}")' if adapter else "model"
    calls = {"feature-extraction": "embed", "automatic-speech-recognition": "transcribe"}
    call = calls.get(manifest.task, "generate" if manifest.writes else "predict")
    given = asked = '"a text"'
    if manifest.hears:
        given, asked = "wave, sampling_rate=rate", "--audio question.wav"
    return [
        "## Use",
        "",
        "```sh",
        "pip install edgepeft",
        f"edgepeft pull {repo} --out {name}",
        f"edgepeft run {name} --variant {variant}{choose} {asked}",
        "```",
        "",
        "```python",
        "from edgepeft import runtime",
        "",
        *(['wave, rate = runtime.read_sound("question.wav")'] if manifest.hears else []),
        f'with runtime.open("{name}", variant="{variant}") as model:',
        f"    print({view}.{call}({given}){'.text' if manifest.hears else ''})",
        "```",
    ]


def _measured(bundle: Bundle) -> list[str]:
    """The verdict and the tables of the last ``edgepeft validate``, where the bundle holds its report."""
    path = bundle.path / "report" / "validate.json"
    if not path.is_file() or path.stat().st_size > _MAX_REPORT:
        return []
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        tables = [
            Table(t["title"], tuple(t["columns"]), tuple(tuple(row) for row in t["rows"])) for t in report["tables"]
        ]
        verdict = str(report["verdict"])
    except (ValueError, KeyError, TypeError):  # a report of another version: the card does without
        return []
    lines = ["", "## Measured", "", f"`edgepeft validate`: {verdict}."]
    for table in tables:
        lines += ["", f"**{table.title}**", "", table_to_markdown(table)]
    return lines
