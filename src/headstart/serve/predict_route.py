"""The server's own interface: pictures in, classes out; health and what is served."""

from __future__ import annotations

import json
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from headstart.errors import ImageError
from headstart.prediction import Prediction
from headstart.serve.body import read_body
from headstart.serve.models import ServedModel
from headstart.serve.refusals import Refusal, refuse_image


def answer_json(value: object, status: int = 200) -> Response:
    return Response(json.dumps(value, ensure_ascii=False).encode(), status, media_type="application/json")


async def predict(request: Request) -> Response:
    """POST /predict and /predict/{model}."""
    server = request.app.state.server
    model = server.models.get(request.path_params.get("model"))
    top = read_top(request)
    pictures = [("picture 0", await read_body(request, server.settings.max_body_bytes))]
    outcomes = await server.pool.predict(model, [data for _, data in pictures])
    if all(isinstance(outcome, ImageError) for outcome in outcomes):
        raise refuse_image(outcomes[0])
    rows = [
        describe_outcome(name, outcome, top, server.settings.unknown_below)
        for (name, _), outcome in zip(pictures, outcomes, strict=True)
    ]
    return answer_json({"model": model.name, "version": model.version, "predictions": rows})


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
