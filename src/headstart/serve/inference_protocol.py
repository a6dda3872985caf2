"""The Open Inference Protocol v2 over REST: health, metadata and infer, as tritonclient and KServe's client use it.

Each model is served under two names: M takes encoded pictures, M.pixels one picture that the client has decoded.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

import headstart
from headstart.errors import ImageError
from headstart.image_files import DecodeLimits
from headstart.prediction import Prediction
from headstart.serve.body import LARGE_BODY_BYTES, read_body
from headstart.serve.front_door import FACTS_KEY
from headstart.serve.infer_request import InferRequest, parse_request, read_json_length
from headstart.serve.models import ServedModel
from headstart.serve.refusals import Refusal
from headstart.serve.tensors import BodyError, TensorSpec, WantedOutput, classify, write_response

_PIXELS = ".pixels"
_FILES_INPUT = TensorSpec("image", "BYTES", (-1,))
_PIXELS_INPUT = TensorSpec("image", "UINT8", (-1, -1, 3))
_CLASSIFIED = "probabilities"
_LENGTH_HEADER = "Inference-Header-Content-Length"
_MIN_PACKED_BYTES = 500  # a smaller answer fits into one packet as it is


async def is_live(request: Request) -> Response:
    return _answer({"live": True})


async def is_ready(request: Request) -> Response:
    if not request.app.state.server.is_ready:
        raise Refusal(503, "not-ready", "the classifiers are being loaded", {"Retry-After": "1"})
    return _answer({"live": True, "ready": True})


async def is_model_ready(request: Request) -> Response:
    _find_model(request)
    return _answer({"name": request.path_params["model"], "ready": True})


async def describe_server(request: Request) -> Response:
    extensions = ["binary_tensor_data", "classification"]
    return _answer({"name": "headstart", "version": headstart.__version__, "extensions": extensions})


async def describe_model(request: Request) -> Response:
    model, input = _find_model(request)
    preprocess = model.classifier.metadata.preprocess
    return _answer(
        {
            "name": request.path_params["model"],
            "versions": [model.version],
            "platform": "onnx_onnxv1",
            "inputs": [input.to_json()],
            "outputs": [output.to_json() for output in _list_outputs(model)],
            "parameters": {
                "labels": list(model.classifier.classes),
                "version": model.version,
                "sha256": model.classifier.sha256,
                "input": "encoded picture files, in JSON as base64"
                if input is _FILES_INPUT
                else "one picture, RGB, upright, of any size",
                "input_size_px": preprocess.get("input_size_px"),
                "max_pictures": request.app.state.server.settings.max_pictures if input is _FILES_INPUT else 1,
            },
        }
    )


async def infer(request: Request) -> Response:
    """POST /v2/models/{model}[/versions/{version}]/infer."""
    server = request.app.state.server
    model, input = _find_model(request)
    wanted = await _read_request(request, model, input)
    if input is _FILES_INPUT:
        pictures = wanted.inputs["image"].tolist()
    else:
        pictures = [_check_size(wanted.inputs["image"], server.settings.decode_limits)]
    outcomes = await server.pool.predict(model, pictures)
    facts = request.scope[FACTS_KEY]
    facts |= {"model": model.name, "version": model.version, "pictures": len(pictures)}
    if refused := [outcome.code for outcome in outcomes if isinstance(outcome, ImageError)]:
        facts["refused"] = refused
    predictions = [_require(outcome, index) for index, outcome in enumerate(outcomes)]
    tensors = [(output, _make_output(output, model, predictions)) for output in wanted.outputs]
    about = {"model_name": request.path_params["model"], "model_version": model.version}
    content, json_length = write_response(about if wanted.id is None else {**about, "id": wanted.id}, tensors)
    headers = {} if json_length is None else {_LENGTH_HEADER: str(json_length)}
    content_type = "application/json" if json_length is None else "application/octet-stream"
    if len(content) >= _MIN_PACKED_BYTES and (encoding := _choose_encoding(request)):
        headers["Content-Encoding"] = encoding
        content = gzip.compress(content, mtime=0) if encoding == "gzip" else zlib.compress(content)
    return Response(content, headers=headers, media_type=content_type)


def _answer(value: dict[str, Any]) -> Response:
    return Response(json.dumps(value).encode(), media_type="application/json")


async def _read_request(request: Request, model: ServedModel, input: TensorSpec) -> InferRequest:
    settings = request.app.state.server.settings
    body = await read_body(request, settings.max_body_bytes)

    def parse(json_length: int | None) -> InferRequest:
        outputs, limit = _list_outputs(model), settings.max_pictures
        return parse_request(body, json_length, [input], outputs, classified=_CLASSIFIED, max_elements=limit)

    try:
        json_length = read_json_length(request.headers.getlist(_LENGTH_HEADER), len(body))
        is_large = (len(body) if json_length is None else json_length) >= LARGE_BODY_BYTES
        return await asyncio.to_thread(parse, json_length) if is_large else parse(json_length)
    except BodyError as error:
        raise Refusal(400, "bad-request", str(error)) from None


def _find_model(request: Request) -> tuple[ServedModel, TensorSpec]:
    """The model that the path names, and the input that it has under this name. Raises Refusal 404 or 503."""
    models = request.app.state.server.models
    name, version = request.path_params["model"], request.path_params.get("version")
    if name.endswith(_PIXELS) and all(model.name != name for model in models.models):
        return models.get(name.removesuffix(_PIXELS), version), _PIXELS_INPUT
    return models.get(name, version), _FILES_INPUT


def _list_outputs(model: ServedModel) -> list[TensorSpec]:
    outputs = [
        TensorSpec(_CLASSIFIED, "FP32", (-1, len(model.classifier.classes))),
        TensorSpec("label", "BYTES", (-1,)),
    ]
    has_familiarity = model.classifier.metadata.familiarity is not None
    return [*outputs, TensorSpec("familiarity", "FP32", (-1,))] if has_familiarity else outputs


def _check_size(pixels: np.ndarray, limits: DecodeLimits) -> np.ndarray:
    height, width, _ = pixels.shape
    if height * width > limits.max_pixels or max(height, width) > limits.max_side_px:
        limit = f"{limits.max_pixels / 1e6:g} megapixels and {limits.max_side_px} pixels a side"
        raise Refusal(400, "too-many-pixels", f"image is {width} x {height} (limit {limit})")
    return pixels


def _require(outcome: Prediction | ImageError, index: int) -> Prediction:
    if isinstance(outcome, ImageError):
        raise Refusal(400, outcome.code, f"element {index} of image: {outcome.reason}")
    return outcome


def _make_output(wanted: WantedOutput, model: ServedModel, predictions: list[Prediction]) -> np.ndarray:
    if wanted.name == "label":
        return np.array([prediction.label.encode() for prediction in predictions], object)
    if wanted.name == "familiarity":
        return np.array([prediction.familiarity for prediction in predictions], np.float32)
    probs = np.stack([prediction.probs for prediction in predictions])
    return classify(probs, model.classifier.classes, wanted.num_classes) if wanted.num_classes else probs


def _choose_encoding(request: Request) -> str | None:
    asked = request.headers.get("accept-encoding", "").replace(" ", "").lower().split(",")
    return next((encoding for encoding in ("gzip", "deflate") if encoding in asked), None)


_MODEL = "/v2/models/{model}"
_VERSION = f"{_MODEL}/versions/{{version}}"

routes = [
    Route("/v2", describe_server),
    Route("/v2/", describe_server),
    Route("/v2/health/live", is_live),
    Route("/v2/health/ready", is_ready),
    *(Route(path, describe_model) for path in (_MODEL, _VERSION)),
    *(Route(f"{path}/ready", is_model_ready) for path in (_MODEL, _VERSION)),
    *(Route(f"{path}/infer", infer, methods=["POST"]) for path in (_MODEL, _VERSION)),
]
