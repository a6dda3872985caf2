"""The page: what it says, that it is whole in itself, and that nothing hostile gets out of its text."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from headstart.data_check import DataReport
from headstart.dataset import ImageDataset, Problem
from headstart.evaluation import Evaluation
from headstart.pictures import load_picture
from headstart.plots import Line, Plot
from headstart.report import page
from headstart.report.content import Advice, Gallery, GalleryItem, Neighbour, Report, Section, Table
from headstart.report.page import render_page

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Reader(HTMLParser):
    """Elements with their attributes, the text outside scripts and styles, and the inline sources."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.inline: dict[str, list[str]] = {"script": [], "style": [], "data": []}
        self.stack: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.stack == [], "every element is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        assert len(values) == len(attrs), f"{tag} has an attribute twice"
        self.elements.append((tag, values))
        if tag in ("script", "style"):
            self.inline["data" if values.get("type") else tag].append("")
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.stack[-1:] in (["script"], ["style"]):
            kind = self.stack[-1]
            attributes = next(values for tag, values in reversed(self.elements) if tag == kind)
            self.inline["data" if attributes.get("type") else kind][-1] += data
        else:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    @property
    def data(self) -> Any:
        (text,) = self.inline["data"]
        return json.loads(text)


def draw_files(folder: Path, number: int, side_px: int = 9) -> list[str]:
    rng = np.random.default_rng(5)
    paths = []
    for i in range(number):
        path = folder / f"{i:03}.png"
        Image.fromarray(rng.integers(0, 256, (side_px, side_px + i % 3, 3), np.uint8)).save(path)
        paths.append(str(path))
    return paths


