"""JSON-RPC 2.0: from the bytes of a body to the bytes of the answer. No HTTP here.

Departures from the specification (jsonrpc.org/specification), all towards refusing: parameters are named only
(``params`` is an object or absent), JSON with duplicate keys or NaN is a parse error, batches are bounded.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import NoReturn

import structlog

from node.rpc.backend import Backend
from node.rpc.errors import Code, Fault, fault_of
from node.rpc.params import Param, parse_params

_log = structlog.get_logger("rpc")

Arguments = Mapping[str, bytes | int]
_ID_LENGTH_MAX = 256


@dataclass(frozen=True, slots=True)
class Method:
    """One RPC method: name, one line of what it answers, parameters, and the function that answers."""

    name: str
    summary: str
    params: tuple[Param, ...]
    handle: Callable[[Backend, Arguments], Awaitable[object]]


async def answer(
    body: bytes, methods: Mapping[str, Method], backend: Backend, batch_max: int, response_bytes_max: int
) -> bytes | None:
    """Execute the request or batch in ``body`` and return the response's JSON, or None where none is due.

    Requests of a batch run one after another, in order; once their answers exceed ``response_bytes_max`` the rest
    are refused unexecuted. Never raises for anything the client sent.
    """
    try:
        document = _parse(body)
    except Fault as fault:
        return _encode(_error(None, fault))
    if not isinstance(document, list):
        response = await _answer_one(document, methods, backend)
        return None if response is None else _encode(response)
    if not document:
        return error_body(Fault(Code.INVALID_REQUEST, "empty batch", {"expected": "at least one request"}))
    if len(document) > batch_max:
        text = f"at most {batch_max} requests in a batch"
        return error_body(Fault(Code.BATCH_TOO_LONG, text, {"batch_max": batch_max}))
    return await _answer_batch(document, methods, backend, response_bytes_max)


async def _answer_batch(
    requests: list[object], methods: Mapping[str, Method], backend: Backend, response_bytes_max: int
) -> bytes | None:
    overflow = Fault(
        Code.RESPONSE_TOO_LARGE,
        "the batch's answers exceed the limit; ask for less",
        {"bytes_max": response_bytes_max},
    )
    due: list[bytes] = []
    size_bytes = 0
    for request in requests:
        if size_bytes > response_bytes_max:
            response = None if _is_notification(request) else _error(_id_if_readable(request), overflow)
        else:
            response = await _answer_one(request, methods, backend)
        if response is not None:
            due.append(_encode(response))
            size_bytes += len(due[-1])
    return b"[" + b",".join(due) + b"]" if due else None


def error_body(fault: Fault) -> bytes:
    """The response to a request that was refused before its id could be read."""
    return _encode(_error(None, fault))


async def _answer_one(
    request: object, methods: Mapping[str, Method], backend: Backend
) -> dict[str, object] | None:
    try:
        identity, notification, name, given = _check(request)
    except Fault as fault:
        return _error(_id_if_readable(request), fault)
    try:
        result = await _call(name, given, methods, backend)
    except Fault as fault:
        return None if notification else _error(identity, fault)
    return None if notification else {"jsonrpc": "2.0", "id": identity, "result": result}


async def _call(
    name: str, given: Mapping[str, object], methods: Mapping[str, Method], backend: Backend
) -> object:
    method = methods.get(name)
    if method is None:
        raise Fault(
            Code.METHOD_NOT_FOUND, f"no method {name[:64]}", {"method": name[:64], "methods": sorted(methods)}
        )
    arguments = parse_params(method.params, given)
    try:
        return await method.handle(backend, arguments)
    except Exception as error:
        fault = fault_of(error)
        if fault is None:
            # A fault of ours: the client learns that, the operator learns what.
            _log.exception("rpc.method_failed", method=name)
            fault = Fault(Code.INTERNAL_ERROR, "internal error")
        raise fault from error


def _check(request: object) -> tuple[str | int | None, bool, str, Mapping[str, object]]:
    """Return (id, whether it is a notification, method, params) or raise `Fault`."""
    if not isinstance(request, dict):
        raise _invalid("an object")
    if request.get("jsonrpc") != "2.0":
        raise _invalid('"jsonrpc": "2.0"')
    identity = request.get("id")
    if not _is_id(identity):
        raise _invalid(f"an id that is an integer, null, or a string of at most {_ID_LENGTH_MAX} characters")
    name = request.get("method")
    if not isinstance(name, str):
        raise _invalid("a method, a string")
    params = request.get("params", {})
    if not isinstance(params, dict):
        raise Fault(
            Code.INVALID_PARAMS,
            "parameters are named, never positional",
            {"param": "params", "expected": "an object of named parameters"},
        )
    return identity, _is_notification(request), name, params


def _is_notification(request: object) -> bool:
    return isinstance(request, dict) and "id" not in request


def _is_id(identity: object) -> bool:
    if isinstance(identity, str):
        return len(identity) <= _ID_LENGTH_MAX
    return identity is None or (type(identity) is int and abs(identity) < 2**63)


def _id_if_readable(request: object) -> object:
    identity = request.get("id") if isinstance(request, dict) else None
    return identity if _is_id(identity) else None


def _invalid(expected: str) -> Fault:
    return Fault(Code.INVALID_REQUEST, f"invalid request: expected {expected}", {"expected": expected})


def _parse(body: bytes) -> object:
    try:
        return json.loads(
            body.decode("utf-8"), object_pairs_hook=_unique_pairs, parse_constant=_refuse_constant
        )
    except (ValueError, RecursionError) as error:
        expected = "a JSON document in UTF-8, without duplicate keys or NaN"
        raise Fault(Code.PARSE_ERROR, f"parse error: expected {expected}", {"expected": expected}) from error


def _unique_pairs(pairs: list[tuple[str, object]]) -> dict[str, object]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("duplicate key")
    return table


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _error(identity: object, fault: Fault) -> dict[str, object]:
    return {"jsonrpc": "2.0", "id": identity, "error": fault.to_json()}


def _encode(document: object) -> bytes:
    return json.dumps(document, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode("ascii")
