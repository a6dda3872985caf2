"""Fine-tuning: epochs over the cached lower part against epochs without the cache, and one step against plain torch.

Epochs: EfficientNet-Lite0 on the pictures of a folder, trained from the layers of `--from`. Both sides run the same
loop over the same augmented pictures and train the same parameters; without the cache every epoch reads the pictures,
draws the same kind of view and runs the frozen part in torch. They take turns. `computed_s` is what filling the cache
took, once for all epochs.

Steps: the whole of EfficientNet-Lite0 at 160 px, batch 32, the pixels ready in memory. Ours is the loop's own step with
all that it does by default (weight averaging, label smoothing, layer-wise rates, batch norm statistics kept); the other
is what a plain script has: timm's model in train(), channels_last, cross-entropy, AdamW. They take turns.

Beside the seconds of the clock stand those of the processor: with one thread of torch they are nearly untouched by
other work on the machine.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import timm
import torch
from measure import list_versions, make_parser, report, round_figure, summarize, work_folder
from warm import spread_out

from headstart.backbones.torch_network import TorchNetwork, load_network
from headstart.config import FitSettings
from headstart.data_check import hash_images
from headstart.dataset import ImageRecord, scan_dataset
from headstart.feature_cache import FeatureCache
from headstart.features import Picture
from headstart.finetuning.augmentation import find_preset
from headstart.finetuning.checkpoints import start_folder
from headstart.finetuning.cut import WHOLE, CutNetwork, cut_network, make_runner
from headstart.finetuning.loop import Part, _Run
from headstart.finetuning.model import HeadModule, TopModel
from headstart.finetuning.rows import CachedRows, PixelRows
from headstart.graph import PooledLayer
from headstart.heads.linear import LinearHead

_FIT = FitSettings(
    learning_rate=3e-4,
    weight_decay=0.02,
    epochs=100,
    augment="light",
    label_smoothing=0.05,
    warmup_frac=0.1,
    schedule="cosine",
    layer_decay=0.8,
    ema=True,
)
_BACKBONE = "efficientnet-lite0"
_TOP = (PooledLayer("head", 1),)
_STEP_BATCH, _STEP_SIDE_PX, _STEPS_A_TURN = 32, 160, 10


def main() -> None:
    parser = make_parser(__doc__, repeats=5)
    parser.add_argument("data", help="folder of pictures in class folders")
    parser.add_argument("--images", type=int, default=400, help="pictures to train on (default 400)")
    parser.add_argument("--from", dest="layers", nargs="+", default=["stage6", "stage7"], metavar="LAYER")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch (default: all cores)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    records = spread_out(hash_images(scan_dataset(args.data)).records, args.images + args.images // 5)
    report(
        {
            "torch": {**list_versions("torch", "timm"), "threads": args.threads},
            "num_train": args.images,
            "num_validation": args.images // 5,
            "epochs": {layer: measure_epochs(records, args.images, layer, args.repeats) for layer in args.layers},
            "steps": measure_steps(args.repeats),
        }
    )


class TorchRows:
    """The tensor at the cut, from pixels that are drawn anew and run through torch in every epoch."""

    def __init__(self, cut: CutNetwork, pixels: PixelRows) -> None:
        self.pixels = pixels
        self.network = cut.network
        self.entry = cut.entry

    def iterate(self, batches: Iterable[np.ndarray], epoch: int) -> Iterator[torch.Tensor]:
        side = self.network.preprocess.input_size_px
        for rows in self.pixels.iterate(batches, epoch):
            yield self.run(rows.unflatten(1, (3, side, side)).contiguous(memory_format=torch.channels_last))

    @torch.no_grad()
    def run(self, pixels: torch.Tensor) -> torch.Tensor:
        got: list[torch.Tensor] = []

        def stop(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            got.append(inputs[0])
            raise _Reached

        hook = self.network.module.get_submodule(self.entry).register_forward_pre_hook(stop)
        try:
            self.network.module.forward_features(pixels)
        except _Reached:
            return got[0].flatten(1)
        finally:
            hook.remove()
        raise AssertionError(f"{self.entry} did not run")


class _Reached(Exception):
    """The frozen part is done; what follows is the loop's."""


def measure_epochs(records: list[ImageRecord], num_train: int, layer: str, repeats: int) -> dict[str, Any]:
    validation = spread_out(records, len(records) - num_train)
    put_aside = {record.sha256 for record in validation}
    train = [record for record in records if record.sha256 not in put_aside]
    parts = train, validation
    num_classes = 1 + max(record.label for record in records)
    labels = [np.array([record.label for record in part], np.int64) for part in parts]
    pictures = [[Picture(record.sha256, record.path) for record in part] for part in parts]
    augmentation = find_preset(_FIT.augment)
    with work_folder() as folder, FeatureCache() as cache:
        runs = {}
        cut = make_cut(load_network(_BACKBONE), layer)
        runner = make_runner(cut)
        cached = (
            CachedRows(runner, pictures[0], cache, augmentation, _FIT.num_views),
            CachedRows(runner, pictures[1], cache),
        )
        began = time.perf_counter()
        for each in cached:
            each.compute(lambda done, total: None)
        computed_s = time.perf_counter() - began
        runs["cached"] = make_run(cut, cached, labels, num_classes, folder / "cached")
        other = make_cut(load_network(_BACKBONE), layer)
        spec = other.network.preprocess
        pixels = PixelRows(pictures[0], spec, augmentation), PixelRows(pictures[1], spec)
        rows = TorchRows(other, pixels[0]), TorchRows(other, pixels[1])
        runs["whole"] = make_run(other, rows, labels, num_classes, folder / "whole")
        seconds: dict[str, list[Seconds]] = {"cached": [], "whole": []}
        for turn in range(repeats + 1):
            for name, run in runs.items():
                began = read_clocks()
                run.train_epoch()
                run.finish_epoch()
                if turn:  # the first one sets things up
                    seconds[name].append(measure_since(began))
        losses = {name: round_figure(run.history[-1].validation_loss) for name, run in runs.items()}
        reading = [time_reading(pixels[0], pictures[0]) for _ in range(min(repeats, 2))]
    return {
        "trained_parameters": sum(param.numel() for param in runs["cached"].params.values()),
        "computed_s": round_figure(computed_s),
        "of_which_pictures_s": round_figure(statistics.median(reading)),
        **compare(seconds, "whole", "cached"),
        "final_validation_loss": losses,
    }


