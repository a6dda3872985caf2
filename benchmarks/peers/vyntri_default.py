"""vyntri as its README has it, with its defaults.

Its weights cannot be had here: torchvision is given random ones as if it had downloaded them, so only the time counts.
"""

from __future__ import annotations

from pathlib import Path

from task import Job

job = Job()

import torch  # noqa: E402
from torchvision.models import MobileNet_V3_Small_Weights, mobilenet_v3_small  # noqa: E402
from vyntri import Vyntri  # noqa: E402


def main() -> None:
    job.mark_imports("vyntri", "torch", "torchvision", "numpy", "pillow")
    if job.is_rehearsal:
        folder = Path(torch.hub.get_dir(), "checkpoints")
        folder.mkdir(parents=True, exist_ok=True)
        name = MobileNet_V3_Small_Weights.IMAGENET1K_V1.url.rsplit("/", 1)[1]
        torch.manual_seed(0)
        torch.save(mobilenet_v3_small().state_dict(), folder / name)
        job.leave()
    model = Vyntri()
    model.fit(train=job.train)
    job.mark("fit")
    figures = model.evaluate(job.validation)
    job.mark("evaluation")
    job.finish(accuracy=float(figures.accuracy))


if __name__ == "__main__":
    main()
