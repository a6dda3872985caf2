"""From a folder of pictures to an evaluated classifier: headstart beside what one would run otherwise.

Every peer runs in an environment of its own, named by its interpreter; one without is left out, and that is said. The
time is that of the whole process, from its start to its exit, with the pictures, the packages and the weights already
on this machine (a rehearsal that is not timed reads them once). A round is headstart and every peer in turn, so ratios
are of runs that follow each other. Each run is written to the journal as soon as it ends; the same command goes on
where it was stopped, and `--only` measures some peers more often than others.

The peers' memory is summed over all their processes, proportionally where they share it (PSS, read twice a second).
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from measure import HEADSTART, make_parser, report, work_folder
from peers_table import draw_plot, make_results, make_table, rewrite_readme

from headstart.backbones.catalog import CATALOG, DEFAULT_BACKBONE

SCRIPTS = Path(__file__).with_name("peers")
OURS, FAST = "headstart", "headstart-fast"
_LITE0 = "EfficientNet-Lite0"
_POLL_S = 0.5
# What is only needed with a graphics card, and makes most of torch on Linux.
_CUDA = re.compile(r"^(nvidia|cuda|triton|pytorch_triton|torch/lib/(libtorch_cuda|libc10_cuda|libtorch_nvshmem))")


@dataclass(frozen=True)
class Peer:
    """`environment` names the interpreter. Without `script` it is our own command line with `options`.

    `is_pretrained` is false where only the time counts, as weights cannot be had.
    """

    name: str
    title: str
    backbone: str
    environment: str
    script: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    is_pretrained: bool = True


_PROBE = {"batch_size": 32, "workers": 2}
PEERS = (
    Peer(OURS, "headstart", _LITE0, "headstart"),
    Peer(FAST, "headstart --fast", _LITE0, "headstart", options=("--fast",)),
    Peer("timm", "timm, eager torch, linear probe", _LITE0, "timm", "timm_probe.py", {**_PROBE, "compile": False}),
    Peer("timm-compile", "timm, torch.compile, linear probe", _LITE0, "timm", "timm_probe.py",
         {**_PROBE, "compile": True}),
    Peer("fastai", "fastai `vision_learner`, frozen, 1 epoch", _LITE0, "fastai", "fastai_frozen.py",
         {"epochs": 1, "batch_size": 64}),
    Peer("autogluon", "AutoGluon multimodal, fine-tuned, 1 epoch", _LITE0, "autogluon", "autogluon_multimodal.py",
         {"epochs": 1}),
    Peer("keras", "Keras loop, frozen, 5 epochs", "MobileNetV2", "keras", "keras_loop.py",
         {"network": "MobileNetV2", "side_px": 224, "epochs": 5}, is_pretrained=False),
    Peer("keras-vgg16", "Keras loop, frozen, 5 epochs, 150 px", "VGG16", "keras", "keras_loop.py",
         {"network": "VGG16", "side_px": 150, "epochs": 5}, is_pretrained=False),
    Peer("vyntri", "vyntri, defaults", "MobileNetV3-Small", "vyntri", "vyntri_default.py", is_pretrained=False),
    Peer("ultralytics", "Ultralytics classify, 5 epochs", "YOLO11n-cls", "ultralytics", "ultralytics_classify.py",
         {"network": "yolo11n-cls", "side_px": 224, "epochs": 5}, is_pretrained=False),
)  # fmt: skip


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("data", type=Path, help="folder with train/ and validation/, each with a folder a class")
    parser.add_argument("--journal", type=Path, required=True, help="JSON lines; one is added after every run")
    parser.add_argument(
        "--python",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="interpreter of headstart (default: this one), timm, fastai, autogluon, keras, vyntri or ultralytics",
    )
    parser.add_argument("--only", default="", help=f"names with commas between them, beside {OURS}: run no others")
    parser.add_argument("--limit", type=int, help="pictures a class and part, to try it out")
    parser.add_argument("--table", action="store_true", help="print the README's table, not JSON")
    parser.add_argument("--readme", type=Path, help="put the table between the two comments in this file")
    parser.add_argument("--plot", type=Path, help="draw time against accuracy into this SVG file")
    args = parser.parse_args()

    only = [name for name in args.only.split(",") if name]
    if unknown := set(only) - {peer.name for peer in PEERS}:
        parser.error(f"no such peer: {', '.join(sorted(unknown))}")
    pythons = {OURS: sys.executable, **dict(item.split("=", 1) for item in args.python)}
    if unknown := set(pythons) - {peer.environment for peer in PEERS}:
        parser.error(f"no such environment: {', '.join(sorted(unknown))}")
    if not all((args.data / part).is_dir() for part in ("train", "validation")):
        parser.error(f"{args.data} has no train/ and validation/")
    data = describe_data(args.data, args.limit)
    entries = read_journal(args.journal, data)
    left_out = {}
    if args.repeats:
        with work_folder() as folder:
            pictures = copy_pictures(args.data, folder, args.limit)
            chosen, left_out = choose_peers(only, pythons)
            run_rounds(chosen, pythons, args, Sitting(folder, pictures, data, entries))
    sys.argv[1:] = [shorten(argument) for argument in sys.argv[1:]]
    peers = [vars(peer) for peer in PEERS]
    results = make_results(peers, entries, data, left_out)
    if args.plot:
        args.plot.write_text(draw_plot(results))
    if args.readme:
        args.readme.write_text(rewrite_readme(args.readme.read_text(), results))
    if args.table:
        print(make_table(results))
    else:
        report(results)


@dataclass
class Sitting:
    """One call of this script: its folder, its pictures, and all journal entries, those of earlier calls too."""

    folder: Path
    pictures: Path
    data: dict[str, Any]
    entries: list[dict[str, Any]]
    name: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    rehearsals: dict[str, dict[str, Any]] = field(default_factory=dict)


def choose_peers(only: Sequence[str], pythons: Mapping[str, str]) -> tuple[list[Peer], dict[str, str]]:
    """Those to run, ours first, and why the others are not."""
    chosen, left_out = [], {}
    for peer in PEERS:
        if peer.environment not in pythons:
            left_out[peer.name] = f"no interpreter given (--python {peer.environment}=PATH)"
        elif peer.name == FAST and not has_fast(pythons[OURS]):
            left_out[peer.name] = "this version has no --fast"
        elif peer.name == OURS or not only or peer.name in only:
            chosen.append(peer)
    return chosen, left_out


def has_fast(python: str) -> bool:
    done = subprocess.run(
        [python, *HEADSTART[1:], "train", "--help"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "200"},
    )
    return "--fast" in done.stdout


def run_rounds(chosen: Sequence[Peer], pythons: Mapping[str, str], args: argparse.Namespace, sitting: Sitting) -> None:
    """Until every peer has as many runs as asked for. Ours takes part in every round that another one needs."""
    failed: set[str] = set()
    while missing := find_missing(chosen, sitting.entries, args.repeats, failed):
        for peer in (peer for peer in chosen if peer.name in missing or peer.name in (OURS, FAST)):
            if peer.name in failed:
                continue
            entry = run_peer(peer, pythons[peer.environment], sitting)
            with open(args.journal, "a") as journal:
                journal.write(json.dumps(entry) + "\n")
                journal.flush()
                os.fsync(journal.fileno())
            sitting.entries.append(entry)
            if "error" in entry:
                failed.add(peer.name)
            print(f"{peer.name}: {entry.get('error') or format(entry['seconds'], '.1f') + ' s'}", file=sys.stderr)


def find_missing(
    chosen: Sequence[Peer], entries: Sequence[dict[str, Any]], repeats: int, failed: set[str]
) -> list[str]:
    """Names of those that have fewer runs than asked for, and did not fail in this sitting."""
    done = [entry["peer"] for entry in entries if "error" not in entry]
    return [peer.name for peer in chosen if done.count(peer.name) < repeats and peer.name not in failed]


def run_peer(peer: Peer, python: str, sitting: Sitting) -> dict[str, Any]:
    """One run as a line of the journal, with `error` where it failed."""
    number = sum(entry["peer"] == peer.name and "error" not in entry for entry in sitting.entries)
    entry = {"peer": peer.name, "round": number, "sitting": sitting.name, "data": sitting.data}
    try:
        if peer.name not in sitting.rehearsals:
            sitting.rehearsals[peer.name] = rehearse(peer, python, sitting)
        read_all(sitting.pictures)
        load = os.getloadavg()[0]
        with run_folder(sitting.folder, peer) as folder:
            figures, answer = (run_ours if peer.script is None else run_script)(peer, python, sitting, folder, number)
    except RuntimeError as error:
        return {**entry, "error": shorten(str(error))}
    rehearsal = sitting.rehearsals[peer.name]
    entry |= {name: rehearsal[name] for name in ("versions", "installed_bytes", "installed_without_cuda_bytes")}
    entry |= {"load": load, **figures, "stages": answer["stages"]}
    entry["settings"] = {**rehearsal.get("settings", {}), **answer.get("settings", {})}
    return entry | judge(answer, sitting.pictures / "validation")


def judge(answer: Mapping[str, Any], validation: Path) -> dict[str, Any]:
    """How many pictures were right, and which were wrong or left without an answer; or the accuracy alone."""
    labels = {f"{path.parent.name}/{path.name}": path.parent.name for path in list_pictures(validation)}
    if "predicted" not in answer:
        return {"num_images": len(labels), "accuracy": answer["accuracy"]}
    wrong = sorted(path for path, label in labels.items() if answer["predicted"].get(path) != label)
    return {"num_images": len(labels), "accuracy": 1 - len(wrong) / len(labels), "wrong": wrong}


def rehearse(peer: Peer, python: str, sitting: Sitting) -> dict[str, Any]:
    """Import everything, prepare weights, record versions and sizes. Nothing of it is timed."""
    answer: dict[str, Any]
    if peer.script is None:
        code = (
            "import json, sys; from importlib.metadata import version\n"
            "import headstart.cli, headstart.training, onnx, onnxruntime, sklearn.linear_model\n"
            "names = ('headstart', 'onnxruntime', 'onnx', 'numpy', 'scikit-learn', 'pillow')\n"
            "print(json.dumps({'python': sys.version.split()[0], **{name: version(name) for name in names}}))"
        )
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr[-500:])
        answer = {"versions": json.loads(done.stdout)}
    else:
        with run_folder(sitting.folder, peer) as folder:
            _, answer = run_script(peer, python, sitting, folder, 0, is_rehearsal=True)
    return {**answer, **measure_installation(python)}


def run_ours(
    peer: Peer, python: str, sitting: Sitting, folder: Path, number: int
) -> tuple[dict[str, float], dict[str, Any]]:
    """`headstart train FOLDER --output FILE` as a user runs it, with an empty feature cache."""
    output = folder / "model.onnx"
    command = [python, *HEADSTART[1:], "train", str(sitting.pictures), "--output", str(output), *peer.options]
    figures = time_process(command, folder, {"HEADSTART_CACHE": str(folder / "cache")})
    evaluation = output.with_suffix(".evaluation")
    with open(evaluation / "rows.csv", newline="", encoding="utf-8") as file:
        predicted = {"/".join(Path(row["path"]).parts[-2:]): row["predicted"] for row in csv.DictReader(file)}
    seconds = json.loads((evaluation / "run.json").read_text())["seconds"]
    stages = {"start and exit": figures["seconds"] - seconds, "training and evaluation": seconds}
    return figures, {"predicted": predicted, "stages": stages}


def run_script(
    peer: Peer, python: str, sitting: Sitting, folder: Path, number: int, is_rehearsal: bool = False
) -> tuple[dict[str, float], dict[str, Any]]:
    task = {
        "pictures": str(sitting.pictures),
        "weights": str(CATALOG[DEFAULT_BACKBONE].find_weights()),
        "answer": str(folder / "answer.json"),
        "rehearsal": is_rehearsal,
        "round": number,
        "settings": dict(peer.settings),
    }
    (folder / "task.json").write_text(json.dumps(task))
    kept = sitting.folder / "kept"  # downloads and compiled code, as on a machine where it ran before
    settings = {
        "HF_HOME": str(kept / "huggingface"),
        "HF_HUB_OFFLINE": "1",
        "TORCH_HOME": str(kept / "torch"),
        "TORCHINDUCTOR_CACHE_DIR": str(kept / "inductor"),
        "YOLO_CONFIG_DIR": str(kept / "ultralytics"),
        "TF_CPP_MIN_LOG_LEVEL": "2",
    }
    figures = time_process([python, str(SCRIPTS / str(peer.script)), str(folder / "task.json")], folder, settings)
    answer: dict[str, Any] = json.loads((folder / "answer.json").read_text())
    return figures, answer


def time_process(command: Sequence[str], folder: Path, settings: Mapping[str, str]) -> dict[str, float]:
    """Wall and processor seconds and memory of a process with all its children. Raises RuntimeError where it fails."""
    environment = {**os.environ, **settings, "PEER_BEGAN": repr(time.time())}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    with open(folder / "messages.txt", "wb") as messages:
        began = time.perf_counter()
        child = subprocess.Popen(
            command, stdout=messages, stderr=messages, cwd=folder, env=environment, start_new_session=True
        )
        ended = threading.Event()
        peaks = [0]
        watcher = threading.Thread(target=watch_memory, args=(child.pid, peaks, ended))
        watcher.start()
        try:
            _, status, usage = os.wait4(child.pid, 0)
        except BaseException:  # a session of its own does not get this one's Ctrl-C
            os.killpg(child.pid, signal.SIGKILL)
            raise
        finally:
            seconds = time.perf_counter() - began
            ended.set()
            watcher.join()
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        lines = (folder / "messages.txt").read_text(errors="replace").strip().splitlines()
        raise RuntimeError(f"exit status {child.returncode}: {' / '.join(lines[-2:])[-500:]}")
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "seconds": seconds,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "peak_bytes": max(peaks[0], usage.ru_maxrss * unit),
        "peak_pss_bytes": peaks[0],
        "peak_rss_of_one_process_bytes": usage.ru_maxrss * unit,
    }


def watch_memory(session: int, peaks: list[int], ended: threading.Event) -> None:
    """Keep the greatest sum of PSS over the processes of a session in `peaks[0]`. Without /proc it stays 0."""
    while not ended.wait(_POLL_S):
        total = 0
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                fields = (folder / "stat").read_text().rsplit(")", 1)[1].split()
                if int(fields[3]) == session:
                    lines = (folder / "smaps_rollup").read_text().splitlines()
                    total += 1024 * int(next(line for line in lines if line.startswith("Pss:")).split()[1])
            except (OSError, StopIteration, IndexError):
                continue  # it has just ended
        peaks[0] = max(peaks[0], total)


def measure_installation(python: str) -> dict[str, int]:
    """Bytes of the packages of this interpreter's environment."""
    code = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    root = Path(done.stdout.strip())
    sizes = {path.relative_to(root).as_posix(): path.lstat().st_size for path in root.rglob("*") if path.is_file()}
    without = sum(size for name, size in sizes.items() if not _CUDA.match(name))
    return {"installed_bytes": sum(sizes.values()), "installed_without_cuda_bytes": without}