def time_reading(pixels: PixelRows, pictures: list[Picture]) -> float:
    """Reading, decoding and drawing alone: what no epoch without the cache can be faster than."""
    numbers = np.arange(len(pictures))
    began = time.perf_counter()
    for _ in pixels.iterate([numbers[i : i + 32] for i in range(0, len(numbers), 32)], 1):
        pass
    return time.perf_counter() - began


def make_cut(network: TorchNetwork, layer: str) -> CutNetwork:
    return cut_network(network, WHOLE if layer == WHOLE else network.find_entry(layer), _TOP)


def make_run(cut: CutNetwork, rows: Any, labels: list[np.ndarray], num_classes: int, folder: Path) -> _Run:
    start_folder(folder, {"kind": "benchmark"})
    features = cut.network.get_layer("head").layer.channels
    coef, bias = np.zeros((features, num_classes), np.float32), np.zeros(num_classes, np.float32)
    head = LinearHead(_TOP, coef, bias, penalty=1.0, temperature=1.0)
    parts = [Part(each, own) for each, own in zip(rows, labels, strict=True)]
    run = _Run(TopModel(cut, HeadModule(head)), *parts, num_classes, _FIT, folder, lambda *_: None)
    run.restore()
    return run


def measure_steps(repeats: int, num_classes: int = 10) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.normal(size=(_STEP_BATCH, 3, _STEP_SIDE_PX, _STEP_SIDE_PX)).astype(np.float32))
    labels = rng.integers(0, num_classes, _STEP_BATCH)
    with work_folder() as folder:
        cut = make_cut(load_network(_BACKBONE, _STEP_SIDE_PX), WHOLE)
        part = FixedRows(pixels.flatten(1)), FixedRows(pixels.flatten(1))
        run = make_run(cut, part, [labels, labels], num_classes, folder / "run")
        run.model.train()
        plain = PlainStep(num_classes, pixels, labels)
        seconds: dict[str, list[Seconds]] = {"ours": [], "plain": []}
        for turn in range(repeats + 1):
            for name, step in (("ours", lambda: run.take_step(pixels.flatten(1), labels)), ("plain", plain.take)):
                began = read_clocks()
                for _ in range(_STEPS_A_TURN):
                    step()
                if turn:
                    seconds[name].append(measure_since(began, _STEPS_A_TURN))
    return {
        "batch_size": _STEP_BATCH,
        "side_px": _STEP_SIDE_PX,
        **compare(seconds, "plain", "ours"),
    }


class Seconds(NamedTuple):
    clock: float
    processor: float


def read_clocks() -> Seconds:
    return Seconds(time.perf_counter(), time.process_time())


def measure_since(began: Seconds, count: int = 1) -> Seconds:
    return Seconds(*((now - then) / count for now, then in zip(read_clocks(), began, strict=True)))


def compare(seconds: dict[str, list[Seconds]], slow: str, fast: str) -> dict[str, Any]:
    """Both sides and their ratios turn by turn, by the clock and by the processor."""
    found: dict[str, Any] = {}
    for kind in Seconds._fields:
        sides = {name: [getattr(each, kind) for each in seconds[name]] for name in (slow, fast)}
        ratios = [one / other for one, other in zip(sides[slow], sides[fast], strict=True)]
        found[kind] = {
            **{f"{name}_s": summarize(values) for name, values in sides.items()},
            f"{slow}_over_{fast}": summarize(ratios),
        }
    return found


class FixedRows:
    def __init__(self, rows: torch.Tensor) -> None:
        self.rows = rows

    def iterate(self, batches: Iterable[np.ndarray], epoch: int) -> Iterator[torch.Tensor]:
        for batch in batches:
            yield self.rows[torch.from_numpy(batch)]


class PlainStep:
    """A training step as any script has it."""

    def __init__(self, num_classes: int, pixels: torch.Tensor, labels: np.ndarray) -> None:
        self.model = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=num_classes)
        self.model = self.model.to(memory_format=torch.channels_last).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=3e-4, weight_decay=0.02)
        self.pixels = pixels.contiguous(memory_format=torch.channels_last)
        self.labels = torch.from_numpy(labels)

    def take(self) -> None:
        self.optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(self.model(self.pixels), self.labels)
        loss.backward()
        self.optimizer.step()
        loss.item()


if __name__ == "__main__":
    main()
