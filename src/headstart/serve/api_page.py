"""The OpenAPI document as a page to read: GET /docs. Made on the server, without a script, nothing loaded."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from functools import lru_cache
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup, escape
from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.routing import Route

from headstart.palette import read_palette
from headstart.serve.openapi import build_document, find_base_url
from headstart.serve.openapi_parts import ShownModel, show_models
from headstart.serve.settings import ServeSettings

_LONG_LIST = 30  # more values than these are counted, not listed


@lru_cache(8)
def render_page(models: tuple[ShownModel, ...], settings: ServeSettings, base_url: str) -> tuple[str, str]:
    """The page of the document for these models, and the hash of its style."""
    return render_docs(build_document(models, settings, base_url))


def render_docs(document: dict[str, Any]) -> tuple[str, str]:
    """The page, and the hash of its style as a Content-Security-Policy takes it."""
    template = files("headstart.serve").joinpath("api_page.j2").read_text("utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"prose": _mark_code, "json": _show_json, "kind": _describe_kind}
    style = read_palette() + files("headstart.serve").joinpath("api_page.css").read_text("utf-8")
    page = environment.from_string(template).render(
        document=document,
        components=document["components"],
        groups=_group_operations(document),
        resolve=lambda node: _resolve(document, node),
        style=Markup(style),
    )
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return page, f"sha256-{digest}"


def _group_operations(document: dict[str, Any]) -> list[tuple[dict[str, str], list[tuple[str, str, dict[str, Any]]]]]:
    """Tags, each with its operations as (method, path, operation)."""
    operations = [
        (method.upper(), path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    return [(tag, [each for each in operations if tag["name"] in each[2]["tags"]]) for tag in document["tags"]]


def _resolve(document: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    """What a reference into the components leads to; anything else as it is."""
    if "$ref" not in node:
        return node
    _, _, kind, name = node["$ref"].split("/")
    found: dict[str, Any] = document["components"][kind][name]
    return found


def _mark_code(text: str) -> Markup:
    """Plain text with `code` between backticks."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _show_json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def _describe_kind(schema: dict[str, Any]) -> Markup:
    """A schema in a few words, such as `array of PictureAsJson, 1 to 32`."""
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[1]
        return Markup('<a href="#schema-{0}">{0}</a>').format(name)
    for word in ("anyOf", "oneOf"):
        if word in schema:
            return Markup(" or ").join(_describe_kind(each) for each in schema[word])
    if "const" in schema:
        return _mark_code(f"always `{json.dumps(schema['const'])}`")
    if "enum" in schema:
        values = schema["enum"]
        shown = ", ".join(map(str, values[:_LONG_LIST]))
        return escape(f"one of {shown}" + (f" and {len(values) - _LONG_LIST} more" if len(values) > _LONG_LIST else ""))
    kinds = schema.get("type", "bytes" if not schema else "anything")
    text = escape(" or ".join(kinds) if isinstance(kinds, list) else kinds)
    if kinds == "array" and "items" in schema:
        text += Markup(" of ") + _describe_kind(schema["items"])
    if "contentEncoding" in schema:
        text += escape(f" in {schema['contentEncoding']}")
    low = schema.get("minimum", schema.get("minItems"))
    high = schema.get("maximum", schema.get("maxItems"))
    if high is not None:
        text += escape(f", {low} to {high:,}" if low is not None else f", at most {high:,}")
    elif low is not None:
        text += escape(f", {low} or more")
    return text


async def _send_page(request: Request) -> HTMLResponse:
    server = request.app.state.server
    page, style_hash = render_page(show_models(server), server.settings, find_base_url(request))
    policy = (
        f"default-src 'none'; style-src '{style_hash}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {
        "Content-Security-Policy": policy,
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
    }
    return HTMLResponse(page, headers=headers)


routes = [Route("/docs", _send_page, methods=["GET"])]
