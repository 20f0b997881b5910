"""JSON-RPC 2.0: from the bytes of a body to the bytes of the answer. No HTTP here.

Departures from the specification (jsonrpc.org/specification), all towards refusing: parameters are named only
(``params`` is an object or absent), JSON with duplicate keys or NaN is a parse error, batches are bounded.
"""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import structlog

from node.rpc.backend import Backend
from node.rpc.errors import Code, Fault, fault_of
from node.rpc.params import Param, parse_params

_log = structlog.get_logger("rpc")

_ENCODER = json.JSONEncoder(ensure_ascii=True, allow_nan=False, separators=(",", ":"))

Arguments = Mapping[str, bytes | int]
Observer = Callable[[str, str, float], None]
"""Told of each call: method ("unknown" where there is none of that name), code's name ("OK"), seconds it took."""

_ID_LENGTH_MAX = 256
# A parsed value takes up to fifty times its bytes, so commas and openers are counted before anything is parsed. Those
# inside strings count too; blobs and transactions, the only long strings, are hex.
_VALUES_MAX = 65536
_UNKNOWN = "unknown"
_TOGETHER_MAX = 64
"""Calls of a batch that are answered together, where their method can."""


@dataclass(frozen=True, slots=True)
class Method:
    """One RPC method: name, one line of what it answers, parameters, and the function that answers.

    ``result`` is the annotation of what it answers (one of `node.rpc.shapes`), ``codes`` are the errors of its own. With
    ``handle_many``, calls that follow one another in a batch are answered together: a result or an exception for each.
    """

    name: str
    summary: str
    params: tuple[Param, ...]
    handle: Callable[[Backend, Arguments], Awaitable[object]]
    result: Any
    codes: tuple[Code, ...] = ()
    handle_many: Callable[[Backend, Sequence[Arguments]], Awaitable[Sequence[object]]] | None = None


def _nothing_observed(_method: str, _code: str, _seconds: float) -> None:
    return None


def _nothing_charged(_calls: int) -> None:
    return None


async def answer(
    body: bytes,
    methods: Mapping[str, Method],
    backend: Backend,
    batch_max: int,
    response_bytes_max: int,
    observe: Observer = _nothing_observed,
    charge: Callable[[int], None] = _nothing_charged,
) -> bytes | None:
    """Execute the request or batch in ``body`` and return the response's JSON, or None where none is due.

    Requests of a batch run one after another, in order; once their answers exceed ``response_bytes_max`` the rest
    are refused unexecuted. ``charge`` is told how many calls a batch has beyond its first, before they run. Never raises
    for anything the client sent.
    """
    try:
        document = _parse(body)
    except Fault as fault:
        observe(_UNKNOWN, fault.code.name, 0.0)
        return _encode(_error(None, fault))
    if not isinstance(document, list):
        response = await _answer_one(document, methods, backend, observe)
        return None if response is None else _encode(response)
    if not document:
        observe(_UNKNOWN, Code.INVALID_REQUEST.name, 0.0)
        return error_body(Fault(Code.INVALID_REQUEST, "empty batch", {"expected": "at least one request"}))
    if len(document) > batch_max:
        observe(_UNKNOWN, Code.BATCH_TOO_LONG.name, 0.0)
        text = f"at most {batch_max} requests in a batch"
        return error_body(Fault(Code.BATCH_TOO_LONG, text, {"batch_max": batch_max}))
    charge(len(document) - 1)
    return await _answer_batch(document, methods, backend, response_bytes_max, observe)


async def _answer_batch(
    requests: list[object],
    methods: Mapping[str, Method],
    backend: Backend,
    response_bytes_max: int,
    observe: Observer,
) -> bytes | None:
    overflow = Fault(
        Code.RESPONSE_TOO_LARGE,
        "the batch's answers exceed the limit; ask for less",
        {"bytes_max": response_bytes_max},
    )
    due: list[bytes] = []
    size_bytes = at = 0
    while at < len(requests):
        request, method = requests[at], _method_for_many(requests[at], methods)
        if size_bytes > response_bytes_max:
            responses = [None if _is_notification(request) else _error(_id_if_readable(request), overflow)]
        elif method is None:
            responses = [await _answer_one(request, methods, backend, observe)]
        else:
            end = at + 1
            while end < min(len(requests), at + _TOGETHER_MAX) and method is _method_for_many(
                requests[end], methods
            ):
                end += 1
            responses = await _answer_together(method, requests[at:end], backend, observe)
        at += len(responses)
        if told := [response for response in responses if response is not None]:
            due.append(_encode(told)[1:-1])  # at once: a call of the encoder costs as much as such an answer
            size_bytes += len(due[-1])
    return b"[" + b",".join(due) + b"]" if due else None


