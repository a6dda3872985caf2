"""What is wrong or suspicious with a collection: unreadable files, copies, small classes, odd pictures."""

from __future__ import annotations

import os
import shlex
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart._files import compute_sha256, show_path
from headstart.dataset import ImageDataset, ImageRecord, Problem
from headstart.decode import ImageFacts
from headstart.errors import DataError, ImageError, raise_all
from headstart.formats import EXTENSIONS, extension_matches, refuse_format, sniff_format
from headstart.image_files import DecodeLimits, read_image_file
from headstart.parallel import map_bounded
from headstart.pictures import load_picture

FEW_PICTURES = 20
MAX_IMBALANCE = 10
ELONGATED_RATIO = 2.0
# Measured on 9,398 photographs (cats and dogs, ants and bees, CIFAR-10): one pair within 16 bits, a true near-copy, and
# no false one up to 24. JPEG at quality 60, half the size or 10 % more brightness stay within 16 bits in 98 to 100 % of
# photographs of usual size; pictures of 32 px change by more, so that many of their near-copies are missed.
NEAR_DUPLICATE_BITS = 16
"""Differing bits of 256 up to which two pictures count as near-copies."""
# Drawings on plain ground set few bits and agree by chance: 1,797 handwritten digits of 8 x 8 pixels set at most 54.
_MIN_INFORMATION_BITS = 56
_MAX_FOLLOWERS = 500
_MIN_FOR_USUAL_FORMAT = 10
_USUAL_FORMAT_FRAC = 0.9
_MAX_NAMED = 5  # paths in one message
_MAX_NAMED_CLASSES = 20
_FILES_PER_TASK = 16


@dataclass(frozen=True, slots=True)
class DataReport:
    """A dataset with everything that was found about it; the only source of what is printed or saved about the data."""

    dataset: ImageDataset
    problems: tuple[Problem, ...] = ()
    """Found by the checks, beyond those that the dataset already holds."""

    @property
    def all_problems(self) -> tuple[Problem, ...]:
        return self.dataset.problems + self.problems

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Class name to split to number of pictures used. Pictures without a split count as "unsplit"."""
        counts: dict[str, dict[str, int]] = {name: {} for name in self.dataset.classes}
        for record in self.dataset.records:
            of_class = counts[self.dataset.classes[record.label]]
            split = record.split or "unsplit"
            of_class[split] = of_class.get(split, 0) + 1
        return counts

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dumps`. Paths that are not UTF-8 hold surrogate escapes: write the JSON as ASCII."""
        return {
            "source": self.dataset.source,
            "classes": list(self.dataset.classes),
            "num_found": self.dataset.num_found,
            "num_used": len(self.dataset.records),
            "num_left_out": sum(problem.severity == "left-out" for problem in self.all_problems),
            "counts": self.counts,
            "ignored": self.dataset.ignored,
            "problems": [
                {"code": problem.code, "severity": problem.severity, "path": problem.path, "message": problem.message}
                for problem in self.all_problems
            ],
        }


def hash_images(
    dataset: ImageDataset,
    *,
    num_threads: int = 2,
    on_progress: Callable[[int, int], None] | None = None,
    limits: DecodeLimits | None = None,
) -> ImageDataset:
    """Read every file once and note its SHA-256. Files that cannot be pictures by their first bytes are left out.

    Each thread holds one file at a time. `on_progress(done, total)` is called from the calling thread.
    """
    records: list[ImageRecord] = []
    problems = list(dataset.problems)
    limits = limits or DecodeLimits()

    def hash_part(part: Sequence[ImageRecord]) -> list[ImageRecord | Problem]:
        return [_hash_image(record, limits) for record in part]

    # To hand a file to a thread and its hash back takes as long as hashing it, so they go by the dozen.
    starts = range(0, len(dataset.records), _FILES_PER_TASK)
    parts = (dataset.records[start : start + _FILES_PER_TASK] for start in starts)
    hashed = (result for _, results in map_bounded(hash_part, parts, num_threads) for result in results)
    for done, result in enumerate(hashed, start=1):
        if isinstance(result, Problem):
            problems.append(result)
        else:
            records.append(result)
        if on_progress:
            on_progress(done, len(dataset.records))
    return replace(dataset, records=tuple(records), problems=tuple(problems))


def _hash_image(record: ImageRecord, limits: DecodeLimits) -> ImageRecord | Problem:
    try:
        data = read_image_file(record.path, limits)
        if (kind := sniff_format(data[:1024])) not in EXTENSIONS:
            raise refuse_format(kind)
    except ImageError as error:
        return Problem(error.code, error.reason, record.path)
    return ImageRecord(record.path, record.label, record.split, record.group, compute_sha256(data))


