"""The second witness of what a validator has signed: a small synced file outside the database.

A database that is restored from a backup, or whose log lost its end unnoticed (a flipped length can look like a torn
tail), brings back an old safety record, and a validator that goes on from it may contradict itself. So each record is
written twice before a signature leaves: first in the database, then here. A record in the database that is behind this
file was rolled back; one that is ahead was written just before a crash, and nothing signed under it had left.

The file is two slots of one page, written in turn, each with a checksum: a torn write costs the slot that was about to
be replaced, never the latest whole one. Both restored together from one backup agree, and this file cannot tell; then
only the network can (`consensus.custody`).
"""

import os
from dataclasses import dataclass
from pathlib import Path

from consensus import codec, fields
from consensus.digest import DIGEST_BYTES, digest
from consensus.errors import CodecError
from consensus.safety import ForeignSignature, SafetyRecord, record_from_bytes
from node.storage.errors import DatabaseNotWritable, SafetyRecordUnusable

GUARD_VERSION = 1
SLOT_BYTES = 4096
SLOTS = 2
_LENGTH_BYTES = 2
_REMEDY = (
    "bring back the database as it was when this daemon last stopped (never a backup), or join with a new key"
)


@dataclass(frozen=True, slots=True)
class Mark:
    """What the latest signature was made under.

    Attributes:
        sequence: number of the write; the slot with the greater one is the latest.
        chain_id: 32 bytes.
        epoch: the record's.
        rounds: last voted, lock, highest timeout, last proposed, last commit vote: none ever falls in an epoch.
        record: digest of the record's bytes; 32 zero bytes before the first.
    """

    sequence: int
    chain_id: bytes
    epoch: int
    rounds: tuple[int, int, int, int, int]
    record: bytes


FOREIGN_KINDS = ("vote", "", "timeout", "proposal", "commit vote")
"""Which of a mark's rounds each kind of signature raises."""

ROUND_NAMES = ("last voted", "lock", "highest timeout", "last proposed", "last commit vote")


def first_mark(chain_id: bytes, epoch: int) -> bytes:
    """Return the bytes of a file for a key that has signed nothing yet."""
    slot = _encode(Mark(1, chain_id, epoch, (0, 0, 0, 0, 0), bytes(DIGEST_BYTES)))
    return slot + bytes(SLOT_BYTES * (SLOTS - 1))


