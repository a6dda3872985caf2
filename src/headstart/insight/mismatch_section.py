"""What the comparison of training and test source says: errors side by side, and what the sources differ in."""

from __future__ import annotations

from headstart.insight.mismatch import Figure, Mismatch, PropertyGap
from headstart.report.content import Section, Table
from headstart.stats import CONFIDENCE


def describe_mismatch(mismatch: Mismatch) -> Section:
    """What a person should read of it."""
    paragraphs = [_say_errors(mismatch), _say_sources(mismatch), _say_properties(mismatch)]
    tables = [_tabulate_errors(mismatch)]
    if _find_telling(mismatch):
        tables.append(_tabulate_properties(mismatch.properties))
    return Section(
        "mismatch", "Training and test pictures compared", tuple(text for text in paragraphs if text), tuple(tables)
    )


def _find_telling(mismatch: Mismatch) -> list[PropertyGap]:
    return [gap for gap in mismatch.properties if gap.p_value < 1 - CONFIDENCE]


def _say_errors(mismatch: Mismatch) -> str:
    gap = _show_points(mismatch.mismatch)
    if mismatch.is_mismatched:
        return (
            f"Mismatch: the {mismatch.num_test:,} test pictures are harder than training pictures that the head had "
            f"not seen, by {gap} of error. More pictures of the training's kind will not mend that; pictures like the "
            "test's will."
        )
    text = f"No mismatch seen: the test error minus that on unseen training pictures is {gap}, which may be chance."
    if mismatch.mismatch.high < 0:
        text = f"No mismatch: the test pictures are easier than unseen training pictures, by {gap} of error."
    if mismatch.variance.low > 0:
        text += (
            f" Variance: unseen training pictures cost {_show_points(mismatch.variance)} more than those the head was "
            "fitted on."
        )
    return text


def _say_sources(mismatch: Mismatch) -> str:
    if mismatch.source_auroc is None or mismatch.source_chance is None:
        return "There are too few pictures to tell training and test apart by their features."
    shown, chance = mismatch.source_auroc, mismatch.source_chance
    verdict = (
        "The features of the two differ" if mismatch.is_told_apart else "The features of the two show no difference"
    )
    if mismatch.is_told_apart and not mismatch.is_mismatched:
        verdict += ", though no loss of accuracy is seen"
    return (
        f"{verdict}: shown one picture of each, a linear classifier knows which is the test's in "
        f"{100 * shown.value:.0f} % (between {100 * shown.low:.0f} and {100 * shown.high:.0f}) of such pairs; by "
        f"chance alone it would be {100 * chance[0]:.0f} to {100 * chance[1]:.0f} %."
    )


def _say_properties(mismatch: Mismatch) -> str:
    if not mismatch.properties:
        return ""
    telling = _find_telling(mismatch)
    if not telling:
        return f"None of these differs noticeably either: {', '.join(gap.name for gap in mismatch.properties)}."
    names = [f"{gap.name} ({'higher' if gap.auroc.value > 0.5 else 'lower'} in the test)" for gap in telling[:3]]
    return f"They differ most in {', '.join(names)}."


def _tabulate_errors(mismatch: Mismatch) -> Table:
    rows = [
        ("Training pictures, fitted on", mismatch.train_error),
        ("Training pictures, out of fold", mismatch.out_of_fold_error),
        ("Test pictures", mismatch.test_error),
        ("Variance: out of fold minus fitted", mismatch.variance),
        ("Mismatch: test minus out of fold", mismatch.mismatch),
    ]
    shown = tuple((name, _show(f.value), f"{_show(f.low)} to {_show(f.high)}") for name, f in rows)
    return Table(("Error", "Error %", "95 % interval"), shown, (1,))


def _tabulate_properties(gaps: tuple[PropertyGap, ...]) -> Table:
    rows = tuple(
        (
            gap.name,
            f"{gap.median_train:.3g}",
            f"{gap.median_test:.3g}",
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
    return f"{_show(figure.value)} points (between {_show(figure.low)} and {_show(figure.high)})"
