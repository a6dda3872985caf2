"""What peers.py makes of its journal: figures over the rounds, the README's table, and the plot."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from measure import _find_cpu, round_figure, summarize

from headstart.parallel import count_cpus
from headstart.plot_svg import render_svg
from headstart.plots import Line, Mark, Plot
from headstart.stats import mcnemar_exact, paired_difference_interval, wilson_interval

OURS, FAST = "headstart", "headstart-fast"
BEGIN, END = "<!-- peers -->", "<!-- /peers -->"
_MB = 1e6


def make_results(
    peers: Sequence[Mapping[str, Any]],
    entries: Sequence[Mapping[str, Any]],
    data: Mapping[str, Any],
    left_out: Mapping[str, str],
) -> dict[str, Any]:
    """Figures of every peer over its runs, each beside ours of the same round. Keys are JSON's."""
    runs = [entry for entry in entries if "error" not in entry]
    results: dict[str, Any] = {"data": dict(data), "peers": {}, "left_out": {}, "failed": {}}
    for peer in peers:
        name = peer["name"]
        mine = [run for run in runs if run["peer"] == name]
        if mine:
            results["peers"][name] = _describe(peer, mine, runs)
        elif failures := [entry["error"] for entry in entries if entry["peer"] == name]:
            results["failed"][name] = failures[-1]
        else:
            results["left_out"][name] = left_out.get(name, "not run")
    same = [
        (figures["seconds"]["median"], name)
        for name, figures in results["peers"].items()
        if name not in (OURS, FAST) and figures["backbone"] == results["peers"].get(OURS, {}).get("backbone")
    ]
    if same:
        results["fastest_with_our_backbone"] = min(same)[1]
    return results


