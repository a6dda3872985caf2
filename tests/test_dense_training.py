"""Dense heads from pictures to file: every kind learns, its file says what the head says, and a stop costs nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from drawn_pictures import SHAPES, draw_picture, write_shapes

import headstart
from headstart.config import FitSettings
from headstart.data_check import hash_images
from headstart.dataset import ImageRecord, scan_dataset
from headstart.errors import ConfigError
from headstart.feature_cache import FeatureCache
from headstart.finetuning.dense_training import describe_run, split_off_validation
from headstart.finetuning.history import read_history
from headstart.heads.dense import DenseHead
from headstart.splits import get_split_key
from headstart.training import TrainingRecord

FIT = FitSettings(learning_rate=3e-3, epochs=15, batch_size=8, validation_frac=0.25)
SIDE_PX = 64


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("pictures") / "shapes", 12)


@pytest.fixture(scope="module")
def two_shapes(shapes: Path) -> Path:
    folder = shapes.with_name("two")
    for shape in SHAPES[:2]:
        shutil.copytree(shapes / shape, folder / shape)
    return folder


def train(source: Path, **settings: Any) -> tuple[headstart.Classifier, TrainingRecord]:
    given = {"fit": FIT, "input_size_px": SIDE_PX, "hidden": (16,), "dropout": (0.2,), **settings}
    classifier = headstart.train(source, head="dense", **given)
    assert classifier.training is not None
    return classifier, classifier.training


@pytest.mark.parametrize(
    ("pooling", "activation", "num_params"),
    [
        ("average", "softmax", 1280 * 16 + 16 + 16 * 2 + 2),
        ("max", "sigmoid", 1280 * 16 + 16 + 16 + 1),
        ("flatten", "softmax", 4 * 1280 * 16 + 16 + 16 * 2 + 2),
        ("average", "sigmoid", 1280 * 16 + 16 + 16 + 1),
    ],
)
def test_a_dense_head_learns_and_its_file_says_the_same(
    two_shapes: Path, tmp_path: Path, pooling: str, activation: str, num_params: int
) -> None:
    classifier, record = train(two_shapes, pooling=pooling, activation=activation)
    classifier.save(tmp_path / "model.onnx")
    loaded = headstart.load(tmp_path / "model.onnx")
    assert record.evaluation is not None
    assert record.evaluation.correct.mean() >= 0.75
    probs = np.stack(
        [loaded.run(draw_picture(path.split("/")[-2], int(path[-6:-4]))) for path in record.evaluation.paths]
    )
    np.testing.assert_allclose(probs, record.evaluation.probs, atol=2e-3)
    np.testing.assert_allclose(probs.sum(axis=1), 1, atol=1e-6)
    head = record.head
    assert isinstance(head, DenseHead)
    assert (head.pooling, head.activation, head.hidden, head.dropout) == (pooling, activation, (16,), (0.2,))
    assert record.parameters is not None
    assert record.parameters.trained == head.num_params == num_params
    assert loaded.metadata.head == head.to_json()
    assert loaded.metadata.settings["fit"]["epochs"] == 15


def test_a_head_without_hidden_layers_is_one_of_weights_and_biases(shapes: Path) -> None:
    _, record = train(shapes, hidden=(), dropout=())
    assert record.parameters is not None
    assert record.parameters.trained == 1280 * 3 + 3
    assert record.fit is not None
    assert record.fit.history[record.fit.best_epoch].validation_accuracy >= 0.8


def test_the_same_training_gives_the_same_file_and_another_seed_another(shapes: Path) -> None:
    first, second, third = (train(shapes, fit=fit)[0].data for fit in (FIT, FIT, FitSettings(seed=1, epochs=2)))
    assert first == second
    assert first != third


def test_views_are_drawn_of_training_pictures_only(shapes: Path) -> None:
    with FeatureCache() as cache:
        train(shapes, fit=FitSettings(epochs=2, augment="light", num_views=3, validation_frac=0.25))
        counts = cache.connection.execute(
            "SELECT key, count(*) FROM features JOIN recipes ON recipes.id = recipe GROUP BY recipe"
        ).fetchall()
    plain = [count for key, count in counts if "view" not in key]
    views = [count for key, count in counts if "view" in key]
    assert plain == [36]
    _, record = train(shapes, fit=FitSettings(epochs=1, validation_frac=0.25))
    assert record.fit is not None
    num_train = sum(each.split == "train" for each in record.report.dataset.records)
    assert views == [num_train - len(record.fit.validation)] * 3


def stop_after(epoch: int) -> Callable[[str, int, int], None]:
    def watch(stage: str, done: int, total: int) -> None:
        if stage.startswith(f"epoch {epoch} "):
            raise KeyboardInterrupt

    return watch


def test_a_training_that_was_stopped_goes_on(shapes: Path, tmp_path: Path) -> None:
    folder = tmp_path / "training"
    with pytest.raises(KeyboardInterrupt):
        train(shapes, folder=folder, on_progress=stop_after(4))
    assert [row.epoch for row in read_history(folder / "history.csv")] == [0, 1, 2, 3]
    stages: list[str] = []
    resumed, record = train(shapes, folder=folder, on_progress=lambda stage, *_: stages.append(stage))
    assert not any(stage.startswith(("epoch 1 ", "epoch 2 ", "epoch 3 ")) for stage in stages)
    straight, _ = train(shapes)
    assert resumed.data == straight.data
    assert record.fit is not None
    assert read_history(folder / "history.csv") == list(record.fit.history)


def test_epochs_can_be_raised_but_another_training_cannot_be_continued(shapes: Path, tmp_path: Path) -> None:
    folder = tmp_path / "training"
    train(shapes, folder=folder, fit=FitSettings(epochs=2))
    _, record = train(shapes, folder=folder, fit=FitSettings(epochs=4))
    assert record.fit is not None
    assert len(record.fit.history) == 5
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ConfigError, match=r"holds another training.*\n.*fit\.learning_rate was 0\.001, is 0\.01"):
        train(shapes, folder=folder, fit=FitSettings(epochs=4, learning_rate=0.01))
    with pytest.raises(ConfigError, match=r"settings\.hidden was \[16\], is \[8\]"):
        train(shapes, folder=folder, fit=FitSettings(epochs=4), hidden=(8,))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def get_records(folder: Path) -> list[ImageRecord]:
    return list(hash_images(scan_dataset(str(folder))).records)


def test_validation_takes_its_share_of_every_class_and_the_same_one_every_time(shapes: Path) -> None:
    records = get_records(shapes)
    chosen, held_out = split_off_validation(records, 0.25, 0)
    assert sorted([*chosen, *held_out]) == list(range(36))
    assert [sum(records[i].label == label for i in held_out) for label in range(3)] == [3, 3, 3]
    again = split_off_validation(records[::-1], 0.25, 0)[1]
    assert {records[::-1][i].sha256 for i in again} == {records[i].sha256 for i in held_out}
    assert set(split_off_validation(records, 0.25, 1)[1]) != set(held_out)


def test_groups_stay_on_one_side_of_the_validation(shapes: Path) -> None:
    paths = sorted(shapes.rglob("*.png"))
    groups = [f"{path.parent.name} {int(path.stem) // 3}" for path in paths]
    dataset = scan_dataset([*map(str, paths)], labels=[path.parent.name for path in paths], groups=groups)
    records = hash_images(dataset).records
    chosen, held_out = split_off_validation(records, 0.25, 0)
    keys = [{get_split_key(records[i]) for i in part} for part in (chosen, held_out)]
    assert len(keys[1]) == 3
    assert not keys[0] & keys[1]


def test_a_run_is_described_by_what_decides_its_course(shapes: Path) -> None:
    records = get_records(shapes)
    plain = describe_run("dense head", records, {}, FIT)
    json.dumps(plain)
    longer = FitSettings(learning_rate=3e-3, epochs=99, batch_size=8, validation_frac=0.25, patience=2)
    assert describe_run("dense head", records[::-1], {}, longer) == plain
    assert describe_run("dense head", records[1:], {}, FIT) != plain
    assert describe_run("dense head", records, {}, FitSettings()) != plain


def test_the_frozen_parameters_are_those_below_the_layer(two_shapes: Path) -> None:
    _, record = train(two_shapes, weights="none", fit=FitSettings(epochs=1))
    assert record.parameters is not None
    assert record.parameters.frozen == 3_371_008
