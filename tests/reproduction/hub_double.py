"""A double of the Hugging Face hub on the loopback: enough of its API to load a model and a data set and to push one.

The libraries reach it through HF_ENDPOINT. What they ask for and it does not know is answered 404 and stays in
`requests`, so that a library version with new wishes is found there.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

__all__ = ["HubDouble", "Request"]

Content = bytes | str | Path

_QUESTIONS = {"resolve", "revision", "refs", "tree", "paths-info", "commits", "preupload", "commit"}


class Request(NamedTuple):
    """One request and the status of its answer."""

    method: str
    path: str
    status: int


@dataclass
class _Repo:
    kind: str  # "models" or "datasets", as in the API's paths
    id: str
    files: dict[str, Content]
    commits: int = 1
    digests: dict[str, str] = field(default_factory=dict)

    @property
    def sha(self) -> str:
        return hashlib.sha1(f"{self.kind}/{self.id}@{self.commits}".encode()).hexdigest()

    def read(self, path: str) -> bytes:
        content = self.files[path]
        if isinstance(content, Path):
            return content.read_bytes()
        return content.encode() if isinstance(content, str) else content

    def entry(self, path: str) -> dict[str, Any]:
        content = self.read(path)
        digest = self.digests.setdefault(path, hashlib.sha1(content).hexdigest())
        return {"type": "file", "path": path, "size": len(content), "oid": digest}

    def folders(self) -> set[str]:
        return {str(parent) for path in self.files for parent in Path(path).parents} - {"."}

    def folder_entry(self, path: str) -> dict[str, Any]:
        return {"type": "directory", "path": path, "size": 0, "oid": hashlib.sha1(path.encode()).hexdigest()}

    def tree(self, folder: str, recursive: bool) -> list[dict[str, Any]]:
        prefix = f"{folder}/" if folder else ""
        inside = [self.folder_entry(path) for path in sorted(self.folders()) if path.startswith(prefix)]
        inside += [self.entry(path) for path in sorted(self.files) if path.startswith(prefix)]
        return inside if recursive else [e for e in inside if "/" not in e["path"].removeprefix(prefix)]


class HubDouble:
    """The server, running while the context is open.

    `models` maps a repository to a folder on disk, `datasets` to its files. A push must carry a token; its files are
    in ``pushed[repository][path]``, as bytes.
    """

    def __init__(
        self,
        models: dict[str, Path] | None = None,
        datasets: dict[str, dict[str, bytes | str]] | None = None,
        user: str = "reader",
    ) -> None:
        self.user = user
        self.requests: list[Request] = []
        self.pushed: dict[str, dict[str, bytes]] = {}
        self.repos: dict[str, dict[str, _Repo]] = {"models": {}, "datasets": {}}
        for name, folder in (models or {}).items():
            found: dict[str, Content] = {
                str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()
            }
            self.repos["models"][name] = _Repo("models", name, found)
        for name, files in (datasets or {}).items():
            self.repos["datasets"][name] = _Repo("datasets", name, dict(files))
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> HubDouble:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def create(self, name: str) -> _Repo:
        """Return the model repository `name` to push to, made where it is not there yet."""
        if name not in self.repos["models"]:
            self.repos["models"][name] = _Repo("models", name, {})
        return self.repos["models"][name]

    def find(self, kind: str, rest: str) -> tuple[_Repo, str]:
        """Split ``<repository>/<what is asked of it>``; a repository's id has one part or two."""
        for name, repo in self.repos[kind].items():
            if rest == name:
                return repo, ""
            # `eli5/eli5.py` is no question about `eli5`: libraries try it as an id of two parts first.
            if rest.startswith(f"{name}/") and rest[len(name) + 1 :].partition("/")[0] in _QUESTIONS:
                return repo, rest[len(name) + 1 :]
        raise _Refusal(404, "RepoNotFound")


class _Refusal(Exception):
    def __init__(self, status: int, code: str) -> None:
        super().__init__(code)
        self.status = status
        self.code = code


