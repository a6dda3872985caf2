"""The command that serves classifiers over HTTP."""

from __future__ import annotations

import contextlib
import math
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from headstart._files import show_path
from headstart.cli_options import UnsignedOption
from headstart.errors import ConfigError, MissingDependencyError

KEY_VARIABLE = "HEADSTART_API_KEY"

_MANY_FILES = 100_000
_LIMITS = "Limits"
_PACKAGES = {
    "starlette": "starlette",
    "uvicorn": "uvicorn",
    "httptools": "httptools",
    "prometheus_client": "prometheus-client",
    "multipart": "multipart",
}


def serve(
    models: Annotated[
        list[str], typer.Argument(help="Classifier files (.onnx), each served under its name; NAME=FILE gives another.")
    ],
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 for all of this machine.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.")] = 8000,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="Name under which the server is called from elsewhere; may be given several times."),
    ] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option(help=f"File with API keys, one a line: requests need one of them. Or set {KEY_VARIABLE}."),
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Threads that predict. Default: one per processor.")] = None,
    training_pictures: Annotated[
        Path | None,
        typer.Option(
            help="Folder that the classifier was trained on: the page shows the nearest of its pictures, to whoever "
            "reaches the server. Takes 2.6 kB of memory for each."
        ),
    ] = None,
    reload_s: Annotated[
        float, typer.Option("--reload", help="Seconds between two looks for replaced files; 0 for none.")
    ] = 2,
    unknown_below: Annotated[
        float, typer.Option(help="Call less familiar pictures none of these; about this share of good ones is lost.")
    ] = 0.01,
    log: Annotated[
        str, typer.Option(help="requests: a line of JSON for each, on standard error; events: only what else happens.")
    ] = "requests",
    max_body_mb: Annotated[
        float, typer.Option("--max-body", help="Megabytes of a request, unpacked.", rich_help_panel=_LIMITS)
    ] = 20,
    max_megapixels: Annotated[
        float, typer.Option("--max-megapixels", help="Of a picture.", rich_help_panel=_LIMITS)
    ] = 64,
    max_pictures: Annotated[int, typer.Option(help="In one request.", rich_help_panel=_LIMITS)] = 32,
    queue: Annotated[
        int, typer.Option(help="Pictures that may wait; more are answered 503 at once.", rich_help_panel=_LIMITS)
    ] = 64,
    max_connections: Annotated[int, typer.Option(help="Open at once.", rich_help_panel=_LIMITS)] = 1000,
    head_timeout: Annotated[
        float, typer.Option(help="Seconds for the head of a request.", rich_help_panel=_LIMITS)
    ] = 10,
    body_timeout: Annotated[float, typer.Option(help="Seconds for its body.", rich_help_panel=_LIMITS)] = 30,
    predict_timeout: Annotated[
        float, typer.Option(help="Seconds for a picture, and for its wait.", rich_help_panel=_LIMITS)
    ] = 5,
    keep_alive: Annotated[
        float, typer.Option(help="Seconds that a connection may rest.", rich_help_panel=_LIMITS)
    ] = 30,
    drain: Annotated[
        float, typer.Option(help="Seconds to finish what was taken, once told to stop.", rich_help_panel=_LIMITS)
    ] = 30,
    allow_unsigned: UnsignedOption = False,
) -> None:
    """Serve classifiers over HTTP: a page to try them on, an interface for programs, the Open Inference Protocol.

    A replaced file is taken up without losing a request. SIGTERM or Ctrl-C finishes what was taken; a second one
    stops at once.
    """
    missing = [package for name, package in _PACKAGES.items() if find_spec(name) is None]
    if missing:
        raise MissingDependencyError(
            f"headstart serve needs {', '.join(missing)}. Install the extra: pip install 'headstart[serve]'"
        )
    if log not in ("requests", "events"):
        raise ConfigError(f"--log is {show_path(log)}. Expected requests or events.")
    from headstart.serve.models import name_models
    from headstart.serve.request_log import writing_log
    from headstart.serve.running import serve as run
    from headstart.serve.settings import ServeSettings

    settings = ServeSettings(
        host=host,
        port=port,
        allowed_hosts=tuple(allow_host or ()),
        api_keys=_read_keys(api_key_file),
        reload_s=reload_s,
        unknown_below=unknown_below,
        max_body_bytes=_round(max_body_mb * 2**20),
        max_pixels=_round(max_megapixels * 1e6),
        max_pictures=max_pictures,
        queue_size=queue,
        max_connections=max_connections,
        head_timeout_s=head_timeout,
        body_timeout_s=body_timeout,
        predict_timeout_s=predict_timeout,
        keep_alive_s=keep_alive,
        drain_s=drain,
        **({} if workers is None else {"num_workers": workers}),
    )
    if not settings.is_loopback and not settings.api_keys:
        print(
            f"Warning: whoever reaches {show_path(host)} can use this server. Ask for a key with --api-key-file, "
            "or listen at 127.0.0.1.",
            file=sys.stderr,
        )
    names = ", ".join(name_models(models))

    def say_address(url: str) -> None:
        print(f"Serving {names} at {url}/ (interface: /docs). Ctrl-C stops.", flush=True)

    _allow_many_files()
    with writing_log(sys.stderr, with_requests=log == "requests"):
        run(
            models,
            settings,
            allow_unsigned=allow_unsigned,
            training_pictures=training_pictures,
            on_ready=say_address,
        )
    print("Stopped.", file=sys.stderr)


def _round(value: float) -> int:
    """To the next whole number; -1, which no setting takes, for infinity and what is no number."""
    return round(value) if math.isfinite(value) else -1


def _read_keys(file: Path | None) -> tuple[str, ...]:
    if file is None:
        key = os.environ.get(KEY_VARIABLE)
        return (key,) if key else ()
    try:
        lines = file.read_text("utf-8").splitlines()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise ConfigError(f"--api-key-file {show_path(str(file))} cannot be read: {reason}.") from None
    keys = tuple(line.strip() for line in lines if line.strip())
    if not keys:
        raise ConfigError(f"--api-key-file {show_path(str(file))} holds no key. Expected one a line.")
    return keys


def _allow_many_files() -> None:
    """Each connection takes a file descriptor, and the usual limit is 1,024."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # Windows has no such limit
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = _MANY_FILES if hard == resource.RLIM_INFINITY else min(hard, _MANY_FILES)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
