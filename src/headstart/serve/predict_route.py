"""The server's own interface: pictures in, classes out; health and what is served."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import multipart  # type: ignore[import-untyped]
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from headstart.errors import ImageError
from headstart.prediction import Prediction
from headstart.serve.body import LARGE_BODY_BYTES, read_body
from headstart.serve.front_door import FACTS_KEY
from headstart.serve.models import ServedModel
from headstart.serve.refusals import Refusal, refuse_image


def answer_json(value: object, status: int = 200) -> Response:
    return Response(json.dumps(value, ensure_ascii=False).encode(), status, media_type="application/json")


async def predict(request: Request) -> Response:
    """POST /predict and /predict/{model}."""
    server = request.app.state.server
    model = server.models.get(request.path_params.get("model"))
    top = read_top(request)
    body = await read_body(request, server.settings.max_body_bytes)
    content_type = request.headers.get("content-type", "")
    # A large form or document takes the event loop too long; raw bytes are taken as they are.
    if len(body) < LARGE_BODY_BYTES or not _is_structured(content_type):
        pictures = parse_pictures(body, content_type, server.settings.max_pictures)
    else:
        pictures = await asyncio.to_thread(parse_pictures, body, content_type, server.settings.max_pictures)
    del body
    outcomes = await server.pool.predict(model, [data for _, data in pictures])
    refused = [outcome for outcome in outcomes if isinstance(outcome, ImageError)]
    request.scope[FACTS_KEY] |= {"model": model.name, "version": model.version, "pictures": len(pictures)}
    if refused:
        request.scope[FACTS_KEY]["refused"] = [error.code for error in refused]
    if len(refused) == len(outcomes):
        raise refuse_image(refused[0])
    rows = [
        describe_outcome(name, outcome, top, server.settings.unknown_below)
        for (name, _), outcome in zip(pictures, outcomes, strict=True)
    ]
    return answer_json({"model": model.name, "version": model.version, "predictions": rows})


def parse_pictures(body: bytes, content_type: str, max_pictures: int) -> list[tuple[str, bytes]]:
    """Names and files of a body: multipart/form-data, JSON `{"pictures": [base64, ...]}`, or one file as it stands.

    Raises Refusal 400 for a body that is not what its type says, 413 for more than `max_pictures`.
    """
    kind, options = multipart.parse_options_header(content_type)
    if kind == "multipart/form-data":
        pictures = _parse_form(body, options.get("boundary", ""), max_pictures)
    elif _is_json(kind):
        pictures = _parse_document(body, max_pictures)
    else:
        return [("picture 0", body)]
    if not pictures:
        raise Refusal(400, "no-picture", "there is no picture in the request")
    return pictures


def _is_structured(content_type: str) -> bool:
    kind = content_type.partition(";")[0].strip().lower()
    return kind == "multipart/form-data" or _is_json(kind)


def _is_json(kind: str) -> bool:
    return kind == "application/json" or kind.endswith("+json")


def _parse_form(body: bytes, boundary: str, max_pictures: int) -> list[tuple[str, bytes]]:
    """The parts that are files; other fields are passed over."""
    pictures: list[tuple[str, bytes]] = []
    parts: list[bytes] = []
    try:
        # Fields beside the pictures may be a few; each part costs time.
        with multipart.PushMultipartParser(
            boundary, len(body), max_segment_count=max_pictures + 16, strict=True
        ) as parser:
            name: str | None = None
            for event in parser.parse(body):
                if isinstance(event, multipart.MultipartSegment):
                    name, parts = event.filename, []
                elif event:
                    parts.append(bytes(event))
                elif name is not None:
                    pictures.append((name or f"picture {len(pictures)}", b"".join(parts)))
                    name = None
    except multipart.ParserLimitReached:
        raise _refuse_many(max_pictures) from None
    except (multipart.MultipartError, ValueError):
        reason = "the body is no complete multipart/form-data with the boundary that Content-Type names"
        raise Refusal(400, "bad-form", reason) from None
    if len(pictures) > max_pictures:
        raise _refuse_many(max_pictures)
    return pictures


def _parse_document(body: bytes, max_pictures: int) -> list[tuple[str, bytes]]:
    expected = 'expected {"pictures": ["<base64 of a file>", ...]}'
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):  # ValueError: also for what is not UTF-8
        raise Refusal(400, "bad-json", f"the body is not JSON; {expected}") from None
    encoded = document.get("pictures") if isinstance(document, dict) else None
    if not isinstance(encoded, list) or not all(isinstance(text, str) for text in encoded):
        raise Refusal(400, "bad-json", expected)
    if len(encoded) > max_pictures:
        raise _refuse_many(max_pictures)
    pictures = []
    for index, text in enumerate(encoded):
        try:
            pictures.append((f"picture {index}", base64.b64decode(text, validate=True)))
        except ValueError:
            raise Refusal(400, "bad-base64", f"picture {index} is not base64; {expected}") from None
    return pictures


def _refuse_many(max_pictures: int) -> Refusal:
    return Refusal(413, "too-many-pictures", f"a request may hold {max_pictures} pictures at most")


def read_top(request: Request) -> int | None:
    """The query `top`: how many classes to give; None for all. Raises Refusal."""
    text = request.query_params.get("top")
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and int(text[:9]) > 0 and len(text) < 10):
        raise Refusal(400, "bad-query", "top must be a whole number above 0")
    return int(text)


def describe_outcome(
    name: str, outcome: Prediction | ImageError, top: int | None, unknown_below: float
) -> dict[str, Any]:
    """One row of the answer."""
    if isinstance(outcome, ImageError):
        return {"name": name, "error": {"code": outcome.code, "reason": outcome.reason}}
    return {
        "name": name,
        "predicted": outcome.label,
        "probability": outcome.probability,
        "probabilities": dict(outcome.get_top(top or len(outcome.classes))),
        "familiarity": outcome.familiarity,
        "none_of_these": outcome.familiarity is not None and outcome.is_unknown(unknown_below),
    }


def describe_model(model: ServedModel) -> dict[str, Any]:
    """A row of GET /models."""
    metadata = model.classifier.metadata
    return {
        "name": model.name,
        "version": model.version,
        "labels": list(model.classifier.classes),
        "input": {"size_px": metadata.preprocess.get("input_size_px")},
        "has_familiarity": metadata.familiarity is not None,
    }


async def list_models(request: Request) -> Response:
    return answer_json({"models": [describe_model(model) for model in request.app.state.server.models.models]})


async def is_live(request: Request) -> Response:
    return answer_json({"live": True})


async def is_ready(request: Request) -> Response:
    ready = request.app.state.server.is_ready
    return answer_json({"ready": ready}, 200 if ready else 503)


routes = [
    Route("/predict", predict, methods=["POST"]),
    Route("/predict/{model}", predict, methods=["POST"]),
    Route("/models", list_models),
    Route("/health/live", is_live),
    Route("/health/ready", is_ready),
]
