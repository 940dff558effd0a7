"""A server that speaks as much of the API of the Hugging Face Hub as push and pull need. It keeps repositories in memory.

Checks what a real one checks: the token, who may write, names that are taken, hashes of large files. It counts requests, notes what
was sent, and can fail at a chosen request.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

TOKEN = "hf_secretsecretsecret"
LARGE = 2000  # bytes from which a file goes by LFS


@dataclass
class Repo:
    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    large: set[str] = field(default_factory=set)
    commits: list[dict[str, Any]] = field(default_factory=list)

    @property
    def sha(self) -> str:
        return hashlib.sha1(repr((len(self.commits), sorted(self.files))).encode()).hexdigest()


class Hub:
    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.stored: dict[str, bytes] = {}  # LFS objects
        self.log: list[str] = []
        self.uploads: list[str] = []  # hashes of LFS objects that were sent
        self.fail_at: str = ""  # a pattern of "METHOD path" that is answered with 500, once
        self.url = ""

    def add(self, name: str, files: dict[str, bytes], kind: str = "model", private: bool = False) -> Repo:
        repo = Repo(private, dict(files), {n for n, d in files.items() if len(d) >= LARGE}, [{}])
        self.repos[kind, name] = repo
        return repo


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16  # one packet for head and body: otherwise each answer waits for an acknowledgement
    hub: Hub

    def log_message(self, *arguments: Any) -> None:
        pass

    def answer(self, status: int, body: Any = b"", **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        kind = {} if isinstance(body, bytes) else {"Content-Type": "application/json"}
        for name, value in {**kind, "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def refuse(self, status: int, code: str = "", message: str = "no") -> None:
        self.answer(status, {"error": message}, **({"X_Error_Code": code, "X_Error_Message": message}))

    def handle_any(self) -> None:
        parts = urlsplit(self.path)
        path, query = unquote(parts.path), parse_qs(parts.query)
        length = int(self.headers.get("Content-Length") or 0)
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline().strip() or b"0", 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(length)
        hub, call = self.hub, f"{self.command} {path}"
        hub.log.append(call)
        if hub.fail_at and re.search(hub.fail_at, call):
            hub.fail_at = ""
            return self.refuse(400, message="stopped by the test")
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if path.startswith("/lfs/"):
            return self.lfs(path.removeprefix("/lfs/"), body)
        if token and token != TOKEN:
            return self.refuse(401, message="Invalid credentials in Authorization header")
        if path == "/api/whoami-v2":
            return self.answer(200, {"name": "ada", "type": "user", "orgs": []})
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if path == "/api/repos/create":
            return self.create(json.loads(body), token)
        if match := re.fullmatch(r"/(datasets/)?([\w.-]+/[\w.-]+)\.git/info/lfs/objects/batch", path):
            return self.batch(json.loads(body))
        if match := re.fullmatch(r"/api/(model|dataset)s/([\w.-]+/[\w.-]+)(/.*)?", path):
            return self.api(match[1], match[2], match[3] or "", query, body, token)
        if match := re.fullmatch(r"/(datasets/)?([\w.-]+/[\w.-]+)/resolve/([^/]+)/(.+)", path):
            return self.resolve("dataset" if match[1] else "model", match[2], match[4], token)
        return self.refuse(404)

    do_GET = do_POST = do_PUT = do_HEAD = handle_any  # noqa: N815

    def create(self, asked: dict[str, Any], token: str) -> None:
        owner = asked.get("organization") or "ada"
        kind, name = asked.get("type", "model"), f"{owner}/{asked['name']}"
        if token != TOKEN:
            return self.refuse(401)
        if owner != "ada":
            return self.refuse(403, message="You don't have the rights to create a model under the namespace")
        if (kind, name) in self.hub.repos:
            return self.refuse(409, message="You already created this model repo")
        private = asked.get("private", asked.get("visibility") == "private")
        repo = Repo(bool(private), {".gitattributes": b"*.safetensors filter=lfs\n"})
        self.hub.repos[kind, name] = repo
        return self.answer(200, {"url": f"{self.hub.url}/{name}", "id": name, "name": name})

    def seen(self, kind: str, name: str, token: str) -> Repo | None:
        repo = self.hub.repos.get((kind, name))
        if repo is None or (repo.private and token != TOKEN):
            self.refuse(404, "RepoNotFound", "Repository not found")
            return None
        return repo

    def api(self, kind: str, name: str, rest: str, query: dict[str, Any], body: bytes, token: str) -> None:
        repo = self.seen(kind, name, token)
        if repo is None:
            return
        if rest.startswith("/preupload/"):
            asked = json.loads(body)["files"]
            modes = [
                {"path": f["path"], "uploadMode": "lfs" if f["size"] >= LARGE else "regular", "shouldIgnore": False, "oid": None}
                for f in asked
            ]
            return self.answer(200, {"files": modes})
        if rest.startswith("/commit/"):
            return self.commit(repo, [json.loads(line) for line in body.splitlines() if line.strip()], name)
        if rest.startswith("/tree/"):
            return self.answer(200, [self.entry(repo, n) for n in sorted(repo.files)])
        if (match := re.match(r"/revision/(.+)", rest)) and match[1] not in ("main", repo.sha):
            return self.refuse(404, "RevisionNotFound", "Invalid rev id")
        siblings = [{"rfilename": n} for n in sorted(repo.files)]
        return self.answer(200, {"id": name, "sha": repo.sha, "private": repo.private, "siblings": siblings, "tags": []})

    @staticmethod
    def entry(repo: Repo, name: str) -> dict[str, Any]:
        data = repo.files[name]
        entry = {"type": "file", "path": name, "size": len(data)}
        entry["oid"] = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        if name in repo.large:
            entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
        return entry

    def commit(self, repo: Repo, lines: list[dict[str, Any]], name: str) -> None:
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                repo.files[value["path"]] = base64.b64decode(value["content"])
                repo.large.discard(value["path"])
            elif line["key"] == "lfsFile":
                repo.files[value["path"]] = self.hub.stored[value["oid"]]
                repo.large.add(value["path"])
            else:
                return self.refuse(400, message=line["key"])
        repo.commits.append(lines[0]["value"])
        oid = repo.sha
        return self.answer(200, {"commitUrl": f"{self.hub.url}/{name}/commit/{oid}", "commitOid": oid, "success": True})

    def batch(self, asked: dict[str, Any]) -> None:
        objects = []
        for each in asked["objects"]:
            href = {"upload": {"href": f"{self.hub.url}/lfs/{each['oid']}"}}
            objects.append({**each, **({} if each["oid"] in self.hub.stored else {"actions": href})})
        return self.answer(200, {"transfer": "basic", "objects": objects})

    def lfs(self, oid: str, body: bytes) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            return self.refuse(400, message="another hash")
        self.hub.stored[oid] = body
        self.hub.uploads.append(oid)
        return self.answer(200)

    def resolve(self, kind: str, name: str, file: str, token: str) -> None:
        repo = self.seen(kind, name, token)
        if repo is None:
            return
        if file not in repo.files:
            return self.refuse(404, "EntryNotFound", "Entry not found")
        data, entry = repo.files[file], self.entry(repo, file)
        tag = entry.get("lfs", {}).get("oid") or entry["oid"]
        start = int((re.match(r"bytes=(\d+)-", self.headers.get("Range") or "") or [0, "0"])[1])
        more = {"Content_Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if start else {}
        head = {"ETag": f'"{tag}"', "X_Repo_Commit": repo.sha, "Accept_Ranges": "bytes", "X_Linked_Size": str(len(data)), **more}
        return self.answer(206 if start else 200, data[start:], **head)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A server on this machine, to which HF_ENDPOINT points, with a token that it knows."""
    from huggingface_hub import constants

    made = Hub()
    handler = type("HandlerOfHub", (Handler,), {"hub": made})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    made.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", made.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    home = tmp_path_factory.mktemp("hf")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    yield made
    server.shutdown()
    server.server_close()
