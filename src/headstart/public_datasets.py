"""Public collections by name, fetched once through torchvision and laid out as folders of pictures."""

from __future__ import annotations

import os
import shutil
import urllib.error
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from headstart._files import get_cache_folder, show_path
from headstart.errors import ConfigError, DataError, MissingDependencyError, suggest

_Picture = tuple[str, np.ndarray | Path]  # place below the folder; RGB uint8 (h, w, 3), or a file to take as it is


@dataclass(frozen=True)
class PublicDataset:
    """What is in a collection. `archives` are the files to fetch where there is no network, by their place below
    the folder of the downloads."""

    name: str
    title: str
    source: str
    num_classes: int
    num_train: int
    num_test: int
    archives: tuple[str, ...]


PUBLIC_DATASETS = {
    dataset.name: dataset
    for dataset in (
        PublicDataset(
            name="cifar10",
            title="CIFAR-10 (Krizhevsky 2009): 32 x 32 pixels",
            source="https://www.cs.toronto.edu/~kriz/cifar.html",
            num_classes=10,
            num_train=50_000,
            num_test=10_000,
            archives=("cifar-10-python.tar.gz",),
        ),
        PublicDataset(
            name="pets",
            title="Oxford-IIIT Pet (Parkhi et al. 2012): breeds of cats and dogs",
            source="https://www.robots.ox.ac.uk/~vgg/data/pets/",
            num_classes=37,
            num_train=3_680,
            num_test=3_669,
            archives=("oxford-iiit-pet/images.tar.gz", "oxford-iiit-pet/annotations.tar.gz"),
        ),
    )
}


def fetch_public_dataset(name: str, on_progress: Callable[[int, int], None] | None = None) -> Path:
    """A folder with train/ and test/ and a folder per class in each, as `headstart.dataset.scan_dataset` reads it.

    It is made once, in our cache folder: CIFAR-10 as PNG, the pets' files unchanged. torchvision downloads and checks
    the archives, which stay there. `on_progress(done, total)` counts pictures that are laid out. Raises ConfigError
    for an unknown name, MissingDependencyError without torchvision, DataError when there is no network, which says
    where to put the archives.
    """
    if name not in PUBLIC_DATASETS:
        raise ConfigError(
            f"There is no public dataset '{name}'.{suggest(name, PUBLIC_DATASETS)} Known: {', '.join(PUBLIC_DATASETS)}."
        )
    folder = get_cache_folder() / "datasets"
    target = folder / name
    if target.is_dir():
        return target
    try:
        import filelock
        import torchvision  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(f"{name} is fetched by torchvision: pip install 'headstart[torch]'") from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder / f"{name}.lock"):  # of two processes one downloads, the other waits
            if not target.is_dir():
                _make_folder(name, target, on_progress)
    except OSError as error:
        raise DataError(f"{name} cannot be laid out in {show_path(str(folder))}: {error.strerror or error}.") from error
    return target


def _make_folder(name: str, target: Path, on_progress: Callable[[int, int], None] | None) -> None:
    downloads, partial = target.with_name(f"{name}-download"), target.with_name(f"{name}-partial")
    _remove_unpacked(downloads)  # torchvision takes what an interrupted unpacking left for the whole
    if partial.exists():
        shutil.rmtree(partial)
    pictures = _unpack_cifar10(downloads) if name == "cifar10" else _unpack_pets(downloads)
    for done, (place, picture) in enumerate(pictures, start=1):
        file = partial / place
        file.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(picture, np.ndarray):
            Image.fromarray(picture).save(file, "PNG")
        else:
            _link_or_copy(picture, file)
        if on_progress:
            on_progress(done, len(pictures))
    partial.rename(target)
    _remove_unpacked(downloads)


def _unpack_cifar10(downloads: Path) -> list[_Picture]:
    """Each file is named by the number of its picture in its split, from 1."""
    from torchvision.datasets import CIFAR10

    pictures: list[_Picture] = []
    for split in ("train", "test"):
        data = _download(CIFAR10, [CIFAR10.url], "cifar10", downloads, train=split == "train")
        for number, (picture, label) in enumerate(zip(data.data, data.targets, strict=True), start=1):
            pictures.append((f"{split}/{data.classes[label]}/{number:05}.png", picture))
    return pictures


def _unpack_pets(downloads: Path) -> list[_Picture]:
    """torchvision's trainval is our train."""
    from torchvision.datasets import OxfordIIITPet

    pictures: list[_Picture] = []
    for split, their_split in (("train", "trainval"), ("test", "test")):
        urls = [url for url, _ in OxfordIIITPet._RESOURCES]
        data = _download(OxfordIIITPet, urls, "pets", downloads, split=their_split)
        for file, label in zip(data._images, data._labels, strict=True):
            pictures.append((f"{split}/{data.classes[label]}/{file.name}", file))
    return pictures


def _download(kind: Any, urls: list[str], name: str, downloads: Path, **settings: Any) -> Any:
    try:
        return kind(root=downloads, download=True, **settings)
    except Exception as error:  # of the network, of the system, of a damaged archive: of many kinds
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        archives = (show_path(str(downloads / archive)) for archive in PUBLIC_DATASETS[name].archives)
        places = ", ".join(f"{url} to {place}" for url, place in zip(urls, archives, strict=True))
        reason = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
        raise DataError(
            f"{name} cannot be downloaded: {reason}. Without a network, fetch the archives elsewhere and put {places}. "
            "Then run the command again."
        ) from error


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


def _remove_unpacked(downloads: Path) -> None:
    for folder in ("cifar-10-batches-py", "oxford-iiit-pet/images", "oxford-iiit-pet/annotations"):
        if (downloads / folder).exists():
            shutil.rmtree(downloads / folder)
