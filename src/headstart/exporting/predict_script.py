"""Say what pictures show: python predict.py PICTURE ... This file is also put into exports, as it stands."""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def classify(session: onnxruntime.InferenceSession, path: str) -> np.ndarray:
    with Image.open(path) as opened:
        picture = ImageOps.exif_transpose(opened).convert("RGBA")
    picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return np.asarray(session.run(["probabilities"], {"image": np.asarray(picture)})[0])


if __name__ == "__main__":
    session = onnxruntime.InferenceSession(Path(__file__).with_name("classifier.onnx").read_bytes())
    labels = json.loads(session.get_modelmeta().custom_metadata_map["headstart.labels"])
    for path in sys.argv[1:]:
        probs = classify(session, path)
        print(path, labels[probs.argmax()], f"{probs.max():.4f}", sep="\t")
