"""How long a command takes in a new process, and what it imports.

`python -c pass` is the floor. `imports` sums the time that each package's own modules took to import for predict.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from measure import HEADSTART, make_parser, report, round_figure, summarize, work_folder

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


def main() -> None:
    parser = make_parser(__doc__, repeats=10)
    parser.add_argument("model", help="classifier file")
    parser.add_argument("picture")
    args = parser.parse_args()
    predict = ["predict", args.model, args.picture]
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "headstart --help": [*HEADSTART, "--help"],
        "headstart predict": [*HEADSTART, *predict],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    with work_folder():
        for _ in range(args.repeats):
            for name, command in commands.items():
                seconds[name].append(time_process(command))
        modules = {"headstart --help": list_modules(["--help"]), "headstart predict": list_modules(predict)}
        imports = measure_imports(predict)
    report(
        {
            "seconds": {name: summarize(values) for name, values in seconds.items()},
            "modules": {
                name: {
                    "loaded": len(found),
                    "unwanted": sorted({module.split(".")[0] for module in found} & set(_UNWANTED)),
                }
                for name, found in modules.items()
            },
            "unwanted_means": list(_UNWANTED),
            "imports_ms": imports,
        }
    )


def time_process(command: list[str]) -> float:
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, check=False)
    seconds = time.perf_counter() - began
    if done.returncode:
        sys.exit(done.stderr.decode(errors="replace"))
    return seconds


def list_modules(arguments: list[str]) -> list[str]:
    """sys.modules at the end of a command."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "modules.json"
        time_process([sys.executable, "-c", _LISTING.format(path=str(path)), *arguments])
        modules: list[str] = json.loads(path.read_text())
    return modules


def measure_imports(arguments: list[str]) -> dict[str, float]:
    """Milliseconds by top-level package, the slowest first."""
    command = [HEADSTART[0], "-X", "importtime", *HEADSTART[1:], *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    microseconds: Counter[str] = Counter()
    for line in done.stderr.splitlines():
        fields = line.removeprefix("import time:").split("|")
        if line.startswith("import time:") and fields[0].strip().isdigit():
            microseconds[fields[2].strip().split(".")[0]] += int(fields[0])
    total = {"all": round_figure(microseconds.total() / 1000)}
    return total | {name: round_figure(count / 1000) for name, count in microseconds.most_common(_NUM_SHOWN)}


if __name__ == "__main__":
    main()
