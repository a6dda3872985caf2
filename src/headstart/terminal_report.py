"""What a report says, for a terminal: its sections and its advice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from headstart._files import show_path

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.table import Table as RichTable

    from headstart.report.content import Advice, Section, Table

# A row becomes a column: more of these would be no narrower.
_MAX_TURNED = 4


def render_section(section: Section) -> Iterator[RenderableType]:
    """Heading, paragraphs and tables; plots and pictures are for a page."""
    from rich.text import Text

    yield Text(section.title, style="bold")
    for paragraph in section.paragraphs:
        yield Text(show_path(paragraph))
    for table in section.tables:
        yield ""
        yield _Fitting(table)
    yield ""


class _Fitting:
    """A table as it is, or with rows and columns exchanged where it is too wide for the terminal."""

    def __init__(self, table: Table) -> None:
        self.table = table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        drawn = _draw_table(self.table)
        is_wide = console.measure(drawn, options=options.update(width=10_000)).maximum > options.max_width
        yield _draw_turned(self.table) if is_wide and len(self.table.rows) <= _MAX_TURNED else drawn


def _draw_table(table: Table) -> RichTable:
    from rich.table import Table as RichTable
    from rich.text import Text

    drawn = RichTable(box=None, pad_edge=False)
    for number, name in enumerate(table.columns):
        drawn.add_column(Text(show_path(name)), justify="right" if number in table.numeric else "left", overflow="fold")
    for number, row in enumerate(table.rows):
        drawn.add_row(*(Text(show_path(cell)) for cell in row), style="bold" if number == table.marked else "")
    return drawn


def _draw_turned(table: Table) -> RichTable:
    from rich.table import Table as RichTable
    from rich.text import Text

    drawn = RichTable(box=None, pad_edge=False, show_header=False)
    drawn.add_column()
    for number in range(len(table.rows)):
        drawn.add_column(overflow="fold", style="bold" if number == table.marked else "")
    for name, *cells in zip(table.columns, *table.rows, strict=True):
        drawn.add_row(*(Text(show_path(cell)) for cell in (name, *cells)))
    return drawn


def render_advice(advice: Sequence[Advice]) -> Iterator[RenderableType]:
    """What to do next, with the reason and the command; nothing where there is no advice."""
    from rich.text import Text

    if not advice:
        return
    yield Text("What to do next", style="bold")
    for number, each in enumerate(advice, start=1):
        yield Text.assemble(f"{number}. ", (show_path(each.action), "bold"), f". {show_path(each.reason)}")
        if each.command:
            yield Text(f"   {show_path(each.command)}", style="green")
    yield ""
