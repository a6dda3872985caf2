"""The OpenAPI 3.1 document of the server at hand, with its own limits, models and labels: GET /openapi.json."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

import headstart
from headstart.serve.front_door import OPEN_PATHS
from headstart.serve.openapi_parts import (
    EXAMPLE_PICTURE,
    ShownModel,
    answer,
    describe_refusals,
    describe_schemas,
    refer,
    show_curl,
    show_models,
)
from headstart.serve.openapi_protocol import (
    describe_protocol,
    describe_protocol_parameters,
    describe_protocol_schemas,
)

if TYPE_CHECKING:
    from headstart.serve.settings import ServeSettings

_BASE_URL = re.compile(r"https?://(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]+)(:[0-9]+)?(/[A-Za-z0-9._~/-]*)?")
_MODEL = {"$ref": "#/components/parameters/Model"}
_PICTURE_REFUSALS = ["400", "404", "408", "413", "415", "422"]


def find_base_url(request: Request) -> str:
    """Where this server was reached, without a slash at the end; `http://127.0.0.1:8000` where the Host is odd."""
    base_url = str(request.base_url).rstrip("/")
    return base_url if _BASE_URL.fullmatch(base_url) else "http://127.0.0.1:8000"


@lru_cache(8)
def write_document(models: tuple[ShownModel, ...], settings: ServeSettings, base_url: str) -> bytes:
    """The document as JSON."""
    return json.dumps(build_document(models, settings, base_url), ensure_ascii=False).encode()


def build_document(models: Sequence[ShownModel], settings: ServeSettings, base_url: str) -> dict[str, Any]:
    """The document as JSON values, of the models as `show_models` gives them."""
    paths = {
        **_describe_predicting(models[0].name, settings, base_url),
        **_describe_explaining(base_url),
        **_describe_state(base_url),
        **describe_protocol(models, settings, base_url),
        **_describe_pages(),
    }
    is_guarded = bool(settings.api_keys)
    for path, operations in paths.items():
        for operation in operations.values():
            statuses = ["400", "500", "503"]
            if is_guarded and path in OPEN_PATHS:
                operation["security"] = []
            elif is_guarded:
                statuses.append("401")
            operation["responses"] |= {status: refer("responses", status) for status in statuses}
            operation["responses"] = dict(sorted(operation["responses"].items()))
    components: dict[str, Any] = {
        "schemas": describe_schemas(models, settings) | describe_protocol_schemas(models, settings),
        "responses": describe_refusals(settings),
        "parameters": {
            "Model": {
                "name": "model",
                "in": "path",
                "required": True,
                "description": "Name of a model, as GET /models tells it.",
                "schema": refer("schemas", "ModelName"),
            },
            **describe_protocol_parameters(models, settings),
        },
        "headers": {
            "RequestId": {
                "description": "The id under which the server's log has this request.",
                "schema": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,64}$"},
            }
        },
    }
    document = {
        "openapi": "3.1.0",
        "info": {
            "title": "headstart",
            "version": headstart.__version__,
            "description": (
                "Classifies pictures. Every answer that is not 2xx is JSON "
                '`{"error": "<code>: <reason>", "code": "<code>"}`; the codes are stable. An `X-Request-Id` that a '
                "request brings is sent back, else one is made; the server's log has it."
                + (" Calls need a key: `Authorization: Bearer KEY` or `X-API-Key: KEY`." if is_guarded else "")
            ),
        },
        "servers": [{"url": base_url}],
        "tags": [
            {"name": "pictures", "description": "Send pictures, get classes."},
            {"name": "state", "description": "Which models run, and how the server fares."},
            {"name": "inference protocol", "description": "Open Inference Protocol, version 2, over REST."},
            {"name": "pages", "description": "For people: a page to try the models, and this description."},
        ],
        "paths": paths,
        "components": components,
    }
    if is_guarded:
        components["securitySchemes"] = {
            "Bearer": {"type": "http", "scheme": "bearer"},
            "Header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        }
        document["security"] = [{"Bearer": []}, {"Header": []}]
    return document


def _describe_predicting(first: str, settings: ServeSettings, base_url: str) -> dict[str, Any]:
    top = {
        "name": "top",
        "in": "query",
        "description": "How many classes `probabilities` holds, the most probable first. All of them if left out.",
        "schema": {"type": "integer", "minimum": 1, "maximum": 999_999_999},
    }
    predict: dict[str, Any] = {
        "summary": "Classify pictures",
        "description": (
            f"One picture as the raw body, or up to {settings.max_pictures} as `multipart/form-data` or as JSON. "
            f"A body may hold {settings.max_body_bytes:,} bytes, also after unpacking "
            f"(`Content-Encoding: gzip` or `deflate`); a picture may have {settings.max_pixels:,} pixels. "
            "Each picture gets its own verdict: one that cannot be used has `error` in its place. Where none can be "
            "used, the status is that of the first refusal."
        ),
        "tags": ["pictures"],
        "requestBody": {"required": True, "content": _describe_bodies(settings.max_pictures)},
        "responses": {
            "200": answer("What the model says of each picture, in the order sent.", "Predictions"),
            **{status: refer("responses", status) for status in _PICTURE_REFUSALS},
        },
    }
    curl = [
        f"curl --data-binary @cat.jpg -H 'Content-Type: image/jpeg' '{base_url}/predict?top=3'",
        f"curl -F file=@cat.jpg -F file=@dog.png {base_url}/predict",
        f'echo "{{\\"pictures\\": [\\"$(base64 -w0 cat.jpg)\\"]}}" |\n'
        f"  curl --data-binary @- -H 'Content-Type: application/json' {base_url}/predict",
    ]
    of_model = [f"curl --data-binary @cat.jpg -H 'Content-Type: image/jpeg' {base_url}/predict/{first}"]
    return {
        "/predict": {"post": {**predict, "operationId": "predict", "parameters": [top], **show_curl(*curl)}},
        "/predict/{model}": {
            "post": {
                **predict,
                "operationId": "predictWith",
                "summary": "Classify pictures with the model of that name",
                "description": "As `POST /predict`, which takes the first model.",
                "parameters": [_MODEL, top],
                "responses": {**predict["responses"]},
                **show_curl(*of_model),
            }
        },
    }


def _describe_bodies(max_pictures: int) -> dict[str, Any]:
    raw = {"schema": {}, "description": "The bytes of one picture file."}
    return {
        "image/jpeg": raw,
        "image/png": raw,
        "application/octet-stream": raw,
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file"],
                "properties": {
                    "file": {
                        "type": "array",
                        "minItems": 1,
                        "maxItems": max_pictures,
                        "items": {},
                        "description": "A part for each picture, with a file name; parts may be called otherwise.",
                    }
                },
            }
        },
        "application/json": {
            "schema": refer("schemas", "PicturesAsJson"),
            "example": {"pictures": [EXAMPLE_PICTURE]},
        },
    }


def _describe_explaining(base_url: str) -> dict[str, Any]:
    raw: dict[str, Any] = {"schema": {}}
    body = {"required": True, "content": dict.fromkeys(("image/jpeg", "image/png", "application/octet-stream"), raw)}
    label = {
        "name": "class",
        "in": "query",
        "description": "The class that the map is for; the most probable one if left out.",
        "schema": refer("schemas", "Label"),
    }
    count = {
        "name": "count",
        "in": "query",
        "description": "How many training pictures.",
        "schema": {"type": "integer", "minimum": 1, "maximum": 20, "default": 5},
    }
    paths = {}
    for path, operation_id, summary, description, parameter, schema in (
        (
            "/heat-map",
            "explain",
            "Where a picture speaks for a class",
            "The picture is the raw body. 404 where the model's file does not allow maps.",
            label,
            "HeatMap",
        ),
        (
            "/neighbours",
            "findNeighbours",
            "The nearest training pictures",
            "The picture is the raw body. 404 where the server was started without the model's training pictures.",
            count,
            "Neighbours",
        ),
    ):
        for of_model in (False, True):
            called = path + ("/{model}" if of_model else "")
            paths[called] = {
                "post": {
                    "operationId": operation_id + ("With" if of_model else ""),
                    "summary": summary + (", with the model of that name" if of_model else ""),
                    "description": description,
                    "tags": ["pictures"],
                    "parameters": [_MODEL, parameter] if of_model else [parameter],
                    "requestBody": body,
                    "responses": {
                        "200": answer("What was found.", schema),
                        **{status: refer("responses", status) for status in _PICTURE_REFUSALS},
                    },
                    **({} if of_model else show_curl(f"curl --data-binary @cat.jpg {base_url}{path}")),
                }
            }
    return paths


def _describe_state(base_url: str) -> dict[str, Any]:
    def get(operation_id: str, summary: str, path: str, responses: dict[str, Any]) -> dict[str, Any]:
        shown = {"operationId": operation_id, "summary": summary, "tags": ["state"], "responses": responses}
        return {"get": shown | show_curl(f"curl {base_url}{path}")}

    return {
        "/health/live": get("isLive", "Whether the server runs", "/health/live", {"200": answer("It runs.", "Health")}),
        "/health/ready": get(
            "isReady",
            "Whether it takes requests: 503 while models load and once it is stopping",
            "/health/ready",
            {"200": answer("It takes requests.", "Health")},
        ),
        "/models": get(
            "listModels", "The models, their labels and versions", "/models", {"200": answer("All models.", "Models")}
        ),
        "/metrics": get(
            "readMetrics",
            "Counters and latencies for Prometheus",
            "/metrics",
            {"200": answer("In Prometheus' text format.", content={"text/plain": {"schema": {"type": "string"}}})},
        ),
    }


def _describe_pages() -> dict[str, Any]:
    def get(path: str, operation_id: str, summary: str, media_type: str) -> dict[str, Any]:
        schema: dict[str, Any] = {"type": "object"} if media_type == "application/json" else {"type": "string"}
        responses = {"200": answer(summary + ".", content={media_type: {"schema": schema}})}
        if path in ("/", "/page.js", "/page.css"):
            responses["304"] = {"description": "As the ETag in `If-None-Match` says, nothing has changed."}
        return {"get": {"operationId": operation_id, "summary": summary, "tags": ["pages"], "responses": responses}}

    return {
        "/": get("/", "openPage", "The page to try the models", "text/html"),
        "/page.js": get("/page.js", "readPageScript", "The page's script", "text/javascript"),
        "/page.css": get("/page.css", "readPageStyle", "The page's style", "text/css"),
        "/page.json": get("/page.json", "readPageFacts", "What the page offers", "application/json"),
        "/docs": get("/docs", "readDocs", "This description as a page", "text/html"),
        "/openapi.json": get("/openapi.json", "readOpenApi", "This description as OpenAPI 3.1", "application/json"),
    }


async def _send_document(request: Request) -> Response:
    server = request.app.state.server
    document = write_document(show_models(server), server.settings, find_base_url(request))
    return Response(document, media_type="application/json")


routes = [Route("/openapi.json", _send_document, methods=["GET"])]
