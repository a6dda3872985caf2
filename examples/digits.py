"""Write scikit-learn's 1797 handwritten digits as pictures, a folder per class: python examples/digits.py FOLDER

They look nothing like the photographs of ImageNet, so they show what the choice of an earlier layer is worth.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits


def write_digits(folder: Path) -> int:
    """Write 8 x 8 grey PNG files to FOLDER/<digit>/<number>.png; returns how many."""
    digits = load_digits()
    for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        place = folder / str(label)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 255 / 16).round().astype(np.uint8)).save(place / f"{number:04}.png")
    return len(digits.target)


if __name__ == "__main__":
    print(f"{write_digits(Path(sys.argv[1]))} pictures written to {sys.argv[1]}")
