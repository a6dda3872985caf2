"""A model hub of one machine: enough of its HTTP for the hub's own client to push a repository and pull it."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

TOKEN = "hf_only-for-this-test"


class Hub:
    """`repositories` maps user/name to {"private", "files": {name: bytes}, "commit"}; `requests` is what was asked."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, Any]] = {}
        self.uploads: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.told_sha256: str | None = None  # what a hub that lies would tell
        self.status: int | None = None  # answered to everything where set
        self.endpoint = ""

    def answer(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        self.requests.append((method, path, headers))
        if self.status:
            return self.status, {"X-Error-Message": "out of \x1b[31morder"}, b"{}"
        may_write = headers.get("authorization") == f"Bearer {TOKEN}"
        if method == "POST" and path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            if not may_write:
                return 401, {}, b"{}"
            is_private = asked.get("visibility", "private" if asked.get("private") else "public") == "private"
            self.repositories[name] = {"private": is_private, "files": {}, "commit": "0" * 40}
            return _json({"url": f"{self.endpoint}/{name}", "name": name, "id": name})
        if method == "POST" and path == "/api/validate-yaml":
            return _json({"errors": [], "warnings": []})
        if method == "PUT" and path.startswith("/upload/"):
            if hashlib.sha256(body).hexdigest() != path.removeprefix("/upload/"):
                return 400, {}, b"{}"
            self.uploads[path.removeprefix("/upload/")] = body
            return 200, {}, b""
        for name, repository in self.repositories.items():
            if name in path and (may_write or not repository["private"]):
                return self._answer_about(name, repository, method, path, body)
        return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"

    def _answer_about(
        self, name: str, repository: dict[str, Any], method: str, path: str, body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        files = repository["files"]
        if method == "GET" and path.startswith(f"/api/models/{name}"):
            siblings = [
                {"rfilename": file, "size": len(data), "lfs": self._tell_lfs(data)} for file, data in files.items()
            ]
            return _json(
                {"id": name, "sha": repository["commit"], "private": repository["private"], "siblings": siblings}
            )
        if path == f"/api/models/{name}/preupload/main":
            return _json(
                {
                    "files": [
                        {
                            "path": file["path"],
                            "uploadMode": "lfs" if file["path"].endswith(".onnx") else "regular",
                            "shouldIgnore": False,
                        }
                        for file in json.loads(body)["files"]
                    ]
                }
            )
        if path == f"/{name}.git/info/lfs/objects/batch":
            objects = [
                {**each, "actions": {"upload": {"href": f"{self.endpoint}/upload/{each['oid']}"}}}
                for each in json.loads(body)["objects"]
            ]
            return _json({"transfer": "basic", "objects": objects})
        if path == f"/api/models/{name}/commit/main":
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "lfsFile":
                    files[entry["value"]["path"]] = self.uploads[entry["value"]["oid"]]
                elif entry["key"] == "file":
                    files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            repository["commit"] = hashlib.sha1(body).hexdigest()
            oid = repository["commit"]
            return _json({"commitUrl": f"{self.endpoint}/{name}/commit/{oid}", "commitOid": oid, "success": True})
        prefix = f"/{name}/resolve/{repository['commit']}/"
        if path.startswith(prefix) and (data := files.get(path.removeprefix(prefix))) is not None:
            headers = {"X-Repo-Commit": repository["commit"], "ETag": f'"{hashlib.sha256(data).hexdigest()}"'}
            return 200, {**headers, "X-Linked-Size": str(len(data))}, data
        return 404, {"X-Error-Code": "EntryNotFound"}, b"{}"

    def _tell_lfs(self, data: bytes) -> dict[str, Any]:
        digest = self.told_sha256 or hashlib.sha256(data).hexdigest()
        return {"sha256": digest, "oid": digest, "size": len(data), "pointerSize": 134}


def _json(value: object) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()


@contextmanager
def run_hub() -> Iterator[Hub]:
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _respond(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            status, extra, content = hub.answer(self.command, urlsplit(self.path).path, body, headers)
            self.send_response(status)
            for name, value in {**extra, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_HEAD = do_POST = do_PUT = _respond

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
