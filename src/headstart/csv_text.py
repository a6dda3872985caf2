"""Texts for CSV files that read back identical, whatever a path or a class name holds."""

from __future__ import annotations

import re


def escape_text(text: str) -> str:
    """Lone surrogates, which stand for bytes that are not UTF-8, as \\xNN (or \\udNNN for others, on Windows only)."""
    text = re.sub(r"\\(?=x[0-9a-f]{2}|ud[89a-f][0-9a-f]{2})", r"\\x5c", text)
    text = re.sub("[\udc80-\udcff]", lambda match: f"\\x{ord(match[0]) - 0xDC00:02x}", text)
    return re.sub("[\ud800-\udfff]", lambda match: f"\\u{ord(match[0]):04x}", text)


def unescape_text(text: str) -> str:
    def restore(match: re.Match[str]) -> str:
        if match[2]:
            return chr(int(match[2], 16))
        return "\\" if match[1] == "5c" else chr(0xDC00 + int(match[1], 16))

    return re.sub(r"\\x(5c|[89a-f][0-9a-f])|\\u(d[89a-f][0-9a-f]{2})", restore, text)


def quote_field(field: str) -> str:
    """As RFC 4180 asks. The csv module of Python 3.11 leaves a lone carriage return bare, and cannot read it back."""
    return '"' + field.replace('"', '""') + '"' if re.search('[,"\r\n]', field) else field
