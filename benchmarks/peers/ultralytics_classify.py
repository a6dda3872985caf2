"""Ultralytics' classifier, trained as its manual has it, which evaluates the best epoch at the end.

Its weights cannot be had here: it starts from the description of the network, so only the time counts.
"""

from __future__ import annotations

from pathlib import Path

from task import Job

job = Job()

from ultralytics import YOLO  # noqa: E402


def main() -> None:
    job.mark_imports("ultralytics", "torch", "torchvision", "numpy", "pillow")
    if job.is_rehearsal:
        job.leave()
    model = YOLO(f"{job.settings['network']}.yaml")
    job.mark("model")
    figures = model.train(
        data=str(job.pictures), epochs=job.settings["epochs"], imgsz=job.settings["side_px"], project=str(Path.cwd())
    )
    job.mark("epochs with validation")
    job.finish(accuracy=float(figures.top1))


if __name__ == "__main__":
    main()
