"""A model card (README.md with YAML front matter, as model hubs read it) from what a classifier file says of itself."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from importlib.resources import files
from typing import Any, TypeGuard

import jinja2
from markupsafe import Markup

from headstart._files import show_path, write_atomic
from headstart.errors import ConfigError
from headstart.prediction import Classifier

_MAX_LABELS = 1000
_LICENCE_IDS = {"apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0"} | {
    "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0",
    "gpl-3.0",
    "agpl-3.0",
    "openrail",
}
"""Of the hub's identifiers those that backbones come with; anything else is `other` with its name."""
# Key in the file, name, the hub's name of that metric, and whether it is a share.
_METRICS = (
    ("accuracy", "Accuracy", "accuracy", True),
    ("balanced_accuracy", "Balanced accuracy", "", True),
    ("macro_f1", "Macro F1", "f1", True),
    ("log_loss", "Log loss", "", False),
    ("ece", "Calibration error", "", False),
)


def write_model_card(
    classifier: Classifier,
    path: str | os.PathLike[str],
    *,
    title: str | None = None,
    file_name: str = "classifier.onnx",
    licence: str | None = None,
) -> None:
    """Write the card to `path`, usually named README.md. Arguments as those of `render_model_card`."""
    text = render_model_card(classifier, title=title, file_name=file_name, licence=licence)
    write_atomic(path, text.encode())


def render_model_card(
    classifier: Classifier, *, title: str | None = None, file_name: str = "classifier.onnx", licence: str | None = None
) -> str:
    """The card as Markdown. Everything in it comes from the file's metadata, escaped.

    `licence` is the classifier's, as the hub's identifier (`apache-2.0`, ...) or any other text; by default the
    backbone's. `file_name` is what the classifier's file is called beside the card. Raises ConfigError for a
    `file_name` that is not a plain name.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}", file_name):
        raise ConfigError(f"The file's name is {show_path(file_name)}; expected letters, digits, '.', '_' and '-'.")
    metadata = classifier.metadata
    licence_name = licence or str(metadata.backbone.get("licence", "unknown"))
    evaluation = metadata.evaluation or {}
    metrics = [*_describe_metrics(evaluation)]
    num_measured = evaluation.get("n")
    fingerprint = str(metadata.data.get("fingerprint", "unknown"))
    size = metadata.preprocess.get("input_size_px")
    level = evaluation.get("confidence_level")
    return _ENVIRONMENT.get_template("model_card.md.j2").render(
        title=title or "Picture classifier",
        licence_id=licence_name.lower() if licence_name.lower() in _LICENCE_IDS else "other",
        licence_name=licence_name,
        licence_is_given=licence is not None,
        metrics=metrics,
        dataset_name=f"Pictures put aside, data {fingerprint[:12]}",
        sentence=Markup(_describe(classifier, metrics)),
        file_name=file_name,
        labels=classifier.classes,
        max_labels=_MAX_LABELS,
        num_measured=num_measured if type(num_measured) is int else None,
        confidence=f"{level:.0%} confidence" if _is_number(level) else "a confidence that the file does not tell",
        num_train=f"{metadata.data.get('num_train', 0):,}" if metadata.data else "unknown",
        fingerprint=fingerprint,
        **{f"backbone_{key}": str(metadata.backbone.get(key, "unknown")) for key in _BACKBONE_KEYS},
        head=_describe_head(metadata.head),
        input_size=f"{size} x {size} pixels" if size else "a size that the file does not tell",
        created_with=metadata.created_with or "unknown",
        sha256=classifier.sha256,
        has_familiarity=metadata.familiarity is not None,
    )


_BACKBONE_KEYS = ("name", "licence", "source", "sha256")


def _describe(classifier: Classifier, metrics: list[dict[str, Any]]) -> str:
    shown = ", ".join(escape_markdown(label) for label in classifier.classes[:10])
    more = ", and more" if len(classifier.classes) > 10 else ""
    text = f"Says which of {len(classifier.classes)} classes a picture shows: {shown}{more}."
    if metrics and metrics[0]["key"] == "accuracy":
        text += f" Accuracy {metrics[0]['shown']} ({metrics[0]['interval']})."
    return text


def _describe_metrics(evaluation: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What the file holds of _METRICS; figures that are not numbers are left out, as files may hold anything there."""
    for key, name, type_, is_share in _METRICS:
        figure = evaluation.get(key)
        if not isinstance(figure, dict) or not _is_number(figure.get("value")):
            continue
        ends = [figure.get("low"), figure.get("high")]
        known = [_show(end, is_share) for end in ends if _is_number(end)]
        interval = " to ".join(known) if len(known) == 2 else "unknown"
        yield {
            "key": key,
            "type": type_,
            "name": name,
            "name_with_interval": f"{name} (interval {interval})",
            "value": float(figure["value"]),
            "shown": _show(figure["value"], is_share),
            "interval": interval,
        }


def _show(value: float, is_share: bool) -> str:
    return f"{100 * value:.1f} %" if is_share else f"{value:.4f}"


def _describe_head(head: Mapping[str, Any]) -> str:
    layers = ", ".join(f"{layer} {grid}x{grid}" for layer, grid in head.get("layers", []))
    return f"{head.get('kind', 'linear')} on {layers}" if layers else "unknown"


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def escape_markdown(value: Any) -> Any:
    """A text that Markdown and HTML show as it is: no link, emphasis, table cell or element comes of it."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return re.sub(r"([\\`*_{}\[\]<>#&|~!$:@^=]|(?<=www)\.)", r"\\\1", show_path(value), flags=re.IGNORECASE)


def quote_yaml(value: Any) -> str:
    """A number, or a text in YAML's double quotes."""
    if not isinstance(value, str):
        return f"{value:.6f}"  # not 1e-06, which YAML 1.1 takes for a text
    shown = (
        f"\\{char}" if char in '\\"' else char if char.isprintable() and char < "\ud800" else _escape_char(char)
        for char in value
    )
    return f'"{"".join(shown)}"'


def _escape_char(char: str) -> str:
    return "\\uFFFD" if "\ud800" <= char <= "\udfff" else f"\\U{ord(char):08X}"


_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.FunctionLoader(lambda name: (files("headstart.exporting") / name).read_text(encoding="utf-8")),
    finalize=escape_markdown,
    undefined=jinja2.StrictUndefined,
    keep_trailing_newline=True,
)
_ENVIRONMENT.filters["yaml"] = lambda value: Markup(quote_yaml(value))
_ENVIRONMENT.filters["plain"] = Markup
