"""A baseline behind an http or https address: fetched whole into the cache, and never written to."""

from __future__ import annotations

import hashlib
import http.client
import re
import ssl
import tempfile
import time
import urllib.error
import urllib.request
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import unquote, urlsplit

from ..addresses import without_secrets
from ..cache import cache_dir
from ..errors import InputError

#: Most bytes of a report or a history: a run takes some 20 kB, so this holds thousands.
MAX_BYTES = 64 * 2**20
#: Seconds for one answer of the server, and for the whole file.
ANSWER_S, WHOLE_S = 30.0, 300.0
_CHUNK = 1 << 16
_ADVICE = "A file that takes a login is fetched by the job itself (curl, or the artifact step of the CI system); give its path then"


def is_address(baseline: str | Path) -> bool:
    """Whether a baseline is behind http or https. A :class:`~pathlib.Path` never is: it makes one slash of two."""
    return isinstance(baseline, str) and re.match(r"https?://", baseline, re.IGNORECASE) is not None


def local_baseline(baseline: str | Path) -> tuple[Path, tuple[str, ...]]:
    """A baseline as a path on this machine; what is behind http or https is fetched first, each time anew.

    The copy lies in the cache under its SHA-256, so that a report says what was compared with, whatever the address holds later.

    Returns:
        The path, and what reports shall say of where it is from.

    Raises:
        InputError: It cannot be fetched within :data:`WHOLE_S` seconds, is larger than :data:`MAX_BYTES`, or the cache cannot be
            written.
    """
    if not is_address(baseline):
        return Path(baseline), ()
    address = str(baseline)
    shown = _shown(address)
    folder = cache_dir() / "baselines"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".fetch-", delete=False) as file:
            part = Path(file.name)
            try:
                size, digest = _fetch(address, shown, file)
            except BaseException:
                part.unlink(missing_ok=True)
                raise
        kept = folder / f"{digest[:16]}-{_name(address)}"
        part.replace(kept)
    except OSError as error:
        raise InputError(
            f"cannot keep the baseline {shown} in {folder}: {error.strerror or error}. Set EDGEPEFT_CACHE to a folder that can be "
            "written"
        ) from error
    return kept, (f"the baseline is a copy of {shown}: {size:,} bytes, sha256 {digest}, kept as {kept}",)


def _shown(address: str) -> str:
    """The address as messages and reports say it."""
    try:
        return without_secrets(address)
    except ValueError as error:
        raise InputError(f"--baseline: this is no address ({error})") from error


def _name(address: str) -> str:
    """The file's own name, as far as it is fit for one here."""
    name = PurePosixPath(unquote(urlsplit(address).path)).name
    return re.sub(r"[^A-Za-z0-9._-]", "_", name)[-64:].lstrip(".") or "baseline"


class _SameSafety(urllib.request.HTTPRedirectHandler):
    """Follows to http and https alone, and never from https to http."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        before, after = urlsplit(req.full_url).scheme, urlsplit(newurl).scheme
        if after not in ("http", "https") or (before == "https" and after == "http"):
            raise InputError(
                f"the baseline {_shown(req.full_url)} leads to {after}, which is not followed from {before}"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _fetch(address: str, shown: str, file: Any) -> tuple[int, str]:
    """Write what is behind ``address`` to ``file``; its size and its SHA-256."""
    request = urllib.request.Request(address, headers={"User-Agent": f"edgepeft/{version('edgepeft')}"})
    begun, found, size = time.monotonic(), hashlib.sha256(), 0
    try:
        with urllib.request.build_opener(_SameSafety).open(request, timeout=ANSWER_S) as answer:
            said = answer.headers.get("Content-Length")
            while chunk := answer.read(_CHUNK):
                size += len(chunk)
                if size > MAX_BYTES:
                    raise InputError(
                        f"the baseline {shown} is larger than {MAX_BYTES:,} bytes, which no report or history of edgepeft is"
                    )
                if time.monotonic() - begun > WHOLE_S:
                    raise InputError(f"the baseline {shown} did not arrive whole in {WHOLE_S:.0f} s")
                found.update(chunk)
                file.write(chunk)
            if said is not None and said.isdigit() and int(said) != size:
                raise InputError(f"the baseline {shown} broke off after {size:,} of {int(said):,} bytes; try again")
    except urllib.error.HTTPError as error:
        error.close()
        raise InputError(f"cannot fetch the baseline {shown}: HTTP {error.code} {error.reason}. {_ADVICE}") from error
    except urllib.error.URLError as error:
        raise InputError(f"cannot fetch the baseline {shown}: {error.reason}. {_ADVICE}") from error
    except (http.client.HTTPException, ssl.SSLError, TimeoutError, ConnectionError, ValueError) as error:
        raise InputError(
            f"cannot fetch the baseline {shown}: {str(error) or type(error).__name__}. {_ADVICE}"
        ) from error
    return size, found.hexdigest()