class _Handler(BaseHTTPRequestHandler):
    """One method for each kind of request; each answers or raises _Refusal."""

    hub: HubDouble
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Stay silent; `requests` has it all."""

    def do_HEAD(self) -> None:
        self._handle()

    def do_GET(self) -> None:
        self._handle()

    def do_POST(self) -> None:
        self._handle()

    def _handle(self) -> None:
        # Read in any case: what is left over would be taken for the connection's next request.
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        path = unquote(url.path).strip("/")
        try:
            if path.startswith("api/"):
                self._json(self._api(path.removeprefix("api/"), parse_qs(url.query), body))
            else:
                self._file(path)
        except _Refusal as refusal:
            message = json.dumps({"error": refusal.code}).encode()
            self._answer(refusal.status, message, {"X-Error-Code": refusal.code, "X-Error-Message": refusal.code})

    def _api(self, path: str, query: dict[str, list[str]], body: bytes) -> Any:
        if path == "whoami-v2":
            self._check_token()
            token = {"displayName": "double", "role": "write"}
            return {"type": "user", "name": self.hub.user, "orgs": [], "auth": {"accessToken": token}}
        if path == "validate-yaml":
            return {"errors": [], "warnings": []}
        if path == "repos/create":
            self._check_token()
            asked = json.loads(body)
            repo = self.hub.create(f"{asked.get('organization') or self.hub.user}/{asked['name']}")
            return {"url": f"{self.hub.endpoint}/{repo.id}", "id": repo.id}
        kind, _, rest = path.partition("/")
        if kind not in self.hub.repos:
            raise _Refusal(404, "UnknownToTheDouble")
        repo, rest = self.hub.find(kind, rest)
        verb, _, rest = rest.partition("/")
        if verb in ("", "revision"):
            self._check_revision(repo, rest or "main")
            return self._info(repo)
        if verb == "refs":
            branch = {"name": "main", "ref": "refs/heads/main", "targetCommit": repo.sha}
            return {"branches": [branch], "tags": [], "converts": []}
        revision, _, rest = rest.partition("/")
        self._check_revision(repo, revision)
        if verb == "tree":
            if rest and rest not in repo.folders():
                raise _Refusal(404, "EntryNotFound")
            return repo.tree(rest, query.get("recursive", ["false"])[0].lower() in ("true", "1"))
        if verb == "paths-info":
            return self._paths_info(repo, body)
        if verb == "commits":
            return [{"id": repo.sha, "title": "", "message": "", "authors": [], "date": "2024-01-01T00:00:00.000Z"}]
        if verb == "preupload":
            self._check_token()
            # "regular" for every file, however large: its content then comes in the commit itself.
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            return {"files": files}
        if verb == "commit":
            self._check_token()
            return self._commit(repo, body)
        raise _Refusal(404, "UnknownToTheDouble")

    def _info(self, repo: _Repo) -> dict[str, Any]:
        return {
            "id": repo.id,
            "sha": repo.sha,
            "lastModified": "2024-01-01T00:00:00.000Z",
            "private": False,
            "gated": False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "siblings": [{"rfilename": path} for path in sorted(repo.files)],
        }

    def _paths_info(self, repo: _Repo, body: bytes) -> list[dict[str, Any]]:
        folders = repo.folders()
        asked = [path.strip("/") for path in parse_qs(body.decode()).get("paths", [])]
        found = [repo.entry(path) for path in asked if path in repo.files]
        return found + [repo.folder_entry(path) for path in asked if path in folders]

    def _commit(self, repo: _Repo, body: bytes) -> dict[str, Any]:
        pushed = self.hub.pushed.setdefault(repo.id, {})
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                pushed[value["path"]] = base64.b64decode(value["content"])
                repo.files[value["path"]] = pushed[value["path"]]
                repo.digests.pop(value["path"], None)
            elif item["key"] != "header":
                raise _Refusal(400, "UnknownToTheDouble")
        repo.commits += 1
        url = f"{self.hub.endpoint}/{repo.id}/commit/{repo.sha}"
        return {"success": True, "commitOid": repo.sha, "commitUrl": url, "hookOutput": ""}

    def _file(self, path: str) -> None:
        """Answer ``[datasets/]<repository>/resolve/<revision>/<path>``, or the range of it that is asked for."""
        kind = "datasets" if path.startswith("datasets/") else "models"
        repo, rest = self.hub.find(kind, path.removeprefix("datasets/"))
        match = re.fullmatch(r"resolve/([^/]+)/(.+)", rest)
        if match is None:
            raise _Refusal(404, "UnknownToTheDouble")
        revision, name = match.groups()
        self._check_revision(repo, revision)
        if name not in repo.files:
            raise _Refusal(404, "EntryNotFound")
        content = repo.read(name)
        headers = {
            "ETag": f'"{repo.entry(name)["oid"]}"',
            "X-Repo-Commit": repo.sha,
            "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream",
        }
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked is None:
            return self._answer(200, content, headers)
        first, last = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
        if first > last:
            return self._answer(416, b"", {"Content-Range": f"bytes */{len(content)}"})
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        return self._answer(206, content[first : last + 1], headers)

    def _check_revision(self, repo: _Repo, revision: str) -> None:
        if revision not in ("main", repo.sha):
            raise _Refusal(404, "RevisionNotFound")

    def _check_token(self) -> None:
        if not (self.headers.get("Authorization") or "").startswith("Bearer "):
            raise _Refusal(401, "Unauthorized")

    def _json(self, content: Any) -> None:
        self._answer(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.hub.requests.append(Request(self.command, self.path, status))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
