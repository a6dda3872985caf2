"""An evaluation for the terminal: what a person wants to know first, in 80 columns, with or without colour."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from headstart._files import show_path
from headstart.evaluation import Evaluation
from headstart.stats import format_percent

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.table import Table
    from rich.text import Text

MAX_MATRIX_CLASSES = 12
MAX_TABLE_CLASSES = 20
NUM_WEAKEST = 12
NUM_CONFUSIONS = 10
NAME_WIDTH = 24
BAR_WIDTH = 16
NUMBERS_WIDTH = 47  # of the per-class table without the names and the bar

_DIGITS = {
    "0": ("┏━┓", "┃ ┃", "┗━┛"),
    "1": ("╺┓ ", " ┃ ", "╺┻╸"),
    "2": ("┏━┓", "┏━┛", "┗━╸"),
    "3": ("┏━┓", "╺━┫", "┗━┛"),
    "4": ("╻ ╻", "┗━┫", "  ╹"),
    "5": ("┏━╸", "┗━┓", "┗━┛"),
    "6": ("┏━┓", "┣━┓", "┗━┛"),
    "7": ("╺━┓", "  ┃", "  ╹"),
    "8": ("┏━┓", "┣━┫", "┗━┛"),
    "9": ("┏━┓", "┗━┫", "┗━┛"),
    ".": (" ", " ", "."),
    "%": ("  ", "  ", " %"),
}


def render_summary(
    evaluation: Evaluation, figures: dict[str, Any] | None = None, *, num_mistakes: int = 5
) -> RenderableType:
    """What rich prints for `evaluation`; pass `figures` (of its compute_figures) when they are there already.

    Names and paths are shown as they are, never read as markup; characters that do not print become escapes.
    """
    return _Summary(evaluation, evaluation.compute_figures() if figures is None else figures, num_mistakes)


@dataclass(frozen=True, slots=True)
class _Summary:
    evaluation: Evaluation
    figures: dict[str, Any]
    num_mistakes: int

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """The console says whether it can show more than ASCII and how wide it is."""
        sections = [
            _render_headline(self.figures, options),
            _render_classes(self.figures, options),
            _render_confusions(self.evaluation, self.figures, options),
            _render_calibration(self.figures),
            _render_mistakes(self.evaluation, self.num_mistakes, options),
        ]
        for section in sections:
            yield ""
            yield from section
        yield ""


def _render_headline(figures: dict[str, Any], options: ConsoleOptions) -> Iterator[RenderableType]:
    from rich.table import Table
    from rich.text import Text

    n, accuracy = figures["n"], figures["accuracy"]
    num_wrong = n - figures["num_correct"]
    value = format_percent(accuracy["value"])
    largest = max(figures["per_class"], key=lambda row: row["n"])
    name = Text(_show(largest["class"], options))
    name.truncate(NAME_WIDTH, overflow="crop" if options.ascii_only else "ellipsis")
    words = Text.assemble(
        (f"{value} % accuracy", "bold"),
        f", {_count(n, 'picture')}, {_count(num_wrong, 'mistake')}\n",
        f"between {_format_range(accuracy)} at {100 * figures['confidence_level']:g} % confidence\n",
        (f"Always answering {name} would give {format_percent(largest['n'] / n)} %", "dim"),
    )
    if options.ascii_only:
        yield words
    else:
        big = "\n".join("".join(_DIGITS[char][line] for char in value + "%") for line in range(3))
        grid = Table.grid(padding=(0, 3))
        grid.add_row(Text(big, style="bold green", no_wrap=True), words)
        yield grid
    yield ""
    grid = Table.grid(padding=(0, 2))
    for key, title in (("balanced_accuracy", "Balanced accuracy"), ("macro_f1", "Macro F1")):
        figure = figures[key]
        grid.add_row(title, f"{format_percent(figure['value'])} %", f"between {_format_range(figure)}")
    loss = figures["log_loss"]
    grid.add_row("Log loss", f"{loss['value']:.3f}", f"between {loss['low']:.3f} and {loss['high']:.3f}")
    yield grid


def _render_classes(figures: dict[str, Any], options: ConsoleOptions) -> Iterator[RenderableType]:
    """Every class, or of many the weakest. Yellow and marked: its interval lies under the accuracy's."""
    from rich.cells import cell_len
    from rich.table import Table
    from rich.text import Text

    rows = figures["per_class"]
    present = [row for row in rows if row["n"]]
    many = len(rows) > MAX_TABLE_CLASSES
    shown = sorted(present, key=lambda row: (row["recall"]["value"], -row["n"]))[:NUM_WEAKEST] if many else rows
    title = f"The {len(shown)} weakest of {len(rows)} classes" if many else f"{len(rows)} classes"
    yield Text.assemble((title, "bold"), ("   precision and recall in %", "dim"))
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    _add_name_column(table, "", options)
    for name in ("n", "precision", "recall", f"{100 * figures['confidence_level']:g} % interval"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    names_width = min(NAME_WIDTH, max(cell_len(_show(row["class"], options)) for row in shown))
    bar_width = min(BAR_WIDTH, options.max_width - names_width - NUMBERS_WIDTH)
    any_weak = False
    for row in shown:
        recall = row["recall"]
        weak = row["n"] > 0 and recall["high"] < figures["accuracy"]["low"]
        any_weak |= weak
        bar = Text(_draw_bar(recall["value"] or 0.0, bar_width, options), style="yellow" if weak else "green")
        table.add_row(
            Text(_show(row["class"], options)),
            str(row["n"]),
            format_percent(row["precision"]),
            format_percent(recall["value"]),
            f"{format_percent(recall['low'])} to {format_percent(recall['high'])}" if row["n"] else "-",
            bar.append(" <" if weak else "  "),
        )
    yield table
    notes = []
    if any_weak:
        notes.append("< clearly under the overall accuracy")
    if many and len(present) > len(shown):
        rest = sorted(row["recall"]["value"] for row in present)[len(shown) :]
        notes.append(
            f"recall of the other {len(rest)}: {format_percent(rest[0])} to {format_percent(rest[-1])} %, "
            f"median {format_percent(rest[len(rest) // 2])} %"
        )
    if len(present) < len(rows):
        notes.append(f"{_count(len(rows) - len(present), 'class', 'classes')} without a picture here")
    if notes:
        yield Text("; ".join(notes), style="dim")


def _render_confusions(
    evaluation: Evaluation, figures: dict[str, Any], options: ConsoleOptions
) -> Iterator[RenderableType]:
    """The matrix when it fits, else the most frequent pairs."""
    from rich.table import Table
    from rich.text import Text

    confusions = evaluation.most_confused()
    if not confusions:
        return
    matrix = figures["confusion_matrix"]
    cell_width = max(3, len(str(max(map(max, matrix)))))
    name_room = options.max_width - len(matrix) * (cell_width + 1) - 4
    if len(matrix) <= MAX_MATRIX_CLASSES and name_room >= 10:
        yield Text.assemble(("Confusions", "bold"), ("   rows: labelled, columns: predicted", "dim"))
        yield _draw_matrix(figures, cell_width, min(name_room, NAME_WIDTH), options)
        return
    yield Text.assemble(
        ("Most frequent confusions", "bold"),
        (f"   {min(NUM_CONFUSIONS, len(confusions))} of {_count(len(confusions), 'pair')}", "dim"),
    )
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("times", justify="right", style="red")
    _add_name_column(table, "labelled", options)
    _add_name_column(table, "predicted", options)
    table.add_column("of its pictures", justify="right")
    for pair in confusions[:NUM_CONFUSIONS]:
        row = figures["per_class"][pair.true]
        table.add_row(
            str(pair.count),
            Text(_show(row["class"], options)),
            Text(_show(figures["classes"][pair.predicted], options)),
            f"{format_percent(pair.count / row['n'])} %",
        )
    yield table


def _draw_matrix(figures: dict[str, Any], cell_width: int, name_width: int, options: ConsoleOptions) -> Table:
    """Columns are headed by the class names where all are short, else by the numbers that stand before the rows."""
    from rich.cells import cell_len
    from rich.table import Table
    from rich.text import Text

    names = [_show(name, options) for name in figures["classes"]]
    room = (options.max_width - name_width) // len(names) - 1
    headed = all(cell_len(name) <= min(room, 10) for name in names)
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
    if not headed:
        table.add_column("", justify="right", style="dim", no_wrap=True)
    _add_name_column(table, "", options, name_width)
    for number, name in enumerate(names, start=1):
        table.add_column(Text(name if headed else str(number)), justify="right", no_wrap=True, min_width=cell_width)
    for number, (name, row) in enumerate(zip(names, figures["confusion_matrix"], strict=True)):
        cells = [_draw_cell(count, sum(row), column == number, options) for column, count in enumerate(row)]
        table.add_row(*([] if headed else [str(number + 1)]), Text(name), *cells)
    return table


def _draw_cell(count: int, num_images: int, is_right: bool, options: ConsoleOptions) -> Text:
    from rich.text import Text

    if count == 0:
        return Text("." if options.ascii_only else "·", style="dim")
    if is_right:
        return Text(str(count), style="bold green")
    return Text(str(count), style="bold red" if count >= 0.05 * num_images else "yellow")


def _render_calibration(figures: dict[str, Any]) -> Iterator[RenderableType]:
    from rich.text import Text

    error, chance = figures["ece"]["value"], figures["ece_if_calibrated"]
    claimed, right = figures["mean_confidence"], figures["accuracy"]["value"]
    if error <= chance["high"] > 0.05:
        verdict, style = "Too few pictures to judge its probabilities", "bold"
    elif error <= chance["high"]:
        verdict, style = "Its probabilities can be taken at their word", "bold green"
    elif abs(claimed - right) < error / 2:
        verdict, style = "Its probabilities are too high in places and too low in others", "bold yellow"
    elif claimed > right:
        verdict, style = "It is surer than it should be", "bold yellow"
    else:
        verdict, style = "It is right more often than it claims", "bold yellow"
    digits = 1 if error >= 0.01 else 2
    yield Text.assemble(
        (verdict, style),
        f": it says {format_percent(claimed)} % on average and is right in {format_percent(right)} %. ",
        f"Calibration error {100 * error:.{digits}f} points; chance alone gives "
        f"{100 * chance['low']:.{digits}f} to {100 * chance['high']:.{digits}f}.",
    )


def _render_mistakes(evaluation: Evaluation, num_mistakes: int, options: ConsoleOptions) -> Iterator[RenderableType]:
    from rich.table import Table
    from rich.text import Text

    rows = evaluation.mistakes()
    if not len(rows):
        yield Text("No mistake among these pictures.", style="bold green")
        return
    if num_mistakes < 1:
        return
    yield Text.assemble(
        ("The surest mistakes", "bold"),
        (f"   {min(num_mistakes, len(rows))} of {len(rows)}; look whether the label is wrong", "dim"),
    )
    predicted = evaluation.predicted
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(justify="right", no_wrap=True, style="dim")
    grid.add_column(overflow="fold")
    for place, i in enumerate(rows[:num_mistakes].tolist(), start=1):
        guess, true = predicted[i], evaluation.labels[i]
        line = Text.assemble(
            (_show(evaluation.classes[guess], options), "red"),
            f" {format_percent(float(evaluation.probs[i, guess]))} %, labelled ",
            (_show(evaluation.classes[true], options), "green"),
            f" {format_percent(float(evaluation.probs[i, true]))} %\n",
        )
        grid.add_row(str(place), line.append(_show(evaluation.paths[i], options)))
    yield grid


def _add_name_column(
    table: Table, header: RenderableType, options: ConsoleOptions, max_width: int = NAME_WIDTH
) -> None:
    table.add_column(header, no_wrap=True, overflow="crop" if options.ascii_only else "ellipsis", max_width=max_width)


def _show(name: str, options: ConsoleOptions) -> str:
    shown = show_path(name)
    return shown.encode("ascii", "backslashreplace").decode() if options.ascii_only else shown


def _draw_bar(frac: float, width: int, options: ConsoleOptions) -> str:
    """`width` cells, or nothing where there is no room for a useful bar."""
    if width < 4:
        return ""
    if options.ascii_only:
        return ("#" * int(frac * width)).ljust(width)
    eighths = int(frac * width * 8)
    return ("█" * (eighths // 8) + ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")[eighths % 8]).ljust(width)


def _format_range(figure: dict[str, float]) -> str:
    return f"{format_percent(figure['low'])} and {format_percent(figure['high'])}"


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
