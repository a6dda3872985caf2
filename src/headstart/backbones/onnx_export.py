"""From a network in torch to an ONNX graph with preprocessing, which is what everything else runs."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence

import onnx
import torch
from onnx import TensorProto, helper

from headstart.backbones.catalog import Backbone
from headstart.backbones.network_layers import LayerOutputs
from headstart.backbones.torch_network import TorchNetwork
from headstart.errors import BackboneError
from headstart.graph import IMAGE_INPUT, OPSET, GraphBuilder, PreprocessSpec, add_preprocessing


def export_backbone(network: TorchNetwork) -> Backbone:
    """The network's layers as a graph from `image`, outputs float32 (1, C, h, h). Raises BackboneError."""
    outputs = [(layer.name, [1, layer.layer.channels, layer.layer.size, layer.layer.size]) for layer in network.layers]
    module = LayerOutputs(network.module, network.layers)
    model = export_graph(module, network.preprocess, outputs, network.name)
    layers = tuple(layer.layer for layer in network.layers)
    return Backbone(network.name, network.sha256, network.licence, network.source, network.preprocess, layers, model)


def export_graph(
    module: torch.nn.Module, preprocess: PreprocessSpec, outputs: Sequence[tuple[str, Sequence[int]]], name: str
) -> onnx.ModelProto:
    """`module` takes normalised pixels (1, 3, S, S) and gives as many tensors as there are `outputs` (name, shape)."""
    pixels = torch.zeros(1, 3, preprocess.input_size_px, preprocess.input_size_px)
    loggers = [logging.getLogger(each) for each in ("torch.onnx", "onnxscript")]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.ERROR)  # what they left unoptimised is no concern of the user's
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's own coming changes
            program = torch.onnx.export(
                module.eval(),
                (pixels,),
                input_names=["pixels"],
                output_names=[label for label, _ in outputs],
                opset_version=OPSET,
                external_data=False,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        reason = str(error).strip().partition("\n")[0]
        raise BackboneError(f"torch {torch.__version__} cannot export {name} to ONNX: {reason}") from error
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)
    exported = program.model_proto.graph
    builder = GraphBuilder(prefix="pre_")
    prepared = add_preprocessing(builder, preprocess)
    for node in exported.node:
        # Operator, inputs and attributes are the graph; the rest tells where on this machine they came from.
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
        node.input[:] = [prepared if tensor == "pixels" else tensor for tensor in node.input]
    for tensor in exported.initializer:
        tensor.ClearField("metadata_props")
        tensor.ClearField("doc_string")
    builder.nodes.extend(exported.node)
    builder.initializers.extend(exported.initializer)
    infos = [helper.make_tensor_value_info(label, TensorProto.FLOAT, list(shape)) for label, shape in outputs]
    return builder.build([IMAGE_INPUT], infos)
