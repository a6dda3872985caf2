"""Decisions survive a kill, can be taken back, and change labels of the next training but no file."""

from __future__ import annotations

import io
import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from rich.console import Console

from headstart.csv_text import escape_text, quote_field
from headstart.data_check import resolve_duplicates
from headstart.dataset import ImageDataset, ImageRecord
from headstart.errors import DataError, HeadstartError
from headstart.insight.suspects import Suspect
from headstart.preparation import compute_fingerprint
from headstart.review import (
    Decision,
    append_decisions,
    apply_decisions,
    find_journal,
    find_settled,
    import_decisions,
    read_decisions,
    undo,
)
from headstart.review_terminal import review_suspects

HOSTILE = ("a,b", 'line\n"break"\r', "byte\udce9\x1b[31m", "\ud800lone\u2028", "<b>", r"C:\xe9", "แมว", "\0")


def sha(number: int) -> str:
    return f"{number:064x}"


def decide(number: int, label: str, decision: str, new: str | None = None, time: str = "") -> Decision:
    return Decision(sha(number), f"{label}/{number}.jpg", label, decision, new, time)


def strip_times(decisions: tuple[Decision, ...]) -> list[tuple[str, str, str, str, str | None]]:
    return [(each.sha256, each.path, each.label, each.decision, each.new_label) for each in decisions]


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return find_journal(tmp_path / "pets.v2.onnx")


def test_the_journal_stands_beside_the_classifier() -> None:
    assert find_journal(Path("models/pets.v2.onnx")) == Path("models/pets.v2.review.jsonl")


def test_what_is_written_reads_back_identical(journal: Path) -> None:
    assert read_decisions(journal).decisions == ()
    written = [Decision(sha(i), f"p/{name}", name, "relabel", name + "2") for i, name in enumerate(HOSTILE)]
    append_decisions(journal, written)
    append_decisions(
        journal, [decide(90, "cat", "keep", time="2020-01-02T03:04:05+00:00"), decide(91, "cat", "leave-out")]
    )
    read = read_decisions(journal)
    assert read.problems == ()
    assert strip_times(read.decisions[: len(HOSTILE)]) == strip_times(tuple(written))
    assert read.decisions[-2] == decide(90, "cat", "keep", time="2020-01-02T03:04:05+00:00")
    assert read.decisions[-1].time.endswith("+00:00")
    data = journal.read_bytes()
    assert data.isascii()
    assert len(data.splitlines()) == data.count(b"\n") == len(HOSTILE) + 2


def test_a_kill_at_any_moment_leaves_a_readable_journal(journal: Path) -> None:
    decisions = [decide(i, name, "keep", time="t") for i, name in enumerate(("cat", "\udce9"))]
    append_decisions(journal, decisions)
    data = journal.read_bytes()
    ends = [i for i in range(len(data)) if data[i : i + 1] == b"\n"]
    late = decide(9, "dog", "keep", time="t")
    for size in range(len(data) + 1):
        journal.write_bytes(data[:size])
        read = read_decisions(journal)
        whole = sum(end <= size for end in ends)  # a line whose break alone is missing is whole
        assert list(read.decisions) == decisions[:whole]
        is_cut = size not in (0, *ends, *(end + 1 for end in ends))
        assert [problem.code for problem in read.problems] == ["cut-line"] * is_cut
        append_decisions(journal, [late])
        assert list(read_decisions(journal).decisions) == [*decisions[:whole], late]
        assert len(read_decisions(journal).problems) == is_cut


def test_lines_of_threads_are_not_mixed(journal: Path) -> None:
    def write(first: int) -> None:
        for number in range(first, first + 20):
            append_decisions(journal, [decide(number, "cat" * 300, "keep")])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(0, 160, 20)))
    read = read_decisions(journal)
    assert (sorted(each.sha256 for each in read.decisions), read.problems) == ([sha(i) for i in range(160)], ())


def test_undo_takes_back_the_last_or_the_named_one(journal: Path) -> None:
    first, second = decide(1, "cat", "relabel", "dog", "t"), decide(1, "cat", "keep", time="t")
    other, hidden = decide(2, "dog", "leave-out", time="t"), Decision(sha(3), "a\x1b.jpg", "dog", "keep", None, "t")
    append_decisions(journal, [first, second, other, hidden])
    assert undo(journal, "a\\x1b.jpg") == hidden  # as it is shown
    assert undo(journal, "cat/1.jpg") == second
    assert read_decisions(journal).decisions == (first, other)
    assert undo(journal) == other
    assert undo(journal, sha(1)) == first
    assert read_decisions(journal).decisions == ()
    assert len(journal.read_bytes().splitlines()) == 8  # nothing is ever removed
    with pytest.raises(DataError, match="holds no decision that could be taken back"):
        undo(journal)
    append_decisions(journal, [first])
    with pytest.raises(DataError, match=r"no decision on x\\x07.jpg"):
        undo(journal, "x\a.jpg")


