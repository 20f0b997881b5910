"""JSON Schemas of RPC results, made from the annotations of `node.rpc.shapes`. Pure."""

from __future__ import annotations

from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

Schema = dict[str, Any]

SCHEMAS_PATH = "#/components/schemas/"


def schema_of(annotation: Any, components: dict[str, Schema]) -> Schema:
    """Return the schema of one annotation; typed dictionaries go into ``components`` and are referred to by name.

    Knows what the shapes use: str (with a pattern where `Annotated`), int, bool, None, Any, Literal, list, dict by name, unions.
    Raises TypeError for anything else.
    """
    if is_typeddict(annotation):
        name = annotation.__name__
        if name not in components:
            components[name] = {}  # a shape that contains itself would come here again
            components[name] = _object(annotation, components)
        return {"$ref": SCHEMAS_PATH + name}
    if annotation is Any:
        return {}
    plain = _PLAIN.get(annotation)
    if plain is not None:
        return dict(plain)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return {"type": "string", "pattern": arguments[1]}
    if origin is Literal:
        return {"type": "string", "enum": list(arguments)}
    if origin is list:
        return {"type": "array", "items": schema_of(arguments[0], components)}
    if origin is dict and arguments[0] is str:
        return {"type": "object", "additionalProperties": schema_of(arguments[1], components)}
    if origin in (Union, UnionType):
        return {"anyOf": [schema_of(argument, components) for argument in arguments]}
    raise TypeError(f"no JSON Schema for {annotation!r}")


_PLAIN: dict[Any, Schema] = {
    str: {"type": "string"},
    # No result has a negative number: heights, counts, times, nonces, shares.
    int: {"type": "integer", "minimum": 0},
    bool: {"type": "boolean"},
    NoneType: {"type": "null"},
}


def _object(shape: Any, components: dict[str, Schema]) -> Schema:
    members = get_type_hints(shape, include_extras=True)
    return {
        "type": "object",
        "description": " ".join((shape.__doc__ or "").split()),
        "properties": {name: schema_of(annotation, components) for name, annotation in members.items()},
        "required": list(members),
        "additionalProperties": False,
    }
