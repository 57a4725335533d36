"""``check --baseline URL``: fetched from a server on this machine, refused where it is not whole, and never shown with secrets."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from stand_in import Device
from test_bench_compare import HOST, TARGET, FakeRunner, flat, make_bundle, save
from test_bench_history import filled

from edgepeft.bench import remote
from edgepeft.bench.remote import local_baseline
from edgepeft.devices import check_on
from edgepeft.errors import InputError
from edgepeft.report.gate import Report

Answer = Callable[[BaseHTTPRequestHandler], None]
ASK = {"variants": ["fp32"], "adapters": ["reviews"], "shapes": ["1x32"]}


@contextmanager
def serving(answers: dict[str, Answer]) -> Iterator[str]:
    """The address of a server with an answer for each path."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            answers.get(self.path.partition("?")[0], lambda handler: handler.send_error(404))(self)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def content(body: bytes, length: int | None = None) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        if length != -1:
            handler.send_header("Content-Length", str(len(body) if length is None else length))
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def leading(to: str) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(302)
        handler.send_header("Location", to)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEPEFT_CACHE", str(tmp_path / "cache"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache" / "baselines"


def check_here(bundle: Path, baseline: str, monkeypatch: pytest.MonkeyPatch) -> Report:
    """``check`` with processes that are made up."""
    device = Device()
    monkeypatch.setattr(device, "run", FakeRunner(flat, drift=0.004))
    monkeypatch.setattr("edgepeft.devices.place.executor_for", lambda target, address=None: device)
    return check_on(bundle, baseline, TARGET, **ASK)


@pytest.mark.parametrize("kind", ["report", "history"])
def test_a_check_against_an_address(kind: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = make_bundle(tmp_path / "b")
    file = save(bundle, tmp_path / "out") if kind == "report" else filled(tmp_path / "runs.db", bundle)
    body = file.read_bytes()
    with serving({f"/main/{file.name}": content(body), "/latest": leading(f"/main/{file.name}")}) as url:
        report = check_here(bundle, f"{url}/latest?token=geheim", monkeypatch)
    digest = hashlib.sha256(body).hexdigest()
    kept = cache / f"{digest[:16]}-latest"
    said = f"the baseline is a copy of {url}/latest: {len(body):,} bytes, sha256 {digest}, kept as {kept}"
    assert report.notes[-1] == said
    assert kept.read_bytes() == body
    assert [path.name for path in cache.iterdir()] == [kept.name], "no part of a download stays"
    assert report.data["paired"] is False
    assert report.data["baseline"]["path"].endswith("b")
    assert "geheim" not in f"{report}"
    assert file.read_bytes() == body, "nothing is written to a baseline"


def test_each_check_asks_anew(tmp_path: Path, cache: Path) -> None:
    answers = {"/bench.json": content(b"one")}
    with serving(answers) as url:
        first, _ = local_baseline(f"{url}/bench.json")
        answers["/bench.json"] = content(b"two")
        second, _ = local_baseline(f"{url}/bench.json")
        assert (first.read_bytes(), second.read_bytes()) == (b"one", b"two")
        assert first.name.endswith("-bench.json")
    assert local_baseline(str(tmp_path)) == (tmp_path, ())
    assert local_baseline("http:/one-slash/x.json") == (Path("http:/one-slash/x.json"), ())


def test_what_is_not_taken(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "MAX_BYTES", 1000)
    answers = {
        "/large": content(b"x" * 1001),
        "/endless": content(b"x" * 5000, length=-1),
        "/short": content(b"x" * 10, length=900),
        "/file": leading("file:///etc/passwd"),
        "/loop": leading("/loop"),
        "/user": leading("ftp://127.0.0.1/x"),
    }
    with serving(answers) as url:
        for path, said in (
            ("/large", "larger than 1,000 bytes"),
            ("/endless", "larger than 1,000 bytes"),
            ("/short", "broke off after 10 of 900 bytes"),
            ("/file", "Redirection to url 'file:///etc/passwd' is not allowed"),
            ("/user", "leads to ftp, which is not followed"),
            ("/loop", "HTTP 302"),
            ("/none", r"HTTP 404 .*A file that takes a login is fetched by the job itself"),
        ):
            with pytest.raises(InputError, match=said) as caught:
                local_baseline(f"{url}{path}?token=geheim")
            assert "geheim" not in str(caught.value)
    assert list(cache.iterdir()) == []
    with pytest.raises(InputError, match=r"cannot fetch the baseline http://127\.0\.0\.1:9/x: "):
        local_baseline("http://127.0.0.1:9/x")
    with pytest.raises(InputError, match="this is no address"):
        local_baseline("http://[x")


def test_a_name_and_a_password_are_not_shown() -> None:
    with pytest.raises(InputError, match=r"cannot fetch the baseline http://127\.0\.0\.1:9/runs\.db: ") as caught:
        local_baseline("http://me:geheim@127.0.0.1:9/runs.db")
    assert "geheim" not in str(caught.value)


def test_https_never_leads_to_http() -> None:
    import urllib.request

    handler, request = remote._SameSafety(), urllib.request.Request("https://here/a")
    with pytest.raises(InputError, match="leads to http, which is not followed from https"):
        handler.redirect_request(request, None, 302, "Found", {}, "http://here/b")  # type: ignore[arg-type] # not used
    led = handler.redirect_request(request, None, 302, "Found", {}, "https://there/b")  # type: ignore[arg-type]
    assert led is not None
    assert led.full_url == "https://there/b"


def test_a_cache_that_cannot_be_written(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with (
        serving({"/x": content(b"x")}) as url,
        pytest.raises(InputError, match="Set EDGEPEFT_CACHE to a folder that can"),
    ):
        local_baseline(f"{url}/x")


def test_a_baseline_from_an_address_is_read_as_one_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = make_bundle(tmp_path / "b")
    other = save(bundle, tmp_path / "out", cpu="Another").read_bytes()
    with serving({"/bench.json": content(other), "/notes.txt": content(b"hello")}) as url:
        with pytest.raises(InputError, match=f"cpu was 'Another', is '{HOST.cpu}'"):
            check_here(bundle, f"{url}/bench.json", monkeypatch)
        with pytest.raises(InputError, match=r"bench report .*notes\.txt"):
            check_here(bundle, f"{url}/notes.txt", monkeypatch)
