"""Find pictures and their labels in folders, tables and lists. Nothing is written and no picture is opened."""

from __future__ import annotations

import errno
import heapq
import os
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, Literal

from headstart._files import say_os_error, show_path
from headstart.errors import ConfigError, DataError, raise_all, suggest
from headstart.formats import EXTENSIONS, sniff_format
from headstart.tables import TableRow, make_rows, raise_bad_rows, read_csv, read_parquet, to_list

Severity = Literal["left-out", "warning", "note"]

# Of formats that the decoder refuses: such files are found, so that the refusal is seen.
_REFUSED_EXTENSIONS = """
    .heic .heif .svg .psd .jp2 .j2k .jpx .jxl .ico .icns .tga .ppm .pgm .pbm .pnm .eps .dds .qoi .hdr .exr
    .dng .cr2 .cr3 .nef .arw .orf .rw2 .raf .dcm .fits
"""
PICTURE_EXTENSIONS = frozenset(_REFUSED_EXTENSIONS.split()).union(*EXTENSIONS.values())

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "test": "test",
    "testing": "test",
}
_JUNK_NAMES = "__pycache__ .ipynb_checkpoints @eaDir __MACOSX Thumbs.db .DS_Store desktop.ini"
_JUNK = {name.lower(): name for name in _JUNK_NAMES.split()}
_ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar")
_FLAT_PATTERN = re.compile(r"(?P<label>[^\W\d_]+(?:[ ._-]+[^\W\d_]+)*?)[ ._-]+\(?\d")
# What cameras and exports put before a number is no class.
_CAMERA_NAMES = "img image images dsc dscn dscf pxl mvi photo picture pic frame scan screenshot whatsapp"
_MAX_CLASS_CHARS = 200  # what a classifier file may hold


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One picture to be used. `path` is what the user would open, `label` an index into the classes.

    `split` is None where the source names none; `sha256` of the file's bytes is empty until `hash_images` has run.
    """

    path: str
    label: int
    split: str | None = None
    group: str | None = None
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something the user should know. `left-out` stands for exactly one picture that was found and is not used."""

    code: str
    message: str
    path: str | None = None
    severity: Severity = "left-out"


@dataclass(frozen=True, slots=True)
class ImageDataset:
    """Pictures with labels. Always `num_found == len(records) + number of left-out problems`.

    `ignored` counts by kind what is not a picture (hidden files, junk, other files) and is in none of these numbers.
    """

    source: str
    classes: tuple[str, ...]
    records: tuple[ImageRecord, ...]
    problems: tuple[Problem, ...]
    num_found: int
    ignored: dict[str, int]


@dataclass(frozen=True, slots=True)
class _Item:
    path: str
    class_name: str
    split: str | None = None
    group: str | None = None


@dataclass
class _Draft:
    """What a source gave before classes are numbered. `layout` is the sentence that says what was expected."""

    layout: str
    items: list[_Item] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    empty_folders: list[str] = field(default_factory=list)