def resolve_duplicates(dataset: ImageDataset) -> ImageDataset:
    """Leave out copies, by the bytes of the files; records without a hash are passed over.

    The same bytes in several classes: all are left out. In given splits test keeps its copy before validation, and
    validation before train, so that nothing that was trained on is evaluated. Within a split the first path stays.
    """
    by_hash: defaultdict[str, list[ImageRecord]] = defaultdict(list)
    for record in dataset.records:
        if record.sha256:
            by_hash[record.sha256].append(record)
    dropped: dict[int, Problem] = {}
    for copies in by_hash.values():
        if len(copies) == 1:
            continue
        if len({copy.label for copy in copies}) > 1:
            named = _name_paths([f"{show_path(copy.path)} ({dataset.classes[copy.label]})" for copy in copies], 20)
            text = f"the same bytes are in several classes: {named}. Keep the right one"
            dropped.update((id(copy), Problem("conflicting-labels", text, copy.path)) for copy in copies)
            continue
        ranks = {"test": 0, "validation": 1}
        kept, *others = sorted(copies, key=lambda copy: (ranks.get(copy.split or "", 2), os.fsencode(copy.path)))
        for copy in others:
            if copy.split == kept.split:
                problem = Problem("duplicate", f"the same bytes as {show_path(kept.path)}", copy.path)
            else:
                text = f"the same bytes as {show_path(kept.path)} in {kept.split}; this one is in {copy.split}"
                problem = Problem(f"leaks-into-{kept.split}", text, copy.path)
            dropped[id(copy)] = problem
    records = tuple(record for record in dataset.records if id(record) not in dropped)
    problems = [dropped[id(record)] for record in dataset.records if id(record) in dropped]
    return replace(dataset, records=records, problems=(*dataset.problems, *problems))


def check_classes(dataset: ImageDataset, min_per_class: int = 2) -> list[Problem]:
    """Warnings about few and uneven pictures per class, counted over what may be trained on.

    Raises DataError that lists every class with fewer than `min_per_class` pictures.
    """
    trained: list[list[str]] = [[] for _ in dataset.classes]
    for record in dataset.records:
        if record.split in (None, "train"):
            trained[record.label].append(record.path)
    has_splits = any(record.split for record in dataset.records)
    is_any_left_out = any(problem.severity == "left-out" for problem in dataset.problems)
    raise_all(
        DataError,
        (
            _say_class_too_small(name, paths, min_per_class, has_splits, is_any_left_out)
            for name, paths in zip(dataset.classes, trained, strict=True)
            if len(paths) < min_per_class
        ),
    )
    counts = sorted((len(paths), name) for name, paths in zip(dataset.classes, trained, strict=True))
    problems = []
    few = [f"'{name}' {count}" for count, name in counts if count < FEW_PICTURES]
    named = _name_paths(few, _MAX_NAMED_CLASSES)
    if few:
        text = (
            f"{len(few)} {'class has' if len(few) == 1 else 'classes have'} fewer than {FEW_PICTURES} training "
            f"pictures: {named}. Expect wide intervals."
        )
        problems.append(Problem("few-pictures", text, None, "warning"))
    (fewest, rare), (most, common) = counts[0], counts[-1]
    if most > MAX_IMBALANCE * fewest:
        text = (
            f"The classes are uneven: '{common}' has {most} training pictures and '{rare}' {fewest}, more than "
            f"{MAX_IMBALANCE} to 1. Look at the figures per class, not only at the accuracy."
        )
        problems.append(Problem("imbalance", text, None, "warning"))
    return problems


def _say_class_too_small(
    name: str, paths: Sequence[str], min_per_class: int, has_splits: bool, is_any_left_out: bool
) -> str:
    count = f"{len(paths)}{' training' if has_splits else ''} {'picture' if len(paths) == 1 else 'pictures'}"
    where = f", in {show_path(os.path.commonpath([os.path.dirname(path) for path in paths]) or '.')}" if paths else ""
    why = " (headstart check lists what was left out, and why)" if is_any_left_out else ""
    return (
        f"Class '{name}' has {count if paths else 'no ' + count[2:] + ' that can be used'}{where}{why}. Training needs "
        f"at least {min_per_class} per class. Add pictures, or leave it out with --exclude {shlex.quote(name)}."
    )


def leave_out(dataset: ImageDataset, failures: Mapping[str, ImageError]) -> ImageDataset:
    """Without the pictures (by SHA-256) that did not decode. The split of the others stays as it was."""
    problems = [
        Problem(failures[record.sha256].code, failures[record.sha256].reason, record.path)
        for record in dataset.records
        if record.sha256 in failures
    ]
    records = tuple(record for record in dataset.records if record.sha256 not in failures)
    return replace(dataset, records=records, problems=(*dataset.problems, *problems))


