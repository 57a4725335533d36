"""A report on GitHub: the job's summary, annotations, and one comment on the pull request that each run rewrites.

``action.yml`` runs ``python -m edgepeft.ci.github REPORT.json``; what GitHub tells a job comes from its environment variables.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import EdgepeftError, InputError
from ..html_report.saved import read_report
from ..json_text import json_text
from ..report.gate import Gate, Report, Verdict
from ..report.render import summary, to_markdown

#: GitHub refuses comments above 65,536 characters and job summaries above 1 MiB.
MAX_COMMENT = 65_000
_PER_PAGE = 100
_TIMEOUT_S = 30

_LEVELS = {Verdict.FAIL: "error", Verdict.INCONCLUSIVE: "warning"}


@dataclass(frozen=True)
class PullRequest:
    """Where a comment goes."""

    api: str
    repository: str
    number: int
    token: str

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> PullRequest | None:
        """The pull request that a job runs for; ``None`` for a job of another event, or without a token."""
        event, token = environment.get("GITHUB_EVENT_PATH"), environment.get("GITHUB_TOKEN")
        repository = environment.get("GITHUB_REPOSITORY")
        if not event or not token or not repository:
            return None
        try:
            number = json.loads(Path(event).read_text(encoding="utf-8")).get("pull_request", {}).get("number")
        except (OSError, ValueError, AttributeError) as error:
            raise InputError(f"GITHUB_EVENT_PATH {event} holds no event of GitHub: {error}") from error
        if not isinstance(number, int):
            return None
        return cls(environment.get("GITHUB_API_URL", "https://api.github.com"), repository, number, token)

    def request(self, method: str, path: str, body: Mapping[str, str] | None = None) -> Any:
        """What GitHub's REST interface answers to a call below the repository."""
        call = urllib.request.Request(
            f"{self.api}/repos/{self.repository}/{path}",
            method=method,
            data=None if body is None else json_text(dict(body)).encode(),
            headers={
                "Authorization": f"Bearer {self.token}",
                "Accept": "application/vnd.github+json",
                "X-GitHub-Api-Version": "2022-11-28",
                "Content-Type": "application/json",
            },
        )
        with urllib.request.urlopen(call, timeout=_TIMEOUT_S) as answer:
            return json.loads(answer.read() or b"null")


def publish(report: Report, *, key: str, environment: Mapping[str, str], more: str = "") -> list[str]:
    """Show a report in a job of GitHub Actions.

    Args:
        report: What was judged.
        key: Tells this gate from others of the same pull request, the target's name for example: each has one comment.
        environment: The job's variables: ``GITHUB_STEP_SUMMARY``, ``GITHUB_OUTPUT``, ``GITHUB_EVENT_PATH``,
            ``GITHUB_REPOSITORY``, ``GITHUB_API_URL``, ``GITHUB_TOKEN``. One that is not set leaves out its part.
        more: A line below the summary, where the HTML page can be found for example.

    Returns:
        Lines for the job's log: annotations in GitHub's own form, and what became of the comment.

    Raises:
        InputError: A file that GitHub named cannot be written.
    """
    text = to_markdown(report) + (f"\n{more}\n" if more else "")
    _append(environment.get("GITHUB_STEP_SUMMARY"), text)
    _append(environment.get("GITHUB_OUTPUT"), f"verdict={report.verdict.value}\n")
    lines = [_annotation(gate) for gate in report.gates if not gate.ok]
    pull = PullRequest.of(environment)
    if pull is not None:
        lines.append(_comment(pull, key, report, text))
    return lines


def _append(path: str | None, text: str) -> None:
    if not path:
        return
    try:
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise InputError(f"cannot write {path}, which GitHub named: {error.strerror or error}") from error


def _annotation(gate: Gate) -> str:
    """A gate as a line that GitHub shows beside the change. Newlines and percent signs have GitHub's own escapes."""

    def escaped(text: str, more: str = "") -> str:
        for sign in "%\r\n" + more:
            text = text.replace(sign, f"%{ord(sign):02X}")
        return text

    title, message = escaped(f"edgepeft: {gate.name}", ":,"), escaped(gate.message or gate.verdict.value)
    return f"::{_LEVELS[gate.verdict]} title={title}::{message}"


def _comment(pull: PullRequest, key: str, report: Report, text: str) -> str:
    """Write the gate's comment, or rewrite the one that an earlier run left. A refusal is said and fails nothing."""
    mark = f"<!-- edgepeft {key.replace('--', '-')} -->"
    body = f"{mark}\n{text}"
    if len(body) > MAX_COMMENT:
        elsewhere = "The report is too long for a comment; the job's summary has it."
        body = f"{mark}\n# {report.title}\n\n**{summary(report)}**\n\n{elsewhere}\n"
    try:
        earlier = _earlier(pull, mark)
        if earlier is None:
            pull.request("POST", f"issues/{pull.number}/comments", {"body": body})
            return f"commented on pull request {pull.number}"
        pull.request("PATCH", f"issues/comments/{earlier}", {"body": body})
        return f"rewrote the comment on pull request {pull.number}"
    except (urllib.error.URLError, TimeoutError, ValueError, KeyError, TypeError) as error:
        hint = ""
        if isinstance(error, urllib.error.HTTPError) and error.code in {401, 403, 404}:
            hint = "; the job needs `permissions: pull-requests: write`, which pull requests from forks do not get"
        return f"::notice title=edgepeft::no comment on pull request {pull.number}: {error}{hint}"


def _earlier(pull: PullRequest, mark: str) -> int | None:
    """The comment that starts with ``mark``, on whatever page of them it is."""
    page = 1
    while True:
        found = pull.request("GET", f"issues/{pull.number}/comments?per_page={_PER_PAGE}&page={page}")
        for comment in found:
            if str(comment.get("body", "")).startswith(mark):
                return int(comment["id"])
        if len(found) < _PER_PAGE:
            return None
        page += 1


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m edgepeft.ci.github``: 0 where the report was shown, 2 where it cannot be read."""
    parser = argparse.ArgumentParser(
        prog="python -m edgepeft.ci.github", description="Show a report in a job of GitHub."
    )
    parser.add_argument("report", type=Path, help="the .json that edgepeft check, bench or validate wrote")
    parser.add_argument("--key", default="check", help="tells this gate's comment from those of others")
    parser.add_argument("--more", default="", help="a line below the summary")
    asked = parser.parse_args(arguments)
    try:
        saved = read_report(asked.report)
        for line in publish(saved.report, key=asked.key, environment=os.environ, more=asked.more):
            print(line)
    except EdgepeftError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
