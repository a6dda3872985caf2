"""A network cut in two: what stands below the cut is frozen and runs in ONNX Runtime, what stands above is trained.

The network is traced by torch.export in evaluation mode, so batch norm keeps its statistics and the graph can be parted
at any tensor that everything above it depends on.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.fx import GraphModule, Node

from headstart.backbones.network_layers import LayerOutputs
from headstart.backbones.onnx_export import export_graph
from headstart.backbones.torch_network import RANDOM_SOURCE, TorchNetwork
from headstart.errors import ConfigError
from headstart.features import GraphRunner
from headstart.graph import FEATURES, PooledLayer, compute_pooling_matrix

WHOLE = "input"
"""As the layer to train from: everything, from the pixels on."""

_SYM_SIZE = torch.ops.aten.sym_size.int
# `output` and the placeholders stay; nothing in a graph traced for evaluation has effects beside its value.
_KEPT_OPS = ("placeholder", "output")


@dataclass(frozen=True, eq=False)
class CutNetwork:
    """A network and its parts. A row holds the tensor at the cut and the pooled layers from below it, side by side.

    `entry` is the path of the first module that is trained, or WHOLE. `above` maps the tensor at the cut, of shape
    (B, *cut_shape), to the maps of those head layers that stand above; `below` are those that come with the row.
    """

    network: TorchNetwork
    entry: str
    cut_shape: tuple[int, ...]
    head_layers: tuple[PooledLayer, ...]
    below: tuple[PooledLayer, ...]
    above: torch.nn.Module

    @property
    def is_random(self) -> bool:
        """Whether the network learns from scratch: then its batch norm has no statistics worth keeping."""
        return self.entry == WHOLE and self.network.source == RANDOM_SOURCE

    @property
    def row_size(self) -> int:
        return math.prod(self.cut_shape) + sum(self.count_features(pooled) for pooled in self.below)

    def count_features(self, pooled: PooledLayer) -> int:
        return self.network.get_layer(pooled.layer).layer.channels * pooled.grid**2


def cut_network(network: TorchNetwork, entry: str, head_layers: Sequence[PooledLayer]) -> CutNetwork:
    """Part the network before module `entry` (a path, or WHOLE). Raises ConfigError where it cannot be cut there."""
    network.module.to(memory_format=torch.channels_last)
    names = list(dict.fromkeys(pooled.layer for pooled in head_layers))
    if entry == WHOLE:
        side = network.preprocess.input_size_px
        whole = LayerOutputs(network.module, [network.get_layer(name) for name in names])
        _work_in_place(network, whole)
        return CutNetwork(network, entry, (3, side, side), tuple(head_layers), (), whole)
    traced = _trace(network, entry, names)
    graph = traced.graph
    output = next(node for node in graph.nodes if node.op == "output")
    pixels = next(node for node in graph.nodes if node.op == "placeholder")
    cut, *maps = output.args[0]
    behind = _find_dependents(cut) - {cut}
    above = [name for name, node in zip(names, maps, strict=True) if node in behind]
    if not above:
        raise _say_nothing_above(network, entry, names)
    shape = tuple(int(size) for size in cut.meta["val"].shape[1:])
    _part(graph, pixels, cut)
    output.args = ([node for name, node in zip(names, maps, strict=True) if name in above],)
    graph.set_codegen(torch.fx.graph.CodeGen())  # its own packs the inputs and outputs that it was traced with
    graph.eliminate_dead_code(is_impure_node=lambda node: node.op in _KEPT_OPS)
    if pixels.users:
        raise ConfigError(
            f"{network.name} cannot be cut before {entry}: what follows also needs what goes around it. "
            f"Choose another layer: {', '.join(layer.name for layer in network.layers)}."
        )
    graph.erase_node(pixels)
    _drop_unused(traced)
    if not any(True for _ in traced.parameters()):  # the head reads the cut itself, its axes in another order
        raise _say_nothing_above(network, entry, names)
    below = tuple(pooled for pooled in head_layers if pooled.layer not in above)
    return CutNetwork(network, entry, shape, tuple(head_layers), below, traced)


def _say_nothing_above(network: TorchNetwork, entry: str, names: Sequence[str]) -> ConfigError:
    return ConfigError(
        f"The head takes its features from {', '.join(names)}, which stands before {entry} in {network.name}. "
        "Train from an earlier layer with --from, or choose the head's layers with --layers top."
    )


def _work_in_place(network: TorchNetwork, whole: LayerOutputs) -> None:
    """Let activations overwrite what they get, a tenth of a step's time, where the head's maps stay what they are."""
    side = network.preprocess.input_size_px
    pixels = torch.linspace(-1, 1, 3 * side**2).reshape(1, 3, side, side).to(memory_format=torch.channels_last)
    whole.eval()
    with torch.no_grad():
        before = whole(pixels)
        network.set_inplace(True)
        if not all(map(torch.equal, before, whole(pixels))):
            network.set_inplace(False)


def _trace(network: TorchNetwork, entry: str, names: Sequence[str]) -> GraphModule:
    module = _CutOutputs(network, entry, [network.get_layer(name) for name in names])
    side = network.preprocess.input_size_px
    pixels = torch.zeros(2, 3, side, side).contiguous(memory_format=torch.channels_last)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own coming changes
        program = torch.export.export(module.eval(), (pixels,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        return program.module(check_guards=False)


class _CutOutputs(torch.nn.Module):
    """The input of module `entry`, then the maps of the layers."""

    def __init__(self, network: TorchNetwork, entry: str, layers: Sequence[object]) -> None:
        super().__init__()
        self.outputs = LayerOutputs(network.module, layers)  # type: ignore[arg-type]
        self.entry = entry

    def forward(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        got: list[torch.Tensor] = []
        entry = self.outputs.network.get_submodule(self.entry)
        hook = entry.register_forward_pre_hook(lambda _, inputs: got.append(inputs[0]))
        try:
            maps = self.outputs(pixels)
        finally:
            hook.remove()
        return [got[0], *maps]


def _find_dependents(start: Node) -> set[Node]:
    found, waiting = {start}, [start]
    while waiting:
        for user in waiting.pop().users:
            if user not in found:
                found.add(user)
                waiting.append(user)
    return found


def _part(graph: torch.fx.Graph, pixels: Node, cut: Node) -> None:
    """Let what follows `cut` read a new input instead, and take the size of the batch from there."""
    with graph.inserting_before(pixels):
        received = graph.placeholder("cut")
    received.meta = dict(cut.meta)
    cut.replace_all_uses_with(received)
    sizes = [node for node in graph.nodes if node.target is _SYM_SIZE and node.args == (pixels, 0)]
    if sizes:
        with graph.inserting_after(received):
            size = graph.call_function(_SYM_SIZE, (received, 0))
        size.meta = dict(sizes[0].meta)
        for node in sizes:
            node.replace_all_uses_with(size)


def copy_back(cut: CutNetwork, weights: Mapping[str, torch.Tensor]) -> None:
    """Put the trained tensors of `cut.above`, by their names there, into the network itself."""
    state = {name.partition("network.")[2]: tensor for name, tensor in weights.items()}
    cut.network.module.load_state_dict({**cut.network.module.state_dict(), **state})


def _drop_unused(module: GraphModule) -> None:
    """Forget the parameters that the graph no longer reads."""
    used = {node.target for node in module.graph.nodes if node.op == "get_attr"}
    for name in [name for name, _ in [*module.named_parameters(), *module.named_buffers()] if name not in used]:
        owner, _, leaf = name.rpartition(".")
        delattr(module.get_submodule(owner), leaf)
    module.recompile()


class _Below(torch.nn.Module):
    """The frozen part as one vector: the tensor at the cut, flat, and the pooled layers that stand below."""

    def __init__(self, cut: CutNetwork) -> None:
        super().__init__()
        names = list(dict.fromkeys(pooled.layer for pooled in cut.below))
        layers = [cut.network.get_layer(name) for name in names]
        self.outputs = _CutOutputs(cut.network, cut.entry, layers)
        self.pooled = [
            (names.index(pooled.layer), layers[names.index(pooled.layer)].layer.size, pooled.grid)
            for pooled in cut.below
        ]

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        tensor, *maps = self.outputs(pixels)
        parts = [tensor.flatten(), *(pool_map(maps[index], size, grid).flatten() for index, size, grid in self.pooled)]
        return torch.cat(parts)


def pool_map(values: torch.Tensor, size: int, grid: int) -> torch.Tensor:
    """(B, C, size, size) to (B, C * grid * grid): the means over a raster, as the ONNX graph takes them."""
    if grid == size:
        return values.flatten(1)
    if grid == 1:
        return values.mean(dim=(2, 3))
    matrix = torch.from_numpy(compute_pooling_matrix(size, grid)).to(values)
    return (values.flatten(2) @ matrix).flatten(1)


def make_runner(cut: CutNetwork) -> GraphRunner:
    """The frozen part in ONNX Runtime: picture to row."""
    network = cut.network
    model = export_graph(_Below(cut), network.preprocess, [(FEATURES, [cut.row_size])], network.name)
    return GraphRunner(model, f"{network.name} before {cut.entry}", network.preprocess)
