"""Fine-tuning: kept where it is better, without a trace of a change where it is not, and never judged on test pictures."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from drawn_pictures import SHAPES, draw_picture, write_shapes
from PIL import Image
from safetensors.torch import save_file

import headstart
from headstart.artifact import read_artifact
from headstart.backbones.catalog import Backbone, Layer
from headstart.backbones.loading import load_backbone
from headstart.backbones.torch_network import TorchNetwork, create_model, load_network
from headstart.config import FitSettings
from headstart.errors import ConfigError, DataError
from headstart.evaluation import Evaluation
from headstart.feature_cache import FeatureCache
from headstart.finetuning.checkpoints import load_checkpoint
from headstart.finetuning.cut import WHOLE, cut_network
from headstart.finetuning.tuning import (
    TuningRecord,
    _make_logistic,
    choose_fit_settings,
    choose_from_layer,
    compare,
)
from headstart.graph import PooledLayer
from headstart.heads.dense import DenseHead
from headstart.heads.from_file import read_head
from headstart.heads.linear import LinearHead
from headstart.insight.subject import open_subject, open_trained
from headstart.report.assembly import Request, build_report, describe_growth
from headstart.review import Decision
from headstart.verification import verify_classifier

# The whole network: nothing to export below a cut, which takes longer than so short a training.
SHORT = {"epochs": 1, "batch_size": 16, "augment": "none", "from_layer": WHOLE}
TINY = {"backbone": "timm:test_efficientnet", "input_size_px": 32, "weights": "none", "layers": "top"}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("pictures") / "shapes", 40)


@pytest.fixture(scope="module")
def few(shapes: Path) -> Path:
    folder = shapes.with_name("few")
    for path in shapes.rglob("0*.png"):
        (folder / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / path.parent.name)
    return folder


def train(source: Path, **settings: Any) -> headstart.Classifier:
    return headstart.train(source, **{**TINY, **settings})


@pytest.fixture(scope="module")
def untaught(shapes: Path) -> headstart.Classifier:
    """A head that has hardly been trained: there is much to gain."""
    return train(shapes, head="dense", fit=FitSettings(epochs=1, learning_rate=1e-6, validation_frac=0.3))


@pytest.fixture(scope="module")
def few_frozen(few: Path) -> headstart.Classifier:
    return train(few)


def tune(model: Any, source: Path, **given: Any) -> tuple[headstart.Classifier, TuningRecord]:
    classifier = headstart.finetune(model, source, **given)
    assert isinstance(classifier.training, TuningRecord)
    return classifier, classifier.training


def replace_training(classifier: headstart.Classifier, record: TuningRecord) -> headstart.Classifier:
    return headstart.Classifier(classifier.metadata, classifier.data, training=record)


def predict(classifier: headstart.Classifier) -> np.ndarray:
    return np.stack([classifier.run(draw_picture(shape, number)) for shape in SHAPES for number in range(100, 105)])


def test_what_is_better_is_kept_with_both_figures_in_its_file(
    untaught: headstart.Classifier, shapes: Path, tmp_path: Path
) -> None:
    _, record = tune(
        untaught,
        shapes,
        from_layer=WHOLE,
        output=tmp_path / "tuned.onnx",
        learning_rate=1e-2,
        epochs=6,
        augment="none",
        batch_size=16,
        layer_decay=1.0,
        weight_decay=0.0,
        ema=False,
    )
    comparison = record.comparison
    assert comparison.is_tuned_kept, comparison.reason
    assert comparison.p_value < 0.05
    assert comparison.num_correct_tuned > comparison.num_correct_frozen
    assert "Fine-tuned is better" in comparison.reason
    assert record.tuned["test"].correct.mean() > record.frozen["test"].correct.mean()

    loaded = headstart.load(tmp_path / "tuned.onnx")
    evaluation, tuning = loaded.metadata.evaluation, loaded.metadata.settings["finetune"]
    assert evaluation is not None
    assert (tuning["kept"], tuning["from"], tuning["learning_rate"]) == ("tuned", WHOLE, 1e-2)
    figures = evaluation["finetune"]
    for name, part in (("frozen", record.frozen), ("tuned", record.tuned)):
        assert figures[name] == {"n": len(part["test"].labels), "num_correct": int(part["test"].correct.sum())}
    assert figures["num_correct_frozen"] == comparison.num_correct_frozen
    assert evaluation["accuracy"]["value"] == pytest.approx(record.tuned["test"].correct.mean())
    assert loaded.metadata.backbone["sha256"] != untaught.metadata.backbone["sha256"]
    assert loaded.metadata.data == untaught.metadata.data

    # The file says what the evaluation says, and passes the file's own checks against the pictures.
    paths = record.tuned["test"].paths
    probs = np.stack([loaded.run(np.asarray(Image.open(path).convert("RGB"))) for path in paths])
    np.testing.assert_allclose(probs, record.tuned["test"].probs, atol=5e-3)
    agreement = verify_classifier(tmp_path / "tuned.onnx", paths)
    assert agreement.num_same_class == agreement.num_images == len(paths)

    with pytest.raises(ConfigError, match="fine-tuned already"):
        headstart.finetune(tmp_path / "tuned.onnx", shapes)

    # The tuned network tells how familiar a picture is: of those that were put aside about half are below one half.
    told = loaded.metadata.familiarity
    assert told is not None
    assert told["num_images"] == comparison.num_images
    familiarity = [each.familiarity for each in loaded.predict(list(paths))]
    assert all(0 <= each <= 1 for each in familiarity)
    assert 0.1 < np.median(familiarity) < 0.9

    # Its report is of its own network, from the file alone.
    with FeatureCache() as cache:
        reopened = open_subject(loaded, shapes, cache, lambda *_: None)
        assert reopened.is_tuned
        assert reopened.out_of_fold is None
        assert reopened.num_forward == 0  # the same graph, so the features are those of the fine-tuning
        assert reopened.evaluation is not None
        assert reopened.evaluation.paths == paths
        np.testing.assert_allclose(reopened.evaluation.probs, record.tuned["test"].probs, atol=5e-3)
        trained = open_trained(replace_training(loaded, record), cache)
        assert (trained.out_of_fold, trained.num_forward) == (None, record.num_forward)
        request = Request("tuned.onnx", "shapes", thorough=True, history=record.history, best_epoch=record.best_epoch)
        for subject in (reopened, trained):
            report, suspects = build_report(subject, request, lambda *_: None)
            assert suspects is None
            assert len(report.galleries[0].items) == (~record.tuned["test"].correct).sum()
            assert {"training", "calibration", "near-copies"} == {each.key for each in report.sections}
            assert not [each for each in report.advice if "Fine-tune" in each.action]
        with pytest.raises(DataError, match="a network that was trained on them"):
            describe_growth(reopened, request, lambda *_: None)


def test_what_is_not_better_leaves_the_frozen_classifier_as_it_was(
    few_frozen: headstart.Classifier, few: Path, tmp_path: Path
) -> None:
    few_frozen.save(tmp_path / "frozen.onnx")
    _, record = tune(tmp_path / "frozen.onnx", few, output=tmp_path / "kept.onnx", **{**SHORT, "from_layer": "auto"})
    assert not record.comparison.is_tuned_kept
    assert "The frozen one is kept" in record.comparison.reason
    assert f"of {record.comparison.num_images:,} validation pictures" in record.comparison.reason
    loaded = headstart.load(tmp_path / "kept.onnx")
    np.testing.assert_array_equal(predict(loaded), predict(few_frozen))
    before, after = few_frozen.metadata, loaded.metadata
    assert (after.backbone, after.head, after.data) == (before.backbone, before.head, before.data)
    assert before.evaluation is not None
    assert after.evaluation is not None
    figures = after.evaluation["finetune"]
    assert {name: each for name, each in after.evaluation.items() if name != "finetune"} == before.evaluation
    assert figures["reason"] == record.comparison.reason
    assert set(figures) >= {"frozen", "tuned", "p_value"}
    assert record.evaluations is record.frozen
    # What was kept frozen can be tried again.
    _, again = tune(loaded, few, **{**SHORT, "from_layer": "auto"})
    assert again.comparison == record.comparison


def make_evaluation(num_correct: int, count: int = 100) -> Evaluation:
    probs = np.tile([0.9, 0.1], (count, 1)).astype(np.float32)
    labels = np.r_[np.zeros(num_correct, np.int64), np.ones(count - num_correct, np.int64)]
    names = tuple(map(str, range(count)))
    return Evaluation(("a", "b"), names, names, labels, probs)


@pytest.mark.parametrize(
    ("before", "after", "is_kept", "says"),
    [
        (80, 86, True, "better: 86 instead of 80 of 100"),  # 6 of 6 discordant: p = 2 / 64
        (80, 85, False, "may be chance"),  # 5 of 5: p = 2 / 32
        (80, 80, False, "not better"),
        (80, 60, False, "not better"),
    ],
)
def test_the_paired_test_decides(before: int, after: int, is_kept: bool, says: str) -> None:
    comparison = compare(make_evaluation(before), make_evaluation(after))
    assert comparison.is_tuned_kept is is_kept
    assert says in comparison.reason


def test_test_pictures_play_no_part(few: Path, tmp_path: Path) -> None:
    paths = sorted(few.rglob("*.png"))
    labels = [path.parent.name for path in paths]
    splits = ["test" if int(path.stem) % 4 == 0 else "train" for path in paths]
    scrambled = [
        SHAPES[(SHAPES.index(label) + 1) % 3] if split == "test" else label
        for label, split in zip(labels, splits, strict=True)
    ]
    found = []
    for name, given in (("right", labels), ("wrong", scrambled)):
        parts = {"labels": given, "splits": splits}
        classifier = headstart.train([*map(str, paths)], **parts, **TINY)
        _, record = tune(classifier, [*map(str, paths)], **parts, folder=tmp_path / name, **SHORT)
        checkpoint = load_checkpoint(tmp_path / name, "last")
        assert checkpoint is not None
        found.append((checkpoint.tensors, record.comparison, record.frozen["test"].labels))
    assert all(torch.equal(each, found[1][0][name]) for name, each in found[0][0].items())
    assert found[0][1] == found[1][1]
    assert (found[0][2] != found[1][2]).any()


def test_a_folder_continues_its_own_fine_tuning_only(
    few_frozen: headstart.Classifier, few: Path, tmp_path: Path
) -> None:
    given = {**SHORT, "folder": tmp_path / "training", "schedule": "constant"}

    def stop(stage: str, done: int, total: int) -> None:
        if stage.startswith("epoch 2 "):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(few_frozen, few, **{**given, "epochs": 3}, on_progress=stop)
    stages: list[str] = []
    tune(few_frozen, few, **{**given, "epochs": 3}, on_progress=lambda stage, *_: stages.append(stage))
    assert any(stage.startswith("epoch 2 ") for stage in stages)
    assert not any(stage.startswith("epoch 1 ") for stage in stages)
    tune(few_frozen, few, **{**given, "epochs": 3, "folder": tmp_path / "straight"})
    one, other = (load_checkpoint(tmp_path / name, "last") for name in ("training", "straight"))
    assert one is not None
    assert other is not None
    assert all(torch.equal(each, other.tensors[name]) for name, each in one.tensors.items())
    stages.clear()
    with pytest.raises(ConfigError, match="from was"):
        tune(few_frozen, few, **{**given, "from_layer": "blocks.2"}, on_progress=lambda stage, *_: stages.append(stage))
    assert "cutting the network" in stages
    assert "running the frozen part" not in stages  # which may take minutes
    with pytest.raises(ConfigError, match="head was"):  # another head to start from
        tune(train(few, penalty=3.0), few, **given)


def test_decisions_of_a_review_are_applied(few_frozen: headstart.Classifier, few: Path) -> None:
    dataset = few_frozen.training.report.dataset  # type: ignore[union-attr]
    record = dataset.records[0]
    decision = Decision(record.sha256, record.path, dataset.classes[record.label], "leave-out", None, "2026-01-01")
    _, done = tune(few_frozen, few, decisions=[decision], **SHORT)
    assert {r.path for r in dataset.records} - {r.path for r in done.report.dataset.records} == {record.path}
    assert "The pictures are not exactly those that the classifier was trained on." in done.notes


# The head


@pytest.mark.parametrize(
    "settings",
    [
        {"head": "linear"},
        {"head": "svm"},
        {"head": "linear", "layers": "auto"},
        {"head": "dense", "hidden": (8,), "dropout": (0.3,), "fit": FitSettings(epochs=3)},
        {"head": "dense", "pooling": "max", "fit": FitSettings(epochs=3)},
    ],
    ids=lambda settings: "-".join(f"{each}" for name, each in settings.items() if name != "fit"),
)
def test_the_head_is_read_from_the_file_as_it_was_saved(few: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    classifier = train(few, **settings)
    assert classifier.training is not None
    classifier.save(tmp_path / "model.onnx")
    assert_same_head(read_head(*read_artifact(tmp_path / "model.onnx")), classifier.training.head)


def test_the_head_of_a_sigmoid_is_read_from_the_file(few: Path) -> None:
    for shape in SHAPES[1:]:
        shutil.copytree(few / shape, few.with_name("pair") / shape)
    classifier = train(
        few.with_name("pair"), head="dense", activation="sigmoid", hidden=(8, 4), fit=FitSettings(epochs=3)
    )
    assert classifier.training is not None
    assert_same_head(read_head(classifier.metadata, classifier.data), classifier.training.head)


def assert_same_head(found: LinearHead | DenseHead, expected: LinearHead | DenseHead) -> None:
    assert found.to_json() == expected.to_json()
    if isinstance(expected, DenseHead):
        assert isinstance(found, DenseHead)
        pairs = list(zip(found.weights, expected.weights, strict=True))
    else:
        assert isinstance(found, LinearHead)
        pairs = [((found.coef, found.intercept), (expected.coef, expected.intercept))]
    for one, other in pairs:
        for array, saved in zip(one, other, strict=True):
            assert array.dtype == np.float32
            np.testing.assert_allclose(array, saved, rtol=1e-6, atol=0)


def test_a_head_starts_with_the_probabilities_it_gave() -> None:
    coef, intercept = np.ones((2, 3), np.float32), np.array([0, 1, 2], np.float32)
    head = _make_logistic(LinearHead((PooledLayer("top", 1),), coef, intercept, 1.0, 4.0, "svm"))
    assert isinstance(head, LinearHead)
    np.testing.assert_allclose(head.intercept, intercept / 4)
    np.testing.assert_allclose(head.coef, coef / 4)
    assert (head.temperature, head.kind) == (1, "linear")


@pytest.mark.parametrize("settings", [{"head": "svm"}, {"head": "dense", "fit": FitSettings(epochs=3)}])
def test_other_heads_are_fine_tuned_too(few: Path, settings: dict[str, Any]) -> None:
    classifier = train(few, **settings)
    _, record = tune(classifier, few, **SHORT)
    start, best = record.history[0], record.history[record.best_epoch]
    # It starts from the head: what is compared with gets as many right as the first row says.
    assert start.validation_accuracy * record.comparison.num_images == pytest.approx(
        record.comparison.num_correct_frozen
    )
    assert best.validation_loss <= start.validation_loss
    if settings["head"] == "dense":
        assert classifier.training is not None
        out_of_fold = classifier.training.out_of_fold  # type: ignore[union-attr]
        assert record.comparison.num_images == len(out_of_fold.labels)
        assert record.comparison.num_correct_frozen == out_of_fold.correct.sum()


# What is refused


def test_other_classes_are_refused(few_frozen: headstart.Classifier, few: Path, tmp_path: Path) -> None:
    for shape in SHAPES[:2]:
        shutil.copytree(few / shape, tmp_path / "two" / shape)
    with pytest.raises(
        ConfigError, match=r"have the classes checks, circles; the classifier knows checks, circles, stri"
    ):
        headstart.finetune(few_frozen, tmp_path / "two")


def test_a_wrong_setting_and_a_wrong_layer_are_refused(few_frozen: headstart.Classifier, few: Path) -> None:
    with pytest.raises(ConfigError, match=r"no setting 'epoch'.*epochs"):
        headstart.finetune(few_frozen, few, epoch=3)
    with pytest.raises(headstart.HeadstartError, match=r"no layer 'block\.3'.*blocks\.3"):
        headstart.finetune(few_frozen, few, **{**SHORT, "from_layer": "block.3"})


def test_weights_from_a_file_must_be_given_again_and_be_the_same(few: Path, tmp_path: Path) -> None:
    files = []
    for seed in (1, 2):
        module = create_model("test_efficientnet.r160_in1k", 32, seed)
        files.append(tmp_path / f"weights{seed}.safetensors")
        save_file({name: each.contiguous() for name, each in module.state_dict().items()}, files[-1])
    classifier = train(few, weights=str(files[0]))
    with pytest.raises(ConfigError, match=r"came from the file weights1\.safetensors. Give it with --weights"):
        headstart.finetune(classifier, few)
    with pytest.raises(ConfigError, match="not those that the classifier was made with"):
        headstart.finetune(classifier, few, weights=str(files[1]), **SHORT)
    with pytest.raises(headstart.HeadstartError, match="cannot be read"):
        headstart.finetune(classifier, few, weights=str(tmp_path / "none.safetensors"), **SHORT)
    _, record = tune(classifier, few, weights=str(files[0]), **SHORT)
    assert record.settings.weights == str(files[0])


def test_too_few_pictures_are_refused(few_frozen: headstart.Classifier, few: Path, tmp_path: Path) -> None:
    for shape in SHAPES:
        (tmp_path / "one" / shape).mkdir(parents=True)
        shutil.copy(few / shape / "00.png", tmp_path / "one" / shape)
    with pytest.raises(DataError):
        headstart.finetune(few_frozen, tmp_path / "one", **SHORT)


# What is chosen


@pytest.fixture(scope="module")
def networks() -> dict[str, TorchNetwork]:
    sides = {"efficientnet-lite0": 64, "vgg16": 32, "timm:test_vit": 64}
    return {name: load_network(name, side, "none") for name, side in sides.items()}


@pytest.mark.parametrize(
    ("name", "layers", "num_images", "expected"),
    [
        ("efficientnet-lite0", ["head"], 3000, WHOLE),
        ("efficientnet-lite0", ["head"], 2999, "stage5"),
        ("efficientnet-lite0", ["head"], 500, "stage5"),
        ("efficientnet-lite0", ["head"], 499, "stage7"),
        ("efficientnet-lite0", ["stage5", "stage6"], 100, "stage6"),
        ("efficientnet-lite0", ["stage2"], 600, "stage2"),
        ("vgg16", ["block5"], 600, "block3"),
        ("vgg16", ["block5"], 100, "block4"),
        ("timm:test_vit", ["class token"], 100, "norm"),
    ],
)
def test_the_fewer_the_pictures_the_nearer_to_the_top_but_never_above_the_head(
    networks: dict[str, TorchNetwork], name: str, layers: list[str], num_images: int, expected: str
) -> None:
    network, pooled = networks[name], [PooledLayer(layer, 1) for layer in layers]
    chosen = choose_from_layer(network, pooled, num_images)
    assert chosen == expected
    if chosen != WHOLE:
        cut = cut_network(network, network.find_entry(chosen), pooled)
        assert any(True for _ in cut.above.parameters())


def test_settings_suit_the_number_of_pictures_and_give_way_to_those_given(few_frozen: headstart.Classifier) -> None:
    metadata = few_frozen.metadata
    assert choose_fit_settings(100, metadata, {}).epochs == 10
    assert choose_fit_settings(3000, metadata, {}).epochs == 6
    assert choose_fit_settings(3000, metadata, {"epochs": 2, "optimizer": "sgd"}).optimizer == "sgd"
    fitted = replace(metadata, settings={**metadata.settings, "fit": {"validation_frac": 0.3, "seed": 7}})
    chosen = choose_fit_settings(100, fitted, {})
    assert (chosen.validation_frac, chosen.seed) == (0.3, 7)


def test_a_network_without_torch_names_the_same_layers() -> None:
    plain, network = load_backbone("efficientnet-lite0", 64), load_network("efficientnet-lite0", 64, "none")
    assert isinstance(plain, Backbone)
    assert [(each.name, each.channels, each.size) for each in plain.layers] == [
        (each.name, each.layer.channels, each.layer.size) for each in network.layers
    ]
    assert all(isinstance(each, Layer) for each in plain.layers)
