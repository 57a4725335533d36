"""The Kotlin example, compiled against ONNX Runtime's Android package and run over it.

The package has a library for x86-64, built for Android's C library. It takes ten functions of that, so a small library with
their names, which hands them on to this system's, lets the very binding that Android apps load run here. ONNX Runtime itself
is the one that the Python package brings.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from edgepeft import runtime

from .npm_packages import BINDINGS, package

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

EXAMPLE = Path(__file__).parents[2] / "examples" / "kotlin" / "Classify.kt"
COMPILER = "kotlin-compiler@2.4.20"
TEXTS = ["the film was very good", "a poor , bad end", "not fine"]

#: What the JNI library takes of Android's C library.
C_FUNCTIONS = (
    "__cxa_atexit", "__cxa_finalize", "__register_atfork", "__stack_chk_fail", "dlclose", "free", "malloc", "memcpy", "realloc",
    "strlen",
)  # fmt: skip
C_LIBRARY = """#define _GNU_SOURCE
#include <dlfcn.h>
{entries}
__attribute__((constructor)) static void find(void) {{
  void *c = dlopen("libc.so.6", RTLD_NOW);
{targets}
}}
"""
ORT_LIBRARY = """#include <dlfcn.h>
#include <stdlib.h>
const void *OrtGetApiBase(void) {{
  void *real = dlopen("{real}", RTLD_NOW | RTLD_LOCAL);
  return ((const void *(*)(void))dlsym(real, "OrtGetApiBase"))();
}}
void OrtSessionOptionsAppendExecutionProvider_CPU(void) {{ abort(); }}
void OrtSessionOptionsAppendExecutionProvider_Nnapi(void) {{ abort(); }}
"""


def library(folder: Path, name: str, source: str, version: str, symbols: str) -> None:
    """Compile a shared library whose symbols have a version, as the JNI library asks for them."""
    code, map_ = folder / f"{name}.c", folder / f"{name}.map"
    code.write_text(source)
    map_.write_text(f"{version} {{ {symbols} }};\n")
    subprocess.run(
        ["g++", "-x", "c", "-O1", "-fPIC", "-shared", "-o", folder / f"lib{name}.so", code,
         f"-Wl,--version-script={map_}", f"-Wl,-soname,lib{name}.so"],
        check=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], dict[str, str]]:
    """The command that runs the compiled example, and its environment."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        pytest.skip("the Android package is run on Linux x86-64 only")
    for tool in ("java", "g++"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    folder = tmp_path_factory.mktemp("kotlin")
    with zipfile.ZipFile(package(BINDINGS) / "Plugins" / "Android" / "onnxruntime.aar") as archive:
        for name in ("classes.jar", "jni/x86_64/libonnxruntime4j_jni.so"):
            (folder / Path(name).name).write_bytes(archive.read(name))
    compiler, jar = package(COMPILER) / "lib", folder / "classify.jar"
    done = subprocess.run(
        ["java", "-cp", compiler / "kotlin-compiler.jar", "org.jetbrains.kotlin.cli.jvm.K2JVMCompiler",
         "-kotlin-home", compiler.parent, "-Werror", "-classpath", folder / "classes.jar", "-include-runtime", "-d", jar, EXAMPLE],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    jumps = "\n".join(
        f'__asm__(".globl {name}; .type {name},@function; {name}: jmp *target_{name}(%rip)");\n'
        f"static void *target_{name} __attribute__((used));"
        for name in C_FUNCTIONS
    )
    targets = "\n".join(f'  target_{name} = dlsym(c, "{name}");' for name in C_FUNCTIONS)
    library(
        folder, "c", C_LIBRARY.format(entries=jumps, targets=targets), "LIBC",
        f"global: {' '.join(f'{name};' for name in C_FUNCTIONS)} local: *;",
    )  # fmt: skip
    for name in ("m", "dl"):
        library(folder, name, "", "LIBC", "")
    (real,) = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*")
    library(folder, "onnxruntime", ORT_LIBRARY.format(real=real), "VERS_1.29.0", "global: Ort*; local: *;")
    command = [
        "java",
        f"-Donnxruntime.native.path={folder}",
        "-cp",
        f"{jar}{os.pathsep}{folder / 'classes.jar'}",
        "ClassifyKt",
    ]
    return command, {**os.environ, "LD_LIBRARY_PATH": str(folder), "ORT_DISABLE_TELEMETRY": "1"}


def test_the_example_answers_as_the_runtime_does(bundle: Path, program: tuple[list[str], dict[str, str]]) -> None:
    """Texts of several lengths in one batch, every adapter and the base, adapters after each other in processes of their own."""
    command, settings = program
    manifest = json.loads((bundle / "edgepeft.json").read_text(encoding="utf-8"))
    with runtime.open(bundle, variant="fp32", threads=2) as model:
        ids = [model.base.encode([text])["input_ids"][0].tolist() for text in TEXTS]
        for name in (None, *manifest["adapters"]):
            arguments = [bundle, manifest["variants"]["fp32"]["file"], *([name] if name else [])]
            done = subprocess.run(
                [*command, *map(str, arguments)], input="".join(" ".join(map(str, row)) + "\n" for row in ids),
                capture_output=True, text=True, check=False, env=settings, timeout=120,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            assert done.stderr == "", "no warning of a slot"
            found = np.array(
                [[float(value) for value in line.split()] for line in done.stdout.splitlines()], np.float32
            )
            expected = model.adapter(name).logits(TEXTS)
            assert len({len(row) for row in ids}) > 1
            # The same library and kernels: the batch is padded alike.
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
            assert found.shape[1] == (len(manifest["adapters"][name]["labels"]) if name else expected.shape[1])
