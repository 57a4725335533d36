"""``fp16`` and ``q4f16`` in a browser on WebGPU with ``shader-f16``, which SwiftShader does not have and Mesa's llvmpipe has.

Chromium gives pages a program on the CPU in place of a GPU only where it is SwiftShader, so it is started from a folder of its own
whose SwiftShader is llvmpipe under its name. Debian 12, once:

    apt-get install -t bookworm-backports mesa-vulkan-drivers && apt-get install chromium gcc npm
    python -m pytest tests/e2e/test_webgpu_halves.py
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from causal import build_causal_bundle
from click.testing import Result

from edgepeft.bench import Prompts, run_worker
from edgepeft.devices.executors.web import Site, WebGpuExecutor, packages
from edgepeft.devices.executors.web.browser import answer_of
from edgepeft.devices.executors.web.folders import bundle_folder, module_folders
from edgepeft.devices.executors.web.gpu import WEBGPU_FLAGS
from edgepeft.pipeline import quantize, write_input_style
from edgepeft.targets import load_target

from .test_web import job, needs_browser
from .test_web_generate import job as speak

pytestmark = [pytest.mark.e2e, pytest.mark.slow, needs_browser]

_DRIVERS = ("/usr/share/vulkan/icd.d", "/usr/local/share/vulkan/icd.d", "/etc/vulkan/icd.d")
_LOADER, _SWIFTSHADER, _ICD = "libvulkan.so.1", "libvk_swiftshader.so", "vk_swiftshader_icd.json"


def llvmpipe() -> str | None:
    """Mesa's library of llvmpipe, as a file of drivers names it: those that the environment lists, or the system's."""
    listed = os.environ.get("VK_DRIVER_FILES") or os.environ.get("VK_ICD_FILENAMES")
    files = (
        map(Path, listed.split(os.pathsep)) if listed else (f for d in _DRIVERS for f in Path(d).glob("lvp_icd*.json"))
    )
    found = (json.loads(file.read_text())["ICD"]["library_path"] for file in files if file.name.startswith("lvp_icd"))
    return next(found, None)


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebGpuExecutor]:
    """The executor over a Chromium whose SwiftShader is llvmpipe."""
    driver, compiler = llvmpipe(), shutil.which("cc")
    homes = (Path(packages.find_browser() or "").resolve().parent, Path("/usr/lib/chromium"))
    home = next(
        (folder for folder in homes if all((folder / name).is_file() for name in (_LOADER, _SWIFTSHADER))), None
    )
    if driver is None or compiler is None or home is None:
        pytest.skip("needs Mesa's llvmpipe (mesa-vulkan-drivers 25 or newer), a C compiler, and Debian's Chromium")
    folder = tmp_path_factory.mktemp("chromium")
    named = folder / "libnamed.so"
    source = Path(__file__).parent / "vulkan" / "named_swiftshader.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", named, source, "-ldl"], check=True)
    for path in home.iterdir():
        if path.name not in {"chromium", _SWIFTSHADER, _ICD}:
            (folder / path.name).symlink_to(path)
    shutil.copyfile(home / "chromium", folder / "chromium")  # it looks for its files beside itself
    (folder / "chromium").chmod(0o755)
    (folder / _SWIFTSHADER).symlink_to(home / _LOADER)
    said = {"file_format_version": "1.0.0", "ICD": {"library_path": str(named), "api_version": "1.3.0"}}
    (folder / _ICD).write_text(json.dumps(said))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEPEFT_NAMED_ICD", driver)
        for name in ("VK_DRIVER_FILES", "VK_ICD_FILENAMES"):
            patch.setenv(name, str(folder / _ICD))
        patch.setenv("EDGEPEFT_CHROMIUM", str(folder / "chromium"))
        found = WebGpuExecutor(load_target("web-webgpu"))
        if not found.halves:
            pytest.skip(f"{found.name} does not compute in float16; Mesa 22.3 has not what WebGPU asks for, 25.0 has")
        yield found


def difference(one: Any, other: Any) -> float:
    return float(np.abs(np.asarray(one, np.float64) - np.asarray(other, np.float64)).max())


@pytest.fixture(scope="module")
def halved(webbed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny classifier with three adapters, in fp16 too."""
    bundle = Path(shutil.copytree(webbed, tmp_path_factory.mktemp("halved") / "bundle"))
    quantize(bundle, "fp16")
    write_input_style(bundle)
    return bundle


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama with two adapters, in q4f16 and fp16 too."""
    bundle = build_causal_bundle(tmp_path_factory.mktemp("language"))
    for variant in ("fp16", "q4", "q4f16"):
        quantize(bundle, variant)
    write_input_style(bundle)
    return bundle


def test_fp16_of_a_classifier(device: WebGpuExecutor, halved: Path) -> None:
    """Reference: fp32 natively. 3e-2: the tiny model's logits are some units, of which float16 keeps three digits."""
    done, exact = device.run(job(halved, variant="fp16")), run_worker(job(halved))
    for there, here in zip(done.rows, exact.rows, strict=True):
        assert 0 < difference(there.logits, here.logits) <= 3e-2
    logits = {rows.adapter: rows.logits for rows in done.rows}
    assert difference(logits["reviews"], logits["movies"]) > 0.1
    assert done.base_restored is True


