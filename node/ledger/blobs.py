"""Which blobs a state and a transaction speak of: what the ledger refers to is kept, everything else may go."""

from __future__ import annotations

from node.ledger.bodies import AdapterPublish, Body, ContributionSubmit, InferenceReveal
from node.ledger.entries import (
    ADAPTER,
    CONTRIBUTION,
    INFERENCE,
    VALUE_BYTES_MAX,
    Adapter,
    ArtefactStatus,
    Contribution,
    Inference,
    InferenceStatus,
)
from node.ledger.erasure import ERASURES, Erasures, remaining_name
from node.ledger.fields import from_bytes

REFERRING = (CONTRIBUTION, ERASURES, ADAPTER, INFERENCE)
"""Prefixes of the keys under which a record may name a blob."""

_UNDER_AUDIT = (InferenceStatus.COMMITTING, InferenceStatus.OPENING)


def blob_referred(key: bytes, value: bytes | None) -> bytes | None:
    """The blob that the record under `key` needs, or None where it needs none or is gone.

    A contribution needs its records for ever, what is left of them once some are erased, an adapter its tensors until it expires, and a call what was revealed of it
    until its audit ends.
    """
    if value is None:
        return None
    if key.startswith(CONTRIBUTION):
        return from_bytes(Contribution, value, VALUE_BYTES_MAX).blob_digest
    if key.startswith(ERASURES):
        erasures = from_bytes(Erasures, value, VALUE_BYTES_MAX)
        return remaining_name(erasures.blob_digest) if erasures.done else None
    if key.startswith(ADAPTER):
        adapter = from_bytes(Adapter, value, VALUE_BYTES_MAX)
        return None if adapter.status == ArtefactStatus.EXPIRED else adapter.blob_digest
    if key.startswith(INFERENCE):
        inference = from_bytes(Inference, value, VALUE_BYTES_MAX)
        return inference.blob_digest if inference.status in _UNDER_AUDIT else None
    return None


def blob_named(body: Body) -> bytes | None:
    """The blob that a transaction will make the ledger refer to, if it names one."""
    return (
        body.blob_digest if isinstance(body, ContributionSubmit | AdapterPublish | InferenceReveal) else None
    )
