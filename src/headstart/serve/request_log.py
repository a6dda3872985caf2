"""One line of JSON for each request, and the ids that connect it with what the caller saw."""

from __future__ import annotations

import re
import secrets

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


def choose_request_id(sent: str | None) -> str:
    """The id that the caller sent, where it is one that cannot harm a log, or a new one."""
    return sent if sent and REQUEST_ID.fullmatch(sent) else secrets.token_hex(8)
