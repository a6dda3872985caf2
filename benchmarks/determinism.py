"""Whether the same pictures and settings give the same bytes: training in fresh caches and processes, evaluating."""

from __future__ import annotations

import os
from pathlib import Path

from measure import make_parser, report, run_headstart, work_folder

from headstart._files import compute_sha256


def main() -> None:
    parser = make_parser(__doc__, repeats=2)
    parser.add_argument("data", help="folder of pictures in class folders")
    args = parser.parse_args()
    trained: dict[str, list[bytes]] = {"classifier.onnx": [], "evaluation.json": [], "rows.csv": []}
    evaluated: dict[str, list[bytes]] = {"evaluation.json": [], "rows.csv": []}
    with work_folder() as folder:
        for number in range(args.repeats):
            place = folder / f"training-{number}"
            place.mkdir()
            os.environ["HEADSTART_CACHE"] = str(place / "cache")
            run_headstart("train", args.data, "--output", place / "classifier.onnx")
            for name, contents in trained.items():
                contents.append(find_file(place, name).read_bytes())
        for number in range(args.repeats):
            place = folder / f"evaluation-{number}"
            run_headstart("evaluate", folder / "training-0" / "classifier.onnx", args.data, "--output", place)
            for name, contents in evaluated.items():
                contents.append((place / name).read_bytes())
    report({"runs": args.repeats, "train": compare(trained), "evaluate": compare(evaluated)})


def find_file(place: Path, name: str) -> Path:
    return place / name if name.endswith(".onnx") else place / "classifier.evaluation" / name


def compare(files: dict[str, list[bytes]]) -> dict[str, dict[str, object]]:
    return {
        name: {
            "identical": len(set(contents)) == 1,
            "bytes": len(contents[0]),
            "sha256": sorted({compute_sha256(content) for content in contents}),
        }
        for name, contents in files.items()
    }


if __name__ == "__main__":
    main()