def scan_dataset(
    source: Any,
    *,
    labels: Any = None,
    splits: Any = None,
    groups: Any = None,
    pattern: str | None = None,
    exclude: Iterable[str] = (),
    follow_links: bool = False,
) -> ImageDataset:
    """List the pictures of a source with their labels, sorted by the bytes of the path.

    `source` is a folder (a folder per class; train/, validation/ and test/ with a folder per class; or pictures with
    the class in the file name), a CSV or Parquet file with the columns path and label and optionally split and group,
    or a sequence or column of paths with `labels` and optionally `splits` and `groups` of the same length. `pattern`
    is a regular expression with a group named `label`, searched in every file name of a folder instead of using its
    subfolders. `exclude` names classes to leave out. Symbolic links that lead out of the folder need `follow_links`.

    Raises ConfigError for arguments that make no sense, DataError when the source as a whole cannot be used; pictures
    that cannot be used are left out and listed in `problems`.
    """
    excluded = (exclude,) if isinstance(exclude, str) else tuple(exclude)
    given = [name for name, value in (("labels", labels), ("splits", splits), ("groups", groups)) if value is not None]
    is_path = isinstance(source, (str, bytes, os.PathLike))
    if not is_path:
        if pattern is not None:
            raise ConfigError("`pattern` reads labels from the files of a folder. Leave it out with a list of paths.")
        paths = to_list(source, "paths")
        draft = _draft_rows(make_rows(paths, labels, splits, groups), root="", shown="the list")
        return _assemble(f"a list of {len(paths)} pictures", draft, excluded)
    if given:
        raise ConfigError(f"`{given[0]}` goes with a list of paths, not with {show_path(os.fsdecode(source))}.")
    root = os.fsdecode(source)
    kind = _check_source(root)
    if kind == "folder":
        draft = _draft_tree(root, _compile_pattern(pattern), follow_links)
    else:
        if pattern is not None:
            raise ConfigError("`pattern` reads labels from the files of a folder. A table has a label column.")
        rows = read_csv(root) if kind == "csv" else read_parquet(root)
        draft = _draft_rows(rows, root=os.path.dirname(root), shown=show_path(root))
    return _assemble(root, draft, excluded)


def list_images(source: Any, *, follow_links: bool = False) -> tuple[list[str], list[Problem]]:
    """Paths of pictures without labels: a folder with all below it, a file, or a list of these.

    Paths come once each, sorted by their bytes. A file that is named is listed whatever it is called. Raises DataError
    when a path does not exist, or when there is no picture at all.
    """
    sources = [source] if isinstance(source, (str, bytes, os.PathLike)) else to_list(source, "paths")
    paths: dict[str, str] = {}
    problems: list[Problem] = []
    wrong: list[str] = []
    for item in sources:
        root = os.fsdecode(item)
        try:
            kind = _check_source(root, any_file=True)
        except DataError as error:
            wrong.append(str(error))
            continue
        if kind == "folder":
            tree = _TreeWalk(root, follow_links)
            problems += tree.problems
            paths.update((os.path.normpath(path), path) for path in (os.path.join(root, p) for p in tree.pictures))
        else:
            paths.setdefault(os.path.normpath(root), root)
    raise_all(DataError, wrong)
    if not paths:
        shown = ", ".join(show_path(os.fsdecode(item)) for item in sources[:3]) or "the list"
        raise DataError(f"No picture in {shown}. Expected a folder with pictures, or picture files.")
    return sorted(paths.values(), key=_path_key), problems


# Sources


def _check_source(source: str, *, any_file: bool = False) -> Literal["folder", "csv", "parquet", "file"]:
    """What kind of source a path is. DataError when it is none; `any_file` accepts every regular file."""
    shown = show_path(source)
    if not source:
        raise DataError("The path is empty. Expected the path of a folder or a file.")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", source):
        raise DataError(f"{shown} is a web address. Download it first, unpack it, and give the folder.")
    try:
        mode = os.stat(source).st_mode
    except FileNotFoundError:
        raise DataError(f"{shown} does not exist.{_suggest_sibling(source)}") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{shown} cannot be read: {say_os_error(error)}.") from None
    if stat.S_ISDIR(mode):
        return "folder"
    extension = os.path.splitext(source)[1].lower()
    if extension in _ARCHIVES:
        raise DataError(f"{shown} is an archive. Unpack it first, and give the folder.")
    if not stat.S_ISREG(mode):
        raise DataError(f"{shown} is neither a folder nor a regular file.")
    if any_file:
        return "file"
    if extension in (".csv", ".tsv"):
        return "csv"
    if extension == ".parquet":
        return "parquet"
    raise DataError(f"{shown} is a file. Expected a folder of pictures, or a .csv, .tsv or .parquet file.")


