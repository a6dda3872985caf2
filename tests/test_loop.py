"""The training loop: what it learns, what it measures, and that no kill shows in the result."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from drawn_pictures import run_python
from torch.nn import functional

from headstart.backbones.torch_network import load_network
from headstart.config import OPTIMIZERS, FitSettings
from headstart.errors import ConfigError
from headstart.finetuning.checkpoints import load_checkpoint, start_folder
from headstart.finetuning.cut import cut_network
from headstart.finetuning.history import EpochRow, read_history
from headstart.finetuning.loop import (
    Fit,
    Part,
    _Run,
    compute_losses,
    compute_rate,
    fit_top,
    make_optimizer,
    predict_classes,
    predict_logits,
)
from headstart.finetuning.model import HeadModule, TopModel, draw_dense_head
from headstart.graph import PooledLayer
from headstart.heads.linear import LinearHead

NUM_FEATURES = 6
TOP = (PooledLayer("top", 1),)


class MemoryRows:
    """Rows float32 (N, D) that are the same in every epoch; it remembers which were asked for."""

    def __init__(self, rows: np.ndarray) -> None:
        self.rows = torch.from_numpy(rows.astype(np.float32))
        self.asked: list[tuple[int, list[int]]] = []

    def iterate(self, batches: Iterable[np.ndarray], epoch: int) -> Iterator[torch.Tensor]:
        for batch in batches:
            self.asked.append((epoch, batch.tolist()))
            yield self.rows[torch.from_numpy(batch)]


@dataclass
class Problem:
    train: Part
    validation: Part
    num_classes: int


def make_problem(num_classes: int = 3, noise: float = 0.0, num_train: int = 61, seed: int = 0) -> Problem:
    """Classes about corners that lie far apart, with a share `noise` of all labels drawn at random."""
    rng = np.random.default_rng(seed)
    parts = []
    for count in (num_train, 30):
        labels = np.arange(count, dtype=np.int64) % num_classes
        rows = rng.normal(0, 0.5, (count, NUM_FEATURES))
        rows[np.arange(count), labels] += 3
        wrong = rng.random(count) < noise
        labels[wrong] = rng.integers(0, num_classes, wrong.sum())
        parts.append(Part(MemoryRows(rows), labels))
    return Problem(*parts, num_classes)


def make_model(num_classes: int = 3, activation: str = "softmax", hidden: tuple[int, ...] = (8,)) -> TopModel:
    rng = np.random.default_rng(0)
    return TopModel(
        None, HeadModule(draw_dense_head(TOP, NUM_FEATURES, "average", hidden, (0.2,), activation, num_classes, rng))
    )


def fit(folder: Path, problem: Problem, settings: FitSettings, model: TopModel | None = None) -> Fit:
    start_folder(folder, {})
    model = model or make_model(problem.num_classes)
    return fit_top(
        model, problem.train, problem.validation, problem.num_classes, settings, folder, lambda stage, done, total: None
    )


def start_run(folder: Path, problem: Problem, settings: FitSettings, model: TopModel) -> _Run:
    start_folder(folder, {})
    run = _Run(model, problem.train, problem.validation, problem.num_classes, settings, folder, lambda *_: None)
    run.restore()
    return run


def without_seconds(rows: Iterable[EpochRow]) -> list[EpochRow]:
    return [replace(row, seconds=0.0) for row in rows]


RATES = {"adamw": 0.02, "adam": 0.02, "adamax": 0.05, "rmsprop": 0.01, "sgd": 0.1}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_every_optimizer_learns_what_can_be_learnt(tmp_path: Path, optimizer: str, activation: str) -> None:
    num_classes = 3 if activation == "softmax" else 2
    problem, model = make_problem(num_classes), make_model(num_classes, activation)
    settings = FitSettings(optimizer=optimizer, learning_rate=RATES[optimizer], epochs=12, batch_size=8)
    result = fit(tmp_path / "run", problem, settings, model)
    assert result.history[-1].validation_accuracy == 1
    assert result.history[result.best_epoch].validation_loss < 0.2 * result.history[0].validation_loss
    logits = predict_logits(model, problem.validation, torch.device("cpu"))
    np.testing.assert_array_equal(predict_classes(logits), problem.validation.labels)


# Rates


def test_the_rate_rises_evenly_then_falls_along_a_cosine_to_a_hundredth() -> None:
    settings = FitSettings(warmup_frac=0.2, schedule="cosine")
    rates = [compute_rate(step, 20, settings) for step in range(21)]
    np.testing.assert_allclose(rates[:4], [0.2, 0.4, 0.6, 0.8])
    assert rates[4] == 1
    assert rates[12] == pytest.approx(0.01 + 0.99 / 2)
    assert rates[8] == pytest.approx(0.01 + 0.99 * (1 + math.sqrt(0.5)) / 2)
    assert rates[20] == pytest.approx(0.01)
    assert sorted(rates[4:], reverse=True) == rates[4:]


def test_a_constant_rate_is_constant_after_the_warm_up() -> None:
    settings = FitSettings(warmup_frac=0.1)
    assert [compute_rate(step, 20, settings) for step in (0, 1, 2, 19, 40)] == pytest.approx([1 / 3, 2 / 3, 1, 1, 1])
    assert compute_rate(0, 20, FitSettings()) == 1


def test_steps_take_the_rate_of_their_number(tmp_path: Path) -> None:
    problem = make_problem(num_train=16)
    settings = FitSettings(learning_rate=0.3, epochs=5, batch_size=8, schedule="cosine", warmup_frac=0.3)
    result = fit(tmp_path / "run", problem, settings)
    expected = [0.3 * compute_rate(2 * epoch - 1, 10, settings) for epoch in range(1, 6)]
    assert [row.learning_rate for row in result.history[1:]] == pytest.approx(expected)
    assert [row.step for row in result.history] == [0, 2, 4, 6, 8, 10]


@pytest.fixture(scope="module")
def lite_top() -> TopModel:
    network = load_network("efficientnet-lite0", 32, "none")
    layers = (PooledLayer("head", 1),)
    cut = cut_network(network, "blocks.5", layers)
    coef = np.zeros((1280, 2), np.float32)
    return TopModel(cut, HeadModule(LinearHead(layers, coef, np.zeros(2, np.float32), 1.0, 1.0)))


def test_each_module_takes_the_rate_of_the_one_above_it_times_the_decay(lite_top: TopModel) -> None:
    settings = FitSettings(learning_rate=0.1, layer_decay=0.5, weight_decay=0.03)
    optimizer = make_optimizer(lite_top, settings)
    names = {id(param): name for name, param in lite_top.named_parameters()}
    depths = {"head.": 0, "bn2": 1, "conv_head": 2, "blocks.6": 3, "blocks.5": 4}
    seen = 0
    for group in optimizer.param_groups:
        for param in group["params"]:
            name = names[id(param)].removeprefix("above.outputs.network.")
            [depth] = [depth for start, depth in depths.items() if name.startswith(start)]
            assert group["lr"] == pytest.approx(0.1 * 0.5**depth), name
            assert group["weight_decay"] == (0.03 if param.ndim > 1 else 0)
            seen += 1
    assert seen == len(names)


# Losses


def test_losses_are_torchs_own() -> None:
    rng = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(9, 4, generator=rng), torch.arange(9) % 4
    targets = functional.one_hot(labels, 4).float()
    for smoothing in (0.0, 0.1, 0.4):
        expected = functional.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")
        torch.testing.assert_close(compute_losses(logits, targets, smoothing), expected)
    mixed = 0.7 * targets + 0.3 * targets.flip(0)
    torch.testing.assert_close(
        compute_losses(logits, mixed, 0.0), functional.cross_entropy(logits, mixed, reduction="none")
    )


def test_the_loss_of_a_sigmoid_is_that_of_two_logits() -> None:
    rng = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(9, 1, generator=rng), torch.arange(9) % 2
    targets = functional.one_hot(labels, 2).float()
    plain = functional.binary_cross_entropy_with_logits(logits[:, 0], labels.float(), reduction="none")
    torch.testing.assert_close(compute_losses(logits, targets, 0.0), plain)
    both = torch.cat([torch.zeros_like(logits), logits], dim=1)
    for smoothing in (0.0, 0.2):
        expected = functional.cross_entropy(both, labels, label_smoothing=smoothing, reduction="none")
        torch.testing.assert_close(compute_losses(logits, targets, smoothing), expected)
    assert predict_classes(torch.tensor([[-0.1], [0.1]])).tolist() == [0, 1]


@pytest.mark.parametrize("class_weights", ["none", "balanced"])
def test_a_step_follows_the_gradient_of_torchs_loss_with_class_weights(tmp_path: Path, class_weights: str) -> None:
    problem = make_problem(num_train=24)
    problem.train.labels[6:] = 2  # 2, 2 and 20 pictures
    counts = np.bincount(problem.train.labels)
    model = make_model(hidden=())
    model.head.source = replace(model.head.source, dropout=())  # type: ignore[arg-type]
    settings = FitSettings(optimizer="sgd", momentum=0.0, learning_rate=1.0, batch_size=24, class_weights=class_weights)
    run = start_run(tmp_path / "run", problem, settings, model)
    before = model.head.layers[0].weight.detach().clone().requires_grad_()
    rows, labels = problem.train.rows.rows, torch.from_numpy(problem.train.labels)  # type: ignore[attr-defined]
    weights = torch.tensor(24 / (3 * counts), dtype=torch.float32) if class_weights == "balanced" else None
    functional.cross_entropy(rows @ before.T, labels, weight=weights).backward()
    run.train_epoch()
    torch.testing.assert_close(model.head.layers[0].weight.detach(), before.detach() - before.grad)


# What an epoch is


def test_every_epoch_takes_every_picture_once_in_another_order(tmp_path: Path) -> None:
    problem = make_problem(num_train=17)
    fit(tmp_path / "run", problem, FitSettings(epochs=3, batch_size=8))
    asked = problem.train.rows.asked  # type: ignore[attr-defined]
    epochs = [[number for at, batch in asked if at == epoch for number in batch] for epoch in (1, 2, 3)]
    assert all(sorted(order) == list(range(17)) for order in epochs)
    assert len({tuple(order) for order in epochs}) == 3
    # The picture that is left over goes along: batch norm cannot learn from one alone.
    assert [len(batch) for _, batch in asked] == [8, 9] * 3


def test_dropout_differs_from_step_to_step_and_leaves_torchs_generator_alone(tmp_path: Path) -> None:
    found = []
    for seed in (1, 2):
        masks: list[torch.Tensor] = []
        model = make_model()
        model.head.layers[1].register_forward_pre_hook(lambda _, inputs, masks=masks: masks.append(inputs[0] == 0))
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            state = torch.get_rng_state()
            settings = FitSettings(optimizer="sgd", learning_rate=1e-12, batch_size=61, epochs=3)
            result = fit(tmp_path / str(seed), make_problem(), settings, model)
            assert torch.equal(torch.get_rng_state(), state)
        trained = [mask.sum() for mask in masks if len(mask) == 61]
        assert len({int(each) for each in trained}) == 3
        found.append((without_seconds(result.history), trained))
    assert found[0] == found[1]


def test_the_figures_of_an_epoch_are_those_of_its_model(tmp_path: Path) -> None:
    problem, model = make_problem(noise=0.3), make_model()
    result = fit(tmp_path / "run", problem, FitSettings(epochs=1, batch_size=16), model)
    logits = predict_logits(model, problem.validation, torch.device("cpu"))
    labels = torch.from_numpy(problem.validation.labels)
    row = result.history[result.best_epoch]
    assert row.validation_loss == pytest.approx(float(functional.cross_entropy(logits, labels)))
    assert row.validation_accuracy == pytest.approx(float((logits.argmax(1) == labels).float().mean()))


def test_the_figures_of_training_are_means_over_pictures(tmp_path: Path) -> None:
    problem, model = make_problem(noise=0.3), make_model(hidden=())
    model.head.source = replace(model.head.source, dropout=())  # type: ignore[arg-type]
    logits = predict_logits(model, problem.train, torch.device("cpu"))
    labels = torch.from_numpy(problem.train.labels)
    # A rate of next to nothing: all batches see the same model.
    settings = FitSettings(epochs=1, batch_size=16, learning_rate=1e-12)
    row = fit(tmp_path / "run", problem, settings, model).history[1]
    assert row.train_loss == pytest.approx(float(functional.cross_entropy(logits, labels)), rel=1e-5)
    assert row.train_accuracy == pytest.approx(float((logits.argmax(1) == labels).float().mean()))


def test_training_stops_after_the_epochs_of_patience_and_keeps_the_best(tmp_path: Path) -> None:
    problem, model = make_problem(), make_model()
    problem = replace(problem, validation=Part(problem.validation.rows, (problem.validation.labels + 1) % 3))
    settings = FitSettings(optimizer="sgd", learning_rate=0.5, epochs=20, batch_size=8, patience=3)
    before = {name: each.clone() for name, each in model.state_dict().items()}
    result = fit(tmp_path / "run", problem, settings, model)
    assert result.best_epoch == 0
    assert len(result.history) == 4
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())


def test_loss_and_accuracy_choose_their_own_best_epochs(tmp_path: Path) -> None:
    chosen = {}
    for monitor in ("loss", "accuracy"):
        settings = FitSettings(learning_rate=0.02, epochs=15, batch_size=8, monitor=monitor)
        result = fit(tmp_path / monitor, make_problem(noise=0.5, seed=3), settings)
        losses = [row.validation_loss for row in result.history]
        accuracies = [row.validation_accuracy for row in result.history]
        by = {"loss": losses.index(min(losses)), "accuracy": accuracies.index(max(accuracies))}
        assert result.best_epoch == by[monitor]
        chosen[monitor] = by
    assert chosen["loss"] == chosen["accuracy"]
    assert chosen["loss"]["loss"] != chosen["loss"]["accuracy"]


def test_a_training_that_leaves_all_bounds_says_so(tmp_path: Path) -> None:
    problem = make_problem()
    with pytest.raises(ConfigError, match=r"left all bounds: after .* loss is .*lower learning rate; it is 100\."):
        fit(tmp_path / "run", problem, FitSettings(optimizer="sgd", learning_rate=100.0, epochs=200))


# The average of the weights


def test_the_average_begins_as_the_mean_of_all_and_is_what_is_judged_and_kept(tmp_path: Path) -> None:
    problem, model = make_problem(num_train=80), make_model()
    settings = FitSettings(optimizer="sgd", learning_rate=0.5, epochs=20, batch_size=8, ema=True)  # 200 steps, reach 10
    run = start_run(tmp_path / "run", problem, settings, model)
    assert run.average is not None
    name = next(iter(run.params))
    seen = [run.params[name].detach().clone()]
    model.train()
    for step in range(12):
        run.take_step(problem.train.rows.rows[:8], problem.train.labels[:8])  # type: ignore[attr-defined]
        seen.append(run.params[name].detach().clone())
        if step < 10:
            torch.testing.assert_close(run.average[name], torch.stack(seen).mean(0))
    expected = torch.stack(seen[:11]).mean(0)
    for each in seen[11:]:
        expected = expected + (each - expected) / 11
    torch.testing.assert_close(run.average[name], expected)
    raw = {key: param.detach().clone() for key, param in run.params.items()}
    loss = run.measure(1).validation_loss
    assert all(torch.equal(param, raw[key]) for key, param in run.params.items())
    run.save_best()
    run.load_best()
    assert torch.equal(run.params[name], run.average[name])
    logits = predict_logits(model, problem.validation, torch.device("cpu"))
    labels = torch.from_numpy(problem.validation.labels)
    assert loss == pytest.approx(float(functional.cross_entropy(logits, labels)), rel=1e-5)


# Going on

LASTING = FitSettings(learning_rate=0.02, batch_size=8, epochs=6)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_epochs_can_be_raised_later(tmp_path: Path, optimizer: str) -> None:
    settings = replace(LASTING, optimizer=optimizer)
    straight = fit(tmp_path / "straight", make_problem(noise=0.2), settings)
    fit(tmp_path / "parted", make_problem(noise=0.2), replace(settings, epochs=2))
    problem = make_problem(noise=0.2)
    parted = fit(tmp_path / "parted", problem, settings)
    assert {epoch for epoch, _ in problem.train.rows.asked} == {3, 4, 5, 6}  # type: ignore[attr-defined]
    assert without_seconds(parted.history) == without_seconds(straight.history)
    assert without_seconds(read_history(tmp_path / "parted" / "history.csv")) == without_seconds(straight.history)
    assert parted.best_epoch == straight.best_epoch
    assert_same_checkpoints(tmp_path / "parted", tmp_path / "straight")


def test_a_training_that_is_complete_is_only_read(tmp_path: Path) -> None:
    first = fit(tmp_path / "run", make_problem(), LASTING)
    problem, model = make_problem(), make_model()
    second = fit(tmp_path / "run", problem, LASTING, model)
    assert problem.train.rows.asked == []  # type: ignore[attr-defined]
    assert second.history == first.history
    parameters = dict(model.named_parameters())
    assert all(torch.equal(parameters[name], each) for name, each in first.weights.items())


def assert_same_checkpoints(one: Path, other: Path) -> None:
    for name in ("last", "best"):
        first, second = load_checkpoint(one, name), load_checkpoint(other, name)
        assert first is not None
        assert second is not None
        assert first.tensors.keys() == second.tensors.keys()
        different = [key for key, each in first.tensors.items() if not torch.equal(each, second.tensors[key])]
        assert different == []


# Batch norm that learns, dropout, mixing, averaged weights and a schedule: all that a step depends on. The parent only
# forks, so each training begins with torch imported and no more.
_KILLS = """
import json, os, random, signal, sys, time
from pathlib import Path
import numpy as np, torch
from headstart.backbones.torch_network import load_network
from headstart.config import FitSettings
from headstart.finetuning import loop
from headstart.finetuning.checkpoints import start_folder
from headstart.finetuning.cut import WHOLE, cut_network
from headstart.finetuning.model import HeadModule, TopModel, draw_dense_head
from headstart.graph import PooledLayer

