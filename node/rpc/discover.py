"""``rpc.discover``: the OpenRPC document of the method table (spec.open-rpc.org, 1.3.2). Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from node import __version__
from node.rpc.errors import CODES, Code
from node.rpc.protocol import Method
from node.rpc.schemas import Schema, schema_of

OPENRPC_VERSION = "1.3.2"

ANY_METHOD_CODES = (
    Code.INTERNAL_ERROR,
    Code.NOT_READY,
    Code.SERVER_BUSY,
    Code.REQUEST_TIMEOUT,
    Code.RESPONSE_TOO_LARGE,
    Code.RATE_LIMITED,
)
"""What may come back whatever the method; a malformed body, request or batch never reaches one."""


def openrpc_document(methods: Mapping[str, Method]) -> dict[str, Any]:
    """Return the description of ``methods``: parameters and results with JSON Schemas, and errors by reference."""
    schemas: dict[str, Schema] = {}
    described = [_method(method, schemas) for method in methods.values()]
    return {
        "openrpc": OPENRPC_VERSION,
        "info": {
            "title": "OpenLedger node",
            "version": __version__,
            "description": "A peer-to-peer ledger that pays for AI answers to the people whose data shaped them.",
            "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
        },
        "methods": described,
        "components": {"schemas": schemas, "errors": {code.name: _error(code) for code in CODES}},
    }


def method_codes(method: Method) -> tuple[Code, ...]:
    """Every code that a well-formed call of the method may be answered with."""
    return (Code.INVALID_PARAMS, *method.codes, *ANY_METHOD_CODES)


def _method(method: Method, schemas: dict[str, Schema]) -> dict[str, Any]:
    return {
        "name": method.name,
        "summary": method.summary,
        "paramStructure": "by-name",
        "params": [
            {
                "name": param.name,
                "description": param.expected,
                "required": True,
                "schema": dict(param.schema),
            }
            for param in method.params
        ],
        "result": {"name": method.name.replace(".", "_"), "schema": schema_of(method.result, schemas)},
        "errors": [{"$ref": f"#/components/errors/{code.name}"} for code in method_codes(method)],
    }


def _error(code: Code) -> dict[str, Any]:
    info = CODES[code]
    return {
        "code": int(code),
        "message": info.meaning,
        "data": {"type": "object", "required": list(info.data)},
    }
