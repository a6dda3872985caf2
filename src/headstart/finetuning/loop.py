"""The training loop: steps, epochs, validation, early stopping, and checkpoints that any kill may interrupt.

Everything random follows from the seed, the epoch and the step, and not from what ran before, so a training that is
continued from a checkpoint takes the same steps as one that was never stopped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from headstart.config import FitSettings
from headstart.errors import ConfigError
from headstart.finetuning.augmentation import find_preset
from headstart.finetuning.checkpoints import load_checkpoint, pack_optimizer, save_checkpoint, unpack_optimizer
from headstart.finetuning.history import EpochRow, write_history
from headstart.finetuning.mixing import draw_mix
from headstart.finetuning.model import TopModel
from headstart.finetuning.rows import Rows
from headstart.parallel import Progress

_SECONDS_BETWEEN_SAVES = 30.0
_VALIDATION_BATCH = 64
# The average of the weights reaches over about this share of all steps.
_EMA_SHARE = 0.05
_FINAL_RATE = 0.01


@dataclass(frozen=True, eq=False)
class Part:
    """Pictures to train or validate on: their rows, and `labels` int64 (N,)."""

    rows: Rows
    labels: np.ndarray


@dataclass(frozen=True, eq=False)
class Fit:
    """What a training leaves: a row per epoch (0 is the start), the best epoch and its weights by name."""

    history: tuple[EpochRow, ...]
    best_epoch: int
    weights: dict[str, torch.Tensor]


def fit_top(
    model: TopModel,
    train: Part,
    validation: Part,
    num_classes: int,
    settings: FitSettings,
    folder: Path,
    progress: Progress,
) -> Fit:
    """Train `model` and leave the weights of its best epoch in it; `folder` has been begun by `start_folder`.

    A training that `folder` already holds is continued; one that is complete is only read.
    """
    run = _Run(model, train, validation, num_classes, settings, folder, progress)
    run.restore()
    while not run.is_over():
        run.train_epoch()
        run.finish_epoch()
    return run.load_best()


class _Run:
    def __init__(
        self,
        model: TopModel,
        train: Part,
        validation: Part,
        num_classes: int,
        settings: FitSettings,
        folder: Path,
        progress: Progress,
    ) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = model.to(self.device, memory_format=torch.channels_last)
        self.train, self.validation = train, validation
        self.num_classes = num_classes
        self.settings = settings
        self.folder = folder
        self.progress = progress
        self.augmentation = find_preset(settings.augment)
        self.params = {name: param for name, param in model.named_parameters() if param.requires_grad}
        self.optimizer = make_optimizer(model, settings)
        self.base_rates = [group["lr"] for group in self.optimizer.param_groups]
        self.steps_per_epoch = len(_divide(np.arange(len(train.labels)), settings.batch_size))
        self.average = {name: param.detach().clone() for name, param in self.params.items()} if settings.ema else None
        counts = np.bincount(train.labels, minlength=num_classes)
        balanced = len(train.labels) / (num_classes * np.maximum(counts, 1))
        self.class_weights = torch.tensor(
            balanced if settings.class_weights == "balanced" else np.ones(num_classes), dtype=torch.float32
        ).to(self.device)
        self.history: list[EpochRow] = []
        self.best_epoch = 0
        self.step = 0
        # Of the epoch under way: its sums over pictures, and the seconds that earlier processes spent on it.
        self.sums = [0.0, 0.0]
        self.seconds = 0.0
        self.began = self.saved = time.monotonic()

    # Where it stands

    def restore(self) -> None:
        checkpoint = load_checkpoint(self.folder, "last")
        if checkpoint is None:
            self.history.append(self.measure(epoch=0))
            self.save_best()
            self.save()
            return
        state, tensors = checkpoint.state, checkpoint.tensors
        with torch.no_grad():
            for name, param in self.params.items():
                param.copy_(tensors[f"weights/{name}"])
                if self.average is not None:
                    self.average[name].copy_(tensors[f"average/{name}"])
            for name, buffer in self.model.named_buffers():
                if f"buffers/{name}" in tensors:
                    buffer.copy_(tensors[f"buffers/{name}"])
        packed = {
            name.removeprefix("optimizer/"): each for name, each in tensors.items() if name.startswith("optimizer/")
        }
        unpack_optimizer(self.optimizer, packed, state["optimizer"])
        self.history = [EpochRow(**row) for row in state["history"]]
        self.best_epoch, self.step, self.sums = state["best_epoch"], state["step"], state["sums"]
        self.seconds = state["seconds"]
        write_history(self.folder, self.history)

    def save(self) -> None:
        tensors = {f"weights/{name}": param.detach() for name, param in self.params.items()}
        if self.average is not None:
            tensors |= {f"average/{name}": tensor for name, tensor in self.average.items()}
        if _updates_statistics(self.model):
            tensors |= {f"buffers/{name}": buffer for name, buffer in self.model.named_buffers()}
        packed, optimizer = pack_optimizer(self.optimizer)
        tensors |= {f"optimizer/{name}": tensor for name, tensor in packed.items()}
        state: dict[str, Any] = {
            "step": self.step,
            "sums": self.sums,
            "seconds": self.seconds + time.monotonic() - self.began,
            "best_epoch": self.best_epoch,
            "history": [asdict(row) for row in self.history],
            "optimizer": optimizer,
        }
        save_checkpoint(self.folder, "last", tensors, state)
        self.saved = time.monotonic()

    def save_best(self) -> None:
        tensors = dict(self.average if self.average is not None else self.params)
        buffers = dict(self.model.named_buffers()) if _updates_statistics(self.model) else {}
        save_checkpoint(self.folder, "best", {**tensors, **buffers}, {"epoch": self.best_epoch})

    def is_over(self) -> bool:
        epoch = len(self.history) - 1
        patience = self.settings.patience
        return epoch >= self.settings.epochs or (patience is not None and epoch - self.best_epoch >= patience)

    def load_best(self) -> Fit:
        checkpoint = load_checkpoint(self.folder, "best")
        assert checkpoint is not None  # saved before "last" first was
        with torch.no_grad():
            for name, tensor in [*self.model.named_parameters(), *self.model.named_buffers()]:
                if name in checkpoint.tensors:
                    tensor.copy_(checkpoint.tensors[name])
        self.model.to("cpu").eval()
        return Fit(tuple(self.history), self.best_epoch, checkpoint.tensors)

    # An epoch

    def train_epoch(self) -> None:
        settings, epoch = self.settings, len(self.history)
        self.model.train()
        order = np.random.default_rng([settings.seed, epoch]).permutation(len(self.train.labels))
        batches = _divide(order, settings.batch_size)
        done = self.step - (epoch - 1) * self.steps_per_epoch
        rest = batches[done:]
        for batch, rows in zip(rest, self.train.rows.iterate(rest, epoch), strict=True):
            self.take_step(rows.to(self.device), self.train.labels[batch])
            done += 1
            self.progress(f"epoch {epoch} of {settings.epochs}", done, len(batches))
            if time.monotonic() - self.saved > _SECONDS_BETWEEN_SAVES and done < len(batches):
                self.save()

    def take_step(self, rows: torch.Tensor, labels: np.ndarray) -> None:
        settings = self.settings
        rate = compute_rate(self.step, self.steps_per_epoch * settings.epochs, settings)
        for group, base in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = base * rate
        rng = np.random.default_rng([settings.seed, self.step, 1])
        targets = functional.one_hot(torch.from_numpy(labels), self.num_classes).float().to(self.device)
        values, rest = self.model.split_rows(rows)
        if (mix := draw_mix(len(labels), self.augmentation, rng)) is not None:
            if values is not None:
                values = (
                    mix.apply_maps(values) if values.ndim == 4 else mix.apply_vectors(values.flatten(1)).view_as(values)
                )
            rest = mix.apply_vectors(rest)
            targets = mix.apply_targets(targets)
        # Dropout draws from torch's global generator; begun anew in every step, it does not depend on the steps before.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(rng.integers(2**62)))
            with self.autocast():
                logits = self.model.head(self.model.compute_features(values, rest))
        losses = compute_losses(logits.float(), targets, settings.label_smoothing)
        weights = targets @ self.class_weights
        loss = (losses * weights).sum() / weights.sum()
        self.check_finite(float(loss.detach()))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.step += 1
        with torch.no_grad():
            self.sums[0] += float(loss) * len(labels)
            self.sums[1] += float((predict_classes(logits) == targets.argmax(dim=1)).sum())
            if self.average is not None:
                # The first steps count fully, so that the average does not drag along where it began.
                horizon = min(self.step, max(1, _EMA_SHARE * self.steps_per_epoch * settings.epochs))
                torch._foreach_lerp_([*self.average.values()], [*self.params.values()], 1 / (1 + horizon))

    def finish_epoch(self) -> None:
        row = self.measure(epoch=len(self.history))
        self.history.append(row)
        if self.is_better(row, self.history[self.best_epoch]):
            self.best_epoch = row.epoch
            self.save_best()
        self.sums, self.seconds, self.began = [0.0, 0.0], 0.0, time.monotonic()
        self.save()
        write_history(self.folder, self.history)

    def is_better(self, row: EpochRow, best: EpochRow) -> bool:
        if self.settings.monitor == "accuracy":
            return row.validation_accuracy > best.validation_accuracy
        return row.validation_loss < best.validation_loss

    def measure(self, epoch: int) -> EpochRow:
        logits = self.predict(self.validation, f"validating epoch {epoch}")
        labels = torch.from_numpy(self.validation.labels)
        losses = compute_losses(logits, functional.one_hot(labels, self.num_classes).float(), 0.0)
        self.check_finite(float(losses.mean()))
        num_images = len(self.train.labels)
        return EpochRow(
            epoch=epoch,
            step=self.step,
            train_loss=self.sums[0] / num_images if epoch else None,
            train_accuracy=self.sums[1] / num_images if epoch else None,
            validation_loss=float(losses.mean()),
            validation_accuracy=float((predict_classes(logits) == labels).float().mean()),
            learning_rate=max(group["lr"] for group in self.optimizer.param_groups),
            seconds=round(self.seconds + time.monotonic() - self.began, 3),
        )

    def predict(self, part: Part, stage: str) -> torch.Tensor:
        """Logits (N, K) with the averaged weights, where there are any."""
        trained = None
        if self.average is not None:
            trained = {name: param.detach().clone() for name, param in self.params.items()}
            _assign(self.params, self.average)
        logits = predict_logits(self.model, part, self.device, lambda done, total: self.progress(stage, done, total))
        if trained is not None:
            _assign(self.params, trained)
        return logits

    def check_finite(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise ConfigError(
                f"The training has left all bounds: after {self.step:,} steps the loss is {loss}. Choose a lower "
                f"learning rate; it is {self.settings.learning_rate:g}."
            )

    def autocast(self) -> Any:
        if self.device.type != "cuda":
            return nullcontext()
        # float16 would need its losses scaled; where bfloat16 is missing, TF32 is nearly as fast.
        if torch.cuda.is_bf16_supported():
            return torch.autocast("cuda", torch.bfloat16)
        return nullcontext()


def _divide(order: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Batches; a picture that is left over alone goes with those before it."""
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    if len(batches) > 1 and len(batches[-1]) == 1 < batch_size:  # batch norm cannot learn from one value a channel
        batches[-2:] = [np.concatenate(batches[-2:])]
    return batches