def test_whole_lines_that_are_no_decisions_are_told_at_once(journal: Path) -> None:
    good = {"time": "t", "sha256": sha(1), "path": "a", "label": "cat", "decision": "keep", "new_label": None}
    bad = [
        [],
        good | {"path": 3},
        good | {"sha256": "12"},
        good | {"decision": "delete"},
        good | {"new_label": "dog"},
        good | {"decision": "relabel"},
        good | {"decision": "relabel", "new_label": "cat"},
    ]
    journal.write_text("\n".join(map(json.dumps, [good, *bad, good])) + "\n")
    with pytest.raises(DataError) as caught:
        read_decisions(journal)
    for number, text in enumerate(
        [
            "an object",
            "path is 3",
            "64 hexa",
            "decision is 'delete'",
            "goes with relabel only",
            "another class",
            "another class",
        ],
        start=2,
    ):
        assert any(f"line {number}:" in line and text in line for line in str(caught.value).splitlines()), number
    journal.write_text("[" * 100_000 + "\n" + json.dumps(good) + "\n")
    assert len(read_decisions(journal).decisions) == len(read_decisions(journal).problems) == 1


def test_what_cannot_be_written_or_read_is_told(tmp_path: Path, journal: Path) -> None:
    with pytest.raises(DataError) as caught:
        append_decisions(journal, [decide(1, "cat", "keep"), decide(2, "cat", "undo"), decide(3, "cat", "relabel")])
    assert "Decision 2: decision is 'undo'" in str(caught.value)
    assert "Decision 3: new_label is None" in str(caught.value)
    assert not journal.exists()
    with pytest.raises(HeadstartError, match=r"cannot be written to .*: is a directory"):
        append_decisions(tmp_path, [decide(1, "cat", "keep")])
    with pytest.raises(DataError, match="cannot be read: is a directory"):
        read_decisions(tmp_path)


def make_dataset(*pictures: tuple[int, str], classes: tuple[str, ...] = ("cat", "dog", "fox")) -> ImageDataset:
    records = [
        ImageRecord(f"{name}/{n}-{i}.jpg", classes.index(name), sha256=sha(n)) for i, (n, name) in enumerate(pictures)
    ]
    return ImageDataset("pets", classes, tuple(records), (), len(records), {})


def say(dataset: ImageDataset) -> list[tuple[str, str]]:
    return [(dataset.classes[record.label], record.sha256[-1]) for record in dataset.records]


@pytest.mark.parametrize(
    ("decisions", "label", "note"),
    [
        ([], "cat", None),
        ([("cat", "keep", None)], "cat", "1 decision of the review applied: 1 kept"),
        ([("cat", "relabel", "dog")], "dog", "1 decision of the review applied: 1 relabelled"),
        ([("cat", "leave-out", None)], None, "1 decision of the review applied: 1 left out"),
        # decided again on the same label, and on the one that an earlier decision gave
        ([("cat", "relabel", "dog"), ("cat", "keep", None)], "cat", "1 decision of the review applied: 1 kept"),
        ([("cat", "relabel", "dog"), ("dog", "keep", None)], "dog", "1 decision of the review applied: 1 relabelled"),
        ([("cat", "relabel", "dog"), ("dog", "relabel", "fox")], "fox", "1 decision of the review applied: 1 relabelled"),
        ([("cat", "relabel", "dog"), ("dog", "relabel", "cat")], "cat", "1 decision of the review applied: 1 kept"),
        ([("cat", "relabel", "dog"), ("dog", "relabel", "fox"), ("fox", "relabel", "dog")], "dog", "1 decision of the review applied: 1 relabelled"),
        ([("cat", "relabel", "dog"), ("dog", "leave-out", None)], None, "1 decision of the review applied: 1 left out"),
        ([("cat", "leave-out", None), ("cat", "relabel", "fox")], "fox", "1 decision of the review applied: 1 relabelled"),
        # the label is another by now
        ([("dog", "relabel", "fox")], "cat", "1 decision of the review ignored: no picture here has these bytes and this label any more; the first was dog/1.jpg"),
    ],
)  # fmt: skip
def test_what_decisions_make_of_a_label(
    decisions: list[tuple[str, str, str | None]], label: str | None, note: str | None
) -> None:
    before = make_dataset((1, "cat"), (2, "cat"))
    after = apply_decisions(before, [decide(1, *decision) for decision in decisions])
    assert say(after) == [(label, "1"), ("cat", "2")] if label else [("cat", "2")]
    assert [problem.message for problem in after.problems if problem.severity == "note"] == ([note] if note else [])
    assert (compute_fingerprint(after) == compute_fingerprint(before)) == (label == "cat")


