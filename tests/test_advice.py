from __future__ import annotations

from dataclasses import replace

import pytest

from headstart.insight.advice import ClassError, Findings, advise

GOOD = Findings(
    model="pets.onnx",
    source="pets/",
    num_train=2000,
    num_test=4000,
    error=(0.006, 0.004, 0.009),
    train_error=(0.001, 0.0, 0.004),
    out_of_fold_error=0.007,
    now=(0.007, 0.005, 0.01),
    twice=(0.006, 0.004, 0.009),
    imagenet_distance=0.17,
    top_gain=0.0,
    from_layer="stage6",
)


def list_actions(findings: Findings) -> list[str]:
    return [advice.action for advice in advise(findings)]


def test_nothing_is_advised_where_the_interval_is_narrower_than_what_matters() -> None:
    (advice,) = advise(replace(GOOD, error=(0.004, 0.003, 0.006)))
    assert advice.action == "Nothing"
    assert "known to within 0.1 points, less than the 1.0 that matter" in advice.reason
    assert advice.command == ""


def test_few_test_pictures_are_told_where_nothing_else_is_to_be_done() -> None:
    (advice,) = advise(replace(GOOD, num_test=100, error=(0.0, 0.0, 0.037), now=None, twice=None))
    assert advice.action == "Put more pictures aside for the test"
    assert "About 189 test pictures would show it; there are 100." in advice.reason


def test_the_four_situations() -> None:
    """Few or many pictures (what twice as many would bring), like or unlike ImageNet (the measured distance)."""
    wrong = replace(GOOD, error=(0.2, 0.18, 0.22), out_of_fold_error=0.2)
    few = {"now": (0.2, 0.18, 0.22), "twice": (0.15, 0.12, 0.18), "train_error": (0.0, 0.0, 0.002)}
    many = {"now": (0.2, 0.18, 0.22), "twice": (0.198, 0.18, 0.22), "train_error": (0.19, 0.17, 0.21)}
    assert list_actions(replace(wrong, **few)) == ["Add pictures"]
    assert list_actions(replace(wrong, **many)) == ["Fine-tune from stage6"]
    unlike = {"imagenet_distance": 0.65, "top_gain": 0.05, "from_layer": "stage4"}
    assert list_actions(replace(wrong, **few, **unlike)) == [
        "Add pictures",
        "Fine-tune from stage4",
    ]
    assert list_actions(replace(wrong, **many, **unlike)) == ["Fine-tune from stage4"]
    few_mistakes = {"train_error": (0.02, 0.005, 0.05)}  # of 200 pictures: no reason to say that the features fail
    assert list_actions(replace(wrong, **{**few, **few_mistakes})) == ["Add pictures"]


def test_commands_can_be_run_as_they_stand() -> None:
    findings = replace(GOOD, error=(0.2, 0.18, 0.22), imagenet_distance=0.5, from_layer="stage4", num_suspects=14)
    commands = [advice.command for advice in advise(findings) if advice.command]
    assert commands == ["headstart review pets.onnx", "headstart finetune pets.onnx pets/ --from stage4"]


def test_what_makes_the_figures_doubtful_comes_first() -> None:
    findings = replace(
        GOOD, num_suspects=14, num_leaking=60, mismatch="Test pictures are darker.", error=(0.2, 0.18, 0.22)
    )
    first, second, third, *_ = list_actions(findings)
    assert first == "Review 14 labels first"
    assert second == "Take copies out of the test pictures"
    assert third == "Train on pictures like those of the test"
    assert "copies" not in " ".join(list_actions(replace(findings, num_leaking=30)))  # under 1 % of the test pictures
    assert list_actions(replace(GOOD, num_suspects=2, error=(0.004, 0.003, 0.006))) == ["Nothing"]


@pytest.mark.parametrize(("is_tuned", "expected"), [(False, ["Fine-tune from stage6"]), (True, ["Nothing"])])
def test_what_is_tuned_is_not_tuned_again(is_tuned: bool, expected: list[str]) -> None:
    findings = replace(GOOD, error=(0.2, 0.195, 0.205), train_error=(0.19, 0.17, 0.21), is_tuned=is_tuned)
    assert list_actions(findings) == expected


def test_classes_that_gain_most_are_named() -> None:
    worst = (ClassError("crab apple", 0.4, 0.3), ClassError("larch", 0.3, 0.25), ClassError("yew", 0.1, 0.1))
    findings = replace(
        GOOD, error=(0.2, 0.18, 0.22), now=(0.2, 0.18, 0.22), twice=(0.15, 0.1, 0.2), worst_classes=worst
    )
    (advice,) = advise(findings)
    assert advice.action == "Add pictures of these 2 classes: crab apple, larch"
    assert "crab apple 40.0 to 30.0 %" in advice.reason
    assert "yew" not in advice.reason
    assert list_actions(replace(findings, worst_classes=worst[:2])) == ["Add pictures"]  # two classes err together


def test_a_target_that_is_reached_needs_nothing() -> None:
    findings = replace(GOOD, error=(0.05, 0.045, 0.055), now=(0.05, 0.04, 0.06), twice=(0.03, 0.02, 0.04))
    assert list_actions(findings) == ["Add pictures"]
    assert list_actions(replace(findings, target_error=0.05)) == ["Nothing"]


def test_without_a_test_part_that_is_the_advice() -> None:
    assert list_actions(replace(GOOD, error=None, num_test=0)) == ["Put pictures aside for a test"]


def test_a_network_in_8_bits_is_trained_in_floats_first() -> None:
    wrong = replace(GOOD, error=(0.2, 0.18, 0.22), imagenet_distance=0.65, backbone_to_tune="efficientnet-lite0")
    advice = next(each for each in advise(wrong) if each.action.startswith("Fine-tune"))
    assert advice.command == "headstart train pets/ --backbone efficientnet-lite0"
    assert "8 bits, which cannot be trained" in advice.reason