def _suggest_sibling(source: str) -> str:
    parent, name = os.path.split(os.path.normpath(source))
    if parent and not os.path.isdir(parent):
        return f" Nor does {show_path(parent)}.{_suggest_sibling(parent)}"
    try:
        siblings = sorted(os.listdir(parent or "."))
    except OSError:
        siblings = []
    # Only the name is replaced, so that the suggestion can be pasted.
    hint = show_path(suggest(name, siblings)) or " Check the path."
    return hint.replace("'", f"'{show_path(os.path.join(parent, ''))}", 1) if parent else hint


def _compile_pattern(pattern: str | None) -> re.Pattern[str] | None:
    if pattern is None:
        return None
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"The pattern {pattern!r} is not a regular expression: {error}.") from None
    if "label" not in compiled.groupindex:
        raise ConfigError(
            f"The pattern {pattern!r} has no group named 'label'. Write (?P<label>...) round the part that is the "
            r"class, such as (?P<label>[a-z]+)_\d+."
        )
    return compiled


# Folders


class _TreeWalk:
    """Every picture below a folder, with what was passed over and why.

    `pictures` are relative to the root. Real folders are read before folders behind links, so that of two ways to a
    folder the real one counts; a folder is read once, by device and inode, which also ends loops.
    """

    def __init__(self, root: str, follow_links: bool) -> None:
        self.root = root
        self.follow_links = follow_links
        self.pictures: list[str] = []
        self.folders: set[str] = set()  # read ones, down to two levels: what may be a class or a split
        self.problems: list[Problem] = []
        self.ignored: Counter[str] = Counter()
        self._real_root = os.path.realpath(root)
        self._pending = [""]
        self._links: list[tuple[bytes, str]] = []
        self._walk()
        self.pictures.sort(key=_path_key)
        self.problems.sort(key=lambda problem: _path_key(problem.path or ""))

    def _walk(self) -> None:
        seen: set[tuple[int, int]] = set()
        while self._pending or self._links:
            relative = self._pending.pop() if self._pending else heapq.heappop(self._links)[1]
            folder = os.path.join(self.root, relative) if relative else self.root
            try:
                status = os.stat(folder)
                if (status.st_dev, status.st_ino) in seen:
                    self.ignored["repeated folders"] += 1
                    text = f"leads to a folder that is read already ({show_path(os.path.realpath(folder))})"
                    self._report("repeated-folder", text, folder, "warning")
                    continue
                seen.add((status.st_dev, status.st_ino))
                with os.scandir(folder) as found:
                    entries = list(found)
            except OSError as error:
                if not relative:
                    raise DataError(f"{show_path(folder)} cannot be read: {say_os_error(error)}.") from None
                text = f"{say_os_error(error)}; how many pictures the folder holds is unknown"
                self._report("unreadable", text, folder, "warning")
                continue
            if relative.count(os.sep) < 2:
                self.folders.add(relative)
            prefix = relative + os.sep if relative else ""
            for entry in entries:
                self._take(entry, prefix + entry.name)

    def _take(self, entry: os.DirEntry[str], relative: str) -> None:
        name = entry.name
        if name[0] == "." or name.lower() in _JUNK:
            self.ignored[_get_junk_kind(name)] += 1
            return
        is_picture = os.path.splitext(name)[1].lower() in PICTURE_EXTENSIONS
        try:
            if entry.is_symlink():
                mode = self._follow(entry.path, is_picture)
            elif entry.is_file(follow_symlinks=False):
                mode = stat.S_IFREG
            else:
                mode = entry.stat(follow_symlinks=False).st_mode
        except OSError as error:
            self._report("unreadable", say_os_error(error), entry.path, "left-out" if is_picture else "warning")
            return
        if mode is None:
            return
        if stat.S_ISREG(mode):
            if is_picture:
                self.pictures.append(relative)
            elif _looks_like_picture(entry.path):
                text = "looks like a picture but has no picture extension, ignored"
                self._report("no-picture-extension", text, entry.path, "note")
                self.ignored["pictures without a picture extension"] += 1
            else:
                self.ignored["other files"] += 1
        elif is_picture:
            kind = "a folder" if stat.S_ISDIR(mode) else "a device, pipe or socket"
            text = f"this is {kind} with the name of a picture, and is not opened"
            self._report("not-a-regular-file", text, entry.path, "left-out")
        elif not stat.S_ISDIR(mode):
            self.ignored["devices, pipes and sockets"] += 1
        elif entry.is_symlink():
            heapq.heappush(self._links, (_path_key(relative), relative))
        else:
            self._pending.append(relative)

    def _follow(self, path: str, is_picture: bool) -> int | None:
        """The mode of what a link leads to, or None when it is not to be followed."""
        severity: Severity = "left-out" if is_picture else "warning"
        try:
            mode = os.stat(path).st_mode
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR):
                raise
            text = "the link leads to itself" if error.errno == errno.ELOOP else "the link leads nowhere"
            self._report("broken-link", text, path, severity)
            return None
        target = os.path.realpath(path)
        if not self.follow_links and os.path.commonpath([target, self._real_root]) != self._real_root:
            if not is_picture and stat.S_ISREG(mode):
                self.ignored["other files"] += 1
            else:
                text = f"the link leads out of the folder, to {show_path(target)}. Follow it with --follow-links"
                self._report("link-outside", text, path, severity)
            return None
        return mode

    def _report(self, code: str, message: str, path: str, severity: Severity) -> None:
        self.problems.append(Problem(code, message, path, severity))


