"""Which GPU a headless browser gives to pages."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass

from ....errors import DeviceError
from .browser import answer_of
from .site import Site

#: Without the first, Chromium on Linux offers pages no WebGPU; with it, SwiftShader where there is no GPU. No GPU is on the list
#: of those that Chromium avoids because it draws wrongly with them: that is not what it is used for here.
WEBGPU_FLAGS = ("--enable-unsafe-webgpu", "--ignore-gpu-blocklist")
_TIMEOUT_S = 30.0
_PAGE = """<!doctype html>
<meta charset="utf-8">
<title>edgepeft asks for a GPU</title>
<script type="module">
  let answer;
  try {
    const adapter = await navigator.gpu?.requestAdapter();
    const { vendor, architecture, isFallbackAdapter } = adapter?.info ?? {};
    const halves = adapter?.features.has("shader-f16") ?? false;
    answer = adapter ? { vendor, architecture, software: isFallbackAdapter || architecture === "swiftshader", halves } : {};
  } catch (error) {
    answer = { error: String(error) };
  }
  await fetch("/answer", { method: "POST", body: JSON.stringify(answer) });
</script>
"""


@dataclass(frozen=True)
class Gpu:
    """A GPU as WebGPU names it.

    ``software`` where a program on the CPU stands in for one, ``halves`` where it computes in float16 (``shader-f16``).
    """

    name: str
    software: bool
    halves: bool = False


@functools.cache
def find_gpu(browser: str) -> Gpu | None:
    """The adapter that a page in ``browser`` gets; asked once a process, in a second or so. ``None``: none."""
    with Site({}, {"/gpu.html": _PAGE}) as site:
        try:
            text, _ = answer_of(browser, site, "gpu.html", _TIMEOUT_S, WEBGPU_FLAGS)
        except DeviceError:
            return None  # a browser that does not run has none; running a job says why
    answer = json.loads(text)
    if "vendor" not in answer:
        return None
    name = " ".join(part for part in (answer["vendor"], answer["architecture"]) if part)
    return Gpu(name or "a GPU that is not named", bool(answer["software"]), bool(answer["halves"]))