@pytest.mark.parametrize(("variant", "whole"), [("fp16", "fp32"), ("q4f16", "q4")])
def test_a_language_model(variant: str, whole: str, device: WebGpuExecutor, language: Path) -> None:
    """Reference: the variant that it was made of, there. Texts may part where float16 cannot tell two tokens apart, not at once."""
    prompts = tuple(
        Prompts(
            adapter=name, texts=("good day", "the end of the book was not very good " * 6), max_new_tokens=6, chat=False
        )
        for name in (None, "wide", "narrow")
    )
    asked = speak(language, variant=variant, prompts=prompts)
    done, exact = device.run(asked), device.run(asked.model_copy(update={"variant": whole}))
    pairs = [
        (one, two)
        for there, here in zip(done.generated, exact.generated, strict=True)
        for one, two in zip(there.tokens, here.tokens, strict=True)
    ]
    assert sum(one[0] == two[0] for one, two in pairs) >= len(pairs) - 1, pairs
    assert sum(one == two for one, two in pairs) >= len(pairs) / 2, pairs
    assert len({each.tokens for each in done.generated}) == 3
    assert done.base_restored is True


def test_the_target_picks_it(device: WebGpuExecutor, halved: Path, cli: Callable[..., Result]) -> None:
    done = cli("validate", halved, "--target", "web-webgpu", "--no-reference", "--rows", 4, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["data"]["base_restored"] == {"fp16": True}


_PAGE = """<script type="module">
  let answer;
  try {
    const { openBundle, findGpu } = await import("/web/src/index.js");
    const model = await openBundle("/bundle/", { device: "webgpu" });
    answer = { gpu: await findGpu(), variant: model.variant };
    await model.close();
  } catch (error) {
    answer = { error: String(error) };
  }
  await fetch("/answer", { method: "POST", body: JSON.stringify(answer) });
</script>"""


def test_a_page_picks_it_by_itself(device: WebGpuExecutor, language: Path) -> None:
    """``openBundle`` told a device and no variant: q4f16 before fp16 and fp32, since the GPU has ``shader-f16``."""
    harness = (packages.web_folder() / "harness" / "page.html").read_text(encoding="utf-8")
    page = harness[: harness.index('<script type="module">')] + _PAGE
    folders = {"/bundle/": bundle_folder(language), **module_folders(packages.install(), "harness")}
    with Site(folders, {"/pick.html": page}) as site:
        text, _ = answer_of(str(packages.find_browser()), site, "pick.html", 120, WEBGPU_FLAGS)
    said = json.loads(text)
    assert said.get("variant") == "q4f16", said
    assert said["gpu"]["halves"] is True
