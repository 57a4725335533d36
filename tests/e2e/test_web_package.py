"""The npm package: strictly typed, packed with its declarations, and used by a program in TypeScript."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from edgepeft.cache import cache_dir
from edgepeft.devices.executors.web import packages

from .test_web import needs_node

pytestmark = pytest.mark.e2e


@needs_node
def test_the_module_is_strictly_typed(tmp_path: Path) -> None:
    """TypeScript, strict, over the JavaScript and its JSDoc; it also writes the .d.ts files that npm packs.

    The pages and the module's own tests are checked by `make lint-js`.
    """
    lock = packages.packages_folder().name
    tools = cache_dir() / "web" / f"{lock}-dev"
    if not (tools / "node_modules").is_dir():
        staging = tmp_path / "npm"
        staging.mkdir()
        for name in ("package.json", "package-lock.json", ".npmrc"):
            shutil.copyfile(packages.web_folder() / name, staging / name)
        subprocess.run(["npm", "ci", "--ignore-scripts", "--no-audit"], cwd=staging, check=True, capture_output=True)
        tools.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(staging, tools)
    module = Path(
        shutil.copytree(packages.web_folder(), tmp_path / "web", ignore=shutil.ignore_patterns("node_modules", "types"))
    )
    (module / "node_modules").symlink_to(tools / "node_modules")
    tsc = ["node", str(tools / "node_modules" / "typescript" / "bin" / "tsc"), "--project"]
    done = subprocess.run([*tsc, str(module / "tsconfig.json")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "use(adapter: string | Record<string, number> | null" in (module / "types" / "runtime.d.ts").read_text()
    packed = json.loads(
        subprocess.run(["npm", "pack", "--json"], cwd=module, check=True, capture_output=True, text=True).stdout
    )
    names = {entry["path"] for entry in packed[0]["files"]}
    sources = {f"src/{path.name}" for path in (module / "src").glob("*.js")}
    types = {f"types/{name.removeprefix('src/').removesuffix('.js')}.d.ts" for name in sources}
    pages = {f"page/{name}" for name in ("app.js", "index.html", "style.css", "view.js")}
    assert names == {"package.json", "README.md", "LICENSE", *sources, *types, *pages}
    check_consumer(module / packed[0]["filename"], tools, tmp_path / "consumer")


#: A program in TypeScript that uses the package as it is installed; what is wrong in it must be an error.
CONSUMER = """
import { AdapterMismatchError, findGpu, openBundle, type Runtime } from "edgepeft-web";

const model: Runtime = await openBundle("/bundle/", { variant: "int8", device: (await findGpu()) ? "webgpu" : "wasm" });
await model.use("reviews", { scale: 0.5 });
await model.use({ reviews: 0.7, movies: 0.3 }, { head: "reviews" });
const labels: string[] = (await model.predict(["good", ["a", "pair"]])).map((found) => found.label);
const messages = [{ role: "user", content: "hi" }];
const answer = await model.generate(messages, { temperature: 0.7, topK: 20, topP: 0.9, seed: 1, stop: ["x"] });
const finish: "eos" | "length" | "stop" | "cancelled" = answer.finish;
const { logits } = await model.forwardMixed(model.encode(["a", "b"]), ["reviews", null]);
console.log(labels, finish, logits?.dims, new AdapterMismatchError("x").name, model.placement?.cpu);
// @ts-expect-error a weight is a number
await model.use({ reviews: "0.7" });
// @ts-expect-error there is no such device
await openBundle("/bundle/", { device: "tpu" });
// @ts-expect-error there is no such option
await model.generate("x", { top_k: 3 });
"""


def check_consumer(archive: Path, tools: Path, folder: Path) -> None:
    """Type-check a program against the packed package, strictly, its declarations included."""
    own = folder / "node_modules" / "edgepeft-web"
    own.parent.mkdir(parents=True)
    for package in (tools / "node_modules").iterdir():
        if not package.name.startswith("."):
            (own.parent / package.name).symlink_to(package)
    shutil.unpack_archive(archive, folder / "unpacked", "gztar", filter="data")
    (folder / "unpacked" / "package").rename(own)
    (folder / "main.ts").write_text(CONSUMER)
    (folder / "package.json").write_text('{"type": "module"}')
    tsc = ["node", str(tools / "node_modules" / "typescript" / "bin" / "tsc"), "--noEmit", "--strict", "main.ts"]
    options = ["--module", "nodenext", "--target", "es2022", "--lib", "es2023,dom", "--exactOptionalPropertyTypes"]
    done = subprocess.run([*tsc, *options], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
