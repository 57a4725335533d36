"""HTTPS for the page, where another device opens it."""

from __future__ import annotations

import ssl
from pathlib import Path

from ....errors import InputError


def server_tls(certificate: Path, key: Path | None) -> ssl.SSLContext:
    """What a server offers with a certificate and its key (PEM; one file may hold both).

    Raises:
        InputError: A file is not there, or they are no certificate and its key without a password.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # An empty password: OpenSSL would ask for one on the terminal.
        context.load_cert_chain(certificate, key, password="")
    except (OSError, ssl.SSLError) as error:
        raise InputError(
            f"{certificate}{f' and {key}' if key else ''} cannot be used for HTTPS ({error.strerror or error}): give a certificate "
            "and its key in PEM, without a password, for example of: mkcert HOST"
        ) from error
    return context
