"""Networks of torch as kept graphs: what is made again and when, and that nothing but the graph is needed then."""

from __future__ import annotations

import hashlib
import logging
import textwrap
from pathlib import Path

import pytest
from drawn_pictures import run_python
from test_architecture import BLOCK_TORCH

from headstart.backbones import exported
from headstart.backbones.exported import load_exported
from headstart.errors import BackboneError

SMALL = "timm:resnet10t"


def list_kept(cache: Path) -> list[Path]:
    return sorted((cache / "backbones").glob("*"))


@pytest.mark.parametrize("name", ["vgg16", "timm:convnext_tiny"])
def test_without_torch_the_extra_is_named(tmp_path: Path, name: str) -> None:
    code = """
    import sys

    sys.modules.update(dict.fromkeys(("torch", "torchvision", "timm")))  # None: as if not installed

    from headstart.backbones.loading import load_backbone
    from headstart.errors import MissingDependencyError

    try:
        load_backbone(sys.argv[1])
    except MissingDependencyError as error:
        print(error)
    """
    done = run_python("-c", textwrap.dedent(code), name, cwd=tmp_path, HEADSTART_CACHE=str(tmp_path / "cache"))
    assert done.stdout == (
        f"The backbone {name} needs torch, torchvision, timm. Install the extra: pip install 'headstart[torch]'\n"
    ), done.stderr
    assert not (tmp_path / "cache").exists()


def test_a_weights_file_that_is_not_there_is_told_before_torch_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(BackboneError) as caught:
        load_exported(SMALL, weights=str(tmp_path / "none.pth"))
    assert str(caught.value) == (
        f"The weights {tmp_path}/none.pth cannot be read: No such file or directory. Give a .safetensors or .pth file."
    )


def test_a_kept_graph_needs_no_torch(tmp_path: Path, own_cache: Path) -> None:
    pytest.importorskip("torch")
    made = load_exported(SMALL, 32, "none")
    (file,) = list_kept(own_cache)
    assert file.name.startswith("timm-resnet10t-")
    code = """
    from headstart.backbones.loading import load_backbone
    import hashlib
    backbone = load_backbone("timm:resnet10t", 32, "none")
    print(hashlib.sha256(backbone.model.SerializeToString(deterministic=True)).hexdigest())
    print((backbone.name, backbone.sha256, backbone.licence, backbone.source, backbone.preprocess, backbone.layers))
    """
    done = run_python(
        "-c", textwrap.dedent(BLOCK_TORCH) + textwrap.dedent(code), cwd=tmp_path, HEADSTART_CACHE=str(own_cache)
    )
    digest = hashlib.sha256(made.model.SerializeToString(deterministic=True)).hexdigest()
    facts = (made.name, made.sha256, made.licence, made.source, made.preprocess, made.layers)
    assert done.stdout == f"{digest}\n{facts}\n", done.stderr
    assert not made.model.metadata_props


@pytest.mark.parametrize("damage", ["cut", "empty", "other"])
def test_a_damaged_graph_is_made_again(own_cache: Path, caplog: pytest.LogCaptureFixture, damage: str) -> None:
    pytest.importorskip("torch")
    made = load_exported(SMALL, 32, "none")
    (file,) = list_kept(own_cache)
    whole = file.read_bytes()
    file.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "other": b"no graph"}[damage])
    with caplog.at_level(logging.WARNING, "headstart"):
        again = load_exported(SMALL, 32, "none")
    (message,) = (record.getMessage() for record in caplog.records if record.name.startswith("headstart"))
    assert message.startswith(f"{file} is damaged (")
    assert message.endswith("); it is made again.")
    assert again.model == made.model
    assert file.read_bytes() == whole


def test_whatever_changes_the_graph_changes_the_file(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = tmp_path / "one.pth", tmp_path / "other.pth"
    one.write_bytes(b"one")
    other.write_bytes(b"other")
    wanted = [
        (SMALL, None, None),
        ("timm:resnet18", None, None),
        (SMALL, 32, None),
        (SMALL, 64, None),
        (SMALL, None, "none"),
        (SMALL, None, str(one)),
        (SMALL, None, str(other)),
    ]
    names = [exported._name_file(*each) for each in wanted]
    assert len(set(names)) == len(names)
    assert {name.parent for name in names} == {own_cache / "backbones"}
    moved = one.rename(tmp_path / "moved.pth")
    assert exported._name_file(SMALL, None, str(moved)) == names[5]  # by content, not by name
    monkeypatch.setattr(exported, "EXPORT_VERSION", exported.EXPORT_VERSION + 1)
    assert exported._name_file(SMALL, None, None) not in names
    assert exported._name_file("timm:a/../../b", None, None).parent == own_cache / "backbones"


def test_nothing_is_kept_of_what_failed(own_cache: Path) -> None:
    pytest.importorskip("torch")
    with pytest.raises(BackboneError, match="has no model 'resnet5'"):
        load_exported("timm:resnet5")
    assert not list_kept(own_cache)
