"""A trained classifier: predict, evaluate, save, load. Neither torch nor scikit-learn nor onnx is imported for it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from headstart._files import compute_sha256, show_path, write_atomic
from headstart.artifact import ArtifactMetadata, create_session, parse_artifact, read_artifact
from headstart.errors import ArtifactError, ConfigError, DataError, ImageError, raise_all, suggest
from headstart.image_files import DEFAULT_LIMITS, DecodeLimits
from headstart.parallel import count_cpus, map_bounded
from headstart.pictures import PictureSource, load_picture, name_source

if TYPE_CHECKING:
    from headstart.dataset import ImageDataset
    from headstart.evaluation import Evaluation
    from headstart.finetuning.outcome import TuningRecord
    from headstart.training import TrainingRecord

_MIN_PICTURES_FOR_DEVICE = 100  # fewer are done before a device has started


@dataclass(frozen=True, eq=False)
class Prediction:
    """What the classifier says of one picture: the most probable class, and `probs` float32 (K,) of all `classes`.

    `familiarity`, 0 .. 1, is about the share of unseen pictures of these classes that are less like the training
    pictures than this one; None where the classifier's file does not tell it.
    """

    name: str
    classes: tuple[str, ...]
    probs: np.ndarray
    familiarity: float | None = None

    @property
    def label(self) -> str:
        return self.classes[int(self.probs.argmax())]

    @property
    def probability(self) -> float:
        return float(self.probs.max())

    def get_top(self, count: int) -> list[tuple[str, float]]:
        """The `count` most probable classes with their probabilities, the most probable first."""
        order = np.argsort(-self.probs, kind="stable")[:count]
        return [(self.classes[i], float(self.probs[i])) for i in order]

    def is_unknown(self, lost_frac: float = 0.01) -> bool:
        """Whether the picture may show none of the classes: about `lost_frac` of the pictures that do are lost by that.

        Raises ConfigError for a share that is not from 0 to 1, ArtifactError when the file tells no familiarity.
        """
        if not 0 <= lost_frac <= 1:
            raise ConfigError(f"lost_frac is {lost_frac}; expected a share from 0 to 1, such as 0.01.")
        if self.familiarity is None:
            raise ArtifactError(
                "This classifier's file does not tell how familiar a picture is. Train it again with this headstart."
            )
        return self.familiarity < lost_frac

    def __repr__(self) -> str:
        return f"Prediction({show_path(self.name)}: {self.label} {self.probability:.1%})"


class Classifier:
    """The classifier in one file's bytes, ready to run.

    `classes` are its labels in the order of the probabilities, `metadata` what the file says about itself. `training`
    is what training left besides the file: evaluations, scores of the candidates; None for a loaded classifier. `data`
    is the file.
    """

    def __init__(
        self, metadata: ArtifactMetadata, data: bytes, training: TrainingRecord | TuningRecord | None = None
    ) -> None:
        self.metadata = metadata
        self.classes = metadata.labels
        self.training = training
        self.data = data
        self._session = create_session(data)

    def __repr__(self) -> str:
        return f"Classifier({len(self.classes)} classes, {self.metadata.backbone.get('name', 'foreign')})"

    @cached_property
    def sha256(self) -> str:
        """Digest of the file."""
        return compute_sha256(self.data)

    def run(self, pixels: np.ndarray) -> np.ndarray:
        """Probabilities float32 (K,) of one RGB picture uint8 (H, W, 3)."""
        return self.run_all(pixels)[0]

    def run_all(self, pixels: np.ndarray) -> tuple[np.ndarray, float | None]:
        """Probabilities as `run` gives them, and the familiarity, 0 .. 1; None where the file has no such output."""
        return _read_outputs(self._session.run(None, {"image": pixels}))

    def predict(self, pictures: PictureSource | Sequence[PictureSource]) -> Any:
        """A Prediction for a picture (path, bytes, array or Pillow image), a list of them for a sequence.

        Raises ImageError for a picture that cannot be used, DataError that lists all such pictures of a sequence.
        """
        if _is_single(pictures):
            return _require([*self.predict_each([cast("PictureSource", pictures)])])[0]
        return _require([*self.predict_each(cast("Sequence[PictureSource]", pictures))])

    def predict_each(
        self, pictures: Iterable[PictureSource], num_threads: int | None = None
    ) -> Iterator[Prediction | ImageError]:
        """In the order given, a Prediction for each picture or the reason why there is none. Memory stays bounded.

        A sequence of many pictures is predicted on the device that `headstart.execution` chooses.
        """
        from headstart.execution import open_device

        size = self.metadata.preprocess.get("input_size_px")
        runner = open_device(self.data, size) if size and _are_many(pictures) else None
        num_threads = num_threads or (runner.num_threads if runner else count_cpus())

        def predict_one(item: tuple[int, PictureSource]) -> Prediction | ImageError:
            name = name_source(item[1], item[0])
            try:
                if runner is None:
                    return self.predict_one(item[1], name)
                outputs = runner.run(load_picture(item[1], None, self._min_side_px).pixels)
                return Prediction(name, self.classes, *_read_outputs(outputs))
            except ImageError as error:
                return error.at(name)

        for _, outcome in map_bounded(predict_one, enumerate(pictures), num_threads):
            yield outcome

    def predict_one(
        self, picture: PictureSource, name: str = "picture 0", limits: DecodeLimits = DEFAULT_LIMITS
    ) -> Prediction:
        """The Prediction for one picture, on the processor and in the calling thread. Raises ImageError.

        What `predict` gives too, bit for bit; `limits` may be stricter for pictures of strangers.
        """
        pixels = load_picture(picture, None, self._min_side_px, limits).pixels
        return Prediction(name, self.classes, *self.run_all(pixels))

    @property
    def _min_side_px(self) -> int | None:
        """The reduced scale at which a JPEG may be decoded; a foreign file does not say its input size, so never."""
        size = self.metadata.preprocess.get("input_size_px")
        return 2 * size if size else None

    def evaluate(self, source: Any, *, labels: Any = None, split: str | None = None, **options: Any) -> Evaluation:
        """Predict the labelled pictures of `source` (anything that `scan_dataset` takes) and keep a row for each.

        `split` is the part to use where the source has several: by default test, else validation, else all. Raises
        DataError when the labels are not the classifier's classes or a picture cannot be read.
        """
        from headstart.data_check import hash_images
        from headstart.dataset import scan_dataset

        dataset = hash_images(scan_dataset(source, labels=labels, **options), num_threads=count_cpus())
        evaluation, problems = self.evaluate_dataset(dataset, split)
        raise_all(DataError, [f"{show_path(problem.path or '')}: {problem.reason}" for problem in problems])
        return evaluation

    def evaluate_dataset(
        self, dataset: ImageDataset, split: str | None = None, on_progress: Any = None
    ) -> tuple[Evaluation, list[ImageError]]:
        """The rows of a hashed dataset's part, and the pictures that could not be predicted."""
        from headstart.evaluation import Evaluation

        records = select_part(dataset, split)
        label_of = match_classes([dataset.classes[label] for label in sorted({r.label for r in records})], self.classes)
        problems, used, probs = [], [], []
        for done, (record, outcome) in enumerate(
            zip(records, self.predict_each([record.path for record in records]), strict=True), start=1
        ):
            if isinstance(outcome, ImageError):
                problems.append(outcome)
            else:
                used.append(record)
                probs.append(outcome.probs)
            if on_progress:
                on_progress(done, len(records))
        if not used:
            raise DataError(_say_none_usable(dataset, problems))
        return Evaluation(
            classes=self.classes,
            paths=tuple(record.path for record in used),
            sha256=tuple(record.sha256 for record in used),
            labels=np.array([label_of[dataset.classes[record.label]] for record in used], np.int64),
            probs=np.stack(probs),
        ), problems

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the classifier to one .onnx file, whole or not at all."""
        write_atomic(path, self.data)


def load(path: str | os.PathLike[str] | bytes, *, allow_unsigned: bool = False) -> Classifier:
    """Read a classifier file and check it before anything of it runs. Raises ArtifactError.

    `allow_unsigned` admits an ONNX file of the same signature that headstart did not save.
    """
    if isinstance(path, bytes):
        return Classifier(*parse_artifact(path, allow_unsigned=allow_unsigned))
    return Classifier(*read_artifact(path, allow_unsigned=allow_unsigned))


def match_classes(names: Sequence[str], classes: Sequence[str]) -> dict[str, int]:
    """Class name to the number that the classifier gives it. Raises DataError that lists all it does not know."""
    numbers = {name: number for number, name in enumerate(classes)}
    raise_all(
        DataError,
        [
            f"The classifier has no class '{show_path(name)}'.{suggest(name, classes)} "
            "Rename the class, or leave it out with --exclude."
            for name in names
            if name not in numbers
        ],
    )
    return numbers


def select_part(dataset: ImageDataset, split: str | None = None) -> list[Any]:
    """The records of a split; by default test, else validation, else all."""
    present = {record.split for record in dataset.records}
    if split is None:
        split = next((name for name in ("test", "validation") if name in present), None)
    elif split not in present:
        known = ", ".join(sorted(name for name in present if name))
        advice = f"Splits there: {known}." if known else "It is not divided: name no split, and all of it is used."
        raise DataError(f"{show_path(dataset.source)} has no split '{show_path(split)}'. {advice}")
    return [record for record in dataset.records if split is None or record.split == split]


def _say_none_usable(dataset: ImageDataset, failures: Sequence[ImageError]) -> str:
    reasons = [(problem.path, problem.message) for problem in dataset.problems if problem.severity == "left-out"]
    reasons += [(failure.path, failure.reason) for failure in failures]
    path, reason = reasons[0]
    return (
        f"None of the {len(reasons)} pictures in {show_path(dataset.source)} can be used. The first is "
        f"{show_path(path or '')}: {reason}. headstart check lists all."
    )


def _is_single(pictures: Any) -> bool:
    if isinstance(pictures, np.ndarray):
        return pictures.ndim <= 3 and pictures.dtype.kind not in "OUS"
    # What iterates over bytes or lines is no sequence of pictures either; its refusal names the type.
    is_buffer = isinstance(pictures, (str, bytes, bytearray, memoryview)) or hasattr(pictures, "read")
    return is_buffer or isinstance(pictures, os.PathLike) or not isinstance(pictures, Iterable)


def _are_many(pictures: Iterable[PictureSource]) -> bool:
    return isinstance(pictures, Sequence) and len(pictures) >= _MIN_PICTURES_FOR_DEVICE


def _read_outputs(outputs: Sequence[np.ndarray]) -> tuple[np.ndarray, float | None]:
    probs, *others = outputs
    return np.asarray(probs), float(others[0][0]) if others else None


def _require(outcomes: list[Prediction | ImageError]) -> list[Prediction]:
    failures = [outcome for outcome in outcomes if isinstance(outcome, ImageError)]
    if len(failures) == 1 and len(outcomes) == 1:
        raise failures[0]
    raise_all(DataError, [str(failure) for failure in failures])
    return [outcome for outcome in outcomes if isinstance(outcome, Prediction)]
