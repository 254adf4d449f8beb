"""A hub of the Hugging Face kind on this machine: as much of its protocol as a fetch takes."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlparse


@dataclass
class FakeHub:
    """repositories: folders by id. gated: ids whose files need a login. cut: paths of files of
    which the first answer stops halfway. asked: paths of all files that were sent."""

    repositories: dict[str, Path]
    gated: set[str] = field(default_factory=set)
    cut: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    url: str = ""

    def commit(self, repository: str) -> str:
        return hashlib.sha1(repository.encode()).hexdigest()

    def files(self, repository: str) -> list[Path]:
        root = self.repositories[repository]
        return [path.relative_to(root) for path in sorted(root.rglob("*")) if path.is_file()]


@contextmanager
def serving(hub: FakeHub) -> Iterator[FakeHub]:
    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlparse(self.path).path).strip("/")
        if path.startswith("api/models/"):
            owner, name, *rest = path.removeprefix("api/models/").split("/")
            self._api(f"{owner}/{name}", rest)
        else:
            owner, name, _, _, *file = path.split("/")
            self._file(f"{owner}/{name}", "/".join(file))

    def _api(self, repository: str, rest: list[str]) -> None:
        if repository not in self.hub.repositories:
            return self._fail(401, "RepoNotFound", "Repository not found")
        if rest and rest[-1] == "nowhere":
            return self._fail(404, "RevisionNotFound", "Revision not found")
        root, files = self.hub.repositories[repository], self.hub.files(repository)
        sizes = {path.as_posix(): (root / path).stat().st_size for path in files}
        if rest and rest[0] == "tree":
            answer: Any = [
                {"type": "file", "path": path, "size": size, "oid": _etag(root / path)}
                for path, size in sizes.items()
            ]
        else:
            answer = {
                "id": repository,
                "sha": self.hub.commit(repository),
                "siblings": [{"rfilename": path, "size": size} for path, size in sizes.items()],
                "gated": "auto" if repository in self.hub.gated else False,
                "cardData": {"license": "other", "license_name": "fake-licence"},
                "tags": [],
                "private": False,
                "disabled": False,
            }
        return self._send(json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _file(self, repository: str, name: str) -> None:
        if repository in self.hub.gated:
            return self._fail(403, "GatedRepo", "Access is restricted")
        data = (self.hub.repositories[repository] / name).read_bytes()
        head = {
            "ETag": f'"{_etag(self.hub.repositories[repository] / name)}"',
            "X-Repo-Commit": self.hub.commit(repository),
            "Accept-Ranges": "bytes",
        }
        asked = self.headers.get("Range")
        first = int(asked.removeprefix("bytes=").split("-")[0]) if asked else 0
        if self.command == "GET":
            self.hub.asked.append(f"{repository}/{name}@{first}")
        if asked:
            head["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
        cut = self.command == "GET" and name in self.hub.cut
        self.hub.cut.discard(name if cut else "")
        return self._send(data[first:], head, 206 if asked else 200, cut)

    def _send(
        self, body: bytes, head: dict[str, str], status: int = 200, cut: bool = False
    ) -> None:
        self.send_response(status)
        for key, value in (head | {"Content-Length": str(len(body))}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[: len(body) // 2] if cut else body)
        self.close_connection = cut or self.close_connection

    def _fail(self, status: int, code: str, message: str) -> None:
        self._send(b"{}", {"X-Error-Code": code, "X-Error-Message": message}, status)


def _etag(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


def run(home: Path, url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, whose hub is at `url` and keeps files in `home`."""
    known = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    return subprocess.run(
        [sys.executable, "-m", "diffusion_edge", "models", *arguments],
        env=known | {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