def _get_junk_kind(name: str) -> str:
    if known := _JUNK.get(name.lower()):
        return known
    return "._ files" if name.startswith("._") else "hidden files and folders"


def _looks_like_picture(path: str) -> bool:
    try:
        # The file may have become a pipe since it was listed: opening must not wait.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        try:
            head = os.read(descriptor, 64)
        finally:
            os.close(descriptor)
    except OSError:
        return False
    return sniff_format(head) in EXTENSIONS


def _draft_tree(root: str, pattern: re.Pattern[str] | None, follow_links: bool) -> _Draft:
    walk = _TreeWalk(root, follow_links)
    shown = show_path(root.rstrip(os.sep) or root)
    layout = (
        f"Expected {shown}/<class>/<picture>, such as {shown}/cats/1.jpg and {shown}/dogs/2.jpg, or the same inside "
        f"{shown}/train and {shown}/test, or names that hold the class, such as {shown}/cat_1.jpg."
    )
    if pattern:
        layout = f"Expected names in which the pattern {pattern.pattern!r} finds the classes."
    draft = _Draft(layout, problems=walk.problems, ignored=walk.ignored)
    split_of = _find_split_folders(walk.folders, shown)
    placed: list[tuple[str, str | None, list[str]]] = []  # path, split, parts below the split
    misplaced: list[str] = []
    for relative in walk.pictures:
        parts = relative.split(os.sep)
        path = os.path.join(root, relative)
        if not split_of:
            placed.append((path, None, parts))
        elif parts[0] in split_of:
            placed.append((path, split_of[parts[0]], parts[1:]))
        elif len(parts) == 1:
            misplaced.append(path)
        else:
            text = f"{show_path(parts[0])} lies beside {' and '.join(sorted(split_of))}, and is none of them"
            draft.problems.append(Problem("outside-splits", text, path))
    by_folder = pattern is None and any(len(parts) > 1 for _, _, parts in placed)
    if by_folder:
        misplaced += [path for path, _, parts in placed if len(parts) == 1]
    if misplaced:
        first = ", ".join(show_path(path) for path in misplaced[:3]) + (", ..." if len(misplaced) > 3 else "")
        verb = "picture lies" if len(misplaced) == 1 else "pictures lie"
        raise DataError(f"{len(misplaced)} {verb} beside the class folders, without a class: {first}. {layout}")

    if not by_folder:
        _label_by_name(draft, placed, pattern)
        return draft
    draft.items = [_Item(path, parts[0], split) for path, split, parts in placed]
    nested = [path for path, _, parts in placed if len(parts) > 2]
    if nested:
        text = (
            f"{len(nested)} {'picture lies' if len(nested) == 1 else 'pictures lie'} in folders inside a class folder, "
            f"the first in {show_path(os.path.dirname(nested[0]))}. They belong to the class of the outer folder."
        )
        draft.problems.append(Problem("nested-folders", text, None, "note"))
    used = {os.sep.join(relative.split(os.sep)[: 2 if split_of else 1]) for relative in walk.pictures}
    for folder in sorted(walk.folders - used, key=_path_key):
        parts = folder.split(os.sep)
        if len(parts) == 2 and parts[0] in split_of if split_of else folder and len(parts) == 1:
            draft.empty_folders.append(os.path.join(root, folder))
    return draft


