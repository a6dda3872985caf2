"""Ask about suspect labels in a terminal, or answer from a pipe; every decision goes into the journal at once."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.style import Style
from rich.text import Text

from headstart._files import show_path
from headstart.errors import DataError, suggest
from headstart.insight.suspects import Suspect
from headstart.review import Decision, append_decisions, find_settled, read_decisions, undo
from headstart.stats import format_percent

_HELP = "k keep, r relabel as suggested, c another class, x leave out, u undo, s skip, q quit"


def review_suspects(
    suspects: Sequence[Suspect], classes: Sequence[str], journal: Path, lines: Iterable[str], console: Console
) -> Counter[str]:
    """Ask about each suspect that is not decided on yet, by lines typed or piped in; count what was decided.

    Each answer is in the journal before the next question. `lines` that end count as q.
    """
    decisions = read_decisions(journal).decisions
    done = find_settled(decisions) | {(each.sha256, each.label) for each in decisions}
    waiting = deque(each for each in suspects if (each.sha256, classes[each.label]) not in done)
    answers = iter(lines)
    counts: Counter[str] = Counter()
    console.print(Text(f"{len(waiting):,} of {len(suspects):,} suspects to decide on. {_HELP}"), soft_wrap=True)
    while waiting:
        suspect = waiting[0]
        console.print(_show_suspect(suspect, classes), soft_wrap=True)
        answer = _ask("decision > ", answers, console)
        if answer is None or answer == "q":
            break
        if answer == "u":
            try:
                taken = undo(journal)
            except DataError as error:
                console.print(Text(str(error)), soft_wrap=True)
                continue
            counts["undo"] += 1
            console.print(Text(f"Taken back: {taken.decision}, {show_path(taken.path)}"), soft_wrap=True)
            again = [each for each in suspects if (each.sha256, classes[each.label]) == (taken.sha256, taken.label)]
            waiting.extendleft(each for each in again if each not in waiting)
            continue
        if answer == "s":
            waiting.popleft()
            continue
        decision = _make_decision(answer, suspect, classes, answers, console)
        if decision is not None:
            append_decisions(journal, [decision])
            counts[decision.decision] += 1
            waiting.popleft()
    return counts


def _ask(prompt: str, answers: Iterator[str], console: Console) -> str | None:
    console.print(prompt, end="", markup=False)
    answer = next(answers, None)
    if answer is None:
        console.print()
    return None if answer is None else answer.strip()


def _make_decision(
    answer: str, suspect: Suspect, classes: Sequence[str], answers: Iterator[str], console: Console
) -> Decision | None:
    """None, with a word on why, where the answer is no decision."""
    label, new = classes[suspect.label], None
    key, _, name = answer.partition(" ")
    if key not in ("k", "r", "c", "x") or (name and key != "c"):
        console.print(Text(f"'{show_path(answer)}' is no answer. {_HELP}"), soft_wrap=True)
        return None
    if key == "c":
        if not name:
            listed = ", ".join(f"{number} {show_path(each)}" for number, each in enumerate(classes, start=1))
            console.print(Text(listed), soft_wrap=True)
            name = _ask("class (name or number) > ", answers, console) or ""
        new = _find_class(name, classes)
        if new is None or new == label:
            hint = show_path(suggest(name, classes))
            console.print(Text(f"'{show_path(name)}' is {'its label' if new else 'no class'}.{hint}"), soft_wrap=True)
            return None
    elif key == "r":
        new = classes[suspect.suggested]
    kind = {"k": "keep", "x": "leave-out"}.get(key, "relabel")
    return Decision(suspect.sha256, suspect.path, label, kind, new)


def _find_class(name: str, classes: Sequence[str]) -> str | None:
    """The class of this name, as it is or as it is shown, or of this number from 1."""
    by_name = {show_path(each): each for each in classes} | {each: each for each in classes}
    numbers = {str(number): each for number, each in enumerate(classes, start=1)}
    return by_name.get(name, numbers.get(name))


def _show_suspect(suspect: Suspect, classes: Sequence[str]) -> Text:
    shown = Text("\n" + show_path(suspect.path))
    if "\0" not in suspect.path:
        shown.stylize(Style(link=Path(suspect.path).absolute().as_uri()), 1)
    given, suggested = show_path(classes[suspect.label]), show_path(classes[suspect.suggested])
    return shown.append(
        f"\nlabelled {given} ({format_percent(suspect.probability_label)} %), looks like {suggested} "
        f"({format_percent(suspect.probability_suggested)} %)"
    )
