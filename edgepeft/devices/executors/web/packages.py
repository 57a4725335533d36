"""The JavaScript half: where its sources are, its packages, and the programs that run it."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from ....cache import cache_dir
from ....errors import DeviceError
from ....targets import shipped_folder
from ..protocol import Missing

#: Names under which a Chromium is installed; ``$EDGEPEFT_CHROMIUM`` comes first.
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")
_MACOS = Path("/Applications/Google Chrome.app/Contents/MacOS/Google Chrome")
_NPM_TIMEOUT_S = 300
_MIN_NODE = 20


def web_folder() -> Path:
    """The sources of the ``edgepeft-web`` module and its pages."""
    return shipped_folder() / "web"


def packages_folder() -> Path:
    """Where the pinned packages of the lock file are, or will be."""
    lock = (web_folder() / "package-lock.json").read_bytes()
    return cache_dir() / "web" / hashlib.sha256(lock).hexdigest()[:16]


def install() -> Path:
    """The folder whose ``node_modules`` holds the pinned packages; fetched once into the cache.

    npm checks each package against the lock file's hashes and runs none of their install scripts. Raises
    :class:`DeviceError` with npm's own words where it cannot.
    """
    folder = packages_folder()
    if (folder / "node_modules").is_dir():
        return folder
    npm = shutil.which("npm")
    if npm is None:
        raise DeviceError(f"{missing_npm().what}: {missing_npm().remedy}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".npm.", dir=folder.parent))
    try:
        for name in ("package.json", "package-lock.json", ".npmrc"):
            shutil.copyfile(web_folder() / name, staging / name)
        _npm([npm, "ci", "--omit=dev", "--ignore-scripts", "--no-audit", "--no-fund"], staging)
        try:
            staging.rename(folder)
        except OSError:
            # Another process was quicker; what it installed is the same.
            if not (folder / "node_modules").is_dir():
                raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return folder


def _npm(command: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, encoding="utf-8", errors="replace", timeout=_NPM_TIMEOUT_S
        )
    except subprocess.TimeoutExpired as error:
        raise DeviceError(
            f"npm did not finish in {_NPM_TIMEOUT_S} s; is its registry reachable? Try again, or copy {packages_folder()} from "
            "a machine that has it"
        ) from error
    if done.returncode != 0:
        tail = "\n".join(line for line in done.stderr.strip().splitlines() if "warn" not in line)[-600:]
        raise DeviceError(
            f"npm could not install the pinned packages (exit code {done.returncode}); is its registry reachable? Try again, or "
            f"copy {packages_folder()} from a machine that has it. {tail}"
        )


def find_node() -> str | None:
    """Node, if it is new enough."""
    node = shutil.which("node")
    if node is None:
        return None
    done = subprocess.run([node, "--version"], capture_output=True, text=True, timeout=20, check=False)
    major = done.stdout.strip().removeprefix("v").partition(".")[0]
    return node if major.isdigit() and int(major) >= _MIN_NODE else None


def find_browser() -> str | None:
    """A Chromium: ``$EDGEPEFT_CHROMIUM``, or one that is installed."""
    named = os.environ.get("EDGEPEFT_CHROMIUM")
    if named:
        return shutil.which(named)
    browser = next((path for name in _BROWSERS if (path := shutil.which(name))), None)
    return browser or (str(_MACOS) if _MACOS.is_file() else None)


def _with(linux: str, macos: str) -> str:
    return macos if sys.platform == "darwin" else linux


def missing_browser() -> Missing:
    """What to do where there is no browser."""
    named = os.environ.get("EDGEPEFT_CHROMIUM")
    what = f"no browser at EDGEPEFT_CHROMIUM={named}" if named else "no Chromium on the PATH"
    return Missing(
        what,
        _with("sudo apt-get install chromium", "brew install --cask chromium")
        + ", or set EDGEPEFT_CHROMIUM to the path of a Chrome or Chromium",
    )


def missing_npm() -> Missing:
    """What to do where there is no npm."""
    return Missing(
        "no npm, which fetches ONNX Runtime Web once", _with("sudo apt-get install npm", "brew install node")
    )


def missing_node() -> Missing:
    """What to do where there is no Node."""
    return Missing(f"no Node {_MIN_NODE} or newer", _with("https://nodejs.org/en/download", "brew install node"))


def missing_packages() -> tuple[Missing, ...]:
    """npm, where the packages are still to be fetched with it."""
    there = (packages_folder() / "node_modules").is_dir()
    return () if there or shutil.which("npm") else (missing_npm(),)
