"""The routes of the Open Inference Protocol in the OpenAPI document."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from headstart.serve.openapi_parts import EXAMPLE_PICTURE, ShownModel, answer, list_known, refer, show_curl

if TYPE_CHECKING:
    from headstart.serve.settings import ServeSettings

_MODEL = refer("parameters", "ProtocolModel")
_VERSION = refer("parameters", "Version")


def describe_protocol(models: Sequence[ShownModel], settings: ServeSettings, base_url: str) -> dict[str, Any]:
    """The paths below /v2, each with and without a version."""
    first = models[0].name

    def get(operation_id: str, summary: str, path: str, schema: str, **more: Any) -> dict[str, Any]:
        shown = {"operationId": operation_id, "summary": summary, "tags": ["inference protocol"], **more}
        shown["responses"] = {"200": answer(f"{summary}.", schema)}
        if "parameters" in more:
            shown["responses"]["404"] = refer("responses", "404")
        return {"get": shown | show_curl(f"curl {base_url}{path.format(model=first)}")}

    paths = {
        "/v2": get("protocolServer", "Name, version and extensions of the server", "/v2", "ProtocolServer"),
        "/v2/": get("protocolServerSlash", "The same as /v2", "/v2/", "ProtocolServer"),
        "/v2/health/live": get("protocolLive", "Whether the server runs", "/v2/health/live", "Health"),
        "/v2/health/ready": get("protocolReady", "Whether it takes requests", "/v2/health/ready", "Health"),
    }
    for middle, suffix, parameters in (("", "", [_MODEL]), ("/versions/{version}", "Version", [_MODEL, _VERSION])):
        path = f"/v2/models/{{model}}{middle}"
        called = path.replace("{version}", "1")
        url = base_url + called.format(model=first)
        of_version = " in that version" if suffix else ""
        paths |= {
            path: get(
                f"protocolModel{suffix}",
                f"Inputs and outputs of a model{of_version}",
                called,
                "ProtocolModel",
                parameters=parameters,
            ),
            f"{path}/ready": get(
                f"protocolModelReady{suffix}",
                f"Whether a model{of_version} takes requests",
                f"{called}/ready",
                "ProtocolReady",
                parameters=parameters,
            ),
            f"{path}/infer": {"post": _describe_infer(settings, f"{url}/infer", suffix, parameters)},
        }
    return paths


def _describe_infer(settings: ServeSettings, url: str, suffix: str, parameters: list[dict[str, str]]) -> dict[str, Any]:
    of_version = " in that version" if suffix else ""
    return {
        "operationId": f"protocolInfer{suffix}",
        "summary": f"Infer with a model{of_version}",
        "description": (
            "A model takes encoded picture files (`image` BYTES [N], in JSON as base64); the same model under the name "
            "with `.pixels` takes one decoded RGB picture (`image` UINT8 [height, width, 3]). The count of `data` is "
            "the product of `shape`. With the header `Inference-Header-Content-Length` the body is that many bytes of "
            "JSON and then the tensors that have `binary_data_size` (extension binary_tensor_data); with 0 the body "
            "is one picture. An output with the parameter `classification: k` comes as `value:index:label` of the k "
            f"best classes. Up to {settings.max_pictures} pictures a request. Refused pictures are status 400 "
            "here, with their index."
        ),
        "tags": ["inference protocol"],
        "parameters": [
            *parameters,
            {
                "name": "Inference-Header-Content-Length",
                "in": "header",
                "description": "Length of the JSON at the start of a binary body; 0 for a bare picture.",
                "schema": {"type": "integer", "minimum": 0},
            },
        ],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": refer("schemas", "InferRequest")},
                "application/octet-stream": {"schema": {}},
            },
        },
        "responses": {
            "200": {
                "description": "The outputs. Binary where the request asks for it.",
                "headers": {
                    "X-Request-Id": refer("headers", "RequestId"),
                    "Inference-Header-Content-Length": {
                        "description": "Length of the JSON at the start of a binary answer.",
                        "schema": {"type": "integer", "minimum": 2},
                    },
                },
                "content": {
                    "application/json": {"schema": refer("schemas", "InferAnswer")},
                    "application/octet-stream": {"schema": {}},
                },
            },
            **{status: refer("responses", status) for status in ("404", "408", "413")},
        },
        **show_curl(
            f"curl --data-binary @cat.jpg -H 'Content-Type: application/octet-stream' "
            f"-H 'Inference-Header-Content-Length: 0' \\\n  {url}",
            'echo "{\\"inputs\\": [{\\"name\\": \\"image\\", \\"datatype\\": \\"BYTES\\", \\"shape\\": [1], '
            '\\"data\\": [\\"$(base64 -w0 cat.jpg)\\"]}]}" |\n'
            f"  curl --data-binary @- -H 'Content-Type: application/json' {url}",
        ),
    }


def describe_protocol_parameters(models: Sequence[ShownModel], settings: ServeSettings) -> dict[str, Any]:
    """Components of the paths below /v2."""
    names = [name for model in models for name in (model.name, f"{model.name}.pixels")]
    return {
        "ProtocolModel": {
            "name": "model",
            "in": "path",
            "required": True,
            "description": "A model's name, or that with `.pixels`.",
            "schema": list_known(settings, names),
        },
        "Version": {
            "name": "version",
            "in": "path",
            "required": True,
            "description": "The version that is served; it counts up from 1 at each reload of the model's file.",
            "schema": list_known(settings, sorted({model.version for model in models})),
        },
    }


def describe_protocol_schemas(models: Sequence[ShownModel], settings: ServeSettings) -> dict[str, Any]:
    """Schemas of the paths below /v2."""
    first = models[0]
    outputs = ["label"]
    if all(model.has_familiarity for model in models):
        outputs.append("familiarity")
    shape = {"type": "array", "items": {"type": "integer", "minimum": -1}}
    tensor = {
        "type": "object",
        "required": ["name", "datatype", "shape"],
        "properties": {"name": {"type": "string"}, "datatype": {"type": "string"}, "shape": shape},
    }
    tensors = {"type": "array", "minItems": 1, "items": tensor}
    pictures = settings.max_pictures
    binary_output = {"type": "boolean", "description": "Whether the answer brings it in binary."}
    return {
        "ProtocolServer": {
            "type": "object",
            "required": ["name", "version", "extensions"],
            "properties": {
                "name": {"const": "headstart"},
                "version": {"type": "string"},
                "extensions": {"type": "array", "items": {"type": "string"}},
            },
        },
        "ProtocolReady": {
            "type": "object",
            "required": ["name", "ready"],
            "properties": {"name": {"type": "string"}, "ready": {"type": "boolean"}},
        },
        "ProtocolModel": {
            "type": "object",
            "required": ["name", "versions", "platform", "inputs", "outputs"],
            "properties": {
                "name": {"type": "string"},
                "versions": {"type": "array", "minItems": 1, "items": {"type": "string"}},
                "platform": {"type": "string"},
                "inputs": tensors,
                "outputs": tensors,
            },
        },
        "InferRequest": {
            "type": "object",
            "required": ["inputs"],
            "properties": {
                "id": {"type": "string"},
                "parameters": {"type": "object", "properties": {"binary_data_output": binary_output}},
                "inputs": {
                    "type": "array",
                    "minItems": 1,
                    "maxItems": 1,
                    "items": {"oneOf": [refer("schemas", "InputFiles"), refer("schemas", "InputPixels")]},
                },
                "outputs": {"type": "array", "minItems": 1, "items": refer("schemas", "RequestedOutput")},
            },
            "example": {
                "inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": [EXAMPLE_PICTURE]}],
                "outputs": [{"name": "probabilities", "parameters": {"classification": 2}}],
            },
        },
        "InputFiles": {
            "type": "object",
            "required": ["name", "datatype", "shape", "data"],
            "properties": {
                "name": {"const": "image"},
                "datatype": {"const": "BYTES"},
                "shape": {
                    "type": "array",
                    "minItems": 1,
                    "maxItems": 1,
                    "items": {"type": "integer", "minimum": 1, "maximum": pictures},
                },
                "data": {
                    "type": "array",
                    "minItems": 1,
                    "maxItems": pictures,
                    "items": {"type": "string", "contentEncoding": "base64", "format": "base64-picture"},
                },
            },
        },
        "InputPixels": {
            "type": "object",
            "required": ["name", "datatype", "shape", "data"],
            "properties": {
                "name": {"const": "image"},
                "datatype": {"const": "UINT8"},
                "shape": {
                    "type": "array",
                    "prefixItems": [{"type": "integer", "minimum": 1}, {"type": "integer", "minimum": 1}, {"const": 3}],
                    "minItems": 3,
                    "maxItems": 3,
                },
                "data": {
                    "type": "array",
                    "minItems": 3,
                    "description": "Row by row, flat or nested as the shape.",
                    "items": {"type": "integer", "minimum": 0, "maximum": 255},
                },
            },
        },
        "RequestedOutput": {
            "oneOf": [
                {
                    "type": "object",
                    "required": ["name"],
                    "properties": {
                        "name": {"enum": names},
                        "parameters": {
                            "type": "object",
                            "properties": {"classification": classification, "binary_data": binary_output},
                        },
                    },
                }
                for names, classification in (
                    (["probabilities"], {"type": "integer", "minimum": 1}),
                    (outputs, False),
                )
            ]
        },
        "InferAnswer": {
            "type": "object",
            "required": ["model_name", "outputs"],
            "properties": {
                "model_name": {"type": "string"},
                "model_version": {"type": "string"},
                "id": {"type": "string"},
                "outputs": {"type": "array", "minItems": 1, "items": tensor},
            },
            "example": {
                "model_name": first.name,
                "model_version": first.version,
                "outputs": [{"name": "label", "datatype": "BYTES", "shape": [1], "data": [first.labels[0]]}],
            },
        },
    }
