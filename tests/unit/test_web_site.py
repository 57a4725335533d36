"""The loopback server that a browser gets a bundle from."""

from __future__ import annotations

import http.client
from pathlib import Path

import pytest

from edgepeft.devices.executors.web import Site


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "secret").write_text("secret")
    served = tmp_path / "served"
    (served / "sub").mkdir(parents=True)
    (served / "a b.js").write_text("export {}")
    (served / "sub" / "model.wasm").write_bytes(b"\0asm")
    (served / "link").symlink_to(tmp_path / "secret")
    return served


def ask(
    site: Site, path: str, method: str = "GET", body: str | None = None, **headers: str
) -> tuple[int, bytes, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", int(site.url.rpartition(":")[2]), timeout=10)
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    found = answer.status, answer.read(), dict(answer.getheaders())
    connection.close()
    return found


def test_files_and_texts(folder: Path) -> None:
    with Site({"/x/": folder}, {"/job.json": "{}", "/": "<p>"}) as site:
        status, body, headers = ask(site, "/x/a%20b.js")
        assert (status, body) == (200, b"export {}")
        assert headers["Content-Type"].startswith("text/javascript")
        assert ask(site, "/x/sub/model.wasm?v=1")[2]["Content-Type"] == "application/wasm"
        assert ask(site, "/job.json")[1] == b"{}"
        assert ask(site, "/")[2]["Content-Type"].startswith("text/html")
        # A page may have threads only where these two stand on it and on all it loads.
        assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
        assert headers["Cross-Origin-Embedder-Policy"] == "require-corp"


@pytest.mark.parametrize(
    "path",
    ["/x/../secret", "/x/%2e%2e/secret", "/x/link", "/x//etc/passwd", "/x/sub", "/x/", "/nowhere", "/x/..%2fsecret"],
)
def test_nothing_outside_the_folders(folder: Path, path: str) -> None:
    with Site({"/x/": folder}) as site:
        status, body, _ = ask(site, path)
        assert status == 404
        assert b"secret" not in body.replace(path.encode(), b"").replace(b"/secret", b"")


def test_only_loopback_names(folder: Path) -> None:
    """A page of another site can make its own name resolve to 127.0.0.1; what it cannot do is lie about that name."""
    with Site({"/x/": folder}) as site:
        assert ask(site, "/x/a%20b.js", Host="evil.example:80")[0] == 403
        assert ask(site, "/answer", "POST", "{}", Host="evil.example:80")[0] == 403
        assert site.answers.empty()


def test_answers(folder: Path) -> None:
    with Site({"/x/": folder}) as site:
        assert ask(site, "/answer", "POST", '{"a": 1}')[0] == 200
        assert site.answers.get(timeout=5) == '{"a": 1}'
        assert ask(site, "/elsewhere", "POST", "{}")[0] == 400
        assert ask(site, "/answer", "POST", **{"Content-Length": "999999999999"})[0] == 400
        assert site.answers.empty()


def test_it_stops(folder: Path) -> None:
    with Site({"/x/": folder}) as site:
        ask(site, "/x/a%20b.js")
    with pytest.raises(ConnectionRefusedError):
        ask(site, "/x/a%20b.js")
