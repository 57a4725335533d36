"""``edgepeft web serve``: a page on localhost to try a bundle."""

from __future__ import annotations

from pathlib import Path

import click
import cloup
from cloup import option, option_group

from ..guarded import guarded
from ..options import PATH, bundle_argument
from ..show import steps, warn


@cloup.command()
@bundle_argument
@option_group(
    "What",
    option(
        "--variant", metavar="NAME", show_default="int8, else q4, else fp32", help="The variant the page opens first."
    ),
)
@option_group(
    "Where",
    option("--port", type=click.IntRange(0, 65535), default=8765, metavar="PORT", help="Port; 0: any free one."),
    option(
        "--host",
        metavar="ADDRESS",
        show_default="this machine alone",
        help="Let other devices of the network open the page and read the bundle, at this address of the machine; 0.0.0.0: at "
        "all of them.",
    ),
    option(
        "--certificate",
        type=PATH,
        metavar="FILE",
        help="Serve HTTPS with this certificate (PEM), which browsers ask for on other devices.",
    ),
    option(
        "--key",
        type=PATH,
        metavar="FILE",
        show_default="in the certificate",
        help="The certificate's private key (PEM).",
    ),
)
@guarded
def serve(
    bundle: Path, variant: str | None, port: int, host: str | None, certificate: Path | None, key: Path | None
) -> None:
    """Serve a page to try a bundle, on localhost.

    Type a text, switch adapters, see outputs and milliseconds. Everything runs in the browser. Ctrl-C stops it. ONNX
    Runtime Web is fetched once with npm, at the versions that are pinned.
    """
    from ...devices.executors.web import demo_site

    with steps() as announce:
        site = demo_site(bundle, variant, port, announce, host=host, certificate=certificate, key=key)
    if host is not None:
        warn(f"everybody who reaches {site.url} can read {bundle}, until Ctrl-C")
        if certificate is None:
            warn(
                "browsers check hashes and use threads on https:// and localhost pages only: give --certificate, or forward the "
                f"port (Android: adb reverse tcp:{site.port} tcp:{site.port}, then http://localhost:{site.port}) without --host"
            )
    with site:
        click.echo(f"{site.url}{site.start}  (Ctrl-C stops it)")
        site.wait()
