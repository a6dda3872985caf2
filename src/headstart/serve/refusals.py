"""Requests that are refused: a status, a stable code and a sentence, always as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping

from starlette.responses import Response

from headstart.errors import ImageError

_STATUS_OF_IMAGE = {
    "empty": 400,
    "not-an-image": 415,
    "unsupported-format": 415,
    "too-many-pixels": 413,
    "too-large": 413,
}


class Refusal(Exception):
    """A request that is answered with an error. `reason` is one sentence for the caller: no paths, no versions."""

    def __init__(self, status: int, code: str, reason: str, headers: Mapping[str, str] | None = None) -> None:
        self.status = status
        self.code = code
        self.reason = reason
        self.headers = dict(headers or {})
        super().__init__(f"{code}: {reason}")

    def to_json(self) -> bytes:
        """`{"error": "<code>: <reason>", "code": "<code>"}`, as every answer but 2xx."""
        return json.dumps({"error": f"{self.code}: {self.reason}", "code": self.code}).encode()

    def to_response(self) -> Response:
        return Response(self.to_json(), self.status, self.headers, media_type="application/json")


def refuse_image(error: ImageError) -> Refusal:
    """What a picture that cannot be used answers as a whole request; damaged ones are 422."""
    return Refusal(_STATUS_OF_IMAGE.get(error.code, 422), error.code, error.reason)
