"""What part of a picture spoke for a class, from the classifier file alone.

Pooling and a linear head are linear, so every position of a feature map has its own share of the logit, and the shares
sum to it exactly. Of a dense head the same is true of its gradient, the sum completed by what the biases give.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import PIL.Image
from onnx import numpy_helper

from headstart.artifact import ArtifactMetadata, create_session, parse_artifact
from headstart.errors import ArtifactError, ConfigError, suggest
from headstart.graph import IMAGE, PROBABILITIES, PooledLayer, compute_pooling_matrix
from headstart.heat_tail import add_outputs, cut_tail
from headstart.pictures import PictureSource, load_picture

if TYPE_CHECKING:
    from headstart.prediction import Classifier

FOR_COLOUR = (213, 94, 0)
AGAINST_COLOUR = (0, 114, 178)
"""Vermilion and blue of Okabe and Ito (2008), which colour-blind people tell apart."""

_OUTSIDE_LIGHT = 0.35


@dataclass(frozen=True, eq=False, slots=True)
class HeatMap:
    """What spoke for a class, position by position of the network's map.

    `values` float32 (h, h): above 0 for the class, below 0 against it; they sum to `logit`. `logit` is the file's,
    temperature included, less the mean of all classes' logits: log p of the class less the mean of all log p. (A
    logistic regression's logits have the mean 0 already; other heads' hold a number that all classes share and that
    says nothing.) `spread` is the part of the logit that has no place in the picture, such as the intercept; `values`
    hold it in equal parts. `probs` is float32 (K,). `box` is the square that the network saw: top, left, height, width
    as fractions of the picture.
    """

    values: np.ndarray
    classes: tuple[str, ...]
    class_index: int
    logit: float
    spread: float
    probs: np.ndarray
    box: tuple[float, float, float, float]

    @property
    def smoothed(self) -> np.ndarray:
        """`values` as they are drawn, float32 (h, h) of the same sum: each is shared with its neighbours, since a
        position is computed from more of the picture than its own cell.

        Binomial weights 1 2 1, once on a raster of 7 x 7 and as wide in the picture on finer ones. Deleting the hottest
        fifth of a picture moved the prediction a little more surely by these than by `values`.
        """
        size = len(self.values)
        step = (np.eye(size, k=-1) + 2 * np.eye(size) + np.eye(size, k=1)) / 4
        step[[0, -1], [0, -1]] += 1 / 4  # what would leave the raster stays
        spread = np.linalg.matrix_power(step, round((size / 7) ** 2)) if size > 1 else np.eye(1)
        return np.asarray(spread @ self.values @ spread, dtype=np.float32)

    @property
    def label(self) -> str:
        return self.classes[self.class_index]

    @property
    def probability(self) -> float:
        return float(self.probs[self.class_index])


class Explainer:
    """The classifier in one file's bytes, ready to say what spoke for its classes.

    `data` is a file that `load` accepts. The network runs once a picture, as for a prediction; `explain` may be called
    from several threads. Raises ConfigError for a file of other make, whose layers are not known, ArtifactError for
    one whose graph is not what it says about itself.

    A layer without positions (a class token, attention pooling) is followed back to the last tensor that has them.
    There the share of a position is its values times their gradient, found by central differences: two runs of the
    rest of the network for each position. What these shares lack of the whole is in `spread`.
    """

    def __init__(self, data: bytes, *, num_threads: int = 1) -> None:
        self.metadata, _ = parse_artifact(data, allow_unsigned=True)
        if not self.metadata.head or not self.metadata.preprocess:
            raise ConfigError(
                "The file does not say which layers its head takes, so there is no telling what part of a picture it "
                "looked at. Heat maps need a classifier that headstart trained."
            )
        model = onnx.load_from_string(data)
        self._head = _Head.read(model, self.metadata)
        self._logits = _find_logits(model)
        layers = list(dict.fromkeys(block.layer for block in self._head.blocks))
        outputs = [self._logits, *layers]
        known = {name for node in model.graph.node for name in node.output}
        if missing := [name for name in outputs if name not in known]:
            raise _say_strange(f"it has no tensor '{missing[0]}'")
        session = create_session(add_outputs(model, outputs), num_threads=num_threads)
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        first = dict(zip(outputs, session.run(outputs, {IMAGE: noise}), strict=True))
        _check_head(self._head, first, first[self._logits])
        self._tail = None
        if vectors := [name for name in layers if first[name].size == first[name].shape[1]]:
            self._tail = cut_tail(model, vectors, noise)
            outputs.append(self._tail.tensor)
            session = create_session(add_outputs(model, outputs[-1:]), num_threads=num_threads)
        self._session, self._outputs = session, outputs

    def explain(self, picture: PictureSource, class_name: str | int | None = None) -> HeatMap:
        """What spoke for a class, given by name or number; by default for the most probable one.

        Raises ImageError for a picture that cannot be used, ConfigError for a class that is not the classifier's.
        """
        wanted = None if class_name is None else self._find_class(class_name)
        pixels = load_picture(picture, None, 2 * self.metadata.preprocess["input_size_px"]).pixels
        probs, *found = self._session.run([PROBABILITIES, *self._outputs], {IMAGE: pixels})
        tensors = dict(zip(self._outputs, found, strict=True))
        number = int(probs.argmax()) if wanted is None else wanted
        logits = tensors[self._logits][0].astype(np.float64)
        shares, spread = self._share_out(tensors, number)
        size = max(math.isqrt(len(share)) for share in shares)
        # Columns of a pooling matrix sum to 1, so a coarser map is divided among the finer one's positions.
        total = sum(compute_pooling_matrix(size, math.isqrt(len(share))).astype(np.float64) @ share for share in shares)
        values = (total + spread / size**2).astype(np.float32).reshape(size, size)
        logit = float(logits[number] - logits.mean())
        box = compute_box(self.metadata.preprocess, *pixels.shape[:2])
        return HeatMap(values, self.metadata.labels, number, logit, spread, probs, box)

    def _find_class(self, wanted: str | int) -> int:
        labels = self.metadata.labels
        if isinstance(wanted, str) and wanted in labels:
            return labels.index(wanted)
        if not isinstance(wanted, str) and 0 <= wanted < len(labels):
            return int(wanted)
        raise ConfigError(
            f"The classifier has no class '{wanted}'.{suggest(str(wanted), labels)} "
            f"It has {', '.join(labels[:20])}{' and more' if len(labels) > 20 else ''}."
        )

    def _share_out(self, tensors: dict[str, np.ndarray], number: int) -> tuple[list[np.ndarray], float]:
        """Shares float64 (h * h,) of each map, and the part of the logit without a place."""
        gradients, spread = self._head.differentiate(tensors, number)
        shares, vectors = [], []
        for block, gradient in zip(self._head.blocks, gradients, strict=True):
            values = tensors[block.layer][0].astype(np.float64).reshape(len(gradient), -1)
            if values.shape[1] > 1:
                pooling = compute_pooling_matrix(math.isqrt(values.shape[1]), block.grid)
                shares.append((values * (gradient @ pooling.T)).sum(axis=0))
            else:
                vectors.append((block.layer, gradient.ravel()))
                spread += float(values[:, 0] @ gradient[:, 0])
        if self._tail:
            share = self._tail.share_out(tensors[self._tail.tensor], vectors)
            shares.append(share)
            spread -= float(share.sum())
        return shares, spread


def explain(classifier: Classifier, picture: PictureSource, class_name: str | int | None = None) -> HeatMap:
    """What part of the picture spoke for a class, by default the most probable one.

    For many pictures make one Explainer(classifier.data), whose errors these are.
    """
    return Explainer(classifier.data).explain(picture, class_name)


# The head


@dataclass(frozen=True, eq=False)
class _Head:
    """Pooled layers through (coef, intercept) with ReLU in between to logits, as the file's graph has them."""

    blocks: tuple[PooledLayer, ...]
    weights: tuple[tuple[np.ndarray, np.ndarray], ...]
    takes_max: bool

    @classmethod
    def read(cls, model: onnx.ModelProto, metadata: ArtifactMetadata) -> _Head:
        about = metadata.head
        is_dense = about.get("kind") == "dense"
        names = [*(f"head.{i}" for i in range(len(about.get("hidden", ())))), "head.output"] if is_dense else ["head"]
        constants = {tensor.name: tensor for tensor in model.graph.initializer}
        wanted = [(f"{name}.coef", f"{name}.intercept") for name in names]
        if missing := [name for pair in wanted for name in pair if name not in constants]:
            raise _say_strange(f"it has no constant '{missing[0]}'")
        weights = tuple((numpy_helper.to_array(constants[a]), numpy_helper.to_array(constants[b])) for a, b in wanted)
        return cls(tuple(PooledLayer(*each) for each in about["layers"]), weights, about.get("pooling") == "max")

    def differentiate(self, maps: dict[str, np.ndarray], number: int) -> tuple[list[np.ndarray], float]:
        """Gradients float64 (C, grid * grid) of the class's logit for each block, and what the intercepts add.

        The head is linear between its kinks, so pooled values times gradients plus that is the logit.
        """
        pooled = [_pool(maps[block.layer], block.grid) for block in self.blocks]
        inputs = [pooled[0].max(axis=1) if self.takes_max else np.concatenate([cells.ravel() for cells in pooled])]
        for coef, intercept in self.weights[:-1]:
            inputs.append(np.maximum(inputs[-1] @ coef + intercept, 0))
        # A number that all classes share moves no probability: the mean is taken off.
        coef, intercept = (each.astype(np.float64) for each in self.weights[-1])
        gradient = coef[:, number] - coef.mean(axis=1)
        rest = float(intercept[number] - intercept.mean())
        for (coef, intercept), output in zip(self.weights[-2::-1], inputs[:0:-1], strict=True):
            gradient = gradient * (output > 0)
            rest += float(intercept @ gradient)
            gradient = coef @ gradient
        if self.takes_max:
            cells = np.zeros_like(pooled[0])
            cells[np.arange(len(cells)), pooled[0].argmax(axis=1)] = gradient
            return [cells], rest
        ends = np.cumsum([cells.size for cells in pooled])[:-1]
        parts = np.split(gradient, ends)
        return [part.reshape(cells.shape) for part, cells in zip(parts, pooled, strict=True)], rest


