"""A report in a job of GitHub: summary, outputs, annotations, and one comment that each run rewrites."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from edgepeft.ci.github import MAX_COMMENT, main, publish
from edgepeft.errors import InputError
from edgepeft.report import to_markdown, write_reports
from edgepeft.report.gate import Gate, Report, Table

REPORT = Report(
    "check",
    "Check of new against old",
    (
        Gate.holds("parity: a, b", False, "100 % off\nsee above"),
        Gate.undecided("latency", "too few rounds"),
        Gate.at_most("size", 3.0, 4.0, "MB"),
    ),
)


class Comments(BaseHTTPRequestHandler):
    """The part of GitHub's interface that holds the comments of pull request 7."""

    server: Any

    def answer(self, value: object, code: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def handled(self) -> dict[str, str]:
        self.server.calls.append((self.command, self.path, self.headers["Authorization"]))
        return json.loads(self.rfile.read(int(self.headers["Content-Length"] or 0)) or b"{}")

    def do_GET(self) -> None:
        self.handled()
        page = int(self.path.rpartition("=")[2])
        listed = [{"id": key, "body": body} for key, body in self.server.comments.items()]
        self.answer(listed[(page - 1) * 100 : page * 100])

    def do_POST(self) -> None:
        body = self.handled()["body"]
        if self.server.refused:
            return self.answer({"message": "Resource not accessible by integration"}, 403)
        self.server.comments[len(self.server.comments) + 1] = body
        return self.answer({}, 201)

    def do_PATCH(self) -> None:
        body = self.handled()["body"]
        self.server.comments[int(self.path.rpartition("/")[2])] = body
        self.answer({})

    def log_message(self, *_: object) -> None:
        """Say nothing in the test's output."""


@pytest.fixture
def github() -> Iterator[Any]:
    server: Any = HTTPServer(("127.0.0.1", 0), Comments)
    server.comments, server.calls, server.refused = {}, [], False
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def environment(github: Any, tmp_path: Path) -> dict[str, str]:
    event = tmp_path / "event.json"
    event.write_text(json.dumps({"pull_request": {"number": 7}}), encoding="utf-8")
    return {
        "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md"),
        "GITHUB_OUTPUT": str(tmp_path / "output"),
        "GITHUB_EVENT_PATH": str(event),
        "GITHUB_REPOSITORY": "someone/model",
        "GITHUB_API_URL": f"http://127.0.0.1:{github.server_port}",
        "GITHUB_TOKEN": "secret",
    }


def test_summary_output_and_annotations(environment: dict[str, str]) -> None:
    lines = publish(REPORT, key="check", environment=environment, more="more")
    assert Path(environment["GITHUB_STEP_SUMMARY"]).read_text(encoding="utf-8") == to_markdown(REPORT) + "\nmore\n"
    assert Path(environment["GITHUB_OUTPUT"]).read_text(encoding="utf-8") == "verdict=fail\n"
    assert lines[:2] == [
        "::error title=edgepeft%3A parity%3A a%2C b::100 %25 off%0Asee above",
        "::warning title=edgepeft%3A latency::too few rounds",
    ]


def test_one_comment_a_gate_is_rewritten(github: Any, environment: dict[str, str]) -> None:
    github.comments.update(dict.fromkeys(range(1, 131), "a person's words"))
    assert publish(REPORT, key="check", environment=environment)[-1] == "commented on pull request 7"
    publish(REPORT, key="phone", environment=environment)
    later = Report("check", "Check of newer against old", (Gate.holds("parity", True),))
    assert publish(later, key="check", environment=environment)[-1] == "rewrote the comment on pull request 7"
    ours = {key: body for key, body in github.comments.items() if "edgepeft" in body}
    assert list(ours) == [131, 132]
    assert ours[131].startswith("<!-- edgepeft check -->\n# Check of newer against old")
    assert ours[132].startswith("<!-- edgepeft phone -->\n# Check of new against old")
    assert {token for _, _, token in github.calls} == {"Bearer secret"}


def test_a_long_report_leaves_the_comment_readable(github: Any, environment: dict[str, str]) -> None:
    table = Table("rows", ("text",), (("x" * MAX_COMMENT,),))
    publish(Report("check", "long", REPORT.gates, (table,)), key="check", environment=environment)
    (body,) = github.comments.values()
    assert "❌ fail: 1 gate fails, 1 gate is inconclusive, 1 gate passes" in body
    assert "too long for a comment" in body
    assert len(Path(environment["GITHUB_STEP_SUMMARY"]).read_text(encoding="utf-8")) > MAX_COMMENT


def test_a_refused_comment_fails_nothing_and_names_the_right(github: Any, environment: dict[str, str]) -> None:
    github.refused = True
    assert "pull-requests: write" in publish(REPORT, key="check", environment=environment)[-1]
    environment["GITHUB_API_URL"] = "http://127.0.0.1:9"
    assert publish(REPORT, key="check", environment=environment)[-1].startswith("::notice title=edgepeft::no comment")


@pytest.mark.parametrize("gone", ["GITHUB_TOKEN", "GITHUB_EVENT_PATH", "GITHUB_REPOSITORY"])
def test_jobs_that_have_no_pull_request(gone: str, github: Any, environment: dict[str, str]) -> None:
    del environment[gone]
    assert len(publish(REPORT, key="check", environment=environment)) == 2
    assert github.calls == []


def test_a_push_has_no_comment(github: Any, environment: dict[str, str]) -> None:
    Path(environment["GITHUB_EVENT_PATH"]).write_text('{"ref": "refs/heads/main"}', encoding="utf-8")
    publish(REPORT, key="check", environment=environment)
    assert github.calls == []


def test_bad_files_are_named(environment: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path(environment["GITHUB_EVENT_PATH"]).write_text("[", encoding="utf-8")
    with pytest.raises(InputError, match="holds no event of GitHub"):
        publish(REPORT, key="check", environment=environment)
    environment["GITHUB_STEP_SUMMARY"] = str(tmp_path / "no" / "summary.md")
    with pytest.raises(InputError, match=r"cannot write .*summary\.md"):
        publish(REPORT, key="check", environment=environment)
    assert main([str(tmp_path / "none.json")]) == 2
    assert "none.json" in capsys.readouterr().err


def test_the_module_runs_on_a_saved_report(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    files = write_reports(tmp_path, "check", REPORT)
    assert main([str(files.json), "--key", "phone"]) == 0
    assert "commented on pull request 7" in capsys.readouterr().out
