"""Every family of networks as a graph: the same numbers as in torch, only allowed operations, nothing of this machine."""

from __future__ import annotations

import functools
import getpass
import hashlib
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

pytest.importorskip("torch")

import torch
from drawn_pictures import draw_picture, run_python
from tiny_models import make_tiny_metadata

from headstart.artifact import build_artifact, create_session, parse_artifact
from headstart.backbones.catalog import Backbone
from headstart.backbones.network_layers import LayerOutputs
from headstart.backbones.onnx_export import export_backbone, export_graph
from headstart.backbones.torch_network import TorchNetwork, load_network
from headstart.errors import BackboneError
from headstart.graph import IMAGE, PooledLayer, PreprocessSpec
from headstart.heads.linear import LinearHead, build_classifier
from headstart.onnx_rules import ALLOWED_OPS

# The smallest member of each family at about the smallest side that it takes.
FAMILIES = {
    "vgg16": 32,
    "vgg19": 32,
    "resnet50": 64,
    "inception_v3": 107,
    "timm:convnext_atto": 64,
    "timm:tf_efficientnetv2_b0": 64,
    "timm:mobilenetv4_conv_small": 64,
    "timm:vit_small_patch14_dinov2": 42,
    "timm:vit_small_patch16_dinov3": 48,
    "timm:vit_base_patch16_siglip_224": 32,
    "timm:eva02_tiny_patch14_224": 42,
    "timm:swin_tiny_patch4_window7_224": 56,
}
HALF = (0.5, 0.5, 0.5)


def make_lively(network: torch.nn.Module, side_px: int) -> None:
    """Draw anew what begins as a constant or nearly 0, and set the batch norm statistics.

    As initialised, residual branches are multiplied by 0 or 1e-6 and biases are 0: whatever an export made of them
    would not show.
    """
    generator = torch.Generator().manual_seed(0)
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    with torch.no_grad():
        for values in network.parameters():
            noise = torch.randn(values.shape, generator=generator)
            if values.eq(1).all():
                values.copy_(1 + 0.2 * noise)
            elif values.abs().max() < 1e-3:
                values.copy_(0.2 * noise)
        for norm in norms:
            norm.momentum = None
            norm.train()
        if norms:
            network(torch.randn(8, 3, side_px, side_px, generator=generator))
    network.eval()


@functools.cache
def load_pair(name: str) -> tuple[TorchNetwork, Backbone]:
    network = load_network(name, FAMILIES[name], "none")
    make_lively(network.module, FAMILIES[name])
    return network, export_backbone(network)


def draw_scene(side_px: int) -> np.ndarray:
    """A picture of the network's side, so that nothing is resized or cut."""
    return np.tile(draw_picture("circles", 3), (3, 3, 1))[:side_px, :side_px]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_graph_computes_what_torch_computes(name: str) -> None:
    network, backbone = load_pair(name)
    spec = network.preprocess
    pixels = draw_scene(spec.input_size_px)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        backbone.model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    assert [output.name for output in session.get_outputs()] == [layer.name for layer in network.layers]
    assert backbone.layers == tuple(layer.layer for layer in network.layers)
    normalised = (pixels / 255 - spec.mean) / spec.std
    tensor = torch.from_numpy(normalised.astype(np.float32).transpose(2, 0, 1)[None])
    with torch.no_grad():
        expected = LayerOutputs(network.module, network.layers)(tensor)
    found = session.run(None, {IMAGE: pixels})
    for layer, ours, theirs in zip(backbone.layers, found, expected, strict=True):
        assert ours.shape == (1, layer.channels, layer.size, layer.size)
        scale = float(theirs.abs().max())
        assert theirs.std() > 0.01 * scale  # a map that says something
        assert np.abs(ours - theirs.numpy()).max() <= 1e-3 * scale, layer.name


@pytest.mark.parametrize("name", FAMILIES)
def test_a_classifier_on_it_is_accepted_by_the_strict_reader(name: str) -> None:
    _, backbone = load_pair(name)
    model = backbone.model
    assert {node.op_type for node in model.graph.node} <= ALLOWED_OPS
    top = backbone.layers[-1]
    rng = np.random.default_rng(0)
    coef = rng.normal(0, 0.1, (top.channels, 3)).astype(np.float32)
    head = LinearHead((PooledLayer(top.name, 1),), coef, np.zeros(3, np.float32), 1.0, 1.0)
    metadata = replace(
        make_tiny_metadata(["a", "b", "c"]),
        preprocess={
            **backbone.preprocess.to_json(),
            "exif": "applied",
            "alpha": "white",
            "decoder_version": 1,
        },
    )
    data = build_artifact(build_classifier(backbone, head), metadata)
    _, model_bytes = parse_artifact(data)
    probs = create_session(model_bytes).run(None, {IMAGE: draw_picture("stripes", 0)})[0]
    assert probs.shape == (3,)
    assert abs(probs.sum() - 1) < 1e-5


@pytest.mark.parametrize("name", FAMILIES)
def test_the_graph_tells_nothing_of_this_machine(name: str) -> None:
    model = load_pair(name)[1].model
    assert not model.metadata_props
    assert not model.doc_string + model.graph.doc_string
    assert not model.functions
    assert not model.graph.value_info
    for part in (*model.graph.node, *model.graph.initializer, *model.graph.input, *model.graph.output):
        assert not part.doc_string
        assert not part.metadata_props
    light = onnx.ModelProto()
    light.CopyFrom(model)
    for tensor in light.graph.initializer:
        tensor.ClearField("raw_data")
    data = light.SerializeToString()
    places = (str(Path(torch.__file__).parents[1]), str(Path(__file__).parents[1]), tempfile.gettempdir(), ".py")
    for text in (*places, f"/{getpass.getuser()}/"):
        assert text.encode() not in data


DIGEST = """
import hashlib
from headstart.backbones.onnx_export import export_backbone
from headstart.backbones.torch_network import load_network
backbone = export_backbone(load_network("timm:vit_tiny_patch16_224", 32, "none"))
print(hashlib.sha256(backbone.model.SerializeToString(deterministic=True)).hexdigest())
"""


def test_another_process_exports_the_same_bytes(tmp_path: Path) -> None:
    """The digest of the graph is part of every key of the feature cache."""
    load_pair("timm:convnext_atto")  # another one came first here
    backbone = export_backbone(load_network("timm:vit_tiny_patch16_224", 32, "none"))
    here = hashlib.sha256(backbone.model.SerializeToString(deterministic=True)).hexdigest()
    done = run_python("-c", DIGEST, cwd=tmp_path, PYTHONHASHSEED="7")
    assert done.stdout.split() == [here], done.stderr


def test_what_cannot_be_exported_is_told_with_the_name() -> None:
    class Strange(torch.nn.Module):
        def forward(self, pixels: torch.Tensor) -> list[torch.Tensor]:
            return [torch.linalg.eigvals(pixels[0, 0]).real]

    spec = PreprocessSpec(8, 1.0, HALF, HALF)
    with pytest.raises(BackboneError, match=r"^torch \d.* cannot export strange to ONNX: "):
        export_graph(Strange(), spec, [("top", [8])], "strange")


def test_the_network_stays_as_it_was() -> None:
    network, _ = load_pair("timm:mobilenetv4_conv_small")
    before = {name: values.clone() for name, values in network.module.state_dict().items()}
    export_backbone(network)
    assert all(torch.equal(values, before[name]) for name, values in network.module.state_dict().items())
    assert not any(module.training for module in network.module.modules())
    assert not any(module._forward_hooks for module in network.module.modules())
