"""The demo page over a bundle."""

from __future__ import annotations

import errno
import ipaddress
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlencode

from ....bundle import read_bundle, rereading
from ....errors import BundleError, InputError
from ....quantize.recipes import preferred
from .folders import bundle_folder, module_folders
from .packages import install, web_folder
from .site import Site
from .tls import server_tls


@rereading
def demo_site(
    bundle: str | Path,
    variant: str | None = None,
    port: int = 0,
    announce: Callable[[str], None] = lambda message: None,
    *,
    host: str | None = None,
    certificate: Path | None = None,
    key: Path | None = None,
) -> Site:
    """A site, not yet started, whose first page runs ``bundle`` in the browser.

    Raises :class:`BundleError` where a bundle has no graph for the web, :class:`InputError` where ``port`` is in use, ``host`` is
    no address of this machine or the certificate cannot be read, and :class:`DeviceError` where the pinned packages cannot be
    fetched.
    """
    if certificate is None and key is not None:
        raise InputError("--key goes with --certificate")
    if host is not None:
        try:
            ipaddress.IPv4Address(host)
        except ValueError as error:
            raise InputError(
                f"--host {host}: give an IPv4 address of this machine as a number, or 0.0.0.0 for all"
            ) from error
    tls = None if certificate is None else server_tls(certificate, key)
    opened = read_bundle(bundle)
    variants = opened.manifest.variants
    ready = [name for name, entry in variants.items() if entry.input_file or entry.slots != "overridable"]
    if variant is not None:
        opened.variant(variant)
    if not ready or (variant is not None and variant not in ready):
        raise BundleError(
            f"{opened.path}: {f'variant {variant}' if variant else 'no variant'} has {'no' if variant else 'a'} graph whose slots "
            f"are plain inputs, which ONNX Runtime Web needs. Write it with: edgepeft web prepare {opened.path}"
        )
    # Small first: the page fetches the base before it shows anything.
    first = variant or next((name for name in preferred("browsers") if name in ready), ready[0])
    announce("fetching ONNX Runtime Web with npm (once)")
    packages = install()
    folders = {"/bundle/": bundle_folder(opened.path), **module_folders(packages, "page")}
    page = (web_folder() / "page" / "index.html").read_text(encoding="utf-8")
    try:
        return Site(folders, {"/": page}, port, f"/?{urlencode({'variant': first})}", host=host, tls=tls)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise InputError(f"port {port} is in use; choose another with --port, or 0 for any free one") from error
        if host is not None and error.errno == errno.EADDRNOTAVAIL:
            raise InputError(
                f"--host {host}: this machine has no such address; 0.0.0.0 stands for all it has"
            ) from error
        raise
