"""fastai's vision_learner, frozen, one cycle: its quick start with the same network in place of resnet34.

Frozen is meant as fastai does it: the body's batch norms are trained, which its defaults want.
"""

from __future__ import annotations

from task import Job

job = Job()

import torch  # noqa: E402
from fastai.vision.all import (  # noqa: E402
    Callback,
    ImageDataLoaders,
    Resize,
    accuracy,
    set_seed,
    vision_learner,
)
from pretrained import NAME, keep_weights  # noqa: E402


class KeepAnswers(Callback):
    """The classes that the last validation answered, so that it need not run twice."""

    def before_validate(self) -> None:
        self.answers: list[torch.Tensor] = []

    def after_pred(self) -> None:
        if not self.training:
            self.answers.append(self.pred.argmax(dim=-1))


def main() -> None:
    job.mark_imports("fastai", "torch", "torchvision", "timm", "pillow")
    if job.is_rehearsal:
        keep_weights(job.task["weights"])
        job.leave()
    set_seed(job.task["round"])
    loaders = ImageDataLoaders.from_folder(
        job.pictures, train="train", valid="validation", item_tfms=Resize(224), bs=job.settings["batch_size"]
    )
    learner = vision_learner(loaders, NAME, metrics=accuracy)
    job.mark("data sets and model")
    kept = KeepAnswers()
    with learner.no_bar():
        learner.fit_one_cycle(job.settings["epochs"], cbs=kept)
    job.mark("epochs with validation")
    answers = torch.cat(kept.answers).tolist()
    job.finish(
        predicted={path: loaders.vocab[answer] for path, answer in zip(loaders.valid_ds.items, answers, strict=True)}
    )


if __name__ == "__main__":
    main()
