"""The loopback server that a browser gets a bundle from."""

from __future__ import annotations

import http.client
import os
import re
import socket
import ssl
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

import pytest

from edgepeft.devices.executors.web import Site, demo_site
from edgepeft.devices.executors.web import site as site_module
from edgepeft.devices.executors.web.folders import Folder, all_files
from edgepeft.devices.executors.web.server import WORKERS
from edgepeft.devices.executors.web.site import machine_address
from edgepeft.devices.executors.web.tls import server_tls
from edgepeft.errors import InputError


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
    with Site({"/x/": all_files(folder)}, {"/job.json": "{}", "/": "<p>"}) as site:
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
    with Site({"/x/": all_files(folder)}) as site:
        status, body, _ = ask(site, path)
        assert status == 404
        assert b"secret" not in body.replace(path.encode(), b"").replace(b"/secret", b"")


def test_only_loopback_names(folder: Path) -> None:
    """A page of another site can make its own name resolve to 127.0.0.1; what it cannot do is lie about that name."""
    with Site({"/x/": all_files(folder)}) as site:
        site.expect_answer()
        for host in (
            "evil.example:80",
            "localhost.evil.example",
            "localhost@evil.example",
            "localhost:80.evil.example",
            "evil",
        ):
            assert ask(site, "/x/a%20b.js", Host=host)[0] == 403
            assert ask(site, "/answer", "POST", "{}", Host=host, Origin=f"http://{host}")[0] == 403
        assert site.answers.empty()
        for host in ("localhost", "localhost:9000", "127.0.0.1:1"):  # a forwarded port has another number
            assert ask(site, "/x/a%20b.js", Host=host)[0] == 200


def post(site: Site, body: str, path: str = "/answer", **headers: str) -> int:
    """What a page of the site itself posts."""
    host = site.url.removeprefix("http://")
    return ask(site, path, "POST", body, **{"Host": host, "Origin": site.url, **headers})[0]


def test_answers(folder: Path) -> None:
    with Site({"/x/": all_files(folder)}) as site:
        site.expect_answer()
        assert post(site, '{"a": 1}') == 200
        assert site.answers.get(timeout=5) == '{"a": 1}'
        assert post(site, "{}", "/elsewhere") == 400
        assert post(site, "", **{"Content-Length": "999999999999"}) == 413
        assert site.answers.empty()


def test_no_answer_is_taken_that_nobody_awaits(folder: Path) -> None:
    with Site({}) as site:
        assert post(site, "{}") == 400
        assert site.answers.empty()
        site.expect_answer()
        assert post(site, "first") == 200
        assert post(site, "second") == 409
        assert site.answers.get(timeout=5) == "first"
        assert site.answers.empty()


