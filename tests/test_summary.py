"""What the terminal shows, rendered to text: width, words, awkward names, ASCII and colour."""

from __future__ import annotations

import io

import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import Console

from headstart import summary
from headstart.calibration import apply_temperature
from headstart.evaluation import Evaluation

CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def make_evaluation(classes: tuple[str, ...], n: int, margin: float = 3.5, seed: int = 0) -> Evaluation:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(classes), n)
    logits = rng.normal(size=(n, len(classes)))
    logits[np.arange(n), labels] += margin
    paths = tuple(f"photos/{classes[k]}/{i}.jpg" for i, k in enumerate(labels))
    return Evaluation(classes, paths, ("",) * n, labels, apply_temperature(logits, 0.6).astype(np.float32))


def render(evaluation: Evaluation, encoding: str = "utf-8", width: int = 80, **settings: object) -> str:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, newline="")
    Console(file=file, width=width, **settings).print(summary.render_summary(evaluation))  # type: ignore[arg-type]
    file.flush()
    return raw.getvalue().decode(encoding)


def many(count: int) -> tuple[str, ...]:
    return tuple(f"species number {i}" for i in range(count))


@pytest.mark.parametrize("classes", [("cat", "dog"), CIFAR, many(12), many(13), many(21), many(1000)], ids=len)
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_80_columns_hold_every_number(classes: tuple[str, ...], encoding: str) -> None:
    text = render(make_evaluation(classes, 3000, margin=4), encoding)
    assert all(cell_len(line) <= 80 for line in text.splitlines())
    assert "…" not in text
    assert "\x1b" not in text
    assert any(char in text for char in "┏┗╹█·") == (encoding == "utf-8")


def test_the_words_of_a_small_case() -> None:
    probs = np.array([[0.9, 0.1]] * 60 + [[0.1, 0.9]] * 38 + [[0.75, 0.25], [0.999, 0.001]])
    labels = np.array([0] * 60 + [1] * 40)
    paths = tuple(f"pets/{i}.jpg" for i in range(100))
    text = render(Evaluation(("cat", "dog"), paths, ("",) * 100, labels, probs))
    for part in (
        "98.0 % accuracy, 100 pictures, 2 mistakes",
        "between 93.0 and 99.4 at 95 % confidence",
        "Always answering cat would give 60.0 %",
        "2 classes",
        "cat  60       96.8   100.0  94.0 to 100.0",
        "dog  40      100.0    95.0   83.5 to 98.6",
        "Confusions   rows: labelled, columns: predicted",
        "cat  60   ·",
        "dog   2  38",
        "It is right more often than it claims: it says 89.9 % on average and is right in 98.0 %.",
        "The surest mistakes   2 of 2",
        "1  cat 99.9 %, labelled dog 0.1 %",
        "pets/99.jpg",
        "2  cat 75.0 %, labelled dog 25.0 %",
    ):
        assert " ".join(part.split()) in " ".join(text.split()), part
    assert "clearly under" not in text  # the interval of dog's recall reaches over the accuracy
    assert text.index("pets/99.jpg") < text.index("pets/98.jpg")


def test_big_digits_are_the_accuracy() -> None:
    lines = render(make_evaluation(("cat", "dog"), 2000, 9.0)).splitlines()
    assert "100.0 % accuracy, 2000 pictures, 0 mistakes" in lines[1]
    for line in range(3):
        assert lines[1 + line].startswith("".join(summary._DIGITS[char][line] for char in "100.0%").rstrip())
    assert {len({len(part) for part in glyph}) for glyph in summary._DIGITS.values()} == {1}


def test_no_mistake_is_said() -> None:
    text = render(make_evaluation(("cat", "dog"), 50, 9.0))
    assert "No mistake among these pictures." in text
    assert "Confusions" not in text


