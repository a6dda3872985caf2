from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from drawn_pictures import write_shapes

import headstart
from headstart.backbone_choice import _drop_slow, _drop_worse, _pick, _Runner, _sort_for_parts, _take_part
from headstart.backbones.exported import list_kept
from headstart.backbones.listing import list_at_hand
from headstart.dataset import ImageRecord
from headstart.errors import BackboneError, ConfigError
from headstart.training import TrainingRecord

BOTH = "efficientnet-lite0,efficientnet-lite1"
FAST = {"input_size_px": 64, "layers": "top"}


def make_runner(name: str, losses: list[float], ms: float = 10.0) -> _Runner:
    runner = _Runner(name, None)  # type: ignore[arg-type]
    runner.losses = np.array(losses)
    runner.num_forward, runner.forward_s = 100, 100 * ms / 1000
    return runner


def get_training(classifier: headstart.Classifier) -> TrainingRecord:
    assert isinstance(classifier.training, TrainingRecord)
    return classifier.training


def test_the_chosen_one_is_trained_as_if_it_had_been_named(tmp_path: Path) -> None:
    shapes = write_shapes(tmp_path / "shapes", 8)
    chosen = headstart.train(shapes, backbone=BOTH, budget_s=600, **FAST)
    first, second = get_training(chosen).trials
    assert first.outcome == "chosen"
    assert {first.backbone, second.backbone} == set(BOTH.split(","))
    assert chosen.metadata.backbone["name"] == first.backbone
    assert (
        first.num_images
        == second.num_images
        == sum(r.split == "train" for r in get_training(chosen).report.dataset.records)
    )
    assert (
        get_training(chosen).num_forward == get_training(chosen).report.dataset.num_found - first.num_images
    )  # the rest was cached by the trial
    named = headstart.train(shapes, backbone=first.backbone, **FAST)
    assert named.data == chosen.data
    assert get_training(named).trials == ()


def test_auto_takes_what_is_installed_and_a_small_budget_the_better_start(tmp_path: Path) -> None:
    assert list_at_hand()[:2] == BOTH.split(",")
    trials = get_training(
        headstart.train(write_shapes(tmp_path / "shapes", 8), backbone="auto", budget_s=0.01, **FAST)
    ).trials
    assert trials[0].outcome == "chosen"
    assert {trial.backbone for trial in trials} >= {*BOTH.split(","), "efficientnet-lite0-int8"}
    assert {trial.outcome.partition(":")[0] for trial in trials[1:]} <= {
        "no time to try it further",
        "clearly worse than " + trials[0].backbone,
    }


def test_what_cannot_be_loaded_is_told(tmp_path: Path) -> None:
    shapes = write_shapes(tmp_path / "shapes", 8)
    trials = get_training(headstart.train(shapes, backbone="efficientnet-lite2,efficientnet-lite0", **FAST)).trials
    assert [trial.backbone for trial in trials] == ["efficientnet-lite0", "efficientnet-lite2"]
    assert trials[1].outcome.startswith("cannot be used: The weights of efficientnet-lite2 are not installed.")
    assert trials[1].accuracy is None
    with pytest.raises(BackboneError, match="None of the backbones can be used. efficientnet-lite2 cannot be used"):
        headstart.train(shapes, backbone="efficientnet-lite2,efficientnet-lite2", **FAST)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backbone": "efficientnet-lite0", "budget_s": 5}, "A budget is for choosing a backbone."),
        ({"backbone": "auto", "budget_s": 0}, "The budget is 0 s. Expected a number above 0."),
        ({"backbone": BOTH, "weights": "none"}, "`weights` is for one backbone."),
        (
            {"backbone": "efficientnet-lite0,efficientnet-lite9"},
            "There is no backbone 'efficientnet-lite9'. Did you mean",
        ),
    ],
)
def test_choices_that_make_no_sense(tmp_path: Path, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        headstart.train(tmp_path, **settings)  # type: ignore[arg-type]


def test_clearly_worse_ones_leave() -> None:
    rng = np.random.default_rng(0)
    base = rng.random(200)
    best, close, worse = (
        make_runner(n, list(base + d)) for n, d in (("a", 0), ("b", rng.normal(0.005, 0.2, 200)), ("c", 0.2))
    )
    kept, dropped = _drop_worse([worse, close, best], best)
    assert kept == [close, best]
    assert [trial.outcome for trial in dropped] == ["clearly worse than a: log loss 0.200 higher (± 0.000)"]


def test_those_without_time_leave_the_worst_first() -> None:
    runners = [
        make_runner("worst", [3.0], ms=1),
        make_runner("best", [1.0], ms=100),
        make_runner("second", [2.0], ms=1),
    ]
    # Next round 100 pictures with each, then 100 with the slowest.
    assert _drop_slow(runners, 100, 100, 100.0)[0] == [runners[1], runners[2], runners[0]]
    kept, dropped = _drop_slow(runners, 100, 100, 20.15)
    assert [runner.name for runner in kept] == ["best", "second"]
    assert [trial.backbone for trial in dropped] == ["worst"]
    assert _drop_slow(runners, 100, 100, 0.0)[0] == [runners[1]]


def test_ties_go_to_the_faster() -> None:
    noise = list(np.random.default_rng(1).normal(0.01, 1, 100) + 1)
    slow, fast, bad = (
        make_runner("slow", [1.0] * 100, ms=50),
        make_runner("fast", noise, ms=5),
        make_runner("bad", [9.0] * 100, ms=1),
    )
    assert _pick([slow, fast, bad]) is fast
    assert _pick([slow, bad]) is slow


def test_parts_hold_every_class_and_different_groups() -> None:
    records = [ImageRecord(f"{n}", n % 2, "train", f"g{n % 6}", f"{(n * 7919) % 1000:04d}") for n in range(60)]
    order = _sort_for_parts(records)
    small, large = (_take_part(order, records, size, 2) for size in (6, 30))
    assert [len({r.group for r in small if r.label == k}) for k in (0, 1)] == [3, 3]
    assert {r.path for r in small} < {r.path for r in large}
    assert len(small) == 8
    assert len(large) == 30


def test_kept_graphs_are_at_hand(own_cache: Path) -> None:
    from headstart.backbones.exported import _name_file

    for name, size in (("timm:test_vit.r160_in1k", None), ("resnet50", None), ("vgg16", 64)):
        file = _name_file(name, size, None)
        file.parent.mkdir(exist_ok=True)
        file.touch()
    assert list_kept() == ["resnet50", "timm:test_vit.r160_in1k"]
    assert {"resnet50", "timm:test_vit.r160_in1k"} <= set(list_at_hand())
    assert "vgg16" not in list_at_hand()