def predict_logits(
    model: TopModel, part: Part, device: torch.device, on_progress: Callable[[int, int], None] = lambda *_: None
) -> torch.Tensor:
    """float32 (N, K) on the CPU, or (N, 1) for a sigmoid."""
    model.eval()
    numbers = np.arange(len(part.labels))
    batches = [numbers[i : i + _VALIDATION_BATCH] for i in range(0, len(numbers), _VALIDATION_BATCH)]
    found = []
    with torch.inference_mode():
        for rows in part.rows.iterate(batches, epoch=0):
            found.append(model(rows.to(device)).float().cpu())
            on_progress(len(found), len(batches))
    return torch.cat(found)


def _assign(params: dict[str, torch.nn.Parameter], values: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, param in params.items():
            param.copy_(values[name])


def _updates_statistics(model: TopModel) -> bool:
    return model.cut is not None and model.cut.is_random


def compute_losses(logits: torch.Tensor, targets: torch.Tensor, smoothing: float) -> torch.Tensor:
    """Cross-entropy (B,) in nats: of a softmax over K logits, or of the sigmoid of one."""
    num_classes = targets.shape[1]
    targets = targets * (1 - smoothing) + smoothing / num_classes
    if logits.shape[1] == 1:
        return functional.binary_cross_entropy_with_logits(logits[:, 0], targets[:, 1], reduction="none")
    return -(targets * functional.log_softmax(logits, dim=1)).sum(dim=1)


def predict_classes(logits: torch.Tensor) -> torch.Tensor:
    """(B,) the most probable class of logits (B, K), or of the one logit of a sigmoid."""
    return (logits[:, 0] > 0).long() if logits.shape[1] == 1 else logits.argmax(dim=1)


def compute_rate(step: int, num_steps: int, settings: FitSettings) -> float:
    """The factor on the learning rates at `step`: linear warm-up, then constant or a cosine down to a hundredth."""
    warmup = settings.warmup_frac * num_steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if settings.schedule == "constant":
        return 1.0
    share = min((step - warmup) / max(num_steps - warmup, 1), 1.0)
    return _FINAL_RATE + (1 - _FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * share))


