"""How long every command takes in a new process, and what share of that is importing.

`python -c pass` is the floor; then `--help` of every command, then predict of one picture, inspect, check and evaluate
of a folder of pictures, and a training on it whose features are cached already. `cpu_s` is user and system time of the
process, which other work on the machine disturbs less than `seconds`. `imports` is one run of each under
`-X importtime`: `ms` the sum over all modules, `share` of that run's seconds, then the packages that took longest.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from measure import HEADSTART, make_parser, report, round_figure, run_headstart, summarize, work_folder

_UNWANTED = ("torch", "torchvision", "timm", "sklearn", "scipy", "onnx", "pandas", "pyarrow", "matplotlib")
_NUM_SHOWN = 10
_LISTING = """
import json, sys
from headstart.cli import main
try:
    main()
finally:
    with open({path!r}, "w") as file:
        json.dump(sorted(sys.modules), file)
"""
_COMMANDS = "from headstart.cli import app; print(*(c.name or c.callback.__name__ for c in app.registered_commands))"


def main() -> None:
    parser = make_parser(__doc__, repeats=10)
    parser.add_argument("model", help="classifier file")
    parser.add_argument("picture")
    parser.add_argument("folder", help="pictures in class folders, of the classifier's classes")
    parser.add_argument("--few", type=int, default=3, help="repeats of what takes seconds (default 3)")
    args = parser.parse_args()
    names = subprocess.run([sys.executable, "-c", _COMMANDS], capture_output=True, text=True, check=True).stdout.split()
    helps = [["--help"], *([name.replace("_", "-"), "--help"] for name in names)]
    quick = {"predict": ["predict", args.model, args.picture], "inspect": ["inspect", args.model]}
    results: dict[str, Any] = {}
    with work_folder() as folder:
        slow = {
            "check": ["check", args.folder],
            "evaluate": ["evaluate", args.model, args.folder],
            "train, features cached": ["train", args.folder, "--output", str(folder / "classifier.onnx")],
        }
        run_headstart(*slow["train, features cached"])
        commands = {" ".join(each): (each, args.repeats) for each in helps}
        commands |= {name: (each, args.repeats) for name, each in quick.items()}
        commands |= {name: (each, args.few) for name, each in slow.items()}
        figures: dict[str, list[tuple[float, float]]] = {"python -c pass": []}
        figures |= {f"headstart {name}": [] for name in commands}
        for repeat in range(args.repeats):
            figures["python -c pass"].append(time_process([sys.executable, "-c", "pass"]))
            for name, (arguments, repeats) in commands.items():
                if repeat < repeats:
                    figures[f"headstart {name}"].append(time_process([*HEADSTART, *arguments]))
        for name, values in figures.items():
            seconds, cpu_s = zip(*values, strict=True)
            results[name] = {"seconds": summarize(seconds), "cpu_s": summarize(cpu_s)}
        for name, (arguments, _) in commands.items():
            modules = list_modules(arguments)
            results[f"headstart {name}"] |= {
                "imports": measure_imports(arguments),
                "modules": len(modules),
                "unwanted": sorted({module.split(".")[0] for module in modules} & set(_UNWANTED)),
            }
    report({"commands": results, "unwanted_means": list(_UNWANTED)})


def time_process(command: Sequence[str]) -> tuple[float, float]:
    """Seconds from start to exit, and of processor time (user and system)."""
    with tempfile.TemporaryFile() as messages:
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=messages)
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            messages.seek(0)
            sys.exit(messages.read().decode(errors="replace"))
    return seconds, used.ru_utime + used.ru_stime


def list_modules(arguments: Sequence[str]) -> list[str]:
    """sys.modules at the end of a command."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "modules.json"
        time_process([sys.executable, "-c", _LISTING.format(path=str(path)), *arguments])
        modules: list[str] = json.loads(path.read_text())
    return modules


def measure_imports(arguments: Sequence[str]) -> dict[str, Any]:
    """Milliseconds of importing in one run, their share of that run, and by top-level package, the slowest first."""
    command = [HEADSTART[0], "-X", "importtime", *HEADSTART[1:], *arguments]
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - began
    microseconds: Counter[str] = Counter()
    for line in done.stderr.splitlines():
        fields = line.removeprefix("import time:").split("|")
        if line.startswith("import time:") and fields[0].strip().isdigit():
            microseconds[fields[2].strip().split(".")[0]] += int(fields[0])
    return {
        "ms": round_figure(microseconds.total() / 1000),
        "share": round_figure(microseconds.total() / 1e6 / seconds, 2),
        "packages_ms": {name: round_figure(count / 1000) for name, count in microseconds.most_common(_NUM_SHOWN)},
    }


if __name__ == "__main__":
    main()