def _find_split_folders(folders: Iterable[str], shown: str) -> dict[str, str]:
    """Folder name to split, or nothing when the folders are classes (a class may well be called train)."""
    top = sorted(folder for folder in folders if folder and os.sep not in folder)
    split_of = {name: SPLIT_NAMES[name.casefold()] for name in top if name.casefold() in SPLIT_NAMES}
    found = Counter(split_of.values())
    if "train" not in found or (len(found) == 1 and len(top) > 1):
        return {}
    for split, count in found.items():
        if count > 1:
            names = " and ".join(name for name in split_of if split_of[name] == split)
            raise DataError(f"{shown} has {count} folders for {split}: {names}. Keep one.")
    return split_of


def _label_by_name(
    draft: _Draft, placed: Sequence[tuple[str, str | None, list[str]]], pattern: re.Pattern[str] | None
) -> None:
    for path, split, parts in placed:
        match = pattern.search(parts[-1]) if pattern else _FLAT_PATTERN.match(parts[-1])
        label = match["label"] if match else None
        if not label or (pattern is None and label.split()[0].lower() in _CAMERA_NAMES.split()):
            text = "the pattern finds no label in its name" if pattern else "its name does not say a class"
            draft.problems.append(Problem("no-label", text, path))
        else:
            draft.items.append(_Item(path, label, split))


# Tables and lists


def _draft_rows(rows: Sequence[TableRow], root: str, shown: str) -> _Draft:
    """Check every row; DataError with all the bad ones. Files that are missing are left out."""
    draft = _Draft(f"Expected rows of at least two classes in {shown}.")
    bad: list[str] = []
    first: dict[str, tuple[str, _Item]] = {}
    kinds = Counter(isinstance(row.label, str) for row in rows if isinstance(row.label, (str, Integral)))
    if len(kinds) > 1:
        raise DataError(f"The labels of {shown} mix text ({kinds[True]}) and numbers ({kinds[False]}). Use one kind.")
    for row in rows:
        item = _read_row(row, root, bad)
        if item is None:
            continue
        key = os.path.normpath(item.path)
        if key not in first:
            first[key] = (row.where, item)
            if problem := _check_named_file(item.path, row.where):
                draft.problems.append(problem)
            else:
                draft.items.append(item)
            continue
        where, earlier = first[key]
        if earlier.class_name != item.class_name or earlier.split != item.split:
            bad.append(
                f"{row.where}: {show_path(item.path)} is {_say_item(item)} here and {_say_item(earlier)} at {where}"
            )
        else:
            draft.problems.append(Problem("duplicate", f"{row.where} repeats {where}", item.path))
    raise_bad_rows(shown, bad)
    if rows and not draft.items and all(problem.code == "missing" for problem in draft.problems):
        path = show_path(next(iter(first.values()))[1].path)
        raise DataError(
            f"None of the {len(rows)} files named in {shown} exists; the first is {path}. "
            "Paths in a table are relative to the table's folder, paths in a list to the working folder."
        )
    return draft


