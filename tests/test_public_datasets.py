"""Public collections from archives in torchvision's layout, served by a local server."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torchvision")

from torchvision.datasets import CIFAR10, OxfordIIITPet

from headstart.dataset import scan_dataset
from headstart.errors import ConfigError, DataError, MissingDependencyError
from headstart.public_datasets import PUBLIC_DATASETS, fetch_public_dataset

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
BREEDS = ["Abyssinian", "american_bulldog", "Bengal"]


@dataclass
class Server:
    address: str
    files: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)


@pytest.fixture
def server() -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            playing.requests.append(self.path)
            body = playing.files.get(self.path)
            self.send_response(200 if body is not None else 404)
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as serving:
        playing = Server(f"http://127.0.0.1:{serving.server_port}")
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        yield playing
        serving.shutdown()
        thread.join()


def pack(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def get_md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def publish_cifar10(server: Server, monkeypatch: pytest.MonkeyPatch) -> tuple[np.ndarray, list[int]]:
    """Five batches of 4 pictures and 10 of test; returns all 30 pictures (30, 32, 32, 3) and labels."""
    rng = np.random.default_rng(3)
    pictures = rng.integers(0, 256, (30, 32, 32, 3), dtype=np.uint8)
    labels = [7 * index % 10 for index in range(30)]
    files = {"batches.meta": pickle.dumps({"label_names": CLASSES})}
    for number in range(6):
        rows = slice(4 * number, 4 * number + 4) if number < 5 else slice(20, 30)
        batch = {"data": pictures[rows].transpose(0, 3, 1, 2).reshape(-1, 3072), "labels": labels[rows]}
        files[f"data_batch_{number + 1}" if number < 5 else "test_batch"] = pickle.dumps(batch)
    archive = pack({f"cifar-10-batches-py/{name}": data for name, data in files.items()})
    server.files["/cifar-10-python.tar.gz"] = archive
    monkeypatch.setattr(CIFAR10, "url", f"{server.address}/cifar-10-python.tar.gz")
    monkeypatch.setattr(CIFAR10, "tgz_md5", get_md5(archive))
    monkeypatch.setattr(
        CIFAR10, "train_list", [[f"data_batch_{i}", get_md5(files[f"data_batch_{i}"])] for i in range(1, 6)]
    )
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", get_md5(files["test_batch"])]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": get_md5(files["batches.meta"])})
    return pictures, labels


def publish_pets(server: Server, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Of each breed pictures 1 to 3 for training and 4 and 5 for the test; returns the bytes of each."""
    rng = np.random.default_rng(4)
    pictures, lists = {}, {"trainval": "", "test": ""}
    for label, breed in enumerate(BREEDS, start=1):
        for number in range(1, 6):
            buffer = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(buffer, "JPEG")
            pictures[f"{breed}_{number}.jpg"] = buffer.getvalue()
            lists["trainval" if number < 4 else "test"] += f"{breed}_{number} {label} 1 1\n"
    images = pack({f"images/{name}": data for name, data in pictures.items()})
    notes = pack({f"annotations/{name}.txt": text.encode() for name, text in lists.items()})
    server.files |= {"/images.tar.gz": images, "/annotations.tar.gz": notes}
    resources = tuple(
        (f"{server.address}/{name}.tar.gz", get_md5(data))
        for name, data in (("images", images), ("annotations", notes))
    )
    monkeypatch.setattr(OxfordIIITPet, "_RESOURCES", resources)
    return pictures


