"""What the comparison of training and test source says: errors side by side, and what the sources differ in."""

from __future__ import annotations

from headstart.insight.mismatch import Figure, Mismatch, PropertyGap
from headstart.plots import Line, Plot
from headstart.report.content import Section, Table
from headstart.stats import CONFIDENCE


def describe_mismatch(mismatch: Mismatch) -> Section:
    """What a person should read of it."""
    paragraphs = [_say_errors(mismatch), _say_sources(mismatch), _say_properties(mismatch)]
    errors = (mismatch.train_error, mismatch.out_of_fold_error, mismatch.test_error)
    steps = tuple(float(number) for number in range(1, 4))
    plot = Plot(
        "Error: 1 fitted on, 2 out of fold, 3 test source",
        "",
        "Error",
        (
            Line("error", steps, tuple(error.value for error in errors), style="bars"),
            *(Line("", (x, x), (error.low, error.high)) for x, error in zip(steps, errors, strict=True)),
        ),
        y_is_percent=True,
    )
    tables = [_tabulate_errors(mismatch)]
    if mismatch.properties:
        tables.append(_tabulate_properties(mismatch.properties))
    return Section(
        "mismatch", "Training and test source", tuple(text for text in paragraphs if text), tuple(tables), (plot,)
    )


def _say_errors(mismatch: Mismatch) -> str:
    gap = _show_points(mismatch.mismatch)
    if mismatch.is_mismatched:
        return (
            f"Mismatch: the {mismatch.num_test:,} test pictures are harder than training pictures that the head had "
            f"not seen, by {gap} points of error. More pictures of the training source will not mend that; pictures "
            "like the test source's will."
        )
    text = f"No mismatch seen: the test error differs from the out-of-fold error by {gap} points, which may be chance."
    if mismatch.mismatch.high < 0:
        text = f"No mismatch: the test pictures are easier than unseen training pictures, by {gap} points of error."
    if mismatch.variance.low > 0:
        text += (
            f" Variance: unseen pictures of the training source cost {_show_points(mismatch.variance)} points more "
            "than those the head was fitted on; more pictures of any kind help."
        )
    return text


def _say_sources(mismatch: Mismatch) -> str:
    if mismatch.source_auroc is None or mismatch.source_chance is None:
        return "There are too few pictures to tell the sources apart by their features."
    shown, chance = mismatch.source_auroc, mismatch.source_chance
    verdict = "The features differ between the sources" if mismatch.is_told_apart else "The features show no difference"
    if mismatch.is_told_apart and not mismatch.is_mismatched:
        verdict += ", though no loss of accuracy is seen"
    return (
        f"{verdict}: a linear classifier tells the source of a picture with AUROC {shown.value:.2f} ({shown.low:.2f} "
        f"to {shown.high:.2f}); sources that do not differ give {chance[0]:.2f} to {chance[1]:.2f}."
    )


def _say_properties(mismatch: Mismatch) -> str:
    if not mismatch.properties:
        return ""
    telling = [gap for gap in mismatch.properties if gap.p_value < 1 - CONFIDENCE]
    if not telling:
        return "None of the simple properties that were measured differs between the sources."
    names = [f"{gap.name} ({'higher' if gap.auroc.value > 0.5 else 'lower'} in test)" for gap in telling[:3]]
    return f"What separates them most: {', '.join(names)}."


def _tabulate_errors(mismatch: Mismatch) -> Table:
    rows = [
        ("Training, fitted on", mismatch.train_error),
        ("Training, out of fold", mismatch.out_of_fold_error),
        ("Test source", mismatch.test_error),
        ("Variance: out of fold minus fitted", mismatch.variance),
        ("Mismatch: test minus out of fold", mismatch.mismatch),
    ]
    shown = tuple((name, _show(f.value), f"{_show(f.low)} to {_show(f.high)}") for name, f in rows)
    return Table(("Error", "%", "95 % interval"), shown, (1,))


def _tabulate_properties(gaps: tuple[PropertyGap, ...]) -> Table:
    rows = tuple(
        (
            gap.name,
            f"{gap.median_train:.4g}",
            f"{gap.median_test:.4g}",
            f"{gap.auroc.value:.2f}",
            f"{gap.auroc.low:.2f} to {gap.auroc.high:.2f}",
            f"{gap.p_value:.2g}" if gap.p_value > 1e-6 else "< 1e-6",
        )
        for gap in gaps
    )
    columns = ("Property", "Median, training", "Median, test", "AUROC", "95 % interval", "p corrected")
    return Table(columns, rows, (1, 2, 3, 5))


def _show(frac: float) -> str:
    return f"{100 * frac:.1f}"


def _show_points(figure: Figure) -> str:
    return f"{100 * figure.value:.1f} ({_show(figure.low)} to {_show(figure.high)})"
