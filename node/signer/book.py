"""What a signer remembers on disk: the safety record, and the certificates and the proposal that belong to it.

One file of two slots, written in turn with fdatasync, each with a checksum: a torn write costs the slot that was about to
be replaced, never the latest whole one. `node.storage.guard` beside it is the second witness: a book restored from a backup
is behind the guard and is refused.

The certificates are here because the safety rules ask for them again: who has voted with a lock must show a certificate of
that round or above to time out. A daemon syncs them before a vote leaves, but after the signer; were power cut on all
machines in between, no validator could ever sign again if the signers knew the lock alone.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from consensus import codec, fields
from consensus.digest import DIGEST_BYTES, digest
from consensus.errors import CodecError
from consensus.safety import RECORD_BYTES_MAX, SafetyRecord, record_from_bytes
from consensus.types import CERTIFICATE_BYTES_MAX, SyncInfo, sync_info_from_obj
from node.home import write_new
from node.storage.errors import DatabaseNotWritable, SafetyRecordUnusable

BOOK_VERSION = 1
SLOT_BYTES = 256 * 1024
SLOTS = 2
_LENGTH_BYTES = 4
_BODY_BYTES_MAX = RECORD_BYTES_MAX + 3 * CERTIFICATE_BYTES_MAX + 1024
_REMEDY = (
    "bring back the signer's home as it was when it last stopped (never a backup), or join with a new key"
)


@dataclass(frozen=True, slots=True)
class Proposal:
    """The last block that was signed as its proposer's: to give the same signature again, and no other."""

    round: int
    block_id: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class Page:
    """Everything a signature depends on.

    Attributes:
        chain_id: 32 bytes.
        public: the validator id it is about.
        record: None before the first signature.
        certificates: the highest QC and TC that signatures rely on, of the record's epoch; None before the first.
        proposal: the last one, of the record's epoch; None before the first.
    """

    chain_id: bytes
    public: bytes
    record: SafetyRecord | None = None
    certificates: SyncInfo | None = None
    proposal: Proposal | None = None


class Book:
    """The open file of one signer. One thread at a time writes."""

    def __init__(self, path: Path) -> None:
        """Read the file; raises SafetyRecordUnusable where it is missing or no slot of it is whole."""
        self.path = path
        try:
            data = path.read_bytes()[: SLOT_BYTES * SLOTS]
        except FileNotFoundError as error:
            raise SafetyRecordUnusable(
                f"{path}, the note of what this key signed, is missing", _REMEDY
            ) from error
        slots = [data[start : start + SLOT_BYTES] for start in range(0, SLOT_BYTES * SLOTS, SLOT_BYTES)]
        whole = [(found[0], index, found[1]) for index, slot in enumerate(slots) if (found := _decode(slot))]
        if not whole:
            raise SafetyRecordUnusable(f"{path} is damaged in both of its copies", _REMEDY)
        self._sequence, self._slot, self.page = max(whole, key=lambda entry: entry[0])

    def write(self, page: Page) -> None:
        """Write and sync; raises DatabaseNotWritable, after which this book must not be used further."""
        slot, sequence = (self._slot + 1) % SLOTS, self._sequence + 1
        data = _encode(sequence, page)
        try:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                written = os.pwrite(descriptor, data, slot * SLOT_BYTES)
                os.fdatasync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise DatabaseNotWritable(self.path, str(error)) from error
        if written != len(data):
            raise DatabaseNotWritable(self.path, f"{written} bytes of {len(data)}")
        self.page, self._slot, self._sequence = page, slot, sequence


def create_book(path: Path, page: Page) -> None:
    """Create the file; raises HomeExists. Its blocks are taken now, so that a full disk shows before there is a key to use."""
    write_new(path, _encode(1, page).ljust(SLOT_BYTES * SLOTS, b"\0"))


def _encode(sequence: int, page: Page) -> bytes:
    info, proposal = page.certificates, page.proposal
    body = codec.encode(
        (
            BOOK_VERSION,
            sequence,
            page.chain_id,
            page.public,
            None if page.record is None else page.record.to_bytes(),
            None if info is None else info.to_obj(),
            None if proposal is None else (proposal.round, proposal.block_id, proposal.signature),
        )
    )
    return len(body).to_bytes(_LENGTH_BYTES, "big") + body + digest("signer-book", body)


def _decode(slot: bytes) -> tuple[int, Page] | None:
    """Return a slot's number and page, or None where it is empty, torn or damaged."""
    length = int.from_bytes(slot[:_LENGTH_BYTES], "big")
    body = slot[_LENGTH_BYTES : _LENGTH_BYTES + length]
    if not body or slot[_LENGTH_BYTES + length :][:DIGEST_BYTES] != digest("signer-book", body):
        return None
    try:
        return _page(fields.array(codec.decode(body, _BODY_BYTES_MAX), 7, "signer's book"))
    except CodecError:
        return None


def _page(items: list[object]) -> tuple[int, Page]:
    version, sequence, chain_id, public, record, info, proposal = items
    if type(version) is not int or version != BOOK_VERSION:
        fields.fail("signer's book: unknown version")
    if record is not None and type(record) is not bytes:
        fields.fail("signer's book: the record is not bytes")
    return fields.uint(sequence, "sequence"), Page(
        fields.hash32(chain_id, "chain id"),
        fields.hash32(public, "public key"),
        None if record is None else record_from_bytes(record),
        None if info is None else sync_info_from_obj(info),
        None if proposal is None else _proposal(proposal),
    )


def _proposal(item: object) -> Proposal:
    round_, block_id, signature = fields.array(item, 3, "proposal")
    return Proposal(
        fields.uint(round_, "round"), fields.hash32(block_id, "block"), fields.signature64(signature)
    )
