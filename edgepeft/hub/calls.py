"""Calls of the hub's library: its many exceptions as ours, with the way out."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import HubError, InputError, MissingExtraError


def check_repo(repo: str) -> None:
    """:class:`InputError` where ``repo`` is no id of a repository."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", repo) or len(repo) > 96:
        raise InputError(f"{repo!r} is no repository: expected OWNER/NAME, for example me/reviews-bundle")
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        raise InputError("HF_HUB_OFFLINE is set, and this needs the hub: unset it for this command")


@contextmanager
def hub_call(what: str) -> Iterator[None]:
    """Around calls of ``huggingface_hub``; ``what`` begins the message.

    Raises:
        HubError: The hub refused, or cannot be reached.
        MissingExtraError: The library is not installed.
    """
    try:
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError as error:
        raise MissingExtraError(f"the hub needs: pip install 'edgepeft[tools]' ({error})") from error
    try:
        yield
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        remedy = {
            401: ": log in with `hf auth login`, or set HF_TOKEN",
            403: ": the token may not do this; it needs write access to the repository",
            404: ": there is no such repository or revision, or it is private and you are not logged in (`hf auth login`)",
        }.get(status or 0, "")
        raise HubError(f"{what}: the hub answered {status}{remedy} ({said[:200]})") from error
    except (HFValidationError, LocalEntryNotFoundError, OSError) as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise HubError(f"{what}: {said[:300]}. Is the network there? HF_ENDPOINT names another hub") from error
    except Exception as error:
        # The client below the library raises types of its own where a connection fails.
        if type(error).__module__.partition(".")[0] in {"httpx", "httpx2", "httpcore", "httpcore2", "requests"}:
            raise HubError(f"{what}: the hub cannot be reached ({error})") from error
        raise