def hash_file(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def draw_evaluation(paths: list[str], num_classes: int, seed: int, classes: tuple[str, ...] = ()) -> Evaluation:
    rng = np.random.default_rng(seed)
    return Evaluation(
        classes=classes or tuple(f"class {k}" for k in range(num_classes)),
        paths=tuple(paths),
        sha256=tuple(map(hash_file, paths)),
        labels=rng.integers(0, num_classes, len(paths)),
        probs=rng.dirichlet(np.full(num_classes, 0.3), len(paths)).astype(np.float32),
    )


def find_gallery(data: Any, key: str) -> Any:
    (gallery,) = [gallery for gallery in data["galleries"] if gallery["key"] == key]
    return gallery


def decode(picture: Any) -> np.ndarray:
    code, width, height, _ = picture
    image = Image.open(io.BytesIO(base64.b64decode(code)))
    assert image.size == (width, height)
    return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize(("num_classes", "seed"), [(2, 0), (3, 1), (10, 2), (40, 3), (200, 4)])
def test_mistakes_are_the_off_diagonal_and_pictures_the_files_own(tmp_path: Path, num_classes: int, seed: int) -> None:
    evaluation = draw_evaluation(draw_files(tmp_path, 60), num_classes, seed)
    data = Reader(render_page(Report("Random", evaluation.classes, evaluation=evaluation))).data
    matrix = np.array(evaluation.compute_figures()["confusion_matrix"])
    assert data["counts"] == [[i, j, matrix[i, j]] for i, j in np.argwhere(matrix).tolist()]

    items = find_gallery(data, "mistakes")["items"]
    assert len(items) == matrix.sum() - np.trace(matrix)
    cells = Counter((item["label"], item["predicted"]) for item in items)
    assert cells == {(i, j): matrix[i, j] for i, j in np.argwhere(matrix).tolist() if i != j}
    assert [item["path"] for item in items] == [evaluation.paths[i] for i in evaluation.mistakes()]
    for item in items:
        assert data["pictures"][item["picture"]][3] == 1
        assert np.array_equal(decode(data["pictures"][item["picture"]]), load_picture(item["path"]).pixels)
        assert item["sha256"] == hash_file(item["path"])


def test_what_the_report_says_of_a_mistake_is_taken_over(tmp_path: Path) -> None:
    paths = draw_files(tmp_path, 12)
    evaluation = draw_evaluation(paths, 3, 0)
    row = int(evaluation.mistakes()[1])
    heat = np.array([[1.0, -2.0], [0.0, np.nan]], np.float32)
    told = GalleryItem(
        paths[row],
        evaluation.sha256[row],
        0,
        0,
        0.1,
        "dark",
        (Neighbour(paths[3], 2, 0.91234),),
        heat,
        (0.1, 0, 0.8, 1),
    )
    stranger = GalleryItem(paths[0], "0" * 64, note="of other bytes")
    gallery = Gallery("mistakes", "Wrong ones", "Look.", (told, stranger), decides=True)
    other = Gallery("suspects", "Suspects", "", (told,))
    report = Report("Told", evaluation.classes, evaluation=evaluation, galleries=(other, gallery))
    data = Reader(render_page(report)).data
    found = find_gallery(data, "mistakes")
    assert (found["title"], found["decides"]) == ("Wrong ones", True)
    assert len(found["items"]) == len(evaluation.mistakes())
    item = found["items"][1]
    assert item["note"] == "dark"
    assert (item["label"], item["predicted"]) == (int(evaluation.labels[row]), int(evaluation.predicted[row]))
    assert item["near"] == [[item["near"][0][0], 2, 0.912, paths[3]]]
    assert np.array_equal(decode(data["pictures"][item["near"][0][0]]), load_picture(paths[3]).pixels)
    rows, columns, code, box = item["heat"]
    assert (rows, columns, box) == (2, 2, [0.1, 0, 0.8, 1])
    assert list(base64.b64decode(code)) == [192, 1, 128, 128]
    assert "of other bytes" not in json.dumps(data)
    assert find_gallery(data, "suspects")["items"][0]["picture"] == item["picture"]


def test_every_picture_is_embedded_once(tmp_path: Path) -> None:
    paths = draw_files(tmp_path, 5)
    copy = tmp_path / "copy.png"
    copy.write_bytes(Path(paths[0]).read_bytes())
    evaluation = draw_evaluation([*paths, str(copy)], 2, 1)
    near = tuple(Neighbour(path, 0, 0.5) for path in paths)
    items = tuple(GalleryItem(path, "", neighbours=near) for path in (*paths, str(copy)))
    report = Report(
        "Once",
        evaluation.classes,
        evaluation=evaluation,
        sheet=(("class 0", 9, items),),
        galleries=(Gallery("all", "All", "", items * 3),),
    )
    data = Reader(render_page(report)).data
    assert len(data["pictures"]) == 5
    assert len({picture[0] for picture in data["pictures"]}) == 5


def test_pictures_that_are_gone_leave_their_reason(tmp_path: Path) -> None:
    paths = draw_files(tmp_path, 4)
    items = (*(GalleryItem(path, hash_file(path)) for path in paths), GalleryItem("picture 3", ""))
    Path(paths[0]).unlink()
    Path(paths[1]).write_bytes(Path(paths[2]).read_bytes())
    Path(paths[2]).write_bytes(b"no picture")
    gallery = Gallery("all", "All", "", items)
    data = Reader(render_page(Report("Gone", ("a", "b"), galleries=(gallery,)))).data
    pictures = [data["pictures"][item["picture"]] for item in find_gallery(data, "all")["items"]]
    assert pictures[0] == pictures[4] == "there is no such file"
    assert pictures[1] == pictures[2] == "the file has changed since"
    assert np.array_equal(decode(pictures[3]), load_picture(paths[3]).pixels)


def test_more_pictures_than_a_page_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "MAX_PICTURES", 3)
    items = tuple(map(GalleryItem, draw_files(tmp_path, 5), [""] * 5))
    data = Reader(render_page(Report("Many", ("a", "b"), galleries=(Gallery("all", "All", "", items),)))).data
    pictures = [data["pictures"][item["picture"]] for item in find_gallery(data, "all")["items"]]
    assert [isinstance(picture, str) for picture in pictures] == [False] * 3 + [True] * 2
    assert pictures[4] == "not embedded: the page holds 3 pictures"


HOSTILE = (
    "<script>alert(1)</script>",
    "</script><script>alert(2)</script><!--",
    '"><img src=x onerror=alert(3)>',
    "' onclick='alert(4)",
    "{{ 7 * 7 }}{% raw %}",
    "\u202egnp.exe\u202c\u2066",
    "line\nbreak\0\x1b[31m",
    "byte \udcff, half \ud83d",
    "&lt;b&gt;&amp;",
    "]]>--><![CDATA[",
    "W" * 200,
)


def make_hostile_report(folder: Path) -> Report:
    """Every text of a report, in each of the hostile ones; the path cannot exist, or does where it can."""
    texts = [f"{text}{number}" for number, text in enumerate(HOSTILE)]
    items = tuple(
        GalleryItem(f"{folder}/{text}", "", k, k, 0.5, text, (Neighbour(f"near {text}", k, 0.5),))
        for k, text in enumerate(texts)
    )
    rng = np.random.default_rng(0)
    evaluation = Evaluation(
        tuple(texts),
        tuple(f"/x/{text}" for text in texts),
        tuple(texts),
        rng.permutation(len(texts)),
        np.eye(len(texts), dtype=np.float32),
    )
    problems = tuple(
        Problem(text, text, text, severity) for text in texts for severity in ("left-out", "warning", "note")
    )
    galleries = tuple(Gallery(text, text, text, items, decides=True) for text in texts[:3])
    table = Table(tuple(texts), (tuple(texts),), (1, 2), 0)
    return Report(
        " ".join(texts),
        tuple(texts),
        DataReport(ImageDataset(texts[0], tuple(texts), (), problems, 33, dict.fromkeys(texts, 1))),
        evaluation,
        None,
        tuple(texts),
        tuple((text, 3, items) for text in texts),
        tuple(Advice(text, text, text) for text in texts),
        galleries,
        tuple(Section(text, text, tuple(texts), (table,), (), galleries[:1]) for text in texts[:2]),
        dict(zip(texts, texts, strict=True)),
    )


