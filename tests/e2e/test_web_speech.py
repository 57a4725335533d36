"""Speech written down in ONNX Runtime Web: the frames, tokens, languages and cuts of Python."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from tiny_whisper import RATE, build_whisper_bundle, sound

from edgepeft import runtime
from edgepeft.devices.executors.web import packages
from edgepeft.pipeline import write_input_style
from edgepeft.runtime.generation.log_mel import LogMel

from .test_web import needs_node

pytestmark = pytest.mark.e2e


@needs_node
def test_the_module_against_python(tmp_path: Path) -> None:
    """Every case of targets/web/test/against_python/speech.test.js."""
    bundle = build_whisper_bundle(tmp_path / "made")
    write_input_style(bundle)
    model = runtime.open(bundle)
    waves = [sound(seed, 0.3 + 0.3 * seed) for seed in range(3)]
    cases = []
    for name in (None, "small", "dora", None):
        for place, wave in enumerate(waves):
            for language, task in (("en", "transcribe"), (None, "transcribe"), ("de", "translate")):
                found = model.adapter(name).transcribe(wave, language=language, task=task, max_new_tokens=12)
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
            "EDGEPEFT_TEST_EXPECTED": str(tmp_path / "expected.json"),
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
