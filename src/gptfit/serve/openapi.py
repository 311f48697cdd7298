"""What ``/openapi.json`` says of the bodies, which the routes read themselves."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from gptfit import __version__
from gptfit.serve.protocol import ChatRequest, CompletionRequest

REFERENCE = "#/components/schemas/{model}"
ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


def request_body(kind: type[BaseModel]) -> dict[str, Any]:
    """The part of an operation that says what it takes, and how it refuses."""
    schema = {"$ref": REFERENCE.format(model=kind.__name__)}
    return {
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
        "responses": {
            "4XX": {
                "description": "A refusal, in OpenAI's shape",
                "content": {"application/json": {"schema": ERROR}},
            }
        },
    }


def describe(app: FastAPI) -> None:
    """Let the application's document hold the schemas that its routes refer to."""

    def document() -> dict[str, Any]:
        found = get_openapi(title=app.title, version=__version__, routes=app.routes)
        kinds = [(kind, "validation") for kind in (CompletionRequest, ChatRequest)]
        _, schemas = models_json_schema(kinds, ref_template=REFERENCE)  # type: ignore[arg-type]
        found.setdefault("components", {}).setdefault("schemas", {}).update(schemas["$defs"])
        return found

    app.openapi = document  # type: ignore[method-assign]
