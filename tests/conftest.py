"""Every test has its own cache; the picture collections beside the checkout are optional."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from headstart.backbones.catalog import Backbone, load_backbone
from headstart.features import Extractor

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
