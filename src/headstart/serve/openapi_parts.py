"""What the descriptions of all routes share: schemas with the models' labels, refusals with their codes, examples."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headstart.serve.app import Server
    from headstart.serve.settings import ServeSettings

EXAMPLE_PICTURE = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR42mNoAAAAggCB2kUIOwAAAABJRU5ErkJggg=="
"""A grey PNG of one pixel in base64."""
_PROBABILITY = {"type": "number", "minimum": 0, "maximum": 1}


@dataclass(frozen=True, slots=True)
class ShownModel:
    """What the document tells of a model."""

    name: str
    version: str
    labels: tuple[str, ...]
    size_px: int | None
    has_familiarity: bool


def show_models(server: Server) -> tuple[ShownModel, ...]:
    """The models served now; a made-up one where API keys guard them, as the document is open to all.

    Raises Refusal 503 while models load.
    """
    server.models.get()
    if server.settings.api_keys:
        return (ShownModel("pets", "1", ("cat", "dog"), 224, True),)
    return tuple(
        ShownModel(
            model.name,
            model.version,
            model.classifier.classes,
            model.classifier.metadata.preprocess.get("input_size_px"),
            model.classifier.metadata.familiarity is not None,
        )
        for model in server.models.models
    )


def list_known(settings: ServeSettings, values: Iterable[str]) -> dict[str, Any]:
    """The schema of a name or label: one of the values, any where API keys guard them."""
    return {"type": "string"} if settings.api_keys else {"type": "string", "enum": [*values]}


def refer(kind: str, name: str) -> dict[str, str]:
    return {"$ref": f"#/components/{kind}/{name}"}


def show_curl(*commands: str) -> dict[str, Any]:
    """The extension under which viewers of OpenAPI look for examples of calls."""
    return {"x-codeSamples": [{"lang": "Shell", "source": command} for command in commands]}


def answer(description: str, schema: str = "", content: dict[str, Any] | None = None) -> dict[str, Any]:
    """A response of JSON by a schema of the components, or of other `content`; with the request's id."""
    return {
        "description": description,
        "headers": {"X-Request-Id": refer("headers", "RequestId")},
        "content": content or {"application/json": {"schema": refer("schemas", schema)}},
    }


def describe_refusals(settings: ServeSettings) -> dict[str, Any]:
    """The answers other than 2xx by status: what each means, its codes, one example."""
    megapixels = f"{settings.max_pixels / 1e6:g} megapixels"
    mebibytes = f"{settings.max_body_bytes / 2**20:g} MB"
    table = {
        "400": ("The request or a picture is malformed or empty", "empty", "the file is empty"),
        "401": ("The API key is missing or wrong", "no-key", "send an API key"),
        "404": ("No such model or route", "unknown-model", "there is no model of this name; there is pets"),
        "408": (
            f"The head took over {settings.head_timeout_s:g} s, or the body over {settings.body_timeout_s:g} s",
            "too-slow-sender",
            f"the body did not arrive within {settings.body_timeout_s:g} s",
        ),
        "413": (
            f"A body over {mebibytes}, too many pictures, or one over {megapixels}",
            "too-many-pixels",
            f"65500 x 65500 (limit {megapixels})",
        ),
        "415": (
            "Not a picture, or a kind that is not read",
            "not-an-image",
            "this is HTML text, not a picture",
        ),
        "422": (
            f"A damaged picture, or one that takes over {settings.predict_timeout_s:g} s to decode",
            "truncated",
            "the file ends early (copy or download it again)",
        ),
        "500": (
            "A fault of the server; its log has the request's id",
            "internal",
            "the server failed; its log says more under this request's id",
        ),
        "503": (
            "The queue is full (the header Retry-After says when to come again), models load, or it is stopping",
            "overloaded",
            "as many pictures are waiting as may; try again",
        ),
    }
    if not settings.api_keys:
        del table["401"]
    found = {}
    for status, (description, code, reason) in table.items():
        example = {"error": f"{code}: {reason}", "code": code}
        content = {"application/json": {"schema": refer("schemas", "Refusal"), "example": example}}
        found[status] = answer(f"{description}.", content=content)
    found["503"]["headers"]["Retry-After"] = {"schema": {"type": "integer", "minimum": 0}}
    return found


