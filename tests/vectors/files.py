"""What each file of vectors holds."""

from __future__ import annotations

from tests.vectors import attributing, content, ordering, paying, sending
from tests.vectors.notation import Encoding, Json, Vector, render


def hashed() -> dict[str, list[Vector]]:
    """Vectors of hashed and signed kinds, by file."""
    return {
        "consensus.json": ordering.vectors(),
        "transactions.json": paying.transaction_vectors(),
        "ledger.json": paying.vectors(),
        "content.json": content.vectors(),
    }


def encoded() -> list[Encoding]:
    """Everything that is sent or stored in an encoding of its own."""
    return [*sending.encodings(), *paying.encodings(), *content.encodings()]


def derived() -> dict[str, Json]:
    """What follows from several values by a rule."""
    return {**ordering.derived(), **paying.derived(), **content.derived(), **sending.derived()}


def documents() -> dict[str, str]:
    """Text of every file by its name."""
    made: dict[str, Json] = {
        name: {"format": 1, "vectors": [vector.to_json() for vector in vectors]}
        for name, vectors in hashed().items()
    }
    made["encodings.json"] = {"format": 1, "encodings": [encoding.to_json() for encoding in encoded()]}
    made["derived.json"] = {"format": 1, **derived()}
    made["attribution.json"] = attributing.document()
    return {name: render(document) for name, document in made.items()}
