"""Heat maps of a classifier: whether they sum to the logit, whether what they show matters, and what they cost.

The sum is compared with the logit in the file's own graph, over all pictures of the folders.

Deletion: the hottest fifth of the positions, of the map as it is drawn, is replaced by a blurred copy of the picture
(Gaussian, sigma a tenth of the square's side; blur as neutral content: Fong and Vedaldi 2017). So are random fifths of
the same raster, in two ways: the same shape moved to a random place (the raster closed to a torus), and positions drawn
one by one, which makes many small holes instead of one large. Log-odds of the predicted class are compared with their
mean over the draws, because a sure classifier's probabilities are 1 whatever is deleted; with their median, which
orders probabilities alike; and, in double precision, with the mean of the probabilities, which the worst draw rules.
"""

from __future__ import annotations

import time
from collections import defaultdict

import numpy as np
import onnx
import onnxruntime
import PIL.Image
import PIL.ImageFilter
from measure import make_parser, report, round_figure, summarize

import headstart
from headstart.dataset import list_images
from headstart.heat_maps import Explainer, HeatMap
from headstart.pictures import load_picture


def make_logit_session(data: bytes) -> onnxruntime.InferenceSession:
    """The file's graph with what its softmax takes, float32 (1, K), as its only output."""
    model = onnx.load_from_string(data)
    (softmax,) = [node for node in model.graph.node if "head_" in node.output[0] and node.op_type == "Softmax"]
    del model.graph.output[:]
    model.graph.output.append(onnx.ValueInfoProto(name=softmax.input[0]))
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def compute_log_odds(session: onnxruntime.InferenceSession, pixels: np.ndarray, number: int) -> float:
    logits = session.run(None, {"image": pixels})[0][0].astype(np.float64)
    others = np.delete(logits, number)
    return float(logits[number] - others.max() - np.log(np.exp(others - others.max()).sum()))


def cut_box(pixels: np.ndarray, heat: HeatMap, side_px: int) -> np.ndarray:
    """What the network saw, at its own size: of that it takes everything as it is."""
    height, width = pixels.shape[:2]
    top, left, tall, wide = heat.box
    edges = (left * width, top * height, (left + wide) * width, (top + tall) * height)
    return np.asarray(PIL.Image.fromarray(pixels).resize((side_px, side_px), PIL.Image.Resampling.BICUBIC, edges))


def draw_masks(heat: HeatMap, num_draws: int, rng: np.random.Generator) -> dict[str, list[np.ndarray]]:
    """bool (h, h): the hottest fifth, the same shape elsewhere, and positions drawn one by one."""
    size, count = len(heat.values), round(0.2 * heat.values.size)
    order = np.argsort(-heat.smoothed, axis=None, kind="stable")
    hottest = np.isin(np.arange(size**2), order[:count]).reshape(size, size)
    shifts = rng.integers(1, size**2, num_draws)  # 0 would be the hottest fifth itself
    return {
        "hottest": [hottest],
        "moved": [np.roll(hottest, divmod(int(shift), size), (0, 1)) for shift in shifts],
        "scattered": [rng.permuted(hottest.ravel()).reshape(size, size) for _ in range(num_draws)],
    }


def delete(square: np.ndarray, mask: np.ndarray) -> np.ndarray:
    side = len(square)
    picture = PIL.Image.fromarray(square)
    blurred = picture.filter(PIL.ImageFilter.GaussianBlur(side / 10))
    holes = PIL.Image.fromarray(mask).resize((side, side), PIL.Image.Resampling.NEAREST)
    picture.paste(blurred, mask=holes)
    return np.asarray(picture)