def _read_row(row: TableRow, root: str, bad: list[str]) -> _Item | None:
    problems = []
    path = ""
    if isinstance(row.path, (str, bytes, os.PathLike)) and os.fspath(row.path):
        path = os.path.join(root, os.fsdecode(row.path))
    else:
        problems.append("no path" if _is_missing(row.path) else f"the path is {type(row.path).__name__}, not text")
    label = ""
    if isinstance(row.label, (str, Integral)) and not isinstance(row.label, bool):
        label = str(row.label).strip()
    elif not _is_missing(row.label):
        problems.append(f"the label {row.label!r} is neither text nor a whole number")
    if not label and _is_missing(row.label):
        problems.append("no label")
    split = None
    if not _is_missing(row.split):
        split = SPLIT_NAMES.get(str(row.split).strip().casefold())
        if split is None:
            problems.append(f"the split {str(row.split)!r} is none of train, validation, test")
    group = None if _is_missing(row.group) else str(row.group)
    if problems:
        bad.append(f"{row.where}: {', '.join(problems)}")
        return None
    return _Item(path, label, split, group)


def _is_missing(value: object) -> bool:
    # pandas marks gaps by NaN, which differs from itself, and by NA and NaT, which only their names tell.
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return value != value if isinstance(value, float) else isinstance(value, str) and not value.strip()


def _check_named_file(path: str, where: str) -> Problem | None:
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return Problem("missing", f"there is no such file ({where})", path)
    except (OSError, ValueError) as error:
        return Problem("unreadable", f"{say_os_error(error)} ({where})", path)
    if not stat.S_ISREG(mode):
        return Problem("not-a-regular-file", f"this is no regular file, and is not opened ({where})", path)
    return None


def _say_item(item: _Item) -> str:
    return f"'{item.class_name}'" + (f" in {item.split}" if item.split else "")


# From drafts to datasets


def _assemble(source: str, draft: _Draft, exclude: Sequence[str]) -> ImageDataset:
    problems = list(draft.problems)
    num_found = len(draft.items) + sum(problem.severity == "left-out" for problem in problems)
    all_names = {item.class_name for item in draft.items}
    empty_names = {os.path.basename(folder) for folder in draft.empty_folders}
    raise_all(
        ConfigError,
        (
            f"There is no class '{show_path(name)}' to exclude.{suggest(name, sorted(all_names | empty_names))}"
            for name in exclude
            if name not in all_names | empty_names
        ),
    )
    problems += [
        Problem("excluded", f"the class '{show_path(item.class_name)}' is excluded", item.path)
        for item in draft.items
        if item.class_name in exclude
    ]
    items = [item for item in draft.items if item.class_name not in exclude]
    for folder in draft.empty_folders:
        if os.path.basename(folder) not in exclude:
            text = f"The folder {show_path(folder)} has no picture. It is not a class here."
            problems.append(Problem("empty-class", text, folder, "warning"))
    names = {item.class_name for item in items}
    _check_class_names(names)
    trained = {item.class_name for item in items if item.split in (None, "train")} or names
    problems += _compare_splits(items, trained)
    problems += [
        Problem("class-not-in-train", f"there is no training picture of its class '{item.class_name}'", item.path)
        for item in items
        if item.class_name not in trained
    ]
    classes = _sort_classes(trained)
    if len(classes) < 2:
        raise DataError(_say_too_few_classes(source, draft, items, trained, exclude))
    index = {name: number for number, name in enumerate(classes)}
    records = [
        ImageRecord(item.path, index[item.class_name], item.split, item.group)
        for item in items
        if item.class_name in trained
    ]
    records.sort(key=lambda record: _path_key(record.path))
    return ImageDataset(
        source, classes, tuple(records), tuple(problems), num_found, dict(sorted(draft.ignored.items()))
    )


