"""What a comparison of classifiers says: a table of them, a table of the pairs, accuracy against time and size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from headstart.insight.comparison import Comparison, ModelScore, PairScore
from headstart.insight.speed import Speed
from headstart.plots import Line, Plot
from headstart.report.content import Section, Table
from headstart.stats import format_percent


def find_front(costs: Mapping[str, float], accuracies: Mapping[str, float]) -> list[str]:
    """The best trade-offs, the cheapest first: none other is as good in both and better in one of the two."""

    def is_beaten(name: str) -> bool:
        at = costs[name], accuracies[name]
        return any(c <= at[0] and a >= at[1] and (c, a) != at for c, a in zip(costs.values(), order, strict=True))

    order = [accuracies[name] for name in costs]
    return sorted((name for name in costs if not is_beaten(name)), key=lambda name: costs[name])


def describe_comparison(comparison: Comparison, speeds: Mapping[str, Speed] | None = None) -> Section:
    """What a person should read of it. With `speeds`, by name for all or none, accuracy against time and size too."""
    paragraphs = [_say_best(comparison), *_say_ties(comparison)]
    if any(comparison.num_left_out.values()):
        counts = ", ".join(f"{count:,} of {name}" for name, count in comparison.num_left_out.items() if count)
        paragraphs.append(f"Left out, because not all have evaluated them: {counts}.")
    plots: tuple[Plot, ...] = ()
    if speeds:
        paragraphs.append(_say_front(comparison, speeds))
        times = {name: speed.ms_per_picture for name, speed in speeds.items()}
        sizes = {name: speed.size_bytes / 1e6 for name, speed in speeds.items()}
        plots = (
            _plot_front(comparison, "Accuracy against time", "Milliseconds per picture", times, _level_times(speeds)),
            _plot_front(comparison, "Accuracy against size", "Size of the file in MB", sizes, sizes),
        )
    tables = (
        _tabulate_models(comparison),
        *((_tabulate_costs(comparison, speeds),) if speeds else ()),
        _tabulate_accuracies(comparison),
        _tabulate_counts(comparison),
    )
    return Section("comparison", "Comparison", tuple(paragraphs), tables, plots)


def _say_best(comparison: Comparison) -> str:
    best = _find_best(comparison)
    beaten = [pair.b if pair.better == "a" else pair.a for pair in comparison.pairs if _name_better(pair) == best.name]
    others = [model.name for model in comparison.models if model.name not in (best.name, *beaten)]
    text = f"On {comparison.num_images:,} pictures {best.name} has the most right, {format_percent(best.accuracy)} %."
    if beaten:
        text += f" It is better than {_list(beaten)}."
    return text + (f" Against {_list(others)} that may be chance: a tie." if others else "")


def _find_best(comparison: Comparison) -> ModelScore:
    return max(comparison.models, key=lambda model: model.num_correct)


def _name_better(pair: PairScore) -> str | None:
    return {"a": pair.a, "b": pair.b, None: None}[pair.better]


def _say_ties(comparison: Comparison) -> list[str]:
    """Those with the best one; the table has the rest."""
    best = _find_best(comparison).name
    return [_say_tie(pair) for pair in comparison.pairs if pair.better is None and best in (pair.a, pair.b)]


def _say_tie(pair: PairScore) -> str:
    start = f"{pair.a} and {pair.b} are tied"
    if pair.num_only_a + pair.num_only_b == 0:
        return f"{start}. No number of pictures would tell them apart: they are right and wrong on the same ones."
    counts = f"{pair.num_only_a:,} pictures are right in the first alone and {pair.num_only_b:,} in the second alone"
    if pair.num_needed is None:
        return f"{start}: {counts}. At equal rates no number of pictures would tell them apart."
    return (
        f"{start}: {counts}. If these rates hold, it takes about {_round(pair.num_needed)} pictures to tell them apart."
    )


def _round(number: int) -> str:
    """To two digits: more would pretend to a knowledge of the rates that a tie does not give."""
    return f"{float(f'{number:.2g}'):,.0f}"


def _say_front(comparison: Comparison, speeds: Mapping[str, Speed]) -> str:
    front = find_front(_level_times(speeds), _map_accuracy(comparison))
    threads = max(speed.num_threads for speed in speeds.values())
    text = f"Best trade-offs between time and accuracy, the fastest first: {', '.join(front)}."
    return f"{text} Times are medians of single pictures on {threads} thread{'s' * (threads > 1)}, decoding included."


def _level_times(speeds: Mapping[str, Speed]) -> dict[str, float]:
    """Milliseconds a picture, where those whose intervals overlap count as one time: the fastest of them."""
    return {
        name: min(other.ms_per_picture for other in speeds.values() if other.high_ms >= speed.low_ms)
        for name, speed in speeds.items()
    }


def _map_accuracy(comparison: Comparison) -> dict[str, float]:
    return {model.name: model.accuracy for model in comparison.models}


def _plot_front(
    comparison: Comparison, title: str, x_label: str, costs: Mapping[str, float], judged: Mapping[str, float]
) -> Plot:
    """`judged` are the costs that the front is found by, `costs` those that are drawn."""
    accuracies = _map_accuracy(comparison)
    front = sorted(find_front(judged, accuracies), key=lambda name: costs[name])
    points = Line(
        "models", tuple(costs[name] for name in accuracies), tuple(accuracies.values()), style="points",
        texts=tuple(accuracies),
    )  # fmt: skip
    line = Line(
        "best trade-offs", tuple(costs[name] for name in front), tuple(accuracies[name] for name in front),
        style="dashed",
    )  # fmt: skip
    scale: Literal["linear", "log"] = "log" if max(costs.values()) > 10 * min(costs.values()) else "linear"
    # From 0, so that a difference that is nothing does not fill the plot.
    x_range = None if scale == "log" else (0.0, 1.1 * max(costs.values()))
    return Plot(title, x_label, "Accuracy", (line, points), x_scale=scale, y_is_percent=True, x_range=x_range)


# Several narrow tables, because a terminal has 80 columns.


def _tabulate_models(comparison: Comparison) -> Table:
    columns = ("Model", "Accuracy %", "95 % interval", "Mistakes", "Log loss", "95 % interval")
    rows = tuple(
        (
            model.name,
            format_percent(model.accuracy),
            "{} to {}".format(*map(format_percent, model.accuracy_interval)),
            f"{comparison.num_images - model.num_correct:,}",
            f"{model.log_loss:.3f}",
            "{:.3f} to {:.3f}".format(*model.log_loss_interval),
        )
        for model in comparison.models
    )
    return Table(columns, rows, (1, 3, 4), marked=comparison.models.index(_find_best(comparison)))


def _tabulate_costs(comparison: Comparison, speeds: Mapping[str, Speed]) -> Table:
    columns = ("Model", "Ms per picture", "95 % interval", "Network alone, ms", "MB")
    rows = []
    for model in comparison.models:
        speed = speeds[model.name]
        times = f"{speed.ms_per_picture:.1f}", f"{speed.low_ms:.1f} to {speed.high_ms:.1f}", f"{speed.network_ms:.1f}"
        rows.append((model.name, *times, f"{speed.size_bytes / 1e6:.1f}"))
    return Table(columns, tuple(rows), (1, 3, 4))


def _tabulate_accuracies(comparison: Comparison) -> Table:
    """Accuracy of the first of a pair minus that of the second, and how many pictures would tell them apart."""
    columns = ("First", "Second", "Better", "Points", "95 % interval", "p corrected", "Needed")
    rows = []
    for pair in comparison.pairs:
        low, high = pair.accuracy_difference_interval
        points = f"{100 * pair.accuracy_difference:+.1f}", f"{100 * low:+.1f} to {100 * high:+.1f}"
        better = {"a": "first", "b": "second", None: "a tie"}[pair.better]
        needed = "-" if pair.num_needed is None else _round(pair.num_needed)
        rows.append((pair.a, pair.b, better, *points, f"{pair.p_corrected:.2g}", needed))
    return Table(columns, tuple(rows), (3, 5, 6))


def _tabulate_counts(comparison: Comparison) -> Table:
    """Pictures that one of a pair alone has right, and the first's log loss minus the second's."""
    columns = ("First", "Second", "Only first", "Only second", "Log loss", "95 % interval")
    rows = []
    for pair in comparison.pairs:
        counts = f"{pair.num_only_a:,}", f"{pair.num_only_b:,}"
        interval = "{:+.3f} to {:+.3f}".format(*pair.log_loss_difference_interval)
        rows.append((pair.a, pair.b, *counts, f"{pair.log_loss_difference:+.3f}", interval))
    return Table(columns, tuple(rows), (2, 3, 4))


def _list(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
