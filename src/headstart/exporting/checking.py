"""Whether an export says what the classifier says, on real pictures, before it is written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from headstart.errors import DataError, HeadstartError, ImageError
from headstart.parallel import Progress, count_cpus, map_bounded
from headstart.pictures import load_picture
from headstart.prediction import Classifier

MAX_PICTURES = 1000
_MIN_AGREEMENT = 0.999
_MIN_AGREEMENT_8_BITS = 0.99


class ExportRefused(HeadstartError):
    """The export does not say what the classifier says, or costs more than was allowed. Nothing was written."""


@dataclass(frozen=True)
class Agreement:
    """How far an export and the classifier go together on `num_checked` pictures.

    `worst_difference` is the largest absolute difference of a probability, `mean_difference` that of all. `left_out`
    are pictures that cannot be decoded.
    """

    num_checked: int
    num_same_class: int
    worst_difference: float
    mean_difference: float
    left_out: tuple[ImageError, ...] = ()

    @property
    def frac_same_class(self) -> float:
        return self.num_same_class / self.num_checked


def compare_probs(expected: np.ndarray, found: np.ndarray, left_out: Iterable[ImageError] = ()) -> Agreement:
    """Of two float32 (N, K), rows of the same pictures."""
    gaps = np.abs(expected.astype(np.float64) - found)
    same = int((expected.argmax(axis=1) == found.argmax(axis=1)).sum())
    return Agreement(len(gaps), same, float(gaps.max()), float(gaps.mean()), tuple(left_out))


def get_min_agreement(classifier: Classifier) -> float:
    """Share of the pictures that must keep their class: of networks in 8 bits less, as runtimes round them otherwise."""
    return _MIN_AGREEMENT_8_BITS if b"QuantizeLinear" in classifier.data else _MIN_AGREEMENT


def require_agreement(agreement: Agreement, min_frac: float, what: str, advice: str = "") -> None:
    """Raises ExportRefused where fewer pictures have the original's class; `what` is the export."""
    if agreement.frac_same_class < min_frac:
        raise ExportRefused(
            f"{what} gives the same class as the classifier on {agreement.num_same_class:,} of "
            f"{agreement.num_checked:,} pictures ({agreement.frac_same_class:.2%}), the largest difference of a "
            f"probability is {agreement.worst_difference:.3g}. At least {min_frac:.1%} was asked for. "
            f"Nothing was written.{advice}"
        )


def pick_evenly(paths: Sequence[str], most: int = MAX_PICTURES) -> list[str]:
    """Up to `most` of them, at equal distances: a folder's classes stay in their proportions."""
    if len(paths) <= most:
        return list(paths)
    return [paths[index] for index in np.linspace(0, len(paths) - 1, most).round().astype(int)]


def predict_by_both(
    classifier: Classifier,
    run_export: Callable[[str, np.ndarray], np.ndarray],
    paths: Sequence[str],
    progress: Progress,
) -> tuple[np.ndarray, np.ndarray, list[str], list[ImageError]]:
    """Probabilities (N, K) of the classifier and of the export, the paths they are of, and what cannot be decoded.

    `run_export` gets the path and the pixels as the classifier sees them, uint8 (H, W, 3), and gives (K,); it is called
    from several threads. Raises DataError where no picture can be used.
    """
    size = classifier.metadata.preprocess.get("input_size_px")

    def run(path: str) -> tuple[str, np.ndarray, np.ndarray] | ImageError:
        try:
            pixels = load_picture(path, None, 2 * size if size else None).pixels
        except ImageError as error:
            return error.at(path)
        try:
            return path, classifier.run(pixels), np.asarray(run_export(path, pixels))
        except (OSError, ValueError) as error:  # Pillow, where it alone decodes
            return ImageError("unreadable-there", f"the export cannot read it: {error}", path)

    rows, failures = [], []
    for done, (_, outcome) in enumerate(map_bounded(run, paths, count_cpus()), start=1):
        (failures if isinstance(outcome, ImageError) else rows).append(outcome)
        progress("comparing with the original", done, len(paths))
    if not rows:
        raise DataError(f"None of the {len(paths):,} pictures to check on can be used. The first: {failures[0]}")
    used, expected, found = zip(*rows, strict=True)
    return np.stack(expected), np.stack(found), list(used), failures
