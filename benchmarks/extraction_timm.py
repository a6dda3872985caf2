"""The other side of extraction.py, run by an interpreter that has torch and timm; imports nothing of headstart.

Reads one JSON object from standard input and prints one: seconds of the loop over all pictures (without imports and
model building), and the features of the first pictures.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from importlib.metadata import version

import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config


class Pictures(torch.utils.data.Dataset[torch.Tensor]):
    def __init__(self, paths: list[str], transform: Callable[[Image.Image], torch.Tensor]) -> None:
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        with Image.open(self.paths[index]) as image:
            return self.transform(image.convert("RGB"))


def main() -> None:
    task = json.load(sys.stdin)
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    # The published file names its tensors differently but lists them in the same order.
    ours, theirs = model.state_dict(), torch.load(task["weights"], weights_only=True)
    if len(ours) != len(theirs):
        sys.exit(f"timm's model has {len(ours)} tensors, the file {len(theirs)}: another version of timm?")
    pairs = zip(ours.items(), theirs.values(), strict=True)
    model.load_state_dict({name: value.reshape(tensor.shape) for (name, tensor), value in pairs})
    config = resolve_data_config({}, model=model)
    loader = torch.utils.data.DataLoader(
        Pictures(task["pictures"], create_transform(**config)),
        batch_size=task["batch_size"],
        num_workers=task["num_workers"],
    )
    features = []
    with torch.inference_mode():
        # As on our side, the first run, which sets things up, is not timed.
        model(torch.zeros(1, *config["input_size"]))
        began = time.perf_counter()
        for batch in loader:
            features.append(model.forward_head(model.forward_features(batch), pre_logits=True))
        seconds = time.perf_counter() - began
    answer = {
        "seconds": seconds,
        "features": torch.cat(features)[: task["num_features"]].tolist(),
        "versions": {name: version(name) for name in ("torch", "timm", "torchvision", "pillow")},
        "torch_threads": torch.get_num_threads(),
        "input": {name: config[name] for name in ("input_size", "interpolation", "crop_pct")},
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
