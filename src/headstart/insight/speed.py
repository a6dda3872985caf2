"""How long classifiers take for one picture on this machine, measured in turn so that drift hits all the same."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from headstart.errors import DataError, ImageError
from headstart.image_files import read_image_file
from headstart.pictures import PictureSource, load_picture
from headstart.prediction import Classifier
from headstart.stats import median_interval

MAX_PICTURES = 50
_ENOUGH_SECONDS = 4.0
_MIN_ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Speed:
    """Milliseconds for one picture, as medians: from the file's bytes to probabilities, and of the network alone.

    `low_ms` .. `high_ms` is the 95 % interval of the first median. `size_bytes` is the size of the classifier file.
    """

    ms_per_picture: float
    low_ms: float
    high_ms: float
    network_ms: float
    num_pictures: int
    num_threads: int
    size_bytes: int


def measure_classifiers(
    classifiers: Mapping[str, Classifier], pictures: Sequence[PictureSource], max_seconds: float = _ENOUGH_SECONDS
) -> dict[str, Speed]:
    """The speed of each, one picture at a time on one thread, files read beforehand.

    At most 50 of `pictures`, evenly spread, are taken, each by all classifiers one after the other; from five pictures
    on it stops after `max_seconds`. Pictures that cannot be read are passed over; DataError where none can. Other work
    on the machine makes all of them slower: trust ratios more than milliseconds.
    """
    places = np.linspace(0, len(pictures), MAX_PICTURES, endpoint=False).astype(int)
    chosen = [pictures[place] for place in np.unique(places)] if len(pictures) else []
    sources = [source for source in map(_read, chosen) if source is not None]
    if not sources or not classifiers:
        raise DataError("There is nothing to measure. Give at least one classifier and one readable picture.")
    for classifier in classifiers.values():
        _time(classifier, sources[0])  # the first run takes memory that later ones have
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in classifiers}
    names, began = list(classifiers), time.perf_counter()
    for number, source in enumerate(sources):
        shift = number % len(names)  # whoever comes first finds the caches cold
        for name in names[shift:] + names[:shift]:
            times[name].append(_time(classifiers[name], source))
        if number + 1 >= _MIN_ROUNDS and time.perf_counter() - began > max_seconds:
            break
    return {name: _summarize(times[name], len(classifiers[name].data)) for name in names}


def measure_classifier(classifier: Classifier, pictures: Sequence[PictureSource]) -> Speed:
    """The speed of one classifier; see measure_classifiers."""
    return measure_classifiers({"": classifier}, pictures)[""]


def _read(source: PictureSource) -> PictureSource | None:
    """The bytes of a file or an array as it came; None for what is no picture."""
    try:
        data = read_image_file(source) if isinstance(source, (str, os.PathLike)) else source
        load_picture(data)
    except ImageError:
        return None
    return data


def _time(classifier: Classifier, source: PictureSource) -> tuple[float, float]:
    """Milliseconds in all and of the network, decoding as Classifier.predict_each does."""
    size = classifier.metadata.preprocess.get("input_size_px")
    began = time.perf_counter()
    pixels = load_picture(source, None, 2 * size if size else None).pixels
    decoded = time.perf_counter()
    classifier.run(pixels)
    ended = time.perf_counter()
    return 1000 * (ended - began), 1000 * (ended - decoded)


def _summarize(times: list[tuple[float, float]], size_bytes: int) -> Speed:
    totals, networks = np.array(times).T
    low, high = median_interval(totals)
    return Speed(float(np.median(totals)), low, high, float(np.median(networks)), len(times), 1, size_bytes)