def make_optimizer(model: TopModel, settings: FitSettings) -> torch.optim.Optimizer:
    """The head at the learning rate; every module below it at that of the one above times `layer_decay`."""
    groups = []
    modules = list_modules(model)
    for depth, (_, params) in enumerate(reversed(modules)):
        rate = settings.learning_rate * settings.layer_decay**depth
        # Biases and the scales of norms are not weights that could grow too large.
        for decay, chosen in (
            (settings.weight_decay, [p for p in params if p.ndim > 1]),
            (0.0, [p for p in params if p.ndim <= 1]),
        ):
            if chosen:
                groups.append({"params": chosen, "lr": rate, "weight_decay": decay})
    rate = settings.learning_rate
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=settings.momentum)
    kinds: dict[str, Any] = {
        "adamw": torch.optim.AdamW,
        "adam": torch.optim.Adam,
        "adamax": torch.optim.Adamax,
        "rmsprop": torch.optim.RMSprop,
    }
    # Keras's smoothing and epsilon, which the tutorials' rates were found with; torch's are 0.99 and 1e-8.
    smoothing = {"alpha": 0.9} if settings.optimizer == "rmsprop" else {}
    return kinds[settings.optimizer](groups, lr=rate, eps=1e-7, **smoothing)


def list_modules(model: TopModel) -> list[tuple[str, list[torch.nn.Parameter]]]:
    """The trained parameters by module, in the order of the network, the head last."""
    found: dict[str, list[torch.nn.Parameter]] = {}
    for name, param in model.named_parameters():
        if param.requires_grad:
            found.setdefault(_name_module(name), []).append(param)
    head = found.pop("head")
    return [*found.items(), ("head", head)]


def _name_module(name: str) -> str:
    """blocks.5 of above.outputs.network.blocks.5.0.conv.weight; the head's layers are one."""
    if name.startswith("head."):
        return "head"
    first, *rest = name.partition("network.")[2].split(".")
    return f"{first}.{rest[0]}" if rest and rest[0].isdigit() else first
