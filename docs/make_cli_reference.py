"""Write docs/cli.md from the commands themselves: python docs/make_cli_reference.py"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from headstart.cli import app

TARGET = Path(__file__).with_name("cli.md")


def make_reference() -> str:
    """The whole page as Markdown."""
    root = typer.main.get_command(app)
    lines = [
        "# Command line",
        "",
        "Made from the commands by `make docs`; a test fails when it is stale.",
        "",
        "Results go to standard output, progress and messages to standard error. Exit codes: 0 done; 1 no picture",
        "could be predicted, or `verify` found disagreement; 2 something in the input has to be mended; 130 stopped",
        "by Ctrl-C.",
        "",
    ]
    for name, command in _list_commands(root, "headstart"):
        usage = " ".join([name, *(_show_argument(p) for p in command.params if p.param_type_name == "argument")])
        lines += [f"## {name}", "", f"    {usage}", "", *(command.help or "").strip().splitlines(), ""]
        rows = [_describe(p) for p in command.params if p.name != "help"]
        if rows:
            lines += ["| | | default |", "| --- | --- | --- |", *rows, ""]
    return "\n".join(lines)


def _list_commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    for child_name, child in sorted(getattr(command, "commands", {}).items()):
        if hasattr(child, "commands"):
            yield from _list_commands(child, f"{name} {child_name}")
        else:
            yield f"{name} {child_name}", child


def _show_argument(param: Any) -> str:
    name = (param.name or "").upper()
    return f"{name}..." if param.nargs == -1 else name


def _describe(param: Any) -> str:
    is_argument = param.param_type_name == "argument"
    names = _show_argument(param) if is_argument else ", ".join((*param.opts, *param.secondary_opts))
    default = "" if is_argument or param.default in (None, False, (), []) else f"`{param.default}`"
    return f"| `{names}` | {(param.help or '').replace('|', chr(92) + '|')} | {default} |"


if __name__ == "__main__":
    TARGET.write_text(make_reference())
    print(f"wrote {TARGET}")
