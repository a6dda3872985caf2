"""Sections and advice in a terminal: everything a person should read, and nothing that a name smuggles in."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

import pytest
from rich.console import Console

from headstart.cli_options import parse_seconds
from headstart.errors import ConfigError
from headstart.plots import Plot
from headstart.report.content import Advice, Section, Table
from headstart.terminal import print_parts
from headstart.terminal_report import render_advice, render_section


def draw(parts: Iterable[Any], width: int = 80, is_terminal: bool = False) -> str:
    stream = io.StringIO()
    console = Console(
        file=stream, width=width, force_terminal=is_terminal, color_system="auto" if is_terminal else None
    )
    print_parts(console, parts)
    return stream.getvalue()


def test_a_section_is_told_whole() -> None:
    table = Table(("class [x]", "errors, %"), (("cats[/]", "5.2"), ("dogs\x1b[31m", "10.25")), (1,), marked=0)
    long = "One paragraph stays on one line, however long it is, because it may be copied. " * 3
    section = Section("key", "A title [bold]", (long, "two\nlines\u202e"), (table,), (Plot("a plot", "x", "y", ()),))
    lines = draw(render_section(section)).splitlines()
    assert lines[:3] == ["A title [bold]", long, r"two\nlines\u202e"]
    assert [line.rstrip() for line in lines[3:]] == [
        "",
        "class [x]     errors, %",
        "cats[/]             5.2",
        r"dogs\x1b[31m      10.25",
        "",
    ]


def test_a_table_that_is_too_wide_is_turned() -> None:
    table = Table(("name", "accuracy of it, %", "interval of it"), (("first", "98", "[97] to 99"), ("2", "5", "6")))
    section = Section("key", "Title", tables=(table,))
    assert [line.rstrip() for line in draw(render_section(section), width=39).splitlines()[2:]] == [
        "name               first       2",
        "accuracy of it, %  98          5",
        "interval of it     [97] to 99  6",
        "",
    ]
    assert draw(render_section(section), width=60).splitlines()[2].split() == [
        "name",
        "accuracy",
        "of",
        "it,",
        "%",
        "interval",
        "of",
        "it",
    ]


def test_the_marked_row_stands_out() -> None:
    table = Table(("name",), (("first",), ("second",)), marked=1)
    drawn = draw(render_section(Section("key", "Title", tables=(table,))), is_terminal=True)
    assert "\x1b[1msecond" in drawn
    assert "\x1b[1mfirst" not in drawn


def test_advice_is_numbered_with_its_command() -> None:
    advice = (Advice("Review [3] labels", "Many look wrong.", "headstart review 'a b.onnx'"), Advice("Add\n", "More."))
    assert draw(render_advice(advice), width=20).splitlines() == [
        "What to do next",
        "1. Review [3] labels. Many look wrong.",
        "   headstart review 'a b.onnx'",
        r"2. Add\n. More.",
        "",
    ]
    assert draw(render_advice(())) == ""


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("60s", 60), ("60", 60), ("5min", 300), ("1.5h", 5400), (" 2 min ", 120), ("0s", 0), ("0.5", 0.5)],
)
def test_times(text: str, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "5 m", "-5s", "1e3", "5s5", "nan", "inf", "5,5s", "5 hours", ".5"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(ConfigError, match="Expected a time such as 60s, 5min or 1h"):
        parse_seconds(text)