def test_hostile_texts_stay_text(tmp_path: Path) -> None:
    text = render_page(make_hostile_report(tmp_path))
    text.encode("utf-8")
    reader = Reader(text)
    tags = Counter(tag for tag, _ in reader.elements)
    harmless = Reader(render_page(Report("Harmless", ("a", "b"))))
    assert tags["script"] == 2
    assert tags["style"] == 1
    assert not {"img", "iframe", "object", "embed", "base", "form"} & set(tags)
    assert reader.inline["script"] == harmless.inline["script"]
    assert reader.inline["style"] == harmless.inline["style"]
    allowed = "class id type href lang charset content name http-equiv rel title role tabindex scope dir open"
    svg = "viewbox preserveaspectratio x y width height"
    attributes = {name for _, values in reader.elements for name in values}
    assert {name for name in attributes if not name.startswith(("data-", "aria-"))} <= {*allowed.split(), *svg.split()}
    # Nothing invisible, nothing that turns the writing; the data are ASCII.
    assert not re.search("[\0-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", text)
    assert reader.inline["data"][0].isascii()
    assert "<" not in reader.inline["data"][0]
    for number, shown in enumerate(["<script>alert(1)</script>", "</script><script>alert(2)</script><!--"]):
        assert reader.text.count(f"{shown}{number}") >= 8
    assert "\\u202egnp.exe\\u202c\\u20665" in reader.text
    assert "byte \\xff, half \\ud83d7" in reader.text
    assert "{{ 7 * 7 }}{% raw %}4" in reader.text


def test_decisions_name_files_as_the_rows_do(tmp_path: Path) -> None:
    """The script writes `key` and `names` into decisions.csv: rows.csv writes the same."""
    report = make_hostile_report(tmp_path)
    data = Reader(render_page(report)).data
    assert report.evaluation is not None
    rows = report.evaluation.to_csv().decode()
    for item in find_gallery(data, "mistakes")["items"]:
        assert f"{item['key']}," in rows or '"' + item["key"].replace('"', '""') + '",' in rows
    assert data["names"][7] == "byte \\xff, half \\ud83d7"
    assert data["names"][5] == report.classes[5]
    assert data["classes"][5] == "\\u202egnp.exe\\u202c\\u20665"


def test_nothing_is_loaded_from_outside(tmp_path: Path) -> None:
    report = make_hostile_report(tmp_path)
    reader = Reader(render_page(report))
    (policy,) = [values["content"] for _, values in reader.elements if "http-equiv" in values]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data: blob:"
    for kind in ("script", "style"):
        (source,) = reader.inline[kind]
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        assert rules[f"{kind}-src"] == f"'sha256-{digest}'"
    for tag, values in reader.elements:
        assert "src" not in values
        assert not any(name.startswith("on") or name == "style" for name in values), (tag, values)
        if "href" in values:
            assert values["href"] == "data:," or values["href"].startswith("#")
    own = reader.inline["script"][0] + reader.inline["style"][0]
    assert not re.search(r"https?:|//[a-z]|url\(|@import|fetch\(|XMLHttp|innerHTML|eval\(|localStorage", own)


def test_links_lead_somewhere_and_names_are_unique(tmp_path: Path) -> None:
    reader = Reader(render_page(make_hostile_report(tmp_path)))
    names = [values["id"] for _, values in reader.elements if "id" in values]
    assert len(names) == len(set(names))
    for _, values in reader.elements:
        if values.get("href", "").startswith("#"):
            assert values["href"][1:] in names
        for name in values.get("aria-labelledby", "").split():
            assert name in names
    galleries = [values["data-gallery"] for _, values in reader.elements if "data-gallery" in values]
    assert galleries == [str(number) for number in range(len(reader.data["galleries"]) - 1)]


