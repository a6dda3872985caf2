"""Fine-tuning as a function: what it takes and gives. The work is done where torch is, in `finetuning`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from headstart.config import make_fit_settings
from headstart.dataset import scan_dataset
from headstart.errors import require_torch
from headstart.finetuning.augmentation import find_preset
from headstart.parallel import Progress
from headstart.prediction import Classifier, load
from headstart.review import Decision


def finetune(
    model: Classifier | str | os.PathLike[str],
    source: Any,
    *,
    from_layer: str = "auto",
    weights: str | None = None,
    labels: Any = None,
    splits: Any = None,
    groups: Any = None,
    pattern: str | None = None,
    exclude: Sequence[str] = (),
    follow_links: bool = False,
    output: str | os.PathLike[str] | None = None,
    folder: Path | None = None,
    on_progress: Progress | None = None,
    decisions: Sequence[Decision] = (),
    **settings: Any,
) -> Classifier:
    """Fine-tune the network of `model` on the pictures that it was trained on, starting from its head.

    `from_layer` and everything after it is trained: a layer's name, `input` for the whole network, or `auto` to decide
    by the number of pictures. `settings` are those of FitSettings; their defaults here depend on the number of pictures
    too (see `choose_fit_settings`). `weights` is the file that the network was loaded from, where it was one. `folder`
    keeps checkpoints and history, so that a stopped training goes on; `output` is a file to save to. `decisions` of a
    review are applied as the training of `model` applied them.

    The classifier that comes back is the fine-tuned one only where it is better on validation pictures by a paired
    test; otherwise it is `model` itself, with both figures in its metadata. `training` is a TuningRecord. Raises
    ConfigError, DataError, BackboneError.
    """
    require_torch("Fine-tuning")
    from headstart.finetuning.tuning import tune

    find_preset(make_fit_settings(settings).augment)  # what is wrong with the settings is said before any work
    progress = on_progress or (lambda stage, done, total: None)
    frozen = model if isinstance(model, Classifier) else load(model)
    progress("finding pictures", 0, 0)
    dataset = scan_dataset(
        source, labels=labels, splits=splits, groups=groups, pattern=pattern, exclude=exclude, follow_links=follow_links
    )
    classifier = tune(frozen, dataset, from_layer, weights, folder, progress, settings, decisions)
    if output is not None:
        classifier.save(output)
    return classifier
