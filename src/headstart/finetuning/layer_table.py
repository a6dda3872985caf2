"""What a network is made of: its layers with shapes, parameters, and what of them is trained."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from headstart._files import show_path
from headstart.errors import BackboneError, suggest

if TYPE_CHECKING:
    from rich.console import RenderableType

_CONTAINERS = (torch.nn.Sequential, torch.nn.ModuleList, torch.nn.ModuleDict)


@dataclass(frozen=True, slots=True)
class LayerRow:
    """A module of a network, or a parameter that stands beside the modules, such as a transformer's class token.

    `name` is its path. `output_shape` leaves out the batch; None for what gives no output in the forward pass.
    `num_trained` of the `num_params` parameters are trained. A parameter that several rows share counts in the first.
    """

    name: str
    kind: str
    output_shape: tuple[int, ...] | None
    num_params: int
    num_trained: int

    @property
    def trainable(self) -> Literal["all", "none", "part"]:
        if self.num_trained == 0:
            return "none"
        return "all" if self.num_trained == self.num_params else "part"


def list_layers(module: torch.nn.Module, example: torch.Tensor, trained: Collection[str] = ()) -> list[LayerRow]:
    """The layers that hold parameters or change the shape, in the order in which `module` defines them.

    Containers and timm's stages are opened, blocks are not: VGG shows its convolutions, ResNet its blocks. `example`
    is an input (B, 3, S, S) of the network, which runs once, in evaluation mode. `trained` holds the names of the
    parameters that will be trained, as module.named_parameters() has them. Raises BackboneError for an unknown name.
    """
    # Shared parameters have several names, any of which may be given.
    params = dict(module.named_parameters(remove_duplicate=False))
    if unknown := [name for name in trained if name not in params]:
        raise BackboneError(
            f"The network has no parameter {', '.join(map(show_path, unknown))}.{suggest(unknown[0], list(params))}"
        )
    trained_ids = {id(params[name]) for name in trained}
    parts = dict(_find_parts("", module))
    shapes = _measure(module, parts, example)
    rows: list[LayerRow] = []
    counted: set[int] = set()
    for name, part in parts.items():
        own = {id(param): param for param in _list_params(part) if id(param) not in counted}
        counted |= own.keys()
        before, after = shapes.get(name, (None, None))
        if own or before != after:
            num_params = sum(param.numel() for param in own.values())
            num_trained = sum(param.numel() for key, param in own.items() if key in trained_ids)
            rows.append(LayerRow(name, type(part).__name__, after, num_params, num_trained))
    return rows


def render_layers(rows: Sequence[LayerRow]) -> Iterator[RenderableType]:
    """The layers as a table, then a line with the sums of what is trained and what is frozen."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for name in ("layer", "kind", "output", "parameters", "trained"):
        table.add_column(name, justify="right" if name in ("output", "parameters") else "left")
    for row in rows:
        shape = "-" if row.output_shape is None else " × ".join(map(str, row.output_shape))
        share = row.trainable if row.num_params else ""
        # Text is printed as it stands: [brackets] in a name are not markup.
        table.add_row(Text(show_path(row.name)), Text(row.kind), shape, f"{row.num_params:,}", share)
    yield table
    total, num_trained = sum(row.num_params for row in rows), sum(row.num_trained for row in rows)
    yield Text(f"{total:,} parameters: {num_trained:,} trained, {total - num_trained:,} frozen")


def _find_parts(path: str, part: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module | torch.nn.Parameter]]:
    """(path, part) of what a reader wants to see: parameters of the opened modules, and modules that stay closed."""
    prefix = f"{path}." if path else ""
    yield from ((prefix + name, param) for name, param in part.named_parameters(recurse=False))
    for name, child in part.named_children():
        # timm's stages hold their blocks in ways of their own, and are called ...Stage.
        if isinstance(child, _CONTAINERS) or type(child).__name__.endswith("Stage"):
            yield from _find_parts(prefix + name, child)
        else:
            yield prefix + name, child


def _list_params(part: torch.nn.Module | torch.nn.Parameter) -> list[torch.nn.Parameter]:
    return [part] if isinstance(part, torch.nn.Parameter) else list(part.parameters())


def _measure(
    module: torch.nn.Module, parts: dict[str, torch.nn.Module | torch.nn.Parameter], example: torch.Tensor
) -> dict[str, tuple[Any, Any]]:
    """Shapes of the input and of the output, without the batch, of every module of `parts` that runs."""
    shapes: dict[str, tuple[Any, Any]] = {}

    def watch(name: str, part: torch.nn.Module) -> Any:
        return part.register_forward_hook(
            lambda _, inputs, output: shapes.setdefault(name, (_get_shape(inputs), _get_shape(output))) and None
        )

    hooks = [watch(name, part) for name, part in parts.items() if isinstance(part, torch.nn.Module)]
    modes = {each: each.training for each in module.modules()}
    try:
        module.eval()  # so that batch norm does not learn from the example
        with torch.no_grad():
            getattr(module, "forward_features", module)(example)
    finally:
        for each, mode in modes.items():
            each.training = mode
        for hook in hooks:
            hook.remove()
    return shapes


def _get_shape(value: Any) -> tuple[int, ...] | None:
    """Of a tensor, or of the first tensor of several."""
    while isinstance(value, tuple | list) and value:
        value = value[0]
    return tuple(value.shape[1:]) if isinstance(value, torch.Tensor) else None