def test_found_is_used_and_left_out() -> None:
    before = make_dataset(*((n, ("cat", "dog")[n % 2]) for n in range(10)))
    decisions = [
        decide(n, "cat", ("keep", "leave-out")[n % 4 == 0], time="2025-03-04T05:06:07+00:00") for n in range(0, 10, 2)
    ]
    decisions += [decide(1, "dog", "relabel", "Cat"), decide(3, "dog", "relabel", "cat"), decide(77, "dog", "keep")]
    after = apply_decisions(before, decisions)
    left_out = [problem for problem in after.problems if problem.severity == "left-out"]
    assert [problem.path for problem in left_out] == ["cat/0-0.jpg", "cat/4-4.jpg", "cat/8-8.jpg"]
    assert {(problem.code, problem.message) for problem in left_out} == {
        ("left-out-by-review", "left out by a decision of the review, 2025-03-04")
    }
    assert after.num_found == before.num_found == len(after.records) + len(left_out)
    others = {problem.code: problem for problem in after.problems if problem.severity != "left-out"}
    assert set(others) == {"unknown-class", "review-applied", "review-without-picture"}
    assert others["unknown-class"].severity == "warning"
    assert others["unknown-class"].path == "dog/1-1.jpg"
    assert "'Cat', which is no class. Did you mean 'cat'?" in others["unknown-class"].message
    assert others["review-applied"].message == "6 decisions of the review applied: 2 kept, 1 relabelled, 3 left out"
    assert others["review-without-picture"].message.startswith("1 decision of the review ignored")


def test_a_decision_settles_the_same_bytes_in_two_classes() -> None:
    before = make_dataset((1, "cat"), (1, "dog"), (2, "cat"))
    assert say(resolve_duplicates(before)) == [("cat", "2")]
    after = resolve_duplicates(apply_decisions(before, [decide(1, "dog", "relabel", "cat")]))
    assert say(after) == [("cat", "1"), ("cat", "2")]


def test_what_is_settled() -> None:
    decisions = [decide(1, "cat", "keep"), decide(2, "cat", "relabel", "dog"), decide(3, "cat", "leave-out")]
    decisions += [decide(4, "cat", "keep"), decide(4, "cat", "relabel", "fox")]
    decisions += [decide(5, "cat", "relabel", "dog"), decide(5, "dog", "relabel", "cat")]
    assert find_settled(decisions) == {(sha(1), "cat"), (sha(2), "dog"), (sha(4), "fox"), (sha(5), "cat")}


def write_table(path: Path, rows: list[tuple[str, ...]], mark: str = ",", start: bytes = b"") -> Path:
    header = ("path", "sha256", "label", "decision", "new_label")
    lines = [mark.join(quote_field(escape_text(cell)) for cell in row) for row in (header, *rows)]
    path.write_bytes(start + "\r\n".join([*lines, ""]).encode())
    return path


def test_the_table_of_the_page_is_read(tmp_path: Path) -> None:
    rows = [(f"p/{name}", sha(i), name, "relabel", name + "2") for i, name in enumerate(HOSTILE)]
    rows += [("b.jpg", sha(50), " cat ", "keep", ""), ("c.jpg", sha(51), "dog", "leave-out", "")]
    found = import_decisions(write_table(tmp_path / "decisions.csv", rows))
    expected = [(digest, path, label, kind, new or None) for path, digest, label, kind, new in rows]
    assert strip_times(found) == expected
    plain = [row for row in rows if "," not in row[0]]
    found = import_decisions(write_table(tmp_path / "decisions.csv", plain, ";", b"\xef\xbb\xbf"))
    assert strip_times(found) == [row for row in expected if "," not in row[1]]