@pytest.mark.parametrize("origin", [None, "null", "http://evil.example", "http://localhost:1", "http://localhost"])
def test_only_pages_of_the_site_post(origin: str | None) -> None:
    """Browsers send the Origin with every POST. Another port of this machine is another site."""
    with Site({}) as site:
        site.expect_answer()
        headers = {"Host": site.url.removeprefix("http://"), **({} if origin is None else {"Origin": origin})}
        assert ask(site, "/answer", "POST", "{}", **headers)[0] == 403
        assert site.answers.empty()


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/", {}, 200),
        ("/", {"Sec-Fetch-Site": "none", "Sec-Fetch-Dest": "document"}, 200),
        ("/", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Dest": "document"}, 200),  # a link to the page
        ("/", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Dest": "iframe"}, 403),
        ("/x/a%20b.js", {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Dest": "script"}, 200),
        ("/x/a%20b.js", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Dest": "script"}, 403),
        ("/x/a%20b.js", {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Dest": "empty"}, 403),  # another port of localhost
        ("/x/a%20b.js", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Dest": "document"}, 403),
        ("/x/a%20b.js", {"Origin": "http://evil.example"}, 403),
    ],
)
def test_no_page_of_another_site_fetches(folder: Path, path: str, headers: dict[str, str], status: int) -> None:
    with Site({"/x/": all_files(folder)}, {"/": "<p>"}) as site:
        found, _, sent = ask(site, path, **headers)
        assert found == status
        assert sent["Cross-Origin-Resource-Policy"] == "same-origin"
        assert sent["Content-Security-Policy"] == "frame-ancestors 'none'"


def test_only_listed_files(folder: Path, tmp_path: Path) -> None:
    """What a list leaves out is not there, and what it names must be a file in the folder when it is asked for."""
    names = {"a b.js", "sub/model.wasm", "../secret", "link", "sub", "pipe", "gone.js", "way/model.wasm"}
    (folder / "unlisted.js").write_text("secret")
    os.mkfifo(folder / "pipe")
    (folder / "way").symlink_to(folder / "sub")  # stays in the folder
    with Site({"/x/": Folder(folder, names)}) as site:
        for path, status in {
            "a b.js": 200, "sub/model.wasm": 200, "way/model.wasm": 200, "unlisted.js": 404, "../secret": 404, "link": 404,
            "sub": 404,            "pipe": 404, "gone.js": 404, "sub/../a b.js": 404,
            "./a b.js": 404, "a b.js/": 404, "a b.js\0": 404,
        }.items():  # fmt: skip
            assert ask(site, "/x/" + quote(path))[0] == status, path
        assert ask(site, "/y/a%20b.js")[0] == 404


def raw(site: Site, text: bytes) -> socket.socket:
    """A connection on which ``text`` was sent."""
    connection = socket.create_connection(("127.0.0.1", int(site.url.rpartition(":")[2])), timeout=30)
    connection.sendall(text)
    return connection


def everything(connection: socket.socket) -> bytes:
    """All that the server says until it closes the connection; a time-out where it does not close it."""
    found = b""
    with connection, suppress(ConnectionResetError):  # it closed while more was coming
        while chunk := connection.recv(1 << 16):
            found += chunk
    return found


def statuses(found: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+) ", found)]


HOST = b"Host: localhost\r\n"
POST = b"POST /answer HTTP/1.1\r\n" + HOST + b"Origin: http://localhost\r\n"
NEXT = b"GET / HTTP/1.1\r\n" + HOST + b"\r\n"


@pytest.mark.parametrize(
    ("text", "status"),
    [
        (b"GET / HTTP/1.1\r\n" + HOST + b"X: " + b"x" * 40_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\n" + HOST + b"X: y\r\n" * 8_000 + b"\r\n", 431),
        (b"GET /" + b"x" * 40_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\n" + HOST + b"X: y\r\n" * 150 + b"\r\n", 431),  # http.server's own limit
        (b"GET / HTTP/1.1\r\n\r\n", 403),
        (b"GET / HTTP/1.1\r\n" + HOST + HOST + b"\r\n", 400),
        (b"GET http://localhost/ HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\n" + HOST + b"\r\n", 505),
        *((method + b" / HTTP/1.1\r\n" + HOST + b"\r\n", 405) for method in (b"PUT", b"DELETE", b"OPTIONS", b"TRACE", b"HEAD")),
        # What follows would be the next request for one program and the body of this one for another.
        (b"GET / HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\n\r\nGET /", 400),
        (b"GET / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 411),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 411),
        (POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400),
        *(
            (POST + b"Content-Length: " + length + b"\r\n\r\n", status)
            for length, status in ((b"-1", 411), (b"+1", 411), (b"\xb2", 411), (b"1_0", 411), (b"", 411), (b"9" * 5_000, 413))
        ),
        (POST + b"\r\n", 411),
    ],
)  # fmt: skip
def test_what_is_refused_ends_the_connection(text: bytes, status: int) -> None:
    """Nothing that follows is read as a request of its own."""
    with Site({}, {"/": "<p>"}) as site:
        site.expect_answer()
        # A connection that is closed before all of it was read may be reset, and its answer lost with it.
        assert statuses(everything(raw(site, text + NEXT))) in ([status], [])
        if status != 431:
            assert statuses(everything(raw(site, text))) == [status]
        assert site.answers.empty()
        assert ask(site, "/")[0] == 200


def test_one_connection_serves_many(folder: Path) -> None:
    with Site({"/x/": all_files(folder)}, {"/": "<p>"}) as site:
        wasm = b"GET /x/sub/model.wasm HTTP/1.1\r\n" + HOST + b"\r\n"
        last = b"GET /nowhere HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n"
        found = everything(raw(site, NEXT + wasm + last))
        assert statuses(found) == [200, 200, 404]
        assert found.count(b"\0asm") == 1


def drip(connection: socket.socket) -> None:
    """Send a byte now and then: for a minute, where nobody ends it."""
    for _ in range(3_000):
        connection.sendall(b"x")
        time.sleep(0.02)


def test_a_client_that_takes_its_time_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte comes within the time-out of the socket; all of them together do not come in time."""
    monkeypatch.setattr(site_module, "_HEAD_S", 0.2)
    monkeypatch.setattr(site_module, "_BODY_S", 0.2)
    heads = POST + b"Content-Length: 1000000\r\n\r\n"
    with Site({}, {"/": "<p>"}) as site:
        site.expect_answer()
        for begin in (b"", b"GET / HTTP/1.1\r\n", heads):
            connection = raw(site, begin)
            with pytest.raises(ConnectionError):
                drip(connection)
            connection.close()
        assert site.answers.empty()
        assert ask(site, "/")[0] == 200


def test_as_many_clients_as_there_are_workers(folder: Path) -> None:
    """Clients that only connect take no more than their workers, and what comes then is told so. Leaving ends them all."""
    before = threading.active_count()
    with Site({"/x/": all_files(folder)}, {"/": "<p>"}) as site:
        held = [raw(site, b"") for _ in range(WORKERS)]
        for _ in range(3):
            assert statuses(everything(raw(site, b""))) == [503]
        assert threading.active_count() <= before + 1 + WORKERS
        held.pop().close()
        for _ in range(500):  # until its worker has seen it
            connection = raw(site, NEXT.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
            if (found := statuses(everything(connection))) == [200]:
                break
            time.sleep(0.02)
        assert found == [200]
    assert [everything(connection) for connection in held] == [b""] * (WORKERS - 1)
    assert threading.active_count() == before


def test_a_file_that_shrinks_ends_the_connection(folder: Path) -> None:
    """A browser sees that the answer is short; what follows would be read as the rest of it."""

    class Shrinking(Folder):
        def open(self, name: str) -> tuple[BinaryIO, int] | None:
            found = super().open(name)
            return None if found is None else (found[0], found[1] + 100)

    with Site({"/x/": Shrinking(folder, {"a b.js"})}, {"/": "<p>"}) as site:
        found = everything(raw(site, b"GET /x/a%20b.js HTTP/1.1\r\n" + HOST + b"\r\n" + NEXT))
        assert statuses(found) == [200]
        assert found.endswith(b"export {}")


def test_it_stops(folder: Path) -> None:
    with Site({"/x/": all_files(folder)}) as site:
        ask(site, "/x/a%20b.js")
    with pytest.raises(ConnectionRefusedError):
        ask(site, "/x/a%20b.js")


def test_a_page_that_is_read_while_it_stops(tmp_path: Path) -> None:
    """A browser that stopped reading in the middle of a file does not keep the site from ending."""
    with (tmp_path / "large.wasm").open("wb") as file:
        file.truncate(64 << 20)
    with Site({"/x/": all_files(tmp_path)}) as site:
        connection = raw(site, b"GET /x/large.wasm HTTP/1.1\r\n" + HOST + b"\r\n")
        assert connection.recv(15) == b"HTTP/1.1 200 OK"
    connection.close()


def test_another_device_is_served_by_consent_alone(folder: Path) -> None:
    with Site({"/x/": all_files(folder)}, {"/": "<p>"}, host="0.0.0.0") as site:
        assert site.url == f"http://{machine_address()}:{site.port}"
        for host, status in {
            f"{machine_address()}:{site.port}": 200, "192.168.7.9": 200, "localhost": 200, "edge.example": 403,
            "192.168.7.9.example": 403, "192.168.7": 403, "[::1]": 403, "192.168.7.9:80.evil": 403,
        }.items():  # fmt: skip
            assert ask(site, "/", Host=host)[0] == status, host
        other = {"Host": "192.168.7.9", "Origin": "http://192.168.7.8"}
        assert ask(site, "/x/a%20b.js", **other)[0] == 403
    with Site({}, {"/": "<p>"}, host="127.0.0.1") as site:
        assert ask(site, "/", Host="127.0.0.1")[0] == 200
        assert ask(site, "/", Host="192.168.7.9")[0] == 403, "an address that is not listened at"


def test_https_with_a_certificate_and_a_client_that_says_nothing(folder: Path, tmp_path: Path) -> None:
    certificate = tmp_path / "both.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", tmp_path / "key.pem", "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    certificate.write_text(certificate.read_text() + (tmp_path / "key.pem").read_text())
    with Site({"/x/": all_files(folder)}, {"/": "<p>"}, tls=server_tls(certificate, None)) as site:
        assert site.url.startswith("https://localhost:")
        with socket.create_connection(("127.0.0.1", site.port)):  # it never says hello
            client = http.client.HTTPSConnection(
                "localhost", site.port, timeout=30, context=ssl.create_default_context(cafile=certificate)
            )
            for _ in range(2):
                client.request("GET", "/x/sub/model.wasm", headers={"Origin": site.url})
                answer = client.getresponse()
                assert (answer.status, answer.read()) == (200, b"\0asm")
            client.close()


@pytest.mark.parametrize("broken", ["no file", "no certificate", "no key"])
def test_certificates_that_cannot_be_used(tmp_path: Path, broken: str) -> None:
    path = tmp_path / "c.pem"
    if broken != "no file":
        path.write_text(
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n" if broken == "no key" else "mine"
        )
    with pytest.raises(InputError, match=r"c\.pem cannot be used for HTTPS .*mkcert HOST"):
        server_tls(path, None)
    with pytest.raises(InputError, match="--key goes with --certificate"):
        demo_site(tmp_path, key=path)


@pytest.mark.parametrize(
    ("host", "says"),
    [("edge.example", "give an IPv4 address of this machine"), ("::", "give an IPv4"), ("1.2.3", "give an IPv4")],
)
def test_hosts_that_are_no_address(tmp_path: Path, host: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        demo_site(tmp_path, host=host)
