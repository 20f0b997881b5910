"""Reports validators that contradict themselves: what consensus proves becomes a transaction, until the ledger has slashed.

Every validator sees much of the same evidence. They report in turn, a few heights apart, so that one transaction is
usually enough; whoever comes later finds the slash in the state and keeps its own to itself.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog

from consensus.errors import CodecError
from consensus.evidence import InvalidEvidence, evidence_from_bytes, verify_evidence
from node.directory import Identity
from node.errors import NodeError
from node.ledger.bodies import EvidenceSubmit
from node.ledger.errors import LedgerError
from node.ledger.evidence import is_punishable
from node.ledger.overlay import StateReader
from node.ledger.state import get_params, get_validators
from node.ledger.transaction import encode_transaction, fee_estimate, sign_transaction

log = structlog.get_logger(__name__)

OFFENCES_MAX = 64
"""Offences in hand; past it further ones are dropped. Each is one validator in one epoch, so more is a broken network."""

VALID_HEIGHTS = 60
RETRY_HEIGHTS = 10
"""After a refusal: an account that cannot pay the fee earns some by proposing."""

TURN_HEIGHTS = 4
"""Heights that each validator leaves to the one whose turn comes before its own."""


@dataclass(slots=True)
class _Offence:
    author: bytes
    epoch: int
    evidence: bytes
    report_height: int


class EvidenceReporter:
    """One validator's reports. `note` takes evidence, `look` is called after each executed block."""

    def __init__(
        self,
        identity: Identity,
        chain_id: bytes,
        reader: StateReader,
        next_nonce: Callable[[bytes], int],
        submit: Callable[[bytes], Awaitable[bytes]],
        start: Callable[..., bool],
    ) -> None:
        """`next_nonce` is the account's at the executed height, `start` runs a small task beside the others."""
        self._identity = identity
        self._chain_id = chain_id
        self._reader = reader
        self._next_nonce = next_nonce
        self._submit = submit
        self._start = start
        self._offences: dict[tuple[bytes, int], _Offence] = {}

    @property
    def waiting(self) -> int:
        """Offences that were proven here and that the ledger has not dealt with."""
        return len(self._offences)

    def note(self, evidence: bytes, height: int) -> None:
        """Keep an offence until it is slashed or too old; further evidence of the same changes nothing."""
        try:
            offence = verify_evidence(self._chain_id, evidence_from_bytes(evidence))
        except (CodecError, InvalidEvidence) as error:
            log.error("evidence_refused", error=str(error))
            return
        key = (offence.author, offence.epoch)
        if key in self._offences or len(self._offences) >= OFFENCES_MAX:
            return
        log.warning(
            "equivocation",
            validator=offence.author.hex(),
            epoch=offence.epoch,
            round=offence.round,
            kind=offence.kind.name.lower(),
        )
        self._offences[key] = _Offence(*key, evidence, height + self._turn(evidence) * TURN_HEIGHTS)
        self.look(height)

    def look(self, height: int) -> None:
        """Report what is due at the executed `height`; drop what the ledger has dealt with, or will not take any more."""
        if not self._offences:
            return
        for author, epoch in list(self._offences):
            if not is_punishable(self._reader, author, epoch):
                del self._offences[author, epoch]
        due = [offence for offence in self._offences.values() if offence.report_height <= height]
        # One at a time: the next one's nonce depends on whether this one is executed.
        if due and self._start(self._report, due[0], height):
            due[0].report_height = height + VALID_HEIGHTS

    def _turn(self, evidence: bytes) -> int:
        """Its place among those that report: another one for each offence."""
        keys = [entry.consensus_key for entry in get_validators(self._reader).validators]
        key = self._identity.consensus_key
        own = keys.index(key) if key in keys else 0
        return (own + evidence[-1]) % len(keys)

    async def _report(self, offence: _Offence, height: int) -> None:
        account = self._identity.account
        body = EvidenceSubmit(offence.evidence)
        try:
            signed = sign_transaction(
                self._identity.account_seed,
                chain_id=self._chain_id,
                nonce=self._next_nonce(account),
                fee=fee_estimate(get_params(self._reader), body),
                valid_until=height + VALID_HEIGHTS,
                body=body,
            )
            name = await self._submit(encode_transaction(signed))
        except (LedgerError, NodeError) as error:
            offence.report_height = height + RETRY_HEIGHTS
            log.warning("evidence_not_reported", validator=offence.author.hex(), error=str(error))
        else:
            log.info("evidence_reported", validator=offence.author.hex(), transaction=name.hex())