def test_everything_wrong_with_the_table_is_told_at_once(tmp_path: Path) -> None:
    good = ("a.jpg", sha(1), "cat", "keep", "")
    rows = [
        good,
        ("b.jpg", "xyz", "cat", "keep", ""),
        ("b.jpg", sha(2), "cat", "maybe", ""),
        ("b.jpg", sha(2), "cat", "relabel", ""),
        ("b.jpg", sha(2), "cat", "relabel", "dgo"),
        ("b.jpg", sha(2), "cat", "leave-out", "dog"),
        ("a.jpg", sha(1), "cat", "leave-out", ""),
        ("a.jpg", sha(1), "cat"),
        (*good, "more"),
        good,
    ]
    with pytest.raises(DataError) as caught:
        import_decisions(write_table(tmp_path / "decisions.csv", rows), ("cat", "dog"))
    message = str(caught.value)
    assert "decisions.csv has 8 bad rows" in message
    for line, text in (
        (3, "sha256 is 'xyz'"), (4, "decision is 'maybe', expected one of keep, relabel, leave-out"), (5, "new_label is None"),
        (6, "new_label is 'dgo', which is no class. Did you mean 'dog'?"), (7, "new_label is 'dog'"),
        (8, "another decision on the same picture stands above, keep"), (9, "not as many fields"), (10, "not as many fields"),
    ):  # fmt: skip
        assert f"line {line}: {text}" in message


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "has no column path, sha256, label, decision, new_label"),
        (b"path,sha256\na,b\n", "has no column label, decision, new_label"),
        (b"\xff\xfep\0", "is not UTF-8 text"),
        (b'path,sha256,label,decision,new_label\n"a,', "bad row:\n  line 2: "),
    ],
)
def test_what_is_no_such_table_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "decisions.csv").write_bytes(data)
    with pytest.raises(DataError) as caught:
        import_decisions(tmp_path / "decisions.csv")
    assert message in str(caught.value)


CLASSES = ("cat", "dog", "evil\x1b[2J\n[red]", "2")
SUSPECTS = tuple(
    Suspect(path, sha(n), 0, 1, 0.01, 0.98, 0.9)
    for n, path in enumerate(["a.jpg", "b\x1b]8;;x\a.jpg", "c\udce9.jpg", "d.jpg"])
)


def answer(journal: Path, text: str, suspects: tuple[Suspect, ...] = SUSPECTS) -> tuple[Counter[str], str]:
    screen = io.StringIO()
    counts = review_suspects(suspects, CLASSES, journal, io.StringIO(text), Console(file=screen, highlight=False))
    return counts, screen.getvalue()


def test_answers_line_by_line(journal: Path) -> None:
    counts, screen = answer(journal, "k\nr\nc 3\nx\n")
    assert counts == {"keep": 1, "relabel": 2, "leave-out": 1}
    found = strip_times(read_decisions(journal).decisions)
    assert [each[3:] for each in found] == [
        ("keep", None),
        ("relabel", "dog"),
        ("relabel", CLASSES[2]),
        ("leave-out", None),
    ]
    assert [each[:3] for each in found] == [(each.sha256, each.path, "cat") for each in SUSPECTS]
    assert "4 of 4 suspects" in screen
    assert "labelled cat (1.0 %), looks like dog (98.0 %)" in screen
    assert "b\\x1b]8;;x\\x07.jpg" in screen
    assert screen.replace("\n", "").isprintable()


def test_it_goes_on_where_it_stopped(journal: Path) -> None:
    assert answer(journal, "s\nk\nq\nk\n")[0] == {"keep": 1}
    counts, screen = answer(journal, "k\n")  # the end of the input is q
    assert counts == {"keep": 1}
    assert "3 of 4 suspects" in screen
    assert [each.path for each in read_decisions(journal).decisions] == [SUSPECTS[1].path, "a.jpg"]
    assert "2 of 4 suspects" in answer(journal, "")[1]
    append_decisions(journal, [Decision(sha(2), "moved.jpg", "dog", "relabel", "cat")])
    assert "1 of 4 suspects" in answer(journal, "")[1]  # the label was given by a person


def test_undo_asks_again(journal: Path) -> None:
    counts, screen = answer(journal, "k\nr\nu\nx\nu\nu\nu\nr\n")
    assert counts == {"keep": 1, "relabel": 2, "leave-out": 1, "undo": 3}
    assert "holds no decision" in screen
    assert strip_times(read_decisions(journal).decisions) == [(sha(0), "a.jpg", "cat", "relabel", "dog")]


def test_a_class_is_chosen_by_name_or_number(journal: Path) -> None:
    _, screen = answer(journal, "c\n2\nc\n2\\x\nc dgo\nc cat\nc\nevil\\x1b[2J\\n[red]\nwhat\x1b\nk me\nc dog\n")
    new = [each.new_label for each in read_decisions(journal).decisions]
    assert new == ["2", CLASSES[2], "dog"]  # a name comes before a number
    assert "1 cat, 2 dog, 3 evil\\x1b[2J\\n[red], 4 2" in screen
    assert "'dgo' is no class. Did you mean 'dog'?" in screen
    assert "'cat' is its label." in screen
    assert "is no answer. k keep" in screen
    assert "k me" in screen
    assert screen.replace("\n", "").isprintable()


def test_paths_are_links_in_a_terminal(journal: Path) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=80)
    review_suspects(SUSPECTS[2:3], CLASSES, journal, io.StringIO(""), console)
    assert f"{Path.cwd().as_uri()}/c%E9.jpg" in screen.getvalue()
    assert "c\\xe9.jpg" in screen.getvalue()
