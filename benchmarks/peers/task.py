"""What the peers' scripts share: the task they get, the stages they go through, the answer they leave.

Standard library only. `peers.py` runs `SCRIPT TASK.json`: once as a rehearsal, which imports everything, prepares
weights and is not timed, then for time.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn


class Job:
    """One run. Times count from the moment that the process was asked for."""

    def __init__(self) -> None:
        self.task: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
        self.settings: dict[str, Any] = self.task["settings"]
        self.is_rehearsal: bool = self.task["rehearsal"]
        self.pictures = Path(self.task["pictures"])
        """Holds train/ and validation/, and val/, which is the same as validation/; each with a folder a class."""
        self.train, self.validation = self.pictures / "train", self.pictures / "validation"
        self._answer: dict[str, Any] = {"stages": {}, "settings": dict(self.settings)}
        self._last = float(os.environ.get("PEER_BEGAN", time.time()))

    def mark(self, stage: str) -> None:
        """What was done since the last mark is called `stage`."""
        now = time.time()
        self._answer["stages"][stage] = now - self._last
        self._last = now

    def mark_imports(self, *packages: str) -> None:
        self._answer["versions"] = {
            "python": sys.version.split()[0],
            **{name: version(name) for name in packages},
        }
        self.mark("start and imports")

    def add_setting(self, name: str, value: Any) -> None:
        self._answer["settings"][name] = value

    def leave(self) -> NoReturn:
        """End of a rehearsal."""
        self._write()
        sys.exit(0)

    def finish(self, *, predicted: Mapping[Any, str] | None = None, accuracy: float | None = None) -> None:
        """`predicted` maps validation pictures to class names; where the script has none, `accuracy`, a fraction."""
        if predicted is not None:
            self._answer["predicted"] = {"/".join(Path(path).parts[-2:]): name for path, name in predicted.items()}
        self._answer["accuracy"] = accuracy
        self._write()

    def _write(self) -> None:
        Path(self.task["answer"]).write_text(json.dumps(self._answer))