def test_names_are_never_markup_or_control_characters() -> None:
    names = ("[red]rot[/red]", "[/]", ":smile:", "แมว", "كلب", "犬", "bad\x1b[31m\u202e\nname", "byte\udce9")
    text = render(make_evaluation(names, 400, 1.0))
    for shown in ("[red]rot[/red]", "[/]", ":smile:", "แมว", "كلب", "犬", r"bad\x1b[31m\u202e\nname", r"byte\xe9"):
        assert shown in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert all(cell_len(line) <= 80 for line in text.splitlines())
    ascii_text = render(make_evaluation(names, 400, 1.0), "ascii")
    assert r"\u72ac" in ascii_text


def test_long_names_are_shortened_and_paths_are_not() -> None:
    classes = ("a" * 70, "b" * 70)
    text = render(make_evaluation(classes, 300, 1.0))
    assert "a" * 23 + "…" in text
    assert all(cell_len(line) <= 80 for line in text.splitlines())
    path = "photos/" + "x" * 100 + ".jpg"
    rows = Evaluation(("a", "b"), (path,), ("",), np.array([0]), np.array([[0.2, 0.8]]))
    assert path in "".join(line.strip() for line in render(rows).splitlines())


def test_many_classes_show_the_weakest_and_the_top_pairs() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(50), 20)
    guess = labels.copy()
    guess[labels == 7] = np.where(np.arange(20) < 15, 9, 7)  # 15 of 20 of class 7 taken for 9
    guess[rng.integers(0, 1000, 30)] = 3
    probs = np.full((1000, 52), 0.1 / 51)
    probs[np.arange(1000), guess] = 0.9
    rows = Evaluation(many(52), ("p",) * 1000, ("",) * 1000, labels, probs)
    lines = [" ".join(line.split()) for line in render(rows).splitlines()]
    title = lines.index("The 12 weakest of 52 classes precision and recall in %")
    assert lines[title + 2].startswith("species number 7 20")
    assert lines[title + 2].endswith("<")
    assert any("recall of the other 38:" in line for line in lines)
    assert any("2 classes without a picture here" in line for line in lines)
    assert any(line.startswith("times labelled predicted") for line in lines)
    assert any(line.startswith("15 species number 7 species number 9 75.0 %") for line in lines)


def test_a_class_without_pictures_has_dashes() -> None:
    rows = Evaluation(("a", "b", "none"), ("p",) * 2, ("",) * 2, np.array([0, 1]), np.eye(2, 3))
    line = next(line for line in render(rows).splitlines() if line.startswith("none"))
    assert line.split() == ["none", "0", "-", "-", "-"]


@pytest.mark.parametrize(
    ("temperature", "n", "words"),
    [
        (1.0, 4000, "Its probabilities can be taken at their word"),
        (0.5, 4000, "It is surer than it should be"),
        (2.0, 4000, "It is right more often than it claims"),
        (1.0, 30, "Too few pictures to judge its probabilities"),
    ],
)
def test_calibration_in_words(temperature: float, n: int, words: str) -> None:
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(n, 4)) * 1.5
    labels = (apply_temperature(logits, 1.0).cumsum(axis=1) < rng.random((n, 1))).sum(axis=1)
    rows = Evaluation(tuple("abcd"), ("p",) * n, ("",) * n, labels, apply_temperature(logits, temperature))
    assert words in render(rows)


def test_colour_only_adds_colour() -> None:
    rows = make_evaluation(CIFAR, 500)
    plain = render(rows, color_system=None)
    coloured = io.StringIO()
    console = Console(file=coloured, width=80, force_terminal=True, color_system="standard", record=True)
    console.print(summary.render_summary(rows))
    assert "\x1b[1;32m" in coloured.getvalue()
    assert console.export_text() == plain


def test_the_given_figures_and_number_of_mistakes_are_used() -> None:
    rows = make_evaluation(CIFAR, 500, 2.0)
    figures = rows.compute_figures() | {"mean_confidence": 0.4321}
    console = Console(file=io.StringIO(), width=80, record=True)
    console.print(summary.render_summary(rows, figures, num_mistakes=2))
    text = console.export_text()
    assert "it says 43.2 % on average" in text
    assert "The surest mistakes   2 of" in text
    assert text.count("photos/") == 2
