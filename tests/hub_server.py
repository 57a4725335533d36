"""A stand-in for the Hugging Face hub: repositories in memory, over the calls that uploading and downloading make."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class Hub:
    """What the server holds: by repository, the files of each commit, oldest first."""

    url: str = ""
    commits: dict[str, list[dict[str, bytes]]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    #: The token that writing takes; none where it is empty.
    token: str = ""

    def files(self, repo: str) -> dict[str, bytes]:
        return self.commits[repo][-1]


def commit_id(repo: str, place: int) -> str:
    return hashlib.sha1(f"{repo}{place}".encode()).hexdigest()


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub on a port of its own."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def answer(self, code: int, body: Any = b"", **headers: str) -> None:
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(code)
            self.send_header("Content-Length", headers.pop("length", str(len(content))))
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = urlsplit(self.path).path
            hub.requests.append(f"POST {path}")
            if hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
                self.answer(401, {"error": "Invalid credentials"})
                return
            if path == "/api/validate-yaml":
                self.answer(200, {"errors": [], "warnings": []})
                return
            if path == "/api/repos/create":
                made = json.loads(body)
                repo = f"{made['organization']}/{made['name']}" if made.get("organization") else made["name"]
                if repo in hub.commits:
                    self.answer(409, {"error": "exists", "url": f"{hub.url}/{repo}"})
                    return
                hub.commits[repo] = [{}]
                hub.private[repo] = made.get("visibility") == "private" or bool(made.get("private"))
                self.answer(200, {"url": f"{hub.url}/{repo}", "id": repo})
                return
            parts = path.removeprefix("/api/models/").split("/")
            repo, action = "/".join(parts[:2]), parts[2] if len(parts) > 2 else ""
            if action == "preupload":
                asked = json.loads(body)["files"]
                self.answer(
                    200, {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked]}
                )
            elif action == "commit":
                files = dict(hub.commits[repo][-1])
                for line in body.decode().splitlines():
                    entry = json.loads(line)
                    value = entry["value"]
                    if entry["key"] == "file":
                        files[value["path"]] = base64.b64decode(value["content"])
                    elif entry["key"] == "deletedFile":
                        files.pop(value["path"])
                hub.commits[repo].append(files)
                oid = commit_id(repo, len(hub.commits[repo]) - 1)
                self.answer(200, {"commitUrl": f"{hub.url}/{repo}/commit/{oid}", "commitOid": oid, "success": True})
            else:
                self.answer(404, {"error": path})

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append(f"{self.command} {path}")
            if path.startswith("/api/models/"):
                parts = path.removeprefix("/api/models/").split("/")
                repo = "/".join(parts[:2])
                if repo not in hub.commits:
                    self.answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
                    return
                revision = parts[3] if len(parts) > 3 else "main"
                place = self.place(repo, revision)
                if place is None:
                    self.answer(404, {"error": "Invalid rev"}, X_Error_Code="RevisionNotFound")
                    return
                files = hub.commits[repo][place]
                if len(parts) > 2 and parts[2] == "tree":
                    self.answer(
                        200,
                        [
                            {"type": "file", "path": n, "size": len(c), "oid": hashlib.sha1(c).hexdigest()}
                            for n, c in files.items()
                        ],
                    )
                    return
                self.answer(
                    200,
                    {
                        "id": repo,
                        "modelId": repo,
                        "sha": commit_id(repo, place),
                        "private": hub.private[repo],
                        "tags": [],
                        "downloads": 0,
                        "siblings": [{"rfilename": name} for name in files],
                    },
                )
                return
            owner, name, _, revision, *rest = path.strip("/").split("/")
            repo, file = f"{owner}/{name}", "/".join(rest)
            place = self.place(repo, revision) if repo in hub.commits else None
            if place is None or file not in hub.commits[repo][place]:
                self.answer(404, {"error": "not found"}, X_Error_Code="EntryNotFound")
                return
            content = hub.commits[repo][place][file]
            self.answer(
                200,
                content,
                ETag=f'"{hashlib.sha1(content).hexdigest()}"',
                X_Repo_Commit=commit_id(repo, place),
                length=str(len(content)),
            )

        def place(self, repo: str, revision: str) -> int | None:
            count = len(hub.commits[repo])
            if revision == "main":
                return count - 1
            return next((i for i in range(count) if commit_id(repo, i) == revision), None)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