class Rows:
    def __init__(self, seed): self.rows = np.random.default_rng(seed).normal(size=(40, 3 * 32 * 32)).astype(np.float32)
    def iterate(self, batches, epoch):
        for batch in batches: yield torch.from_numpy(self.rows[batch] + np.float32(0.01 * epoch))

def train(folder):
    loop._SECONDS_BETWEEN_SAVES = 0.0
    network = load_network("timm:test_efficientnet", 32, "none")
    layers = (PooledLayer(network.layers[-1].name, 1),)
    cut = cut_network(network, WHOLE, layers)
    assert cut.is_random
    channels = network.layers[-1].layer.channels
    head = draw_dense_head(layers, channels, "average", (16,), (0.5,), "softmax", 4, np.random.default_rng(0))
    settings = FitSettings(
        learning_rate=1e-2, weight_decay=0.1, epochs=3, batch_size=4, augment="strong", label_smoothing=0.1, ema=True,
        warmup_frac=0.2, schedule="cosine", layer_decay=0.9,
    )
    parts = [loop.Part(Rows(seed), np.arange(40) % 4) for seed in range(2)]
    start_folder(folder, {})
    loop.fit_top(TopModel(cut, HeadModule(head)), *parts, 4, settings, folder, lambda *_: None)

def start(folder):
    child = os.fork()
    if child: return child
    train(folder)
    os._exit(0)