def _method_for_many(request: object, methods: Mapping[str, Method]) -> Method | None:
    """The method that a request names, if it answers several calls together."""
    name = request.get("method") if isinstance(request, dict) else None
    method = methods.get(name) if isinstance(name, str) else None
    return None if method is None or method.handle_many is None else method


async def _answer_together(
    method: Method, requests: Sequence[object], backend: Backend, observe: Observer
) -> list[dict[str, object] | None]:
    """Responses to calls of one method, in their order; one that is malformed costs the others nothing."""
    began_s = time.monotonic()
    checked: list[tuple[str | int | None, bool] | None] = []
    outcomes: list[object] = []
    places: list[int] = []
    given: list[Arguments] = []
    for place, request in enumerate(requests):
        try:
            identity, notification, _, params = _check(request)
        except Fault as fault:
            checked.append(None)
            outcomes.append(fault)
            continue
        checked.append((identity, notification))
        try:
            given.append(parse_params(method.params, params))
        except Fault as fault:
            outcomes.append(fault)
        else:
            outcomes.append(None)
            places.append(place)
    for place, outcome in zip(places, await _call_many(method, given, backend), strict=True):
        outcomes[place] = outcome
    seconds = (time.monotonic() - began_s) / len(requests)
    responses: list[dict[str, object] | None] = []
    for request, known, outcome in zip(requests, checked, outcomes, strict=True):
        if isinstance(outcome, Fault):
            label = _UNKNOWN if known is None else method.name
            observe(label, outcome.code.name, seconds)
            response = _error(_id_if_readable(request) if known is None else known[0], outcome)
        else:
            observe(method.name, "OK", seconds)
            response = {"jsonrpc": "2.0", "id": None if known is None else known[0], "result": outcome}
        responses.append(None if known is not None and known[1] else response)
    return responses


async def _call_many(method: Method, given: Sequence[Arguments], backend: Backend) -> list[object]:
    """A result or a `Fault` for each of some calls."""
    if not given or method.handle_many is None:
        return []
    try:
        answers = await method.handle_many(backend, given)
    except Exception as error:
        return [_fault(error, method.name)] * len(given)
    return [_fault(answer, method.name) if isinstance(answer, Exception) else answer for answer in answers]


def error_body(fault: Fault) -> bytes:
    """The response to a request that was refused before its id could be read."""
    return _encode(_error(None, fault))


async def _answer_one(
    request: object, methods: Mapping[str, Method], backend: Backend, observe: Observer
) -> dict[str, object] | None:
    try:
        identity, notification, name, given = _check(request)
    except Fault as fault:
        observe(_UNKNOWN, fault.code.name, 0.0)
        return _error(_id_if_readable(request), fault)
    label = name if name in methods else _UNKNOWN
    began_s = time.monotonic()
    try:
        result = await _call(name, given, methods, backend)
    except Fault as fault:
        observe(label, fault.code.name, time.monotonic() - began_s)
        return None if notification else _error(identity, fault)
    observe(label, "OK", time.monotonic() - began_s)
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
        raise _fault(error, name) from error


def _fault(error: Exception, name: str) -> Fault:
    """What the client is told of an exception in a method."""
    fault = fault_of(error)
    if fault is None:
        # A fault of ours: the client learns that, the operator learns what.
        _log.error("rpc.method_failed", method=name, exc_info=error)
        fault = Fault(Code.INTERNAL_ERROR, "internal error")
    return fault


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
    if sum(body.count(mark) for mark in (b",", b"[", b"{")) > _VALUES_MAX:
        raise _invalid(f"a document of at most {_VALUES_MAX} values")
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
    return _ENCODER.encode(document).encode("ascii")