class SafetyGuard:
    """The open guard file of one validator. One thread at a time writes."""

    def __init__(self, path: Path) -> None:
        """Read the file at `path`; raises FileNotFoundError, or SafetyRecordUnusable where no slot is whole."""
        self.path = path
        data = path.read_bytes()[: SLOT_BYTES * SLOTS]
        slots = [data[start : start + SLOT_BYTES] for start in range(0, SLOT_BYTES * SLOTS, SLOT_BYTES)]
        whole = {
            mark.sequence: index for index, slot in enumerate(slots) if (mark := _decode(slot)) is not None
        }
        if not whole:
            raise SafetyRecordUnusable(f"{path} is damaged in both of its copies", _REMEDY)
        self._slot = whole[max(whole)]
        mark = _decode(slots[self._slot])
        if mark is None:
            raise SafetyRecordUnusable(f"{path} is damaged", _REMEDY)
        self.mark = mark

    def check(self, data: bytes | None, problem_of: str) -> None:
        """Raise SafetyRecordUnusable where a record read from `problem_of` is older than the last one noted here."""
        mark = self.mark
        if data is None:
            if mark.record != bytes(DIGEST_BYTES):
                raise SafetyRecordUnusable(f"{problem_of} has lost the safety record", _REMEDY)
            return
        record = record_from_bytes(data)
        rounds = _rounds(record)
        behind = [
            f"{name} {ours} after {theirs}"
            for name, ours, theirs in zip(ROUND_NAMES, rounds, mark.rounds, strict=True)
            if record.epoch == mark.epoch and ours < theirs
        ]
        if record.epoch < mark.epoch or behind:
            raise SafetyRecordUnusable(
                f"the safety record in {problem_of} is older than what this key signed last, as {self.path} says "
                f"({', '.join(behind) or f'epoch {record.epoch} after {mark.epoch}'})",
                _REMEDY,
            )
        if (record.epoch, rounds) == (mark.epoch, mark.rounds) and _digest(data) != mark.record:
            raise SafetyRecordUnusable(
                f"the safety record in {problem_of} and {self.path} tell different stories of the same rounds",
                _REMEDY,
            )

    def note(self, data: bytes) -> None:
        """Write down, and sync, that a signature under this record may leave from now on; raises DatabaseNotWritable."""
        record = record_from_bytes(data)
        self._write(
            Mark(self.mark.sequence + 1, self.mark.chain_id, record.epoch, _rounds(record), _digest(data))
        )

    def note_foreign(self, found: ForeignSignature) -> None:
        """Write down a signature of the key that its record does not know: no record agrees with the file from now on."""
        at = FOREIGN_KINDS.index(found.kind)
        rounds = list(self.mark.rounds)
        rounds[at] = max(rounds[at], found.round)
        first, second, third, fourth, fifth = rounds
        self._write(
            Mark(
                self.mark.sequence + 1,
                self.mark.chain_id,
                self.mark.epoch,
                (first, second, third, fourth, fifth),
                digest("safety-guard-foreign", repr(found).encode()),
            )
        )

    def _write(self, mark: Mark) -> None:
        slot = (self._slot + 1) % SLOTS
        try:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                written = os.pwrite(descriptor, _encode(mark), slot * SLOT_BYTES)
                os.fdatasync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise DatabaseNotWritable(self.path, str(error)) from error
        if written != SLOT_BYTES:
            raise DatabaseNotWritable(self.path, f"{written} bytes of {SLOT_BYTES}")
        self.mark, self._slot = mark, slot


def _rounds(record: SafetyRecord) -> tuple[int, int, int, int, int]:
    commit = 0 if record.last_commit_vote is None else record.last_commit_vote.round
    return (record.last_voted, record.lock, record.highest_timeout, record.last_proposed, commit)


def _digest(data: bytes) -> bytes:
    return digest("safety-record", data)


def _encode(mark: Mark) -> bytes:
    body = codec.encode(
        (GUARD_VERSION, mark.sequence, mark.chain_id, mark.epoch, list(mark.rounds), mark.record)
    )
    slot = len(body).to_bytes(_LENGTH_BYTES, "big") + body + digest("safety-guard", body)
    return slot.ljust(SLOT_BYTES, b"\0")


def _decode(slot: bytes) -> Mark | None:
    """Return a slot's mark, or None where it is empty, torn or damaged."""
    length = int.from_bytes(slot[:_LENGTH_BYTES], "big")
    body = slot[_LENGTH_BYTES : _LENGTH_BYTES + length]
    check = slot[_LENGTH_BYTES + length : _LENGTH_BYTES + length + DIGEST_BYTES]
    if not body or check != digest("safety-guard", body):
        return None
    try:
        version, sequence, chain_id, epoch, rounds, record = fields.array(
            codec.decode(body, SLOT_BYTES), 6, "safety guard"
        )
        first, second, third, fourth, fifth = (
            fields.uint(round_, name)
            for round_, name in zip(
                fields.array(rounds, len(ROUND_NAMES), "rounds"), ROUND_NAMES, strict=True
            )
        )
        if version != GUARD_VERSION:
            return None
        return Mark(
            sequence=fields.uint(sequence, "sequence"),
            chain_id=fields.hash32(chain_id, "chain id"),
            epoch=fields.uint(epoch, "epoch"),
            rounds=(first, second, third, fourth, fifth),
            record=fields.hash32(record, "record"),
        )
    except CodecError:
        return None