def describe(file):
    return (file.stat().st_mtime_ns, file.stat().st_ino) if file.exists() else None

place, rng, kills = Path(sys.argv[1]), random.Random(0), []
assert os.waitpid(start(place / "undisturbed"), 0)[1] == 0
file = place / "killed" / "last.json"
for number in range(int(sys.argv[2])):
    child = start(place / "killed")
    for _ in range(rng.randint(1, 4)):  # so many saves, then a moment between them
        state = describe(file)
        while describe(file) == state and os.waitpid(child, os.WNOHANG) == (0, 0):
            time.sleep(0.001)
    time.sleep(rng.uniform(0, 0.04))
    os.kill(child, signal.SIGKILL)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    kills.append(json.loads(file.read_text())["state"]["step"])
assert os.waitpid(start(place / "killed"), 0)[1] == 0
print(json.dumps(kills))
"""


def test_kills_at_any_moment_change_no_bit_and_leave_no_gap(tmp_path: Path) -> None:
    done = run_python("-c", _KILLS, str(tmp_path), "4", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    steps = json.loads(done.stdout)
    assert len(steps) == 4
    assert steps == sorted(steps)
    assert any(step % 10 for step in steps), steps  # within an epoch
    assert_same_checkpoints(tmp_path / "killed", tmp_path / "undisturbed")
    rows = [read_history(tmp_path / name / "history.csv") for name in ("killed", "undisturbed")]
    assert without_seconds(rows[0]) == without_seconds(rows[1])
    assert [row.epoch for row in rows[0]] == [0, 1, 2, 3]
    assert [row.step for row in rows[0]] == [0, 10, 20, 30]
