"""The report as a function, for notebooks and scripts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from headstart._files import write_atomic
from headstart.feature_cache import FeatureCache
from headstart.insight.subject import open_subject
from headstart.parallel import Progress
from headstart.prediction import Classifier, load
from headstart.report.assembly import Request, build_report
from headstart.report.content import Report
from headstart.report.page import render_page


def write_page(path: str | os.PathLike[str], report: Report, progress: Progress) -> None:
    """Write the page of a report, whole or not at all."""
    page = render_page(report, on_progress=lambda done, total: progress("embedding pictures", done, total))
    write_atomic(path, page.encode())


def write_report(
    model: Classifier | str | os.PathLike[str],
    source: Any,
    path: str | os.PathLike[str],
    *,
    target_accuracy: float | None = None,
    on_progress: Progress | None = None,
    **options: Any,
) -> None:
    """Write the report of a classifier and the pictures of its training to one HTML file.

    `source` and `options` are those of `scan_dataset`. Raises ConfigError and DataError as `open_subject` does.
    """
    classifier = model if isinstance(model, Classifier) else load(model)
    progress = on_progress or (lambda stage, done, total: None)
    name = "the classifier" if isinstance(model, Classifier) else Path(model).name
    with FeatureCache() as cache:
        subject = open_subject(classifier, source, cache, progress, **options)
        request = Request(name, str(source), thorough=True, target_accuracy=target_accuracy)
        content, _ = build_report(subject, request, progress)
    write_page(path, content, progress)
