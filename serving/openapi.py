"""The OpenAPI document's parts that FastAPI cannot know (bodies are checked by our own strict reader), and `/docs`.

The page is made here, without scripts and without anything from other hosts.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from typing import Any

import msgspec

from serving import schemas

REF = "#/components/schemas/{name}"
_BODIES = (schemas.CampaignIn, schemas.GenerateIn, schemas.GenerateOut, schemas.EventIn, schemas.EventResults)
_PROBLEM = {
    "type": "object",
    "description": "RFC 9457 problem details; one entry in `errors` per refused field",
    "required": ["type", "title", "status", "detail", "errors"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {name: {"type": "string"} for name in ("field", "got", "expected", "fix")},
            },
        },
    },
}


def components() -> dict[str, Any]:
    """JSON Schemas of all bodies, by name."""
    _, found = msgspec.json.schema_components(_BODIES, ref_template=REF)
    return {**found, "Problem": _PROBLEM}


def operation(
    role: str, body: str | None = None, answer: str | None = None, status: int = 200, *refused: int
) -> dict[str, Any]:
    """`openapi_extra` of a route: which schemas its body and its answer have, and which refusals it knows."""
    problem = {"application/problem+json": {"schema": {"$ref": REF.format(name="Problem")}}}
    responses: dict[str, Any] = {str(code): {"description": "refused", "content": problem} for code in refused}
    responses[str(status)] = {"description": "done"}
    if answer is not None:
        responses[str(status)]["content"] = {"application/json": {"schema": {"$ref": REF.format(name=answer)}}}
    extra: dict[str, Any] = {"responses": responses, "x-role": role, "security": [{"key": []}]}
    if body is not None:
        schema = {"$ref": REF.format(name=body)}
        if body == "EventIn":
            schema = {"oneOf": [schema, {"type": "array", "maxItems": schemas.MAX_EVENTS, "items": schema}]}  # type: ignore[dict-item]
        extra["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return extra


def docs_page(document: Mapping[str, Any]) -> str:
    """The OpenAPI document as one plain page."""
    parts: list[str] = []
    for path, operations in document["paths"].items():
        for method, told in operations.items():
            parts.append(f"<section><h2><code>{method.upper()}</code> {html.escape(path)}</h2>")
            parts.append(f"<p>{html.escape(told.get('description') or told.get('summary', ''))}</p>")
            parts.append(f"<p class='role'>role: {html.escape(told.get('x-role', 'reader'))}</p>")
            schema = told.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
            if schema is not None:
                parts.append(f"<p>Body</p><pre>{html.escape(json.dumps(schema, indent=1))}</pre>")
            answers = ", ".join(sorted(told.get("responses", {})))
            parts.append(f"<p>Answers: {html.escape(answers)}</p></section>")
    for name, schema in document["components"]["schemas"].items():
        parts.append(f"<details><summary>{html.escape(name)}</summary>")
        parts.append(f"<pre>{html.escape(json.dumps(schema, indent=1))}</pre></details>")
    title = html.escape(document["info"]["title"])
    return _PAGE.format(style=_STYLE, title=title, parts="".join(parts))


_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color-scheme:light dark}"
    "section{border-top:1px solid #8886;padding:.5rem 0}pre{overflow:auto;background:#8881;padding:.6rem}"
    "h2{font-size:1.1rem}.role{opacity:.7}"
)
_PAGE = (
    "<!doctype html><html lang='en'><head><meta charset='utf-8'><meta name='viewport' content='width=device-width'>"
    "<title>{title}</title><style>{style}</style></head><body><h1>{title}</h1>"
    "<p>The machine-readable form is <a href='/openapi.json'>/openapi.json</a>.</p>{parts}</body></html>"
)