def describe_schemas(models: Sequence[ShownModel], settings: ServeSettings) -> dict[str, Any]:
    """The components of requests and answers; labels and model names are those that are served now."""
    first = models[0]
    predicted, *_, last = first.labels
    example = {
        "name": "picture 0",
        "predicted": predicted,
        "probability": 0.97,
        "probabilities": {predicted: 0.97, last: 0.02},
        "familiarity": 0.61 if first.has_familiarity else None,
        "none_of_these": False,
    }
    return {
        "ModelName": list_known(settings, [model.name for model in models]),
        "Label": list_known(settings, sorted({label for model in models for label in model.labels})),
        "Refusal": {
            "type": "object",
            "required": ["error", "code"],
            "properties": {
                "error": {"type": "string", "description": "`<code>: <reason>`, one sentence for people."},
                "code": {"type": "string", "pattern": "^[a-z0-9-]+$", "description": "Stable, for programs."},
            },
        },
        "PicturesAsJson": {
            "type": "object",
            "required": ["pictures"],
            "properties": {
                "pictures": {
                    "type": "array",
                    "minItems": 1,
                    "maxItems": settings.max_pictures,
                    "items": {
                        "type": "string",
                        "contentEncoding": "base64",
                        "format": "base64-picture",
                        "description": "The bytes of a picture file in base64.",
                    },
                }
            },
        },
        "Prediction": {
            "type": "object",
            "required": ["name", "predicted", "probability", "probabilities", "familiarity", "none_of_these"],
            "properties": {
                "name": {"type": "string", "description": "The file name sent with it, else `picture N` from 0."},
                "predicted": refer("schemas", "Label"),
                "probability": {**_PROBABILITY, "description": "Of the predicted class."},
                "probabilities": {
                    "type": "object",
                    "description": "By class, the most probable first; `top` says how many.",
                    "propertyNames": refer("schemas", "Label"),
                    "additionalProperties": _PROBABILITY,
                },
                "familiarity": {
                    "type": ["number", "null"],
                    "minimum": 0,
                    "maximum": 1,
                    "description": (
                        "About the share of unseen pictures of these classes that are less like the training pictures "
                        "than this one; null where the model does not tell it."
                    ),
                },
                "none_of_these": {
                    "type": "boolean",
                    "description": (
                        f"Whether the familiarity is under {settings.unknown_below:g}: the picture may show "
                        "none of the classes."
                    ),
                },
            },
            "example": example,
        },
        "RefusedPicture": {
            "type": "object",
            "required": ["name", "error"],
            "properties": {
                "name": {"type": "string"},
                "error": {
                    "type": "object",
                    "required": ["code", "reason"],
                    "properties": {"code": {"type": "string"}, "reason": {"type": "string"}},
                },
            },
            "example": {"name": "dog.png", "error": {"code": "truncated", "reason": "the file ends early"}},
        },
        "Predictions": {
            "type": "object",
            "required": ["model", "version", "predictions"],
            "properties": {
                "model": refer("schemas", "ModelName"),
                "version": {"type": "string", "description": "Counts up from 1 at each reload of the model's file."},
                "predictions": {
                    "type": "array",
                    "minItems": 1,
                    "items": {"anyOf": [refer("schemas", "Prediction"), refer("schemas", "RefusedPicture")]},
                },
            },
            "example": {"model": first.name, "version": first.version, "predictions": [example]},
        },
        "HeatMap": {
            "type": "object",
            "required": ["model", "version", "class", "probability", "values", "box"],
            "properties": {
                "model": refer("schemas", "ModelName"),
                "version": {"type": "string"},
                "class": refer("schemas", "Label"),
                "probability": _PROBABILITY,
                "values": {
                    "type": "array",
                    "description": "Rows of numbers over the box; above 0 where the picture spoke for the class.",
                    "items": {"type": "array", "items": {"type": "number"}},
                },
                "box": {
                    "type": "array",
                    "description": "What the network saw: top, left, height, width as fractions of the picture.",
                    "minItems": 4,
                    "maxItems": 4,
                    "items": {"type": "number"},
                },
            },
        },
        "Neighbours": {
            "type": "object",
            "required": ["model", "version", "neighbours"],
            "properties": {
                "model": refer("schemas", "ModelName"),
                "version": {"type": "string"},
                "neighbours": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["label", "name", "similarity"],
                        "properties": {
                            "label": {"type": "string"},
                            "name": {"type": "string"},
                            "similarity": {"type": "number"},
                            "thumbnail": {"type": "string", "description": "A data: URL."},
                            "problem": {"type": "string", "description": "Why there is no thumbnail."},
                        },
                    },
                },
            },
        },
        "Health": {"type": "object", "additionalProperties": {"type": "boolean"}, "minProperties": 1},
        "Models": {
            "type": "object",
            "required": ["models"],
            "properties": {"models": {"type": "array", "minItems": 1, "items": refer("schemas", "Model")}},
        },
        "Model": {
            "type": "object",
            "required": ["name", "version", "labels", "input", "has_familiarity"],
            "properties": {
                "name": refer("schemas", "ModelName"),
                "version": {"type": "string"},
                "labels": {"type": "array", "minItems": 2, "items": refer("schemas", "Label")},
                "input": {
                    "type": "object",
                    "properties": {
                        "size_px": {
                            "type": ["integer", "null"],
                            "description": "The side to which pictures are brought; null where the file does not say.",
                        }
                    },
                },
                "has_familiarity": {"type": "boolean", "description": "Whether it tells how familiar a picture is."},
            },
            "example": {
                "name": first.name,
                "version": first.version,
                "labels": list(first.labels[:3]),
                "input": {"size_px": first.size_px},
                "has_familiarity": first.has_familiarity,
            },
        },
    }
