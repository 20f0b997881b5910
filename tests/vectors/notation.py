"""How vectors are written down: JSON in which bytes are ``0x`` and hex, and named fields are objects.

A vector of a hashed kind holds its fields by name, the whole preimage, the digest, and where it is signed the seed, the
public key and the signature. Keys are sorted, so the file says nothing about the order of fields: that is the documents'
to say (docs/formats.md).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from blake3 import blake3

from consensus.codec import encode
from consensus.crypto import public_key, sign

FOLDER = Path(__file__).parent
Json = Any


class VectorMismatch(Exception):
    """What the code computes is not what the fields of a vector give."""


@dataclass(frozen=True, slots=True)
class Vector:
    """One hashed value. `fields` by name in the order of the preimage; `raw` fields are joined, others encoded.

    `found` is what the code under test computed; `signer` a 32-byte seed and `signature` what the code under test made.
    """

    name: str
    kind: str
    chain_id: bytes
    fields: Mapping[str, object]
    found: bytes
    raw: bool = False
    signer: bytes | None = None
    signature: bytes | None = None

    def to_json(self) -> Json:
        """The vector as JSON; raises `VectorMismatch` where fields and digest disagree."""
        data = _joined(self.fields) if self.raw else encode(as_array(self.fields))
        preimage = b"openledger/" + self.kind.encode() + b"/v1\0" + self.chain_id + data
        if blake3(preimage).digest(length=len(self.found)) != self.found:
            raise VectorMismatch(f"{self.name}: the fields do not give the digest {self.found.hex()}")
        made = {
            "name": self.name,
            "kind": self.kind,
            "chain_id": self.chain_id.hex(),
            "fields": to_json(self.fields),
            "preimage": preimage.hex(),
            "digest": self.found.hex(),
        }
        if self.signer is not None and self.signature is not None:
            if sign(self.signer, self.found) != self.signature:
                raise VectorMismatch(f"{self.name}: the signature is not over the digest")
            made |= {
                "seed": self.signer.hex(),
                "public_key": public_key(self.signer).hex(),
                "signature": self.signature.hex(),
            }
        return made


@dataclass(frozen=True, slots=True)
class Encoding:
    """Bytes that are sent or stored without being hashed as they are: a canonical array, or a text in UTF-8."""

    name: str
    value: object
    data: bytes

    def to_json(self) -> Json:
        """The encoding as JSON; raises `VectorMismatch` where value and bytes disagree."""
        data = self.value.encode() if isinstance(self.value, str) else encode(as_array(self.value))
        if data != self.data:
            raise VectorMismatch(f"{self.name}: {data.hex()} is not {self.data.hex()}")
        return {"name": self.name, "value": to_json(self.value), "bytes": self.data.hex()}


def named(value: object) -> Any:
    """A dataclass as its fields by name, all the way down."""
    if isinstance(value, tuple | list):
        return [named(entry) for entry in value]
    if isinstance(value, Enum):
        return value.value
    if dataclasses.is_dataclass(value):
        return {entry.name: named(getattr(value, entry.name)) for entry in dataclasses.fields(value)}
    return value


def as_array(value: object) -> Any:
    """Named fields as the array of their values, all the way down."""
    if isinstance(value, Mapping):
        return [as_array(entry) for entry in value.values()]
    return [as_array(entry) for entry in value] if isinstance(value, tuple | list) else value


def to_json(value: object) -> Json:
    """JSON of a value; raises `VectorMismatch` for a text that would read as bytes."""
    if isinstance(value, bytes):
        return "0x" + value.hex()
    if isinstance(value, str) and value.startswith("0x"):
        raise VectorMismatch(f"a text like bytes: {value}")
    if isinstance(value, Mapping):
        return {name: to_json(entry) for name, entry in value.items()}
    return [to_json(entry) for entry in value] if isinstance(value, tuple | list) else value


def render(document: Json) -> str:
    """The text of a file of vectors: one form only."""
    return json.dumps(document, indent=1, sort_keys=True, ensure_ascii=True) + "\n"


def _joined(fields: Mapping[str, object]) -> bytes:
    parts = list(fields.values())
    if not all(isinstance(part, bytes) for part in parts):
        raise VectorMismatch("only bytes can be joined")
    return b"".join(part for part in parts if isinstance(part, bytes))