def _sort_classes(names: Iterable[str]) -> tuple[str, ...]:
    """By code points, and by value where all are plain numbers: 2 before 10."""
    ordered = sorted(names)
    if all(re.fullmatch(r"-?(0|[1-9][0-9]{0,17})", name) for name in ordered):
        ordered.sort(key=int)
    return tuple(ordered)


def _check_class_names(names: Iterable[str]) -> None:
    wrong = []
    seen: dict[str, str] = {}
    for name in sorted(names):
        if len(name) > _MAX_CLASS_CHARS or show_path(name) != name:
            is_text = not any("\udc80" <= char <= "\udcff" for char in name)
            wrong.append(
                f"The class name '{show_path(name[:_MAX_CLASS_CHARS])}' cannot be kept in a classifier: "
                f"expected 1 to {_MAX_CLASS_CHARS} printable characters in UTF-8. "
                f"{'Rename it.' if is_text else 'Rename its folder, or save its table in UTF-8.'}"
            )
        folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
        other = seen.setdefault(folded, name)
        if other != name:
            same_look = unicodedata.normalize("NFC", name) == unicodedata.normalize("NFC", other)
            first, second = (ascii(other), ascii(name)) if same_look else (f"'{other}'", f"'{name}'")
            wrong.append(
                f"The classes {first} and {second} differ only in {'Unicode form' if same_look else 'case'}, and would "
                "be one folder on macOS and Windows. Rename or join them."
            )
    raise_all(DataError, wrong)


def _compare_splits(items: Sequence[_Item], trained: set[str]) -> list[Problem]:
    problems = []
    for split in ("validation", "test"):
        present = {item.class_name for item in items if item.split == split}
        if present and present != trained:
            text = (
                f"train has {len(trained)} classes: {', '.join(_sort_classes(trained))}; "
                f"{split} has {len(present)}: {', '.join(_sort_classes(present))}."
            )
            for where, only in (("train", trained - present), (split, present - trained)):
                text += f" Only in {where}: {', '.join(_sort_classes(only))}." if only else ""
            problems.append(Problem("class-sets-differ", text, None, "warning"))
    return problems


def _say_too_few_classes(
    source: str, draft: _Draft, items: Sequence[_Item], trained: set[str], exclude: Sequence[str]
) -> str:
    counts = Counter(item.class_name for item in items)
    seen = [
        f"class '{name}' with {_say_pictures(count)}{'' if name in trained else ', none of them for training'}"
        for name, count in sorted(counts.items())
    ]
    seen += [f"empty folder {show_path(folder)}" for folder in draft.empty_folders]
    seen += [f"excluded class '{show_path(name)}'" for name in exclude]
    left_out = Counter(problem.code for problem in draft.problems if problem.severity == "left-out")
    seen += [f"{_say_pictures(count)} left out ({code})" for code, count in sorted(left_out.items())]
    seen += [f"{count} {kind}" for kind, count in sorted(draft.ignored.items())]
    found = "no class" if not counts else "only one class" if len(counts) == 1 else "only one class to train on"
    text = (
        f"{show_path(source)} has {found}, and a classifier needs at least 2. "
        f"Seen: {', '.join(seen) or 'nothing'}. {draft.layout}"
    )
    inner = sorted({os.path.dirname(item.path) for item in items}, key=_path_key)
    parents = {os.path.dirname(folder) for folder in inner}
    if len(counts) == 1 and len(inner) > 1 and len(parents) == 1:
        text += f" If its folders are the classes, give {show_path(parents.pop())} instead."
    return text


def _say_pictures(count: int) -> str:
    return "1 picture" if count == 1 else f"{count} pictures"


def _path_key(path: str) -> bytes:
    try:
        return os.fsencode(path)
    except UnicodeEncodeError:  # given by a program, with characters that no file name can hold
        return path.encode("utf-8", "surrogatepass")