def _pool(tensor: np.ndarray, grid: int) -> np.ndarray:
    """float64 (C, grid * grid) of a map (1, C, h, h)"""
    return tensor[0].astype(np.float64).reshape(tensor.shape[1], -1) @ compute_pooling_matrix(tensor.shape[2], grid)


def _check_head(head: _Head, maps: dict[str, np.ndarray], logits: np.ndarray) -> None:
    """Whether head and maps as they were read give the logits of the graph."""
    shapes = [maps[block.layer].shape for block in head.blocks]
    if any(len(shape) != 4 or shape[0] != 1 or shape[2] != shape[3] for shape in shapes):
        raise _say_strange("its layers are not square maps")
    sizes = [
        shape[1] * (1 if head.takes_max else block.grid**2) for block, shape in zip(head.blocks, shapes, strict=True)
    ]
    if sum(sizes) != len(head.weights[0][0]):
        raise _say_strange("its head takes another number of values than its layers have")
    centred = logits[0].astype(np.float64) - logits.mean()
    for number in range(min(len(centred), 3)):
        gradients, total = head.differentiate(maps, number)
        for block, gradient in zip(head.blocks, gradients, strict=True):
            total += float((_pool(maps[block.layer], block.grid) * gradient).sum())
        if abs(total - centred[number]) > 1e-3 * (1 + np.abs(logits).max()):
            raise _say_strange("its head does not add up to its logits")


