"""Whether every family of backbones computes in ONNX Runtime what it computes in torch, over many pictures.

Weights are random: nothing is downloaded, and the graph is that of the published ones. As the initialisation leaves
them they would prove little: residual branches are multiplied by 0 or 1e-6, biases are 0, and without sensible batch
norm statistics activations grow to 1e11 or vanish. So whatever begins as a constant is drawn anew, and batch norm takes
its statistics from some of the pictures. The top class is that of a random linear head on the mean of the top layer,
over features standardised on the torch side. The preprocessing inside the graph is compared with timm's own evaluation
transform, in grey levels; pictures too small for its square are left out of that, for we do not enlarge as it does.
What a family gave is told on stderr as soon as it is done.

Needs headstart[torch].
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from measure import list_versions, make_parser, report, round_figure
from onnx import TensorProto, helper
from PIL import Image
from timm.data import create_transform, resolve_data_config

from headstart.backbones.network_layers import LayerOutputs
from headstart.backbones.onnx_export import export_backbone
from headstart.backbones.torch_network import TorchNetwork, load_network
from headstart.dataset import list_images
from headstart.decode import decode_image
from headstart.graph import IMAGE, IMAGE_INPUT, GraphBuilder, PreprocessSpec, add_preprocessing

# Name and side; the smallest member of a family that has its design, at the side that it was trained at. DINOv2's 518
# pixels would take 6 times as long.
FAMILIES: dict[str, tuple[str, int | None]] = {
    "VGG16": ("vgg16", None),
    "VGG19": ("vgg19", None),
    "ResNet50": ("resnet50", None),
    "Inception v3": ("inception_v3", None),
    "ConvNeXt": ("timm:convnext_tiny", None),
    "EfficientNetV2": ("timm:tf_efficientnetv2_b0", None),
    "MobileNetV4": ("timm:mobilenetv4_conv_small", None),
    "DINOv2": ("timm:vit_small_patch14_dinov2", 224),
    "DINOv3": ("timm:vit_small_patch16_dinov3", None),
    "SigLIP": ("timm:vit_base_patch16_siglip_224", None),
    "EVA": ("timm:eva02_tiny_patch14_224", None),
    "Swin": ("timm:swin_tiny_patch4_window7_224", None),
}
NUM_CLASSES = 10
NUM_FOR_STATISTICS = 16


def main() -> None:
    parser = make_parser(__doc__, repeats=None)
    parser.add_argument("folder", help="folder with pictures in it")
    parser.add_argument("--pictures", type=int, default=200, help="how many (default 200)")
    parser.add_argument("--families", default=",".join(FAMILIES), help="some of them, parted by commas")
    parser.add_argument("--threads", type=int, default=1, help="for torch and ONNX Runtime each (default 1)")
    args = parser.parse_args()
    families = args.families.split(",")
    if unknown := [family for family in families if family not in FAMILIES]:
        parser.error(f"no such families: {', '.join(unknown)}; known: {', '.join(FAMILIES)}")
    torch.set_num_threads(args.threads)
    paths = list_images([args.folder])[0]
    step = max(len(paths) // args.pictures, 1)
    chosen = paths[::step][: args.pictures]
    results = {}
    for family in families:
        results[family] = compare(*FAMILIES[family], chosen, args.threads)
        print(json.dumps({family: results[family]}), file=sys.stderr)
    report(
        {
            "versions": list_versions(
                "headstart", "torch", "torchvision", "timm", "onnxruntime", "onnx", "numpy", "pillow"
            ),
            "pictures": len(chosen),
            "weights": "random, seed 0",
            "families": results,
        }
    )


def compare(name: str, side_px: int | None, paths: Sequence[str], num_threads: int) -> dict[str, Any]:
    began = time.perf_counter()
    network = load_network(name, side_px, "none")
    spec = network.preprocess
    prepare = open_session(build_preprocessor(spec), num_threads)
    statistics = [
        prepare.run(None, {IMAGE: read_pixels(path)})[0] for path in paths[:: max(len(paths) // NUM_FOR_STATISTICS, 1)]
    ]
    make_lively(network.module, torch.from_numpy(np.concatenate(statistics)))
    exporting = time.perf_counter()
    backbone = export_backbone(network)
    export_s = time.perf_counter() - exporting
    session = open_session(backbone.model, num_threads)
    outputs = LayerOutputs(network.module, network.layers).eval()
    transform = make_timm_transform(network)
    worst = dict.fromkeys([layer.name for layer in network.layers], 0.0)
    tops: list[list[np.ndarray]] = [[], []]
    grey_levels = []
    for path in paths:
        pixels = read_pixels(path)
        prepared = prepare.run(None, {IMAGE: pixels})[0]
        with torch.inference_mode():
            in_torch = [tensor.numpy() for tensor in outputs(torch.from_numpy(prepared))]
        in_onnx = session.run(None, {IMAGE: pixels})
        for layer, ours, theirs in zip(network.layers, in_onnx, in_torch, strict=True):
            worst[layer.name] = max(worst[layer.name], float(np.abs(ours - theirs).max() / np.abs(theirs).max()))
        for kept, maps in zip(tops, (in_onnx, in_torch), strict=True):
            kept.append(maps[-1].mean(axis=(0, 2, 3), dtype=np.float64))
        if min(pixels.shape[:2]) * spec.crop_frac >= spec.input_size_px:
            theirs = transform(Image.fromarray(pixels)).numpy()
            std = np.array(spec.std).reshape(3, 1, 1)
            grey_levels.append(float((np.abs(prepared[0] - theirs) * 255 * std).mean()))
    ours, theirs = map(np.array, tops)
    coef = np.random.default_rng(0).normal(size=(ours.shape[1], NUM_CLASSES))
    classes = [((top - theirs.mean(0)) / (theirs.std(0) + 1e-12) @ coef).argmax(1) for top in (ours, theirs)]
    return {
        "backbone": name,
        "input_size_px": spec.input_size_px,
        "num_params": network.num_params,
        "nodes": len(backbone.model.graph.node),
        "export_s": round_figure(export_s, 3),
        "same_top_class": int((classes[0] == classes[1]).sum()),
        "of_pictures": len(paths),
        "classes_that_occur": len(set(classes[1].tolist())),
        "largest_difference_of_a_feature_by_its_layers_scale": {
            layer: round_figure(value, 2) for layer, value in worst.items()
        },
        "preprocessing_against_timm_in_grey_levels": {
            "interpolation": spec.interpolation,
            "crop": spec.crop,
            "crop_frac": round_figure(spec.crop_frac),
            "mean": round_figure(float(np.mean(grey_levels)), 3) if grey_levels else None,
            "worst_picture": round_figure(max(grey_levels), 3) if grey_levels else None,
            "n": len(grey_levels),
        },
        "seconds": round(time.perf_counter() - began),
    }


def make_lively(module: torch.nn.Module, pixels: torch.Tensor) -> None:
    """Draw anew what begins as a constant or nearly 0, and set the batch norm statistics on `pixels` (B, 3, S, S)."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for values in module.parameters():
            noise = torch.randn(values.shape, generator=generator)
            if values.numel() and values.eq(1).all():  # of a norm
                values.copy_(1 + 0.2 * noise)
            elif values.abs().max() < 1e-3:  # a bias, the scale of a residual branch, a class token
                values.copy_(0.2 * noise)
        norms = [child for child in module.modules() if isinstance(child, torch.nn.BatchNorm2d)]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean over all batches, here of one
            norm.train()
        if norms:
            module(pixels)
    module.eval()


def make_timm_transform(network: TorchNetwork) -> Any:
    side = network.preprocess.input_size_px
    return create_transform(**resolve_data_config({"input_size": (3, side, side)}, model=network.module))


def build_preprocessor(spec: PreprocessSpec) -> onnx.ModelProto:
    builder = GraphBuilder()
    shape = [1, 3, spec.input_size_px, spec.input_size_px]
    return builder.build(
        [IMAGE_INPUT], [helper.make_tensor_value_info(add_preprocessing(builder, spec), TensorProto.FLOAT, shape)]
    )


def open_session(model: onnx.ModelProto, num_threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def read_pixels(path: str) -> np.ndarray:
    with open(path, "rb") as file:
        return decode_image(file.read()).pixels


if __name__ == "__main__":
    main()