def list_files(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


def test_cifar10_is_laid_out_without_loss(own_cache: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures, labels = publish_cifar10(server, monkeypatch)
    progress: list[tuple[int, int]] = []
    folder = fetch_public_dataset("cifar10", lambda done, total: progress.append((done, total)))
    assert folder == own_cache / "datasets" / "cifar10"
    assert progress == [(done, 30) for done in range(1, 31)]
    dataset = scan_dataset(folder)
    assert dataset.classes == tuple(CLASSES)
    assert (dataset.num_found, dataset.problems) == (30, ())
    for index in range(30):
        split, number = ("train", index + 1) if index < 20 else ("test", index - 19)
        path = folder / split / CLASSES[labels[index]] / f"{number:05}.png"
        with Image.open(path) as image:
            assert image.format == "PNG"
            np.testing.assert_array_equal(np.asarray(image), pictures[index])
        record = next(record for record in dataset.records if record.path == str(path))
        assert (record.split, dataset.classes[record.label]) == (split, CLASSES[labels[index]])
    assert list_files(own_cache / "datasets" / "cifar10-download") == ["cifar-10-python.tar.gz"]


def test_pets_keep_their_bytes(own_cache: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = publish_pets(server, monkeypatch)
    folder = fetch_public_dataset("pets")
    dataset = scan_dataset(folder)
    assert dataset.classes == ("Abyssinian", "American Bulldog", "Bengal")
    assert (dataset.num_found, dataset.problems) == (15, ())
    for record in dataset.records:
        path = Path(record.path)
        assert path.read_bytes() == pictures.pop(path.name)
        breed, number = path.stem.rsplit("_", 1)
        assert record.split == ("train" if int(number) < 4 else "test")
        assert dataset.classes[record.label].lower() == breed.lower().replace("_", " ")
    assert not pictures
    kept = ["oxford-iiit-pet/annotations.tar.gz", "oxford-iiit-pet/images.tar.gz"]
    assert list_files(own_cache / "datasets" / "pets-download") == kept


def test_a_second_call_needs_neither_network_nor_torchvision(
    own_cache: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_pets(server, monkeypatch)
    folder = fetch_public_dataset("pets")
    num_requests = len(server.requests)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    assert fetch_public_dataset("pets") == folder
    assert len(server.requests) == num_requests > 0
    with pytest.raises(MissingDependencyError) as caught:
        fetch_public_dataset("cifar10")
    assert str(caught.value) == "cifar10 is fetched by torchvision: pip install 'headstart[torch]'"


def test_archives_put_there_by_hand_need_no_network(
    own_cache: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_cifar10(server, monkeypatch)
    publish_pets(server, monkeypatch)
    files, server.files = server.files, {}
    for name in PUBLIC_DATASETS:
        with pytest.raises(DataError) as caught:
            fetch_public_dataset(name)
        downloads = own_cache / "datasets" / f"{name}-download"
        assert str(caught.value).startswith(
            f"{name} cannot be downloaded: HTTP Error 404: Not Found. Without a network, "
        )
        for archive in PUBLIC_DATASETS[name].archives:
            url = f"{server.address}/{Path(archive).name}"
            assert f"{url} to {downloads / archive}" in str(caught.value)
            (downloads / archive).parent.mkdir(parents=True, exist_ok=True)
            (downloads / archive).write_bytes(files[f"/{Path(archive).name}"])
        assert len(scan_dataset(fetch_public_dataset(name)).records) in (30, 15)


def test_without_network_the_archive_is_named(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    with pytest.raises(
        DataError, match="Connection refused>. Without a network, fetch the archives elsewhere and put http"
    ):
        fetch_public_dataset("cifar10")


def test_a_damaged_archive_is_refused_and_fetched_again(
    own_cache: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_pets(server, monkeypatch)
    whole = server.files["/images.tar.gz"]
    server.files["/images.tar.gz"] = whole[:-20]
    with pytest.raises(DataError, match="pets cannot be downloaded: File not found or corrupted. Without"):
        fetch_public_dataset("pets")
    assert not (own_cache / "datasets" / "pets").exists()
    server.files["/images.tar.gz"] = whole
    assert len(scan_dataset(fetch_public_dataset("pets")).records) == 15


def test_an_interruption_leaves_nothing_half(own_cache: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_pets(server, monkeypatch)

    def stop(done: int, total: int) -> None:
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch_public_dataset("pets", stop)
    folder = own_cache / "datasets"
    assert not (folder / "pets").exists()
    assert len(list_files(folder / "pets-partial")) == 7
    # As after a kill while torchvision was unpacking: it would take these two folders for the whole.
    (folder / "pets-download/oxford-iiit-pet/images/Bengal_1.jpg").unlink()
    (folder / "pets-partial/train/Bengal").mkdir(exist_ok=True)
    (folder / "pets-partial/train/Bengal/left.jpg").write_bytes(b"")
    num_requests = len(server.requests)
    assert len(scan_dataset(fetch_public_dataset("pets")).records) == 15
    assert len(server.requests) == num_requests  # the archives were whole
    assert not (folder / "pets-partial").exists()


def test_a_killed_process_does_not_hold_the_lock(
    own_cache: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_pets(server, monkeypatch)
    (own_cache / "datasets").mkdir()
    hold = "import filelock, sys; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); print('held', flush=True); input()"
    command: list[Any] = [sys.executable, "-c", hold, own_cache / "datasets" / "pets.lock"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        waiting: list[Path] = []
        thread = threading.Thread(target=lambda: waiting.append(fetch_public_dataset("pets")))
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
        os.kill(process.pid, signal.SIGKILL)
        thread.join(30)
    assert waiting == [own_cache / "datasets" / "pets"]


def test_a_folder_that_cannot_be_written_is_told(
    own_cache: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    (own_cache / "datasets").write_bytes(b"")
    with pytest.raises(DataError, match=f"cifar10 cannot be laid out in {own_cache}/datasets: File exists."):
        fetch_public_dataset("cifar10")


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError) as caught:
        fetch_public_dataset("cifar100")
    assert str(caught.value) == "There is no public dataset 'cifar100'. Did you mean 'cifar10'? Known: cifar10, pets."