def _find_logits(model: onnx.ModelProto) -> str:
    producers = {output: node for node in model.graph.node for output in node.output}
    tensor = PROBABILITIES
    for operation in ("Squeeze", "Softmax"):
        if tensor not in producers or producers[tensor].op_type != operation:
            raise _say_strange(f"its probabilities do not come from {operation}")
        tensor = producers[tensor].input[0]
    return tensor


def _say_strange(found: str) -> ArtifactError:
    return ArtifactError(
        f"The graph is not what the file says about itself: {found}. Heat maps need a classifier as headstart saves it."
    )


# Where the network looked, and drawing


def compute_box(preprocess: dict[str, Any], height: int, width: int) -> tuple[float, float, float, float]:
    """Top, left, height, width of the square that the network sees of an upright picture, as fractions of it.

    `preprocess` is what the classifier file says; the rules are those of `graph.PreprocessSpec`.
    """
    side, crop_frac = preprocess["input_size_px"], preprocess["crop_frac"]
    crop = preprocess.get("crop", "centre")
    larger = math.floor(side / crop_frac)
    short = min(height, width)
    if crop == "squash":
        return (round((larger - side) / 2) / larger,) * 2 + (side / larger,) * 2
    if crop == "after-resize" and short > side:
        sizes = [length * min(short, larger) // short for length in (height, width)]
        starts = [round((size - side) / 2) / size for size in sizes]
        return starts[0], starts[1], side / sizes[0], side / sizes[1]
    square = (
        short
        if crop == "after-resize"
        else round(max(float(np.float32(short) * np.float32(crop_frac)), min(short, side)))
    )
    return (height - square) // 2 / height, (width - square) // 2 / width, square / height, square / width


def overlay_values(heat: HeatMap) -> np.ndarray:
    """`smoothed` as uint8 (h, h): 128 is nothing, 255 the strongest for the class, 1 as strong against it."""
    values = heat.smoothed
    return np.round(128 + 127 * values / (float(np.abs(values).max()) or 1.0)).astype(np.uint8)


def draw_heat_map(pixels: np.ndarray, heat: HeatMap, alpha: float = 0.6) -> PIL.Image.Image:
    """The picture uint8 (H, W, 3) with the map over it: FOR_COLOUR spoke for the class, AGAINST_COLOUR against it.

    The strongest position is covered by `alpha` (0 .. 1), others in proportion to it. What the network saw is grey, so
    that no colour of the picture is taken for one of the map; what it did not see is darkened.
    """
    height, width = pixels.shape[:2]
    top, left = round(heat.box[0] * height), round(heat.box[1] * width)
    size = max(1, round(heat.box[3] * width)), max(1, round(heat.box[2] * height))
    values = heat.smoothed
    strength = values / np.float32(np.abs(values).max() or 1.0)
    smooth = np.asarray(PIL.Image.fromarray(strength).resize(size, PIL.Image.Resampling.BICUBIC))[..., None]
    drawn = pixels * np.float32(_OUTSIDE_LIGHT)
    seen = np.asarray(PIL.Image.fromarray(pixels).convert("L"))[top : top + size[1], left : left + size[0], None]
    smooth = smooth[: seen.shape[0], : seen.shape[1]]
    cover = np.minimum(np.abs(smooth), 1) * np.float32(alpha)
    colour = np.where(smooth > 0, np.array(FOR_COLOUR, np.float32), np.array(AGAINST_COLOUR, np.float32))
    drawn[top : top + size[1], left : left + size[0]] = seen * (1 - cover) + colour * cover
    return PIL.Image.fromarray(np.round(drawn).astype(np.uint8))
