"""Whether a study's storage can be reached, looked at before Optuna and a database's driver are imported."""

from __future__ import annotations

import socket
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from ..errors import InputError

#: Seconds that a database's host has to take a connection; drivers by themselves wait for minutes.
PATIENCE_S = 5.0
#: The ports that databases listen at where the address says none.
_PORTS = {"postgresql": 5432, "mysql": 3306, "mariadb": 3306}
#: Keys of an address that name another place than its host: a socket file, or a service that the driver looks up.
_ELSEWHERE = {"host", "unix_socket", "service"}


def check_reachable(storage: str, shown: str) -> None:
    """Refuse a database whose host takes no connection, and a file in a folder that is not there.

    Args:
        storage: A journal file, or a database's address.
        shown: The same, as messages may say it.

    Raises:
        InputError: It cannot be reached, with what was tried.

    Example:
        >>> check_reachable("postgresql://db:1/studies", "postgresql://db:1/studies")  # doctest: +SKIP
        InputError: the storage postgresql://db:1/studies cannot be reached: nothing takes a connection at db:1 (…)
    """
    if "://" not in storage:
        return
    try:
        parts = urlsplit(storage)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise InputError(
            f"the storage {shown} cannot be reached: it is no address such as postgresql://me:password@host:5432/studies, where "
            "a password's own @, : and / are written as %40, %3A and %2F"
        ) from error
    kind = parts.scheme.partition("+")[0].lower()
    if kind == "sqlite":
        folder = Path(parts.path.removeprefix("/")).parent
        if parts.path and not folder.is_dir():
            raise InputError(f"the storage {shown} cannot be reached: there is no folder {folder}. Make it first")
        return
    port = port or _PORTS.get(kind)
    if host is None or port is None or _ELSEWHERE & set(parse_qs(parts.query)):
        return  # what it is that the driver goes to is not known here
    try:
        socket.create_connection((host, port), timeout=PATIENCE_S).close()
    except OSError as error:
        why = f"none within {PATIENCE_S:g} s" if isinstance(error, TimeoutError) else error.strerror or str(error)
        raise InputError(
            f"the storage {shown} cannot be reached: nothing takes a connection at {host}:{port} ({why}). Is the database up, "
            "and the address right?"
        ) from error
