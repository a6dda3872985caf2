"""Does a mirror image still show the same class? Found out from a classifier that was not trained on mirror images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headstart.errors import DataError
from headstart.stats import mcnemar_exact

MAX_P_VALUE = 0.05
MIN_EXCHANGED_FRAC = 0.2
"""Below this share a difference, however sure, is the classifier's wavering and not another meaning."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """Two classes that become each other in the mirror.

    Each direction counts the pictures of the first class that were recognised, and those of them whose mirror image is
    taken for the second. `p_value` is of the paired test on the pictures of the two classes, times the number of
    pairs of classes (Bonferroni); 1 where the mirror images are recognised more often.
    """

    classes: tuple[str, str]
    num_recognised: tuple[int, int]
    num_exchanged: tuple[int, int]
    p_value: float

    @property
    def exchanged_frac(self) -> float:
        return sum(self.num_exchanged) / max(1, sum(self.num_recognised))


@dataclass(frozen=True, slots=True)
class FlipCheck:
    """How a classifier takes pictures and their mirror images.

    `p_value` is of the exact paired test (McNemar) that it is right equally often on both. `exchanges` are the pairs of
    classes whose meaning a flip changes, the most exchanged first.
    """

    num_pictures: int
    num_right: int
    num_right_mirrored: int
    right_to_wrong: int
    wrong_to_right: int
    p_value: float
    exchanges: tuple[Exchange, ...]

    @property
    def warning(self) -> str | None:
        """What a flip would spoil and what to do, or None."""
        if not self.exchanges:
            return None
        worst = self.exchanges[0]
        ways = zip(worst.classes, worst.classes[::-1], worst.num_exchanged, worst.num_recognised, strict=True)
        said = [f"'{a}' becomes '{b}' in {count} of {total} pictures" for a, b, count, total in ways if count]
        others = [f"'{exchange.classes[0]}' and '{exchange.classes[1]}'" for exchange in self.exchanges[1:4]]
        more = f" Also exchanged: {', '.join(others)}." if others else ""
        return (
            f"Mirrored, {' and '.join(said)}: a flip changes what these classes mean.{more} "
            "Augment without the flip (horizontal_flip=False)."
        )


def check_flip(
    run: Callable[[NDArray[np.uint8]], NDArray[np.floating]],
    pictures: Iterable[tuple[NDArray[np.uint8], int]],
    classes: Sequence[str],
) -> FlipCheck:
    """Run a classifier on pictures and on their mirror images, and find classes that change places.

    `run` takes pixels uint8 (H, W, 3) and gives probabilities float (K,) of the `classes`; `pictures` are pixels and
    label. The classifier must not have been trained on flipped pictures (a frozen backbone's head is right), nor
    on these; one that cannot tell left from right finds nothing. About 20 pictures a class are enough for a few
    classes. Raises DataError for no pictures and for a label that is no class.
    """
    rows: list[tuple[int, int, int]] = []
    for pixels, label in pictures:
        if not 0 <= label < len(classes):
            raise DataError(f"Picture {len(rows)} has the label {label}. Expected 0 to {len(classes) - 1}.")
        mirror_image = np.ascontiguousarray(pixels[:, ::-1])
        rows.append((label, int(run(pixels).argmax()), int(run(mirror_image).argmax())))
    if not rows:
        raise DataError("There are no pictures to mirror. Pass at least one.")
    labels, plain, mirrored = np.array(rows).T
    right, right_mirrored = plain == labels, mirrored == labels
    exchanged = np.unique(np.sort(np.stack([plain, mirrored])[:, right & ~right_mirrored], axis=0), axis=1)
    exchanges = [_count_exchange(int(a), int(b), classes, labels, plain, mirrored) for a, b in exchanged.T]
    found = [e for e in exchanges if e.p_value < MAX_P_VALUE and e.exchanged_frac >= MIN_EXCHANGED_FRAC]
    return FlipCheck(
        num_pictures=len(rows),
        num_right=int(right.sum()),
        num_right_mirrored=int(right_mirrored.sum()),
        right_to_wrong=int((right & ~right_mirrored).sum()),
        wrong_to_right=int((right_mirrored & ~right).sum()),
        p_value=mcnemar_exact(right, right_mirrored),
        exchanges=tuple(sorted(found, key=lambda exchange: -exchange.exchanged_frac)),
    )


def _count_exchange(
    a: int,
    b: int,
    classes: Sequence[str],
    labels: NDArray[np.int64],
    plain: NDArray[np.int64],
    mirrored: NDArray[np.int64],
) -> Exchange:
    right, right_mirrored = plain == labels, mirrored == labels
    of_a, of_b, of_both = right & (labels == a), right & (labels == b), (labels == a) | (labels == b)
    num_pairs = len(classes) * (len(classes) - 1) // 2
    p_value = num_pairs * mcnemar_exact(right[of_both], right_mirrored[of_both])
    is_worse = right[of_both].sum() > right_mirrored[of_both].sum()
    return Exchange(
        classes=(classes[a], classes[b]),
        num_recognised=(int(of_a.sum()), int(of_b.sum())),
        num_exchanged=(int((of_a & (mirrored == b)).sum()), int((of_b & (mirrored == a)).sum())),
        p_value=min(1.0, p_value) if is_worse else 1.0,
    )