def test_everything_in_the_report_is_on_the_page(tmp_path: Path) -> None:
    paths = draw_files(tmp_path, 30)
    evaluation = draw_evaluation(paths, 4, 0)
    figures = evaluation.compute_figures()
    problems = (
        Problem("duplicate", "the same bytes as b.jpg", "/d/a.jpg"),
        Problem("few-pictures", "there are few", None, "warning"),
        Problem("small", "it is 30 px", "/d/s.png", "note"),
    )
    report = Report(
        "Everything",
        evaluation.classes,
        DataReport(ImageDataset("/d", evaluation.classes, (), problems[:1], 31, {"hidden file": 3}), problems[1:]),
        evaluation,
        figures,
        ("It is good.",),
        (("class 0", 1234, (GalleryItem(paths[0], ""),)),),
        (Advice("Add pictures", "There are few.", "headstart train /d"),),
        (Gallery("unsure", "Least sure", "By probability.", (GalleryItem(paths[1], ""),)),),
        (
            Section(
                "layers",
                "Layers",
                ("Nineteen were tried.",),
                (Table(("Layer", "Errors"), (("top", "1.5"), ("stage 5", "2.5")), (1,), 1),),
                (),
                (Gallery("in-section", "Inner", "Inside.", ()),),
            ),
        ),
        {"seed": "17"},
    )
    reader = Reader(render_page(report))
    num_wrong = len(evaluation.mistakes())
    accuracy = figures["accuracy"]
    for words in (
        "Everything",
        f"{100 * accuracy['value']:.1f} % accuracy",
        f"between {100 * accuracy['low']:.1f} and {100 * accuracy['high']:.1f} % at 95 % confidence",
        f"on 30 pictures, {num_wrong} mistakes",
        "It is good.",
        "class 0 1,234",
        "1. Add pictures There are few. headstart train /d Copy".removeprefix("1. "),
        f"Misidentified pictures {num_wrong}",
        "Least sure 1 By probability.",
        "Nineteen were tried.",
        "Layer Errors top 1.5 stage 5 2.5",
        "Inner 0 Inside.",
        "/d: 31 found, 0 used. Not pictures: hidden file 3.",
        "Left out duplicate 1 /d/a.jpg the same bytes as b.jpg",
        "Warnings few-pictures 1 there are few",
        "Notes small 1 /d/s.png it is 30 px",
        "seed 17",
    ):
        assert words in reader.text, words
    for row in figures["per_class"]:
        recall = row["recall"]
        words = f"{row['class']} {row['n']} {100 * row['precision']:.1f} {100 * recall['value']:.1f}"
        assert f"{words} {100 * recall['low']:.1f} to {100 * recall['high']:.1f} {100 * row['f1']:.1f}" in reader.text
    for pair in evaluation.most_confused(5):
        text = f"{pair.count} {evaluation.classes[pair.true]} taken for {evaluation.classes[pair.predicted]}"
        assert text in reader.text
    heads = [(tag, values) for tag, values in reader.elements if tag == "th"]
    assert heads
    assert all(values["scope"] in ("row", "col") for _, values in heads)
    assert [values["class"] for tag, values in reader.elements if tag == "tr" and "class" in values] == ["marked"]


def test_plots_are_drawn_in_the_page(tmp_path: Path) -> None:
    pytest.importorskip("headstart.plot_svg")
    plot = Plot("Learning <curve>", "pictures", "error", (Line("test & all", (1.0, 2.0), (0.2, 0.1)),))
    text = render_page(Report("Plots", ("a", "b"), sections=(Section("curves", "Curves", plots=(plot,)),)))
    reader = Reader(text)
    drawn = [values for tag, values in reader.elements if tag == "svg" and values.get("role") == "img"]
    assert len(drawn) == 1
    assert "Learning <curve>" in reader.text
    assert not any("style" in values for _, values in reader.elements), "the policy forbids style attributes"


def test_a_report_may_be_nearly_empty() -> None:
    reader = Reader(render_page(Report("Nothing", ())))
    assert "Nothing" in reader.text
    assert reader.data["galleries"] == [{"key": "sheet", "title": "Pictures", "decides": False, "items": []}]


def test_without_mistakes_and_with_an_empty_class(tmp_path: Path) -> None:
    paths = draw_files(tmp_path, 4)
    probs = np.eye(3, dtype=np.float32)[[0, 1, 0, 1]]
    evaluation = Evaluation(("a", "b", "unseen"), tuple(paths), ("",) * 4, np.array([0, 1, 0, 1]), probs)
    reader = Reader(render_page(Report("Right", evaluation.classes, evaluation=evaluation)))
    assert "100.0 % accuracy" in reader.text
    assert "0 mistakes" in reader.text
    assert "unseen 0" in reader.text
    assert find_gallery(reader.data, "mistakes")["items"] == []


def test_the_same_report_gives_the_same_page(tmp_path: Path) -> None:
    report = make_hostile_report(tmp_path)
    assert render_page(report) == render_page(report)


def test_progress_counts_pictures(tmp_path: Path) -> None:
    items = tuple(GalleryItem(path, "") for path in draw_files(tmp_path, 3))
    report = Report("Progress", ("a", "b"), sheet=(("a", 3, items),))
    seen: list[tuple[int, int]] = []
    render_page(report, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
