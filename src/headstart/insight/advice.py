"""What to do next, decided by what was measured on these pictures.

The tutorials' four situations (few or many pictures, like or unlike ImageNet) are told apart by figures: few is where
twice the pictures would lower the error, unlike is where batch norm's statistics are far from the pretraining's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from headstart.insight.imagenet_distance import FAR
from headstart.report.content import Advice
from headstart.stats import count_for_half_width, format_percent

DIFFERENCE = 0.01
"""The difference of the accuracy that one is taken to care about, where nothing is said."""
_FEW_SUSPECTS = 3
_MAX_NAMED = 3


@dataclass(frozen=True, slots=True)
class ClassError:
    """A class with its recall on unseen pictures and what twice the pictures are expected to make of its error."""

    name: str
    error: float
    error_with_twice: float | None = None


@dataclass(frozen=True, slots=True)
class Findings:
    """What is known when advice is asked for; None where it was not measured. Errors are fractions, 0 .. 1.

    `model` and `source` are the arguments for the commands, ready for a shell. `error`, with its interval, is that of
    unseen pictures (n of them); `train_error` and `out_of_fold_error` are on the training pictures. `now` and
    `twice` are the learning curve's errors with these and with twice the pictures, with their ranges. `top_gain` is
    what the chosen layers gain over the top one in cross-validation. `backbone_to_tune` is named where the classifier's
    own is in 8 bits, which cannot be fine-tuned. `num_leaking` counts test pictures with a near-copy among the training
    pictures.
    """

    model: str
    source: str
    num_train: int
    num_test: int
    error: tuple[float, float, float] | None
    train_error: tuple[float, float, float] | None = None
    out_of_fold_error: float | None = None
    now: tuple[float, float, float] | None = None
    twice: tuple[float, float, float] | None = None
    target_error: float | None = None
    worst_classes: tuple[ClassError, ...] = ()
    imagenet_distance: float | None = None
    top_gain: float | None = None
    num_suspects: int = 0
    num_leaking: int = 0
    mismatch: str | None = None
    from_layer: str | None = None
    backbone_to_tune: str | None = None
    is_tuned: bool = False
    difference: float = DIFFERENCE


def advise(findings: Findings) -> tuple[Advice, ...]:
    """What is worth doing, the most urgent first; what makes the figures themselves doubtful comes before all."""
    steps = [*_doubt_figures(findings), *_lower_error(findings)]
    if findings.error is not None and not _is_flattered(findings):
        steps += _widen_test(findings, has_other_advice=bool(steps))
    return tuple(steps) or (_say_nothing(findings),)


def _doubt_figures(findings: Findings) -> Iterator[Advice]:
    if findings.num_suspects >= _FEW_SUSPECTS:
        share = findings.num_suspects / findings.num_train
        yield Advice(
            f"Review {findings.num_suspects:,} labels first",
            f"So many of {findings.num_train:,} training pictures ({format_percent(share)} %) look labelled wrongly. "
            "Wrong labels teach the classifier mistakes, and count its right answers as wrong.",
            f"headstart review {findings.model}",
        )
    if _is_flattered(findings):
        yield Advice(
            "Take copies out of the test pictures",
            f"{findings.num_leaking:,} of {findings.num_test:,} test pictures have a near-copy among the training "
            "pictures, so the accuracy is flattered. Give such pictures the same group, or delete one of each pair.",
        )
    if findings.mismatch:
        yield Advice(
            "Train on pictures like those of the test",
            findings.mismatch + " More pictures of the training's kind will not mend that.",
        )


def _lower_error(findings: Findings) -> Iterator[Advice]:
    if findings.error is None and findings.out_of_fold_error is None:
        return
    error = findings.error[0] if findings.error else findings.out_of_fold_error or 0.0
    wanted = findings.target_error if findings.target_error is not None else 0.0
    if error - wanted <= findings.difference / 2:
        return
    yield from _ask_for_pictures(findings)
    yield from _ask_for_tuning(findings, error, wanted)


def _ask_for_pictures(findings: Findings) -> Iterator[Advice]:
    if findings.now is None or findings.twice is None or findings.now[0] - findings.twice[0] <= findings.difference / 2:
        return
    value, low, high = (format_percent(each) for each in findings.twice)
    reason = (
        f"By the learning curve, twice the pictures lower the error from {format_percent(findings.now[0])} to "
        f"{value} % (between {low} and {high})."
    )
    gaining = [each for each in findings.worst_classes if each.error_with_twice is not None]
    gaining = [each for each in gaining if each.error - (each.error_with_twice or 0) > findings.difference / 2]
    if not gaining or len(findings.worst_classes) < 3:
        yield Advice("Add pictures", reason)
        return
    named = gaining[:_MAX_NAMED]
    falls = ", ".join(
        f"{each.name} {format_percent(each.error)} to {format_percent(each.error_with_twice)} %" for each in named
    )
    classes = "this class" if len(named) == 1 else f"these {len(named)} classes"
    yield Advice(f"Add pictures of {classes}: {', '.join(each.name for each in named)}", f"{reason} By class: {falls}.")


def _ask_for_tuning(findings: Findings, error: float, wanted: float) -> Iterator[Advice]:
    if findings.is_tuned or findings.from_layer is None:
        return
    is_far = _is_far(findings)
    # Of few pictures a handful of mistakes says nothing about the features: the lower limit counts.
    fits_badly = findings.train_error is not None and findings.train_error[1] - wanted > findings.difference
    if not (is_far or fits_badly) or error - wanted <= findings.difference:
        return
    reasons = []
    if is_far:
        reasons.append(
            f"The pictures are unlike ImageNet's: {findings.imagenet_distance:.2f} of its standard deviations away "
            f"(over {FAR} is far; photographs of pets and insects are at 0.17)."
        )
    if findings.top_gain is not None and findings.top_gain > findings.difference:
        reasons.append(
            f"Earlier layers gain {format_percent(findings.top_gain)} points over the top layer, which "
            "knows ImageNet's classes."
        )
    if fits_badly and findings.train_error is not None:
        reasons.append(
            f"Even on the training pictures {format_percent(findings.train_error[0])} % are wrong: the features do not "
            "tell the classes apart."
        )
    reasons.append(
        "Fine-tuning lowered the error from 27.3 to 13.0 % on CIFAR-10 (distance 0.42, 500 pictures a class), and "
        "not on cats and dogs (0.17). It is kept only where a paired test says that it is better."
    )
    command = f"headstart finetune {findings.model} {findings.source} --from {findings.from_layer}"
    if findings.backbone_to_tune:
        reasons.append("This network is in 8 bits, which cannot be trained: first train with it in floats.")
        command = f"headstart train {findings.source} --backbone {findings.backbone_to_tune}"
    yield Advice(f"Fine-tune from {findings.from_layer}", " ".join(reasons), command)


def _widen_test(findings: Findings, has_other_advice: bool) -> Iterator[Advice]:
    error, low, high = findings.error or (0.0, 0.0, 0.0)
    if (high - low) / 2 <= findings.difference or has_other_advice:
        return
    needed = count_for_half_width(error, findings.difference)
    yield Advice(
        "Put more pictures aside for the test",
        f"The accuracy is known to within {format_percent((high - low) / 2)} points, which hides a difference of "
        f"{format_percent(findings.difference)}. About {needed:,} test pictures would show it; there are "
        f"{findings.num_test:,}.",
    )


def _is_flattered(findings: Findings) -> bool:
    """Copies that cannot move the accuracy by what matters are told in their section, and need nothing done."""
    return findings.num_leaking > findings.difference * findings.num_test


def _is_far(findings: Findings) -> bool:
    return findings.imagenet_distance is not None and findings.imagenet_distance > FAR


def _say_nothing(findings: Findings) -> Advice:
    if findings.error is None:
        return Advice(
            "Put pictures aside for a test",
            "Nothing was put aside, so how good the classifier is on new pictures is only known by cross-validation.",
        )
    error, low, high = findings.error
    return Advice(
        "Nothing",
        f"The error is {format_percent(error)} % and known to within {format_percent((high - low) / 2)} points, less "
        f"than the {format_percent(findings.difference)} that matter. Use it.",
    )
