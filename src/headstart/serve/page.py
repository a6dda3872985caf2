"""The page at /, with what it asks for besides predictions: heat maps and nearest training pictures."""

from __future__ import annotations

import base64
import hashlib
import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from headstart.decode import decode_image
from headstart.errors import ArtifactError, ConfigError, DataError, ImageError, raise_all
from headstart.image_files import DecodeLimits
from headstart.palette import read_palette
from headstart.serve.body import read_body
from headstart.serve.models import ServedModel
from headstart.serve.predict_route import answer_json
from headstart.serve.refusals import Refusal, refuse_image

if TYPE_CHECKING:
    from headstart.heat_maps import Explainer, HeatMap
    from headstart.serve.neighbours import NearPicture, Neighbours

logger = logging.getLogger(__name__)

_TYPES = {"index.html": "text/html", "page.js": "text/javascript", "page.css": "text/css"}
_MAX_NEIGHBOURS = 20

SAFETY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=(), display-capture=(), usb=()",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
}


@dataclass
class PageState:
    """What the page's routes keep, as `server.page`.

    `neighbours` holds the training pictures by model name, where the server was started with them. An Explainer is a
    second session of the model; one is made for each when its first heat map is asked for.
    """

    neighbours: dict[str, Neighbours] = field(default_factory=dict)
    _explainers: dict[str, tuple[ServedModel, Explainer]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def keep_training_pictures(self, models: Sequence[ServedModel], folder: Path) -> None:
        """Those of each model that was trained on the folder (see `open_neighbours`). Raises DataError for none."""
        from headstart.serve.neighbours import open_neighbours  # loads onnx

        problems = []
        for model in models:
            try:
                self.neighbours[model.name] = open_neighbours(model.classifier, folder)
            except (ConfigError, DataError) as error:
                problems.append(f"{model.name}: {error}")
        if not self.neighbours:
            raise_all(DataError, problems)
        for name, near in self.neighbours.items():
            logger.info("%s: %d training pictures are kept", name, len(near))

    def find_neighbours(self, model: ServedModel) -> Neighbours | None:
        """None also where the file was replaced by one of another network or other classes."""
        known = self.neighbours.get(model.name)
        return known if known is not None and known.fits(model.classifier) else None

    def open_explainer(self, model: ServedModel) -> Explainer:
        """Raises Refusal for a classifier without heat maps."""
        from headstart.heat_maps import Explainer  # loads onnx

        with self._lock:
            made = self._explainers.get(model.name)
            if made is None or made[0] is not model:
                try:
                    made = (model, Explainer(model.classifier.data))
                except (ConfigError, ArtifactError) as error:
                    raise Refusal(404, "no-heat-map", str(error)) from error
                self._explainers[model.name] = made
            return made[1]


def has_heat_maps(model: ServedModel) -> bool:
    """Whether the file says where its maps are, as those that headstart trained do."""
    metadata = model.classifier.metadata
    return bool(metadata.head and metadata.preprocess)


def _make_file_route(path: str, name: str) -> Route:
    content = files("headstart.serve").joinpath("page", name).read_bytes()
    if name.endswith(".css"):
        content = read_palette().encode() + content
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {**SAFETY_HEADERS, "Cache-Control": "no-cache", "ETag": tag}

    async def answer(request: Request) -> Response:
        if tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers, media_type=_TYPES[name])

    return Route(path, answer)


async def describe_page(request: Request) -> Response:
    """GET /page.json: what the page offers, and the limits under which it works."""
    server = request.app.state.server
    server.models.get()  # refuses while the classifiers are being loaded

    def describe(model: ServedModel) -> dict[str, Any]:
        near = server.page.find_neighbours(model)
        return {
            "name": model.name,
            "labels": list(model.classifier.classes),
            "heat_maps": has_heat_maps(model),
            "num_training_pictures": len(near) if near is not None else 0,
        }

    limits = {"body_bytes": server.settings.max_body_bytes, "pixels": server.settings.max_pixels}
    answer = answer_json({"models": [describe(model) for model in server.models.models], "limits": limits})
    answer.headers["Cache-Control"] = "no-store"
    return answer


async def explain(request: Request) -> Response:
    """POST /heat-map and /heat-map/{model}: a picture as raw body, the query `class` by default the likeliest one.

    Answers the grid of `values`, above 0 where the picture spoke for the class, and the `box` that the network saw:
    top, left, height, width as fractions of the upright picture.
    """
    server = request.app.state.server
    model = server.models.get(request.path_params.get("model"))
    if not has_heat_maps(model):
        raise Refusal(404, "no-heat-map", "the file does not say which layers its head takes; headstart's own do")
    label = request.query_params.get("class")
    if label is not None and label not in model.classifier.classes:
        raise Refusal(400, "unknown-class", "the query `class` names no class of this model")
    body = await read_body(request, server.settings.max_body_bytes)

    def compute() -> HeatMap:
        size = model.classifier.metadata.preprocess["input_size_px"]
        pixels = decode_image(body, min_side_px=2 * size, limits=server.settings.decode_limits).pixels
        return server.page.open_explainer(model).explain(pixels, label)

    heat = await _call(server, compute)
    return answer_json(
        {
            "model": model.name,
            "version": model.version,
            "class": heat.label,
            "probability": heat.probability,
            "values": [[round(float(value), 5) for value in row] for row in heat.smoothed],
            "box": [round(float(side), 5) for side in heat.box],
        }
    )


async def find_near(request: Request) -> Response:
    """POST /neighbours and /neighbours/{model}: a picture as raw body; the query `count`, 1 to 20, by default 5."""
    server = request.app.state.server
    model = server.models.get(request.path_params.get("model"))
    count = request.query_params.get("count", "5")
    if not (count.isascii() and count.isdecimal() and len(count) < 3 and 1 <= int(count) <= _MAX_NEIGHBOURS):
        raise Refusal(400, "bad-query", f"count must be a whole number from 1 to {_MAX_NEIGHBOURS}")
    near = server.page.find_neighbours(model)
    if near is None:
        raise Refusal(404, "no-training-pictures", "the server was started without this model's training pictures")
    body = await read_body(request, server.settings.max_body_bytes)
    limits: DecodeLimits = server.settings.decode_limits
    found = await _call(server, lambda: near.find(body, int(count), limits))
    return answer_json(
        {"model": model.name, "version": model.version, "neighbours": [_describe_near(each) for each in found]}
    )


async def _call(server: Any, function: Any) -> Any:
    try:
        return await server.pool.call(function)
    except ImageError as error:
        raise refuse_image(error) from error


def _describe_near(near: NearPicture) -> dict[str, Any]:
    told = {"label": near.label, "name": near.name, "similarity": round(near.similarity, 4)}
    thumbnail = near.thumbnail
    if thumbnail.problem:
        return {**told, "problem": thumbnail.problem}
    kind = "webp" if thumbnail.is_exact else "jpeg"
    return {**told, "thumbnail": f"data:image/{kind};base64,{base64.b64encode(thumbnail.data).decode()}"}


routes = [
    _make_file_route("/", "index.html"),
    _make_file_route("/page.js", "page.js"),
    _make_file_route("/page.css", "page.css"),
    Route("/page.json", describe_page),
    Route("/heat-map", explain, methods=["POST"]),
    Route("/heat-map/{model}", explain, methods=["POST"]),
    Route("/neighbours", find_near, methods=["POST"]),
    Route("/neighbours/{model}", find_near, methods=["POST"]),
]
