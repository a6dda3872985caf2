"""A fine-tuning killed (SIGKILL) again and again: whether what it ends with is bit by bit what an undisturbed one has.

EfficientNet-Lite0 is fine-tuned from stage 6 on. Each of the rounds starts the same command in the same folder; the
kill comes at a random moment after its first save, and saves come every tenth of a second, so that kills fall into
steps, saves and validations. At the end one run goes through. Compared are the tensors of the last and of the best
checkpoint (weights, averaged weights, optimizer), the history without its seconds, and the classifier file.
"""

from __future__ import annotations

import hashlib
import json
import random
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from measure import list_versions, make_parser, report, round_figure, work_folder

_POLL_S = 0.002


def main() -> None:
    parser = make_parser(__doc__, repeats=None)
    parser.add_argument("data", help="folder of pictures in class folders, some hundreds")
    parser.add_argument("--rounds", type=int, default=10, help="kills (default 10)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default 0)")
    parser.add_argument("--epochs", type=int, default=6, help="of the fine-tuning (default 6)")
    parser.add_argument("--tune", nargs=2, metavar=("FROZEN", "FOLDER"), help="only fine-tune (used by the rounds)")
    args = parser.parse_args()
    if args.tune:
        tune(args.data, Path(args.tune[0]), Path(args.tune[1]), args.epochs)
        return
    report({**list_versions("torch", "timm"), **measure(args.data, args.rounds, args.seed, args.epochs)})


def tune(source: str, frozen: Path, folder: Path, epochs: int) -> None:
    import headstart
    from headstart.finetuning import loop

    loop._SECONDS_BETWEEN_SAVES = 0.1
    headstart.finetune(
        frozen,
        source,
        from_layer="stage6",
        epochs=epochs,
        patience=None,
        batch_size=8,
        folder=folder,
        output=folder.with_suffix(".onnx"),
    )


def measure(source: str, num_rounds: int, seed: int, epochs: int) -> dict[str, Any]:
    import headstart

    rng = random.Random(seed)
    with work_folder() as place:
        frozen = place / "frozen.onnx"
        headstart.train(source, layers="top").save(frozen)
        undisturbed, killed = place / "undisturbed", place / "killed"
        if start(source, frozen, undisturbed, epochs).wait():
            sys.exit("The undisturbed run failed; its message stands above.")
        history = read_rows(undisturbed)
        training_s = sum(float(row["seconds"]) for row in read_state(undisturbed)["history"])
        kills = []
        for _ in range(num_rounds):
            # Together the rounds leave time for most of the training.
            kills.append(kill_once(start(source, frozen, killed, epochs), killed, rng, 1.2 * training_s / num_rounds))
        if start(source, frozen, killed, epochs).wait():
            sys.exit("The last run failed; its message stands above.")
        digests = [digest_tensors(each) for each in (undisturbed, killed)]
        return {
            "rounds": num_rounds,
            "seed": seed,
            "kills": kills,
            "steps": read_state(undisturbed)["step"],
            "steps_per_epoch": history[1]["step"],
            "undisturbed_training_s": round_figure(training_s),
            "tensors": len(digests[0]),
            "tensors_identical": sum(digests[1].get(name) == digest for name, digest in digests[0].items()),
            "same_names": digests[0].keys() == digests[1].keys(),
            "history_identical": history == read_rows(killed),
            "history_epochs": [row["epoch"] for row in read_rows(killed)],
            "classifier_files_identical": undisturbed.with_suffix(".onnx").read_bytes()
            == killed.with_suffix(".onnx").read_bytes(),
        }


def start(source: str, frozen: Path, folder: Path, epochs: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, __file__, source, "--epochs", str(epochs), "--tune", str(frozen), str(folder)]
    return subprocess.Popen(command)


def kill_once(child: subprocess.Popen[bytes], folder: Path, rng: random.Random, longest_s: float) -> dict[str, Any]:
    """Kill at a random moment after the training of this process has saved for the first time."""
    before = describe(folder / "last.json")
    while child.poll() is None and describe(folder / "last.json") == before:
        time.sleep(_POLL_S)
    time.sleep(rng.uniform(0, longest_s))
    is_killed = child.poll() is None
    child.send_signal(signal.SIGKILL)
    child.wait()
    rows = read_rows(folder) if (folder / "history.csv").exists() else []
    leftovers = [path.name for path in folder.iterdir() if path.name.startswith(".headstart-")]
    return {
        "killed": is_killed,
        "step_saved": read_state(folder)["step"],
        "epochs_in_history": len(rows),
        "in_a_save": bool(leftovers),
    }


def describe(path: Path) -> tuple[int, int] | None:
    """Which file stands there; a save puts another in its place."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


def read_state(folder: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((folder / "last.json").read_text())["state"]
    return state


def read_rows(folder: Path) -> list[dict[str, Any]]:
    from headstart.finetuning.history import read_history

    return [asdict(replace(row, seconds=0.0)) for row in read_history(folder / "history.csv")]


def digest_tensors(folder: Path) -> dict[str, str]:
    """SHA-256 of every tensor of both checkpoints."""
    from headstart.finetuning.checkpoints import load_checkpoint

    found = {}
    for name in ("last", "best"):
        checkpoint = load_checkpoint(folder, name)
        assert checkpoint is not None
        for key, tensor in checkpoint.tensors.items():
            found[f"{name} {key}"] = hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()
    return found


if __name__ == "__main__":
    main()
