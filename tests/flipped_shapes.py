"""Drawn pictures in train/ and test/, some of them in the folder of a wrong class."""

from __future__ import annotations

from pathlib import Path

from drawn_pictures import SHAPES, write_picture

FLIPPED = {"checks00": "circles", "circles01": "stripes", "stripes05": "checks"}
"""Training pictures, and the wrong class that each is in."""
FLIPPED_TEST = {"checks09": "circles", "stripes10": "checks"}
NUM_TRAIN, NUM_TEST = 27, 9


def write_flipped(folder: Path) -> Path:
    """`folder`/train and /test/<class>/<shape><number>.png, numbers 0 to 8 and 9 to 11: the bytes that `trained` knows."""
    wrong = {**FLIPPED, **FLIPPED_TEST}
    for shape in SHAPES:
        for number in range(12):
            name = f"{shape}{number:02}"
            split = "train" if number < 9 else "test"
            write_picture(folder / split / wrong.get(name, shape) / f"{name}.png", shape, number)
    return folder
