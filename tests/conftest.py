"""Every test has its own cache; the picture collections beside the checkout are optional."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import pytest
from drawn_pictures import write_shapes

import headstart
from headstart.backbones.catalog import Backbone
from headstart.backbones.loading import load_backbone
from headstart.features import Extractor

# The same examples every time, however slow the machine: what lands does not depend on luck.
hypothesis.settings.register_profile("suite", derandomize=True, deadline=None)
hypothesis.settings.load_profile("suite")

SHARED_DATA = Path(os.environ.get("HEADSTART_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("HEADSTART_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def backbone() -> Backbone:
    return load_backbone()


@pytest.fixture(scope="session")
def extractor(backbone: Backbone) -> Extractor:
    return Extractor(backbone, num_threads=2)


def _collection(name: str) -> Path:
    folder = SHARED_DATA / name
    if not folder.is_dir():
        pytest.skip(f"the collection {name} is not beside the checkout")
    return folder


@pytest.fixture
def cats_dogs() -> Path:
    return _collection("cats_dogs")


@pytest.fixture
def hymenoptera() -> Path:
    return _collection("hymenoptera")


@pytest.fixture
def bad_pictures() -> Path:
    return _collection("bad_pictures")


@dataclass(frozen=True)
class Trained:
    """A classifier of 3 x 12 drawn pictures; all of it is shared, so nothing may change it."""

    shapes: Path
    file: Path
    cache: Path
    num_forward: int


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADSTART_CACHE", str(folder / "cache"))
        classifier = headstart.train(write_shapes(folder / "shapes", 12), layers="top")
    classifier.save(folder / "shapes.onnx")
    assert classifier.training is not None
    return Trained(folder / "shapes", folder / "shapes.onnx", folder / "cache", classifier.training.num_forward)


@pytest.fixture(scope="session")
def classifier(trained: Trained) -> headstart.Classifier:
    return headstart.load(trained.file)


@pytest.fixture
def warm_cache(trained: Trained, own_cache: Path) -> Path:
    """The test's own cache with the features of the shared pictures in it."""
    shutil.copy(trained.cache / "features.sqlite", own_cache)
    return own_cache
