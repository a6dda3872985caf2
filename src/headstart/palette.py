"""The colours that all pages share: the report, what the server shows, the page for browsers."""

from __future__ import annotations

from importlib.resources import files


def read_palette() -> str:
    """Style rules to stand before a page's own."""
    return files("headstart").joinpath("palette.css").read_text("utf-8")