def read_journal(path: Path, data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The runs so far. A last line that was cut off is removed; a journal of other pictures ends the script."""
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    entries = []
    for number, line in enumerate(lines):
        try:
            entries.append(json.loads(line))
            if not line.endswith("\n"):
                raise ValueError
        except ValueError:
            if number != len(lines) - 1:
                sys.exit(f"{path}: line {number + 1} is no JSON.")
            entries = entries[:number]
            path.write_text("".join(lines[:number]))
    if any(entry["data"] != data for entry in entries):
        sys.exit(f"{path} is about other pictures. Give this measurement a journal of its own.")
    return entries


def describe_data(folder: Path, limit: int | None) -> dict[str, Any]:
    counts = {part: len(list_pictures(folder / part)) for part in ("train", "validation")}
    return {"name": folder.resolve().name, **{f"num_{part}": count for part, count in counts.items()}, "limit": limit}


def copy_pictures(source: Path, folder: Path, limit: int | None) -> Path:
    """A folder with the parts under the names that the peers expect, with `limit` pictures a class or all."""
    target = folder / source.resolve().name
    for part in ("train", "validation"):
        for group in (path for path in sorted((source / part).iterdir()) if path.is_dir()):
            (target / part / group.name).mkdir(parents=True)
            paths = sorted(path for path in group.iterdir() if path.is_file())
            step = max(1, len(paths) // limit) if limit else 1
            for path in paths[::step][:limit]:
                shutil.copyfile(path, target / part / group.name / path.name)
    (target / "val").symlink_to("validation", target_is_directory=True)
    return target


def list_pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*/*") if path.is_file())


def read_all(pictures: Path) -> None:
    """Every side finds the files in memory."""
    for path in [*list_pictures(pictures / "train"), *list_pictures(pictures / "validation")]:
        path.read_bytes()


@contextmanager
def run_folder(folder: Path, peer: Peer) -> Iterator[Path]:
    """Empty, and gone afterwards: no run finds what another one left."""
    path = folder / f"run-{peer.name}"
    path.mkdir()
    try:
        yield path
    finally:
        shutil.rmtree(path)


def shorten(text: str) -> str:
    """Paths reduced to their last part, or for an interpreter to that within its environment."""
    text = re.sub(r"[^\s='\"]*/([^/\s]+/bin/python[\d.]*)", r"\1", text)
    return re.sub(r"(?<![\w:/])/(?:[^\s/:'\"]+/)+([^\s/:'\"]+)", r"\1", text)


if __name__ == "__main__":
    main()
