"""Speech written down in ONNX Runtime Web: the frames, tokens, languages and cuts of Python."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_whisper import RATE, build_whisper_bundle, sound

from edgepeft import runtime
from edgepeft.devices.executors.web import packages
from edgepeft.devices.executors.web.browser import answer_of
from edgepeft.devices.executors.web.folders import bundle_folder, module_folders
from edgepeft.devices.executors.web.site import Site
from edgepeft.pipeline import write_input_style
from edgepeft.runtime.generation.log_mel import LogMel

from .test_web import needs_browser, needs_node

pytestmark = pytest.mark.e2e


def timed_cases(bundle: Path, waves: list[np.ndarray]) -> list[dict[str, Any]]:
    """Timestamps and second tries: each wave by adapters, what Python writes of it, and how sure it is."""
    model, cases = runtime.open(bundle), []
    for name in (None, "small", "dora"):
        for place, wave in enumerate(waves):
            for options in (
                {"timestamps": True, "fallback": "off"},
                {"timestamps": True, "fallback": "all"},
                {"timestamps": False, "fallback": "all", "seed": 3},
                {"timestamps": True, "fallback": "loops", "stop": "good"},
            ):
                found = model.adapter(name).transcribe(wave, language="en", max_new_tokens=16, **options)  # type: ignore[arg-type]
                segments = [
                    {
                        "start": segment.start,
                        "end": segment.end,
                        "text": segment.text,
                        "tokens": list(segment.tokens),
                        "temperature": segment.confidence.temperature,
                        "meanLogprob": segment.confidence.mean_logprob,
                        "compressionRatio": segment.confidence.compression_ratio,
                        "noSpeech": segment.confidence.no_speech,
                    }
                    for segment in found.segments
                ]
                cases.append(
                    {"wave": place, "adapter": name, "options": options, "segments": segments, "text": found.text}
                )
    assert max(len(case["segments"]) for case in cases if case["wave"] < 3) > 1
    assert {segment["temperature"] for case in cases for segment in case["segments"]} > {0.0}
    return cases


@needs_node
def test_the_module_against_python(tmp_path: Path) -> None:
    """Every case of targets/web/test/against_python/speech.test.js."""
    bundle = build_whisper_bundle(tmp_path / "made")
    write_input_style(bundle)
    timed = build_whisper_bundle(tmp_path / "timed", timed=True)
    write_input_style(timed)
    model = runtime.open(bundle)
    waves = [sound(seed, 0.3 + 0.3 * seed) for seed in range(3)]
    cases = []
    for name in (None, "small", "dora", None):
        for place, wave in enumerate(waves):
            for language, task in (("en", "transcribe"), (None, "transcribe"), ("de", "translate")):
                found = model.adapter(name).transcribe(
                    wave, language=language, task=task, max_new_tokens=12, fallback="off"
                )
                tokens = list(found.segments[0].generation.tokens)
                cases.append(
                    {"wave": place, "adapter": name, "language": language, "task": task, "tokens": tokens, "heard": found.language}
                )  # fmt: skip
    assert len({str(case["tokens"]) for case in cases if case["wave"] == 0 and case["task"] == "translate"}) == 3
    long = np.concatenate([sound(1, 0.7), np.zeros(RATE // 4, np.float32), sound(2, 0.7)])
    cut = model.adapter("small").transcribe(long, language="en", max_new_tokens=4)
    expected = {
        "waves": [wave.tolist() for wave in waves],
        "rate": RATE,
        "frames": LogMel(RATE, RATE, 80, 400, 160)(waves[0]).ravel().tolist(),
        "cases": cases,
        "long": {
            "wave": long.tolist(),
            "cuts": [[segment.start, segment.end] for segment in cut.segments],
            "tokens": [list(segment.generation.tokens) for segment in cut.segments],
        },
        "timed": timed_cases(timed, [*waves, long]),
    }
    (tmp_path / "expected.json").write_text(json.dumps(expected))
    module = Path(
        shutil.copytree(packages.web_folder(), tmp_path / "web", ignore=shutil.ignore_patterns("node_modules"))
    )
    (module / "node_modules").symlink_to(packages.install() / "node_modules")
    done = subprocess.run(
        ["node", "--test", str(module / "test/against_python/speech.test.js")],
        env={
            **os.environ,
            "EDGEPEFT_TEST_BUNDLE": str(bundle),
            "EDGEPEFT_TEST_TIMED": str(timed),
            "EDGEPEFT_TEST_EXPECTED": str(tmp_path / "expected.json"),
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


#: The head of the harness's page, which maps names to packages, and a script that transcribes.
_SCRIPT = """
let answer;
try {
  const { openBundle } = await import("/web/src/index.js");
  const { cases, waves } = await (await fetch("/cases.json")).json();
  const model = await openBundle("/bundle/");
  answer = [];
  for (const { wave, adapter, options } of cases) {
    await model.use(adapter);
    const found = await model.transcribe(Float32Array.from(waves[wave]), { language: "en", maxNewTokens: 16, ...options });
    answer.push(found.segments.map(({ start, end, text, tokens }) => ({ start, end, text, tokens })));
  }
} catch (error) {
  answer = { error: `${error.name}: ${error.message}` };
}
await fetch("/answer", { method: "POST", body: JSON.stringify(answer) });
"""


@pytest.mark.slow
@needs_browser
def test_in_chromium(tmp_path: Path) -> None:
    """Timestamps, and second tries, whose texts are packed by what the browser has for it."""
    bundle = build_whisper_bundle(tmp_path / "timed", timed=True)
    write_input_style(bundle)
    waves = [sound(seed, 0.3 + 0.3 * seed) for seed in range(3)]
    cases = timed_cases(bundle, [*waves, np.concatenate(waves)])
    page = (packages.web_folder() / "harness/page.html").read_text(encoding="utf-8")
    head = page[: page.index('<script type="module">')]
    given = {"cases": cases, "waves": [wave.tolist() for wave in (*waves, np.concatenate(waves))]}
    folders = {"/bundle/": bundle_folder(bundle), **module_folders(packages.install(), "harness")}
    texts = {"/cases.json": json.dumps(given), "/speech.html": f'{head}<script type="module">{_SCRIPT}</script>'}
    with Site(folders, texts) as site:
        answer, _ = answer_of(packages.find_browser() or "", site, "speech.html", 240)
    expected = [
        [{name: segment[name] for name in ("start", "end", "text", "tokens")} for segment in case["segments"]]
        for case in cases
    ]
    assert json.loads(answer) == expected
