"""AutoGluon's MultiModalPredictor on pictures, with the same network in place of its default, which is far larger.

It fine-tunes the whole network: the linear probe is not among its ways. It puts its own share of the training pictures
aside to choose by, as it does for its users.
"""

from __future__ import annotations

from pathlib import Path

from task import Job

job = Job()

import pandas as pd  # noqa: E402
import torch  # noqa: E402, F401
from autogluon.multimodal import MultiModalPredictor  # noqa: E402
from pretrained import NAME, keep_weights  # noqa: E402

_SUFFIXES = {".jpg", ".jpeg", ".png"}


def main() -> None:
    job.mark_imports("autogluon.multimodal", "torch", "torchvision", "timm", "lightning", "pillow")
    if job.is_rehearsal:
        keep_weights(job.task["weights"])
        job.leave()
    train, validation = list_pictures(job.train), list_pictures(job.validation)
    predictor = MultiModalPredictor(label="label", path=str(Path.cwd() / "model"))
    job.mark("data sets")
    predictor.fit(
        train,
        hyperparameters={
            "model.names": ["timm_image"],
            "model.timm_image.checkpoint_name": NAME,
            "optim.max_epochs": job.settings["epochs"],
        },
        seed=job.task["round"],
    )
    job.mark("fit")
    answers = predictor.predict(validation[["image"]])
    job.mark("evaluation")
    job.finish(predicted=dict(zip(validation["image"], answers, strict=True)))


def list_pictures(folder: Path) -> pd.DataFrame:
    paths = sorted(path for path in folder.glob("*/*") if path.suffix.lower() in _SUFFIXES)
    return pd.DataFrame({"image": [str(path) for path in paths], "label": [path.parent.name for path in paths]})


if __name__ == "__main__":
    main()
