"""A linear probe as one writes it with timm: features by a DataLoader, then scikit-learn's logistic regression.

With `compile`, what a good user does to make torch fast on a CPU: inductor with frozen weights, channels last, batches
of one size. The rehearsal compiles, so that a timed run finds the compiled code on disk.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from task import Job

job = Job()

import timm  # noqa: E402
import torch  # noqa: E402
from pretrained import NAME, keep_weights  # noqa: E402
from sklearn.linear_model import LogisticRegression  # noqa: E402
from timm.data import create_transform, resolve_data_config  # noqa: E402
from torchvision.datasets import ImageFolder  # noqa: E402


def main() -> None:
    job.mark_imports("torch", "torchvision", "timm", "scikit-learn", "pillow")
    if job.is_rehearsal:
        keep_weights(job.task["weights"])
    batch_size = job.settings["batch_size"]
    network = timm.create_model(NAME, pretrained=True, num_classes=0).eval()
    config = resolve_data_config({}, model=network)
    job.add_setting("torch_threads", torch.get_num_threads())
    job.add_setting("input", [config["input_size"][-1], config["interpolation"], config["crop_pct"]])
    transform = create_transform(**config)
    model: Any = network
    if job.settings["compile"]:
        from torch._inductor import config as inductor

        inductor.freezing = True
        model = torch.compile(network.to(memory_format=torch.channels_last), dynamic=False)
    job.mark("model")
    if job.is_rehearsal:
        if job.settings["compile"]:
            began = time.perf_counter()
            run(model, torch.zeros(batch_size, *config["input_size"]), batch_size)
            job.add_setting("first_compilation_s", time.perf_counter() - began)
        job.leave()

    folders = {name: ImageFolder(folder, transform) for name, folder in _list_parts()}
    features = {name: extract(model, folder, batch_size) for name, folder in folders.items()}
    job.mark("features")
    head = LogisticRegression(max_iter=1000).fit(features["train"], folders["train"].targets)
    job.mark("logistic regression")
    answers = head.predict(features["validation"])
    paths = [path for path, _ in folders["validation"].samples]
    job.mark("evaluation")
    job.finish(predicted={path: folders["train"].classes[answer] for path, answer in zip(paths, answers, strict=True)})


def _list_parts() -> list[tuple[str, Path]]:
    return [("train", job.train), ("validation", job.validation)]


def extract(model: Any, folder: ImageFolder, batch_size: int) -> Any:
    loader = torch.utils.data.DataLoader(folder, batch_size=batch_size, num_workers=job.settings["workers"])
    return torch.cat([run(model, pixels, batch_size) for pixels, _ in loader]).numpy()


def run(model: Any, pixels: torch.Tensor, batch_size: int) -> torch.Tensor:
    with torch.inference_mode():
        if not job.settings["compile"]:
            return model(pixels)
        # Another size would be compiled again: the last batch is filled up.
        count = len(pixels)
        if count < batch_size:
            pixels = torch.cat([pixels, pixels.new_zeros(batch_size - count, *pixels.shape[1:])])
        return model(pixels.contiguous(memory_format=torch.channels_last))[:count].clone()


if __name__ == "__main__":
    main()
