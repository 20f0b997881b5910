"""Typed reads of the ledger's state, whose keys and records are in `node.ledger.entries`."""

from __future__ import annotations

from functools import lru_cache
from typing import TypeVar

from consensus.codec import encode_known
from node.ledger.entries import (
    ACCOUNT,
    ADAPTER,
    BASE,
    BATCHES,
    BEACON,
    CONTRIBUTION,
    DATANET,
    DRAWS_KEY,
    HEAD_KEY,
    INFERENCE,
    PARAMS_KEY,
    PROVIDER,
    SEQUENCE,
    SUPPLY_KEY,
    VALIDATORS_KEY,
    VALIDATORS_MAX,
    VALUE_BYTES_MAX,
    Account,
    Adapter,
    BaseModel,
    BatchWindow,
    Contribution,
    Datanet,
    Deadline,
    Deadlines,
    DrawGroup,
    Draws,
    Head,
    Inference,
    Provider,
    Reveal,
    Supply,
    ValidatorSet,
    VoucherSequence,
)
from node.ledger.errors import ExecutionError
from node.ledger.fields import (
    from_bytes,
)
from node.ledger.overlay import Overlay, StateReader, decode_account
from node.ledger.params import Params, decode_params

T = TypeVar("T")

WINDOWS_REMEMBERED_MAX = 2 * VALIDATORS_MAX
_windows: dict[bytes, BatchWindow] = {}
"""Windows by their bytes, as they were written: 256 integers, read again for each batch. Some 3 MB."""


def read(reader: StateReader, key: bytes, cls: type[T]) -> T | None:
    """The record under `key`, or None where there is none."""
    data = reader.get(key)
    return None if data is None else from_bytes(cls, data, VALUE_BYTES_MAX)


def get_account(reader: StateReader, address: bytes) -> Account:
    """An account; one that was never touched has nothing."""
    key = ACCOUNT + address
    if isinstance(reader, Overlay):
        return reader.account(key) or Account()
    data = reader.get(key)
    return Account() if data is None else decode_account(data)


def get_datanet(reader: StateReader, datanet: bytes) -> Datanet | None:
    """A datanet by id."""
    return read(reader, DATANET + datanet, Datanet)


def get_contribution(reader: StateReader, contribution: bytes) -> Contribution | None:
    """A contribution by id."""
    return read(reader, CONTRIBUTION + contribution, Contribution)


def get_base(reader: StateReader, base_hash: bytes) -> BaseModel | None:
    """A base model by content hash."""
    return read(reader, BASE + base_hash, BaseModel)


def get_adapter(reader: StateReader, adapter: bytes) -> Adapter | None:
    """An adapter by id."""
    return read(reader, ADAPTER + adapter, Adapter)


def get_provider(reader: StateReader, account: bytes) -> Provider | None:
    """A provider by account."""
    return read(reader, PROVIDER + account, Provider)


def get_inference(reader: StateReader, inference: bytes) -> Inference | None:
    """An inference by id (`openings.inference_id`)."""
    return read(reader, INFERENCE + inference, Inference)


def get_voucher_sequence(reader: StateReader, user: bytes, provider: bytes) -> int:
    """Highest sequence recorded between these two; 0 before the first."""
    found = read(reader, SEQUENCE + user + provider, VoucherSequence)
    return found.sequence if found else 0


def get_batch_window(reader: StateReader, author: bytes) -> BatchWindow:
    """Which of an author's batches were executed."""
    data = reader.get(BATCHES + author)
    if data is None:
        return BatchWindow()
    return _windows.get(data) or from_bytes(BatchWindow, data, VALUE_BYTES_MAX)


def put_batch_window(overlay: Overlay, author: bytes, window: BatchWindow) -> None:
    """Write which of an author's batches were executed, and remember what these bytes say for its next batch."""
    data = encode_known((window.floor, window.executed))
    if len(_windows) >= WINDOWS_REMEMBERED_MAX:
        _windows.clear()
    _windows[data] = window
    overlay.put(BATCHES + author, data)


def get_reveal(reader: StateReader, consensus_key: bytes) -> Reveal | None:
    """What this validator revealed of its hash chain in executed blocks; None before its first."""
    return read(reader, BEACON + consensus_key, Reveal)


def get_deadlines(reader: StateReader, key: bytes) -> tuple[Deadline, ...]:
    """Entries of one of the two deadline indices."""
    found = read(reader, key, Deadlines)
    return found.entries if found else ()


def get_draws(reader: StateReader) -> tuple[DrawGroup, ...]:
    """Groups of inferences waiting for their draw."""
    found = read(reader, DRAWS_KEY, Draws)
    return found.groups if found else ()


def get_params(reader: StateReader) -> Params:
    """The parameters in force."""
    return decode_params(_required(reader, PARAMS_KEY))


def get_supply(reader: StateReader) -> Supply:
    """Units in existence, burned, and bound."""
    return from_bytes(Supply, _required(reader, SUPPLY_KEY), VALUE_BYTES_MAX)


def get_validators(reader: StateReader) -> ValidatorSet:
    """The validators in force."""
    return _decode_validators(_required(reader, VALIDATORS_KEY))


def get_head(reader: StateReader) -> Head:
    """The last executed block; the genesis has height 0."""
    return from_bytes(Head, _required(reader, HEAD_KEY), VALUE_BYTES_MAX)


@lru_cache(maxsize=8)
def _decode_validators(data: bytes) -> ValidatorSet:
    return from_bytes(ValidatorSet, data, VALUE_BYTES_MAX)


def _required(reader: StateReader, key: bytes) -> bytes:
    data = reader.get(key)
    if data is None:
        raise ExecutionError("the state holds no genesis", key=key)
    return data