def _describe(
    peer: Mapping[str, Any], mine: Sequence[Mapping[str, Any]], runs: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    last = mine[-1]
    figures = {
        "title": peer["title"],
        "backbone": peer["backbone"],
        "weights": "ImageNet" if peer["is_pretrained"] else "random: only the time counts",
        "versions": last["versions"],
        "settings": last["settings"],
        "seconds": summarize([run["seconds"] for run in mine]),
        "cpu_s": summarize([run["cpu_s"] for run in mine]),
        "load_before": summarize([run["load"] for run in mine]),
        "stages_s": {
            stage: summarize([run["stages"][stage] for run in mine if stage in run["stages"]])
            for stage in last["stages"]
        },
        "peak_mb": summarize([run["peak_bytes"] / _MB for run in mine]),
        "peak_mb_of_one_process": summarize([run["peak_rss_of_one_process_bytes"] / _MB for run in mine]),
        "installed_mb": round_figure(last["installed_bytes"] / _MB),
        "installed_mb_without_cuda": round_figure(last["installed_without_cuda_bytes"] / _MB),
    }
    for base in (OURS, FAST):
        pairs = pair_runs(mine, runs, base)
        if peer["name"] in (OURS, FAST) and base == peer["name"]:
            continue
        if pairs:
            figures[f"seconds_over_{base}"] = summarize([run["seconds"] / other["seconds"] for run, other in pairs])
            figures[f"cpu_over_{base}"] = summarize([run["cpu_s"] / other["cpu_s"] for run, other in pairs])
            if peer["is_pretrained"]:
                figures[f"{base}_minus_this"] = [compare_answers(other, run) for run, other in pairs]
    if peer["is_pretrained"]:
        figures["accuracy"] = _describe_accuracy(mine)
    return figures


def pair_runs(
    mine: Sequence[Mapping[str, Any]], runs: Sequence[Mapping[str, Any]], base: str
) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Each run with the last one of `base` that went before it in the same sitting, or the first one after it."""
    pairs = []
    for run in mine:
        place = next(i for i, other in enumerate(runs) if other is run)
        here = [i for i, other in enumerate(runs) if other["peer"] == base and other["sitting"] == run["sitting"]]
        before, after = [i for i in here if i < place], [i for i in here if i > place]
        if before or after:
            pairs.append((run, runs[before[-1] if before else after[0]]))
    return pairs


def compare_answers(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    """The paired test on the same pictures: accuracy of ours minus theirs."""
    n, wrong, other = ours["num_images"], set(ours["wrong"]), set(theirs["wrong"])
    only_ours, only_theirs, both = len(other - wrong), len(wrong - other), len(wrong & other)
    right_ours = np.repeat([True, False, False, True], [only_ours, only_theirs, both, n - len(wrong | other)])
    right_theirs = np.repeat([False, True, False, True], [only_ours, only_theirs, both, n - len(wrong | other)])
    return {
        "only_ours_right": only_ours,
        "only_theirs_right": only_theirs,
        "difference": round((only_ours - only_theirs) / n, 5),
        "interval": [round(limit, 5) for limit in paired_difference_interval(only_ours, only_theirs, n)],
        "p_value": round_figure(mcnemar_exact(right_ours, right_theirs)),
    }


def _describe_accuracy(mine: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of the run whose accuracy is the median, the better one of two."""
    n = mine[0]["num_images"]
    right = [n - len(run["wrong"]) for run in mine]
    middle = statistics.median_high(right)
    return {
        "value": round(middle / n, 5),
        "interval": [round(limit, 5) for limit in wilson_interval(middle, n)],
        "num_images": n,
        "of_each_run": [round(count / n, 5) for count in right],
    }


def make_table(results: Mapping[str, Any]) -> str:
    """The README's table, the fastest first, with what the reader must know below it."""
    has_fast = FAST in results["peers"]
    columns = ["who", "network", "seconds", "times ours", *(["times `--fast`"] if has_fast else [])]
    columns += ["accuracy, %", "peak memory, MB", "installed, MB", "n"]
    lines = ["| " + " | ".join(columns) + " |", "| " + " | ".join("---" for _ in columns) + " |"]
    for name, figures in sorted(results["peers"].items(), key=lambda item: item[1]["seconds"]["median"]):
        cells = [
            f"**{figures['title']}**" if name in (OURS, FAST) else figures["title"],
            figures["backbone"],
            _say_spread(figures["seconds"]),
            *(
                "1" if name == base else _say_spread(figures.get(f"seconds_over_{base}"), is_ratio=True)
                for base in (OURS, FAST)
                if base == OURS or has_fast
            ),
            _say_accuracy(figures.get("accuracy")),
            f"{figures['peak_mb']['median']:,.0f}",
            _say_installed(figures),
            str(figures["seconds"]["n"]),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    notes = []
    if any("accuracy" not in figures for figures in results["peers"].values()):
        notes.append('Accuracy "-": its weights could not be had, random ones take the same time.')
    if any(figures["installed_mb"] != figures["installed_mb_without_cuda"] for figures in results["peers"].values()):
        notes.append("In brackets: installed without what only a graphics card needs.")
    notes += [f"{name} did not run: {message}." for name, message in results["failed"].items()]
    return "\n".join([*lines, *(["", " ".join(notes)] if notes else [])])


def _say_spread(figures: Mapping[str, float] | None, is_ratio: bool = False) -> str:
    if figures is None:
        return "-"
    middle, low, high = (_say_number(figures[name], is_ratio) for name in ("median", "min", "max"))
    return f"{middle} ({low} to {high})"


def _say_number(value: float, is_ratio: bool) -> str:
    """Three digits for what is short; whole numbers from 100 on."""
    digits = 0 if value >= 100 else 1 if value >= 10 or not is_ratio else 2
    return f"{value:,.{digits}f}"


def _say_accuracy(accuracy: Mapping[str, Any] | None) -> str:
    if accuracy is None:
        return "-"
    low, high = accuracy["interval"]
    return f"{100 * accuracy['value']:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def _say_installed(figures: Mapping[str, Any]) -> str:
    whole, without = figures["installed_mb"], figures["installed_mb_without_cuda"]
    return f"{whole:,.0f}" if whole == without else f"{whole:,.0f} ({without:,.0f})"


def make_caption(results: Mapping[str, Any], cpu: str, cores: int) -> str:
    """What was measured, on what, with which versions."""
    data = results["data"]
    versions: dict[str, str] = {}
    for figures in results["peers"].values():
        for package, text in figures["versions"].items():
            known = versions.get(package, "").split(" and ")
            versions[package] = " and ".join(dict.fromkeys([*filter(None, known), text]))
    shown = [name for name in _SHOWN_VERSIONS if name in versions]
    limited = f", {data['limit']} a class of each" if data.get("limit") else ""
    return (
        f"From a folder ({data['name']}: {data['num_train']:,} pictures to train, {data['num_validation']:,} to "
        f"evaluate{limited}) to an evaluated classifier: the whole process, median (least to greatest) of n runs, "
        f"ratios within a round. {cpu}, {cores} cores; {', '.join(f'{name} {versions[name]}' for name in shown)}."
    )


_SHOWN_VERSIONS = (
    "headstart", "onnxruntime", "python", "torch", "timm", "fastai", "autogluon.multimodal", "tensorflow", "vyntri",
    "ultralytics",
)  # fmt: skip


def rewrite_readme(text: str, results: Mapping[str, Any], cpu: str | None = None, cores: int | None = None) -> str:
    """`text` with table and caption between the two comments. Raises SystemExit where it does not have each once."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise SystemExit(f"Expected {BEGIN} and after it {END}, each once.")
    head, rest = text.split(BEGIN)
    tail = rest.split(END)[1]
    caption = make_caption(results, cpu or _find_cpu(), cores or count_cpus())
    return f"{head}{BEGIN}\n{caption}\n\n{make_table(results)}\n{END}{tail}"


def draw_plot(results: Mapping[str, Any]) -> str:
    """Seconds, on a logarithmic axis, against accuracy; those of which only the time counts are upright lines."""
    lines, marks = [], []
    for name, figures in results["peers"].items():
        seconds, title = figures["seconds"]["median"], figures["title"].replace("`", "")
        if "accuracy" in figures:
            value, (low, high) = figures["accuracy"]["value"], figures["accuracy"]["interval"]
            lines.append(Line(title, (seconds,), (value,), (low,), (high,), style="points", texts=(name,)))
        else:
            marks.append(Mark("vertical", f"{name}, time only", seconds))
    every = [figures["seconds"]["median"] for figures in results["peers"].values()]
    least = min((line.low[0] for line in lines), default=0.9)
    plot = Plot(
        title="From a folder of pictures to an evaluated classifier",
        x_label="seconds, the whole process",
        y_label="accuracy with its 95 % interval",
        lines=tuple(lines),
        marks=tuple(marks),
        x_scale="log",
        y_is_percent=True,
        x_range=(min(every, default=1) / 1.6, max(every, default=1) * 1.6),
        y_range=(max(0.0, math.floor(100 * least - 0.5) / 100), 1.0),
    )
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{render_svg(plot, 760, 460)}\n'
