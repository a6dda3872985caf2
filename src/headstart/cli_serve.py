"""The command that serves classifiers over HTTP."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Annotated

import typer

from headstart.cli_options import UnsignedOption
from headstart.errors import MissingDependencyError


def serve(
    models: Annotated[list[str], typer.Argument(help="Classifier files (.onnx); NAME=FILE gives another name.")],
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.")] = 8000,
    allow_unsigned: UnsignedOption = False,
) -> None:
    """Serve classifiers over HTTP: a page to try them, an interface for programs, and the Open Inference Protocol."""
    missing = [name for name in ("starlette", "uvicorn", "httptools", "prometheus_client") if find_spec(name) is None]
    if missing:
        raise MissingDependencyError(
            f"headstart serve needs {', '.join(missing)}. Install the extra: pip install 'headstart[serve]'"
        )
    from headstart.serve.running import serve as run
    from headstart.serve.settings import ServeSettings

    settings = ServeSettings(host=host, port=port)
    run(models, settings, allow_unsigned=allow_unsigned, on_ready=lambda url: print(f"Serving at {url}", flush=True))