def check_pictures(
    dataset: ImageDataset, facts: Mapping[str, ImageFacts], crop_frac: float, input_size_px: int
) -> DataReport:
    """Everything the checks find in decoded pictures; `facts` by SHA-256. The crop is PreprocessSpec's."""
    problems = check_facts(dataset.records, facts, crop_frac, input_size_px)
    hashes = {record.sha256: facts[record.sha256].dhash for record in dataset.records}
    problems += check_near_duplicates(dataset.records, find_near_duplicates(list(hashes), list(hashes.values())))
    return DataReport(dataset, tuple(problems))


def check_dataset(
    dataset: ImageDataset,
    crop_frac: float,
    input_size_px: int,
    *,
    num_threads: int = 2,
    on_progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> DataReport:
    """Read and decode every picture of a scanned dataset and report what is found; no network is run."""
    total = len(dataset.records)
    dataset = hash_images(
        dataset, num_threads=num_threads, on_progress=lambda done, _: on_progress("reading files", done, total)
    )
    dataset = resolve_duplicates(dataset)
    facts: dict[str, ImageFacts] = {}
    failures: dict[str, ImageError] = {}

    def decode(record: ImageRecord) -> ImageFacts | ImageError:
        try:
            return load_picture(record.path, record.sha256, 2 * input_size_px).facts
        except ImageError as error:
            return error

    for done, (record, verdict) in enumerate(map_bounded(decode, dataset.records, num_threads), start=1):
        if isinstance(verdict, ImageError):
            failures[record.sha256] = verdict
        else:
            facts[record.sha256] = verdict
        on_progress("decoding", done, len(dataset.records))
    report = check_pictures(leave_out(dataset, failures), facts, crop_frac, input_size_px)
    try:
        problems = check_classes(report.dataset)
    except DataError as error:
        problems = [Problem("class-too-small", str(error), None, "warning")]
    return replace(report, problems=(*problems, *report.problems))


def check_facts(
    records: Sequence[ImageRecord], facts: Mapping[str, ImageFacts], crop_frac: float = 1.0, input_size_px: int = 1
) -> list[Problem]:
    """What the decoder saw and a user may want to know. `facts` go by SHA-256; records without facts are passed over.

    The centre square keeps `crop_frac` of the short side, or as much of it as `input_size_px` needs (PreprocessSpec).
    """
    problems = []
    usual = _find_usual_formats(records, facts)
    rotated = []
    for record in records:
        fact = facts.get(record.sha256)
        if fact is None:
            continue
        if "exif-rotated" in fact.notes:
            rotated.append(record.path)
        problems += _check_shape(record.path, fact, crop_frac, input_size_px)
        if not extension_matches(record.path, fact.format):
            text = f"the content is {fact.format}, the extension says otherwise; the content counts"
            problems.append(Problem("extension-mismatch", text, record.path, "note"))
        elif (common := usual.get(record.label)) and fact.format != common:
            text = f"the format is {fact.format}, nearly all others of its class are {common}"
            problems.append(Problem("unusual-format", text, record.path, "note"))
        if any(note.startswith("first-frame") for note in fact.notes):
            problems.append(Problem("first-frame", "only the first of its pictures is used", record.path, "note"))
        if fact.is_one_colour:
            problems.append(Problem("one-colour", "the picture has only one colour", record.path, "warning"))
    if rotated:
        text = (
            f"{len(rotated)} {'picture is' if len(rotated) == 1 else 'pictures are'} turned upright by "
            f"{'its' if len(rotated) == 1 else 'their'} EXIF data, the first is {show_path(rotated[0])}."
        )
        problems.append(Problem("exif-rotated", text, None, "note"))
    return problems


def _check_shape(path: str, fact: ImageFacts, crop_frac: float, input_size_px: int) -> list[Problem]:
    short, long = sorted((fact.width_px, fact.height_px))
    size = f"{fact.width_px} x {fact.height_px} pixels"
    problems = []
    if short < 32:
        code, limit = ("tiny", 16) if short < 16 else ("small", 32)
        problems.append(Problem(code, f"{size}, the short side is under {limit}", path, "note"))
    if long > ELONGATED_RATIO * short:
        side = max(crop_frac * short, min(short, input_size_px))
        removed = 1 - side**2 / (short * long)
        text = f"{size}; the centre square that the classifier sees leaves out {removed:.0%} of it"
        problems.append(Problem("elongated", text, path, "note"))
    return problems


def _find_usual_formats(records: Sequence[ImageRecord], facts: Mapping[str, ImageFacts]) -> dict[int, str]:
    """Label to the format of nearly all its pictures, where there is one."""
    formats: defaultdict[int, Counter[str]] = defaultdict(Counter)
    for record in records:
        if record.sha256 in facts:
            formats[record.label][facts[record.sha256].format] += 1
    usual = {}
    for label, counts in formats.items():
        name, count = counts.most_common(1)[0]
        if counts.total() >= _MIN_FOR_USUAL_FORMAT and count >= _USUAL_FORMAT_FRAC * counts.total():
            usual[label] = name
    return usual


def find_near_duplicates(
    sha256s: Sequence[str], dhashes: Sequence[str], max_distance: int = NEAR_DUPLICATE_BITS
) -> list[tuple[str, ...]]:
    """Groups of pictures that look nearly the same, each a sorted tuple of at least two SHA-256.

    `dhashes` are 256 bits as 64 hex digits, one per entry of `sha256s`. Two pictures are joined when at most
    `max_distance` bits differ, and a group is all that hangs together. Hashes with next to no bits set (or next to
    all) come from pictures without structure, say nothing, and join no group.

    With more bands of bits than bits may differ, any such pair agrees wholly in one band, so only pairs that share a
    band are compared. Bands take every n-th bit, because neighbouring bits agree too often. The search is exact while
    no band is shared by more than 500 different hashes; beyond, as with thousands of frames of one camera, each hash
    is compared with the next 500 of the band, which bounds the time and still joins what hangs together closely.
    """
    if not len(dhashes):
        return []
    packed = np.frombuffer(bytes.fromhex("".join(dhashes)), np.uint8).reshape(len(dhashes), 32)
    num_set = np.bitwise_count(packed).sum(axis=1, dtype=np.int64)
    telling = np.flatnonzero((num_set >= _MIN_INFORMATION_BITS) & (num_set <= 256 - _MIN_INFORMATION_BITS))
    if not len(telling):
        return []
    hashes, group_of = np.unique(packed[telling], axis=0, return_inverse=True)
    component = _join_near(hashes, max_distance)[group_of.reshape(-1)]
    groups: defaultdict[int, set[str]] = defaultdict(set)
    for index, number in zip(telling, component, strict=True):
        groups[int(number)].add(sha256s[int(index)])
    return sorted(tuple(sorted(group)) for group in groups.values() if len(group) > 1)


def _join_near(hashes: NDArray[np.uint8], max_distance: int) -> NDArray[np.int64]:
    """Number of the connected component of each of the M different hashes, uint8 (M, 32)."""
    words = hashes.view(np.uint64)
    bits = np.unpackbits(hashes, axis=1)
    component = np.arange(len(hashes))
    num_bands = max(max_distance + 1, 4)  # at least 4, so that a band fits into 64 bits
    for band in range(num_bands):
        part = np.packbits(bits[:, band::num_bands], axis=1)
        padded = np.zeros((len(part), 8), np.uint8)
        padded[:, : part.shape[1]] = part
        keys = padded.view(np.uint64)[:, 0]
        order = np.argsort(keys, kind="stable")
        keys, start = keys[order], np.arange(len(keys) - 1)
        # Equal keys stand together: compare each hash with its 1st, 2nd, ... follower while their keys agree.
        for offset in range(1, min(len(keys), _MAX_FOLLOWERS + 1)):
            start = start[start + offset < len(keys)]
            start = start[keys[start] == keys[start + offset]]
            if not len(start):
                break
            left, right = order[start], order[start + offset]
            apart = component[left] != component[right]
            left, right = left[apart], right[apart]
            near = np.bitwise_count(words[left] ^ words[right]).sum(axis=1, dtype=np.int64) <= max_distance
            for one, other in zip(left[near], right[near], strict=True):
                if component[one] != component[other]:
                    component[component == component[other]] = component[one]
    return component


def check_near_duplicates(records: Sequence[ImageRecord], groups: Sequence[Sequence[str]]) -> list[Problem]:
    """One problem per group of near-copies (SHA-256s): a warning when it crosses splits or classes, else a note."""
    by_hash: defaultdict[str, list[ImageRecord]] = defaultdict(list)
    for record in records:
        by_hash[record.sha256].append(record)
    problems = []
    for group in groups:
        members = sorted((record for sha256 in group for record in by_hash[sha256]), key=lambda record: record.path)
        if len(members) < 2:
            continue
        splits = sorted({record.split for record in members if record.split})
        named = _name_paths([show_path(record.path) for record in members[1:]])  # the problem names the first
        if len(splits) > 1:
            code, text = "near-duplicates-across-splits", f"nearly the same picture in {' and '.join(splits)}: {named}"
        elif len({record.label for record in members}) > 1:
            code, text = "near-duplicates-across-classes", f"nearly the same picture in several classes: {named}"
        else:
            code, text = "near-duplicates", f"nearly the same picture: {named}"
        problems.append(Problem(code, text, members[0].path, "note" if code == "near-duplicates" else "warning"))
    return problems


def _name_paths(shown: Sequence[str], limit: int = _MAX_NAMED) -> str:
    named = ", ".join(shown[:limit])
    return f"{named} and {len(shown) - limit} more" if len(shown) > limit else named
