"""Choose among backbones within a time, in the way of successive halving (Jamieson and Talwalkar 2016): all are tried
on a few pictures, those that are clearly worse or too slow leave, and the others are compared on twice as many.

Features are cached, so nothing that a trial computed for the chosen backbone is computed again.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from headstart.backbones.loading import load_backbone
from headstart.config import TrainSettings
from headstart.dataset import ImageRecord
from headstart.errors import BackboneError, HeadstartError
from headstart.feature_cache import FeatureCache
from headstart.features import Extractor, Picture, extract_features
from headstart.heads.cached import fit_head, make_layout
from headstart.metrics import compute_losses
from headstart.parallel import Progress
from headstart.splits import get_split_key

DEFAULT_BUDGET_S = 60.0
_FIRST_PICTURES = 200
_FIRST_PER_CLASS = 8
# A difference of the log loss counts where it is this many standard errors (of the paired difference) from 0.
_CLEAR = 2.0


@dataclass(frozen=True, slots=True)
class Trial:
    """How far one backbone came. Figures are cross-validated, on the `num_images` it saw; None where it saw none.

    `ms_per_picture` is wall time over all threads; None where all features were cached.
    """

    backbone: str
    outcome: str
    num_images: int = 0
    accuracy: float | None = None
    log_loss: float | None = None
    ms_per_picture: float | None = None
    seconds: float = 0.0


@dataclass(eq=False)
class _Runner:
    """A backbone that is still in the race, with what it has shown so far."""

    name: str
    extractor: Extractor
    losses: np.ndarray = field(default_factory=lambda: np.zeros(0))
    accuracy: float = 0.0
    num_forward: int = 0
    forward_s: float = 0.0
    fit_s: float = 0.0
    seconds: float = 0.0

    @property
    def seconds_per_picture(self) -> float:
        return self.forward_s / self.num_forward if self.num_forward else 0.0

    def end(self, outcome: str) -> Trial:
        seen = len(self.losses) > 0
        return Trial(
            backbone=self.name,
            outcome=outcome,
            num_images=len(self.losses),
            accuracy=self.accuracy if seen else None,
            log_loss=float(self.losses.mean()) if seen else None,
            ms_per_picture=1000 * self.seconds_per_picture if self.num_forward else None,
            seconds=self.seconds,
        )


def choose_backbone(
    names: Sequence[str],
    records: Sequence[ImageRecord],
    num_classes: int,
    settings: TrainSettings,
    cache: FeatureCache,
    budget_s: float,
    num_pictures: int,
    progress: Progress,
) -> tuple[Trial, ...]:
    """What became of each backbone; the first trial is the chosen one's.

    `records` are those to train on, `num_pictures` all that the training will run; `budget_s` is meant to cover the
    training as well. It is a plan and no limit: pictures may take longer than those before. Raises BackboneError when
    none can be used.
    """
    began = time.monotonic()
    runners, trials = _load_all(names, settings)
    order = _sort_for_parts(records)
    size = min(len(records), max(_FIRST_PICTURES, _FIRST_PER_CLASS * num_classes))
    while True:
        part = _take_part(order, records, size, num_classes)
        for number, runner in enumerate(runners):
            progress(f"trying {runner.name}", number, len(runners))
            _try(runner, part, num_classes, settings, cache)
        best = min(runners, key=lambda runner: float(runner.losses.mean()))
        runners, worse = _drop_worse(runners, best)
        larger = min(2 * size, len(records))
        left_s = budget_s - (time.monotonic() - began)
        runners, slow = _drop_slow(runners, larger - size, num_pictures - larger, left_s)
        trials = [*worse, *slow, *trials]
        if len(runners) == 1 or size == len(records):
            break
        size = larger
    winner = _pick(runners)
    beaten = [runner.end(f"no clear difference from {winner.name}, slower") for runner in runners if runner != winner]
    return (winner.end("chosen"), *beaten, *trials)


def _load_all(names: Sequence[str], settings: TrainSettings) -> tuple[list[_Runner], list[Trial]]:
    runners, failed = [], []
    for name in dict.fromkeys(names):
        began = time.monotonic()
        try:
            backbone = load_backbone(name, settings.input_size_px, settings.weights)
            runner = _Runner(name, Extractor(backbone, layout=make_layout(backbone, settings)))
            runner.seconds = time.monotonic() - began
            runners.append(runner)
        except HeadstartError as error:
            failed.append(Trial(name, f"cannot be used: {error}"))
    if not runners:
        raise BackboneError(
            "None of the backbones can be used. " + " ".join(f"{each.backbone} {each.outcome}" for each in failed)
        )
    return runners, failed


def _sort_for_parts(records: Sequence[ImageRecord]) -> list[int]:
    """By content hash, but one picture of a group before the second of any, so that few pictures still make folds."""
    in_group: Counter[tuple[int, str]] = Counter()
    ranks = []
    for index in sorted(range(len(records)), key=lambda index: records[index].sha256):
        key = records[index].label, get_split_key(records[index])
        ranks.append((in_group[key], records[index].sha256, index))
        in_group[key] += 1
    return [index for *_, index in sorted(ranks)]


def _take_part(order: Sequence[int], records: Sequence[ImageRecord], size: int, num_classes: int) -> list[ImageRecord]:
    """About `size` pictures, each class by its share but at least 4 of it; a larger part holds the smaller."""
    counts = np.bincount([record.label for record in records], minlength=num_classes)
    quota = np.maximum(np.ceil(counts * size / len(records)), 4).astype(int)
    part = []
    for index in order:
        label = records[index].label
        if quota[label] > 0:
            quota[label] -= 1
            part.append(records[index])
    return part


def _try(
    runner: _Runner, part: list[ImageRecord], num_classes: int, settings: TrainSettings, cache: FeatureCache
) -> None:
    began = time.monotonic()
    done = extract_features([Picture(record.sha256, record.path) for record in part], runner.extractor, cache)
    if done.num_forward:
        runner.forward_s += time.monotonic() - began
        runner.num_forward += done.num_forward
    usable = [record for record in part if record.sha256 in done.facts]
    chosen = replace(settings, backbone=runner.name)
    fitting = time.monotonic()
    selection = fit_head(usable, num_classes, runner.extractor, cache, chosen, lambda *_: None)
    labels = np.array([record.label for record in usable], np.int64)
    runner.losses = compute_losses(labels, selection.out_of_fold_probs)
    runner.accuracy = float((selection.out_of_fold_probs.argmax(axis=1) == labels).mean())
    runner.fit_s = time.monotonic() - fitting
    runner.seconds += time.monotonic() - began


def _drop_worse(runners: list[_Runner], best: _Runner) -> tuple[list[_Runner], list[Trial]]:
    kept, dropped = [], []
    for runner in runners:
        excess, error = _compare(runner, best)
        if runner is best or excess <= _CLEAR * error:
            kept.append(runner)
        else:
            dropped.append(runner.end(f"clearly worse than {best.name}: log loss {excess:.3f} higher (± {error:.3f})"))
    return kept, dropped


def _compare(runner: _Runner, other: _Runner) -> tuple[float, float]:
    """Mean of the paired difference of the log losses, and its standard error."""
    excess = runner.losses - other.losses
    return float(excess.mean()), float(excess.std() / np.sqrt(len(excess)))


def _drop_slow(
    runners: list[_Runner], num_next: int, num_last: int, left_s: float
) -> tuple[list[_Runner], list[Trial]]:
    """Without those, the worst first, for which there is no time: to try all again, and to train with the slowest."""
    kept = sorted(runners, key=lambda runner: float(runner.losses.mean()))
    dropped: list[Trial] = []
    while len(kept) > 1:
        next_s = sum(num_next * runner.seconds_per_picture + 2 * runner.fit_s for runner in kept)
        last_s = max(num_last * runner.seconds_per_picture + 4 * runner.fit_s for runner in kept)
        if next_s + last_s <= left_s:
            break
        runner = kept.pop()
        dropped.append(runner.end(f"no time to try it further: {next_s + last_s:.0f} s needed, {left_s:.0f} s left"))
    return kept, dropped[::-1]


def _pick(runners: list[_Runner]) -> _Runner:
    """The least log loss; of those that cannot be told from it, the fastest."""
    best = min(runners, key=lambda runner: float(runner.losses.mean()))
    close = []
    for runner in runners:
        excess, error = _compare(runner, best)
        if excess <= error:
            close.append(runner)
    return min(close, key=lambda runner: (runner.seconds_per_picture, float(runner.losses.mean())))