def measure_deletion(explainer: Explainer, data: bytes, paths: list[str], num_draws: int) -> dict[str, object]:
    session, rng = make_logit_session(data), np.random.default_rng(0)
    side = explainer.metadata.preprocess["input_size_px"]
    lowered: dict[str, list[bool]] = defaultdict(list)
    odds: dict[str, list[float]] = defaultdict(list)
    for path in paths:
        heat = explainer.explain(path)
        square = cut_box(load_picture(path).pixels, heat, side)
        found = {
            kind: np.array([compute_log_odds(session, delete(square, mask), heat.class_index) for mask in masks])
            for kind, masks in draw_masks(heat, num_draws, rng).items()
        }
        whole, [hottest] = compute_log_odds(session, square, heat.class_index), found.pop("hottest")
        odds["whole"].append(whole)
        odds["hottest"].append(hottest)
        lowered["at_all"].append(hottest < whole)
        for kind, values in found.items():
            odds[kind].append(float(values.mean()))
            lowered[f"more_than_{kind}"].append(hottest < values.mean())
            lowered[f"more_than_median_{kind}"].append(hottest < np.median(values))
            lowered[f"more_than_{kind}_by_probability"].append(
                np.mean(1 / (1 + np.exp(values))) < 1 / (1 + np.exp(hottest))
            )
    return {
        "pictures": len(paths),
        "random_draws_a_picture": num_draws,
        "hottest_fifth_lowers_frac": {kind: round_figure(float(np.mean(each))) for kind, each in lowered.items()},
        "mean_log_odds": {kind: round_figure(float(np.mean(each))) for kind, each in odds.items()},
    }


def measure_sums(explainer: Explainer, data: bytes, paths: list[str]) -> dict[str, object]:
    session = make_logit_session(data)
    errors, offsets = [], []
    for path in paths:
        heat = explainer.explain(path)
        pixels = load_picture(path, None, 2 * explainer.metadata.preprocess["input_size_px"]).pixels
        logits = session.run(None, {"image": pixels})[0][0].astype(np.float64)
        errors.append(abs(float(heat.values.sum(dtype=np.float64)) - (logits[heat.class_index] - logits.mean())))
        offsets.append(abs(logits.mean()))
    return {
        "pictures": len(paths),
        "largest_difference_of_sum_and_logit": round_figure(max(errors)),
        "largest_mean_of_the_logits": round_figure(max(offsets)),
    }


def measure_seconds(explainer: Explainer, data: bytes, paths: list[str], repeats: int) -> dict[str, object]:
    classifier = headstart.load(data)
    min_side_px = 2 * explainer.metadata.preprocess["input_size_px"]
    seconds: dict[str, list[float]] = {"predict": [], "explain": []}
    for _ in range(repeats):
        for name, run in (
            ("predict", lambda path: classifier.run(load_picture(path, None, min_side_px).pixels)),
            ("explain", explainer.explain),
        ):
            began = time.perf_counter()
            for path in paths:
                run(path)
            seconds[name].append(1000 * (time.perf_counter() - began) / len(paths))
    ratios = [b / a for a, b in zip(seconds["predict"], seconds["explain"], strict=True)]
    return {
        "pictures": len(paths),
        "predict_ms": summarize(seconds["predict"]),
        "explain_ms": summarize(seconds["explain"]),
        "ratio": summarize(ratios),
    }


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("model", help="classifier file")
    parser.add_argument("folders", nargs="+", help="folders with pictures")
    parser.add_argument("--deletion", nargs="+", metavar="FOLDER", help="folders for the deletion (default: the same)")
    parser.add_argument("--limit", type=int, default=200, help="pictures for the deletion, evenly spaced (default 200)")
    parser.add_argument("--draws", type=int, default=8, help="random fifths of each kind a picture (default 8)")
    args = parser.parse_args()
    paths, _ = list_images(args.folders)
    chosen, _ = list_images(args.deletion or args.folders)
    chosen = [chosen[i] for i in np.unique(np.linspace(0, len(chosen) - 1, args.limit).astype(int))]
    with open(args.model, "rb") as file:
        data = file.read()
    explainer = Explainer(data)
    report(
        {
            "sums": measure_sums(explainer, data, paths),
            "deletion": measure_deletion(explainer, data, chosen, args.draws),
            "seconds": measure_seconds(explainer, data, paths[:50], args.repeats),
        }
    )


if __name__ == "__main__":
    main()
