"""What the ledger asks of a validator: hold artefacts, commit to audits, open what was committed.

After each executed block the state is asked what is owed; each duty becomes a task that does the work and sends
the transaction. Nothing that matters is remembered here: after a crash the state still says what is owed, the
work is a pure function, and the salt of a commitment is derived from the account's secret.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import structlog
import trio
from blake3 import blake3

from node.artefacts import Artefacts
from node.directory import Identity
from node.errors import NodeError
from node.fetch import Fetcher
from node.ledger.bodies import AttestCommit, AttestOpen, Body, Held
from node.ledger.entries import (
    INFERENCE,
    OPEN_MAX,
    VALUE_BYTES_MAX,
    ArtefactStatus,
    Inference,
    InferenceStatus,
)
from node.ledger.errors import LedgerError, MalformedError
from node.ledger.fields import from_bytes
from node.ledger.openings import Opening, decode_opening, output_commitment, prompt_commitment
from node.ledger.overlay import StateReader
from node.ledger.queries import artefacts_to_hold, audits_owed
from node.ledger.results import AuditResult, AuditStatus, attestation_commitment, audit_result_hash
from node.ledger.state import get_adapter, get_base, get_inference
from node.ledger.transaction import encode_transaction, sign_transaction
from node.recompute.jobs import WorkerProtocolError
from node.recompute.process import WorkerBusy
from node.storage.blobs import BlobStore

log = structlog.get_logger(__name__)

VALID_HEIGHTS = 60
REST_HEIGHTS_MAX = 32
TASKS_MAX = 256
RESULTS_MAX = 2048

Duty = tuple[str, bytes, int]


@dataclass(slots=True)
class _Records:
    """Inferences as they were last decoded: after each block all open audits are looked at, and few of them changed."""

    _known: dict[bytes, tuple[bytes, Inference]] = field(default_factory=dict)

    def inference(self, reader: StateReader, name: bytes) -> Inference | None:
        """An inference of the state, decoded only where its bytes are not those of the last time."""
        data = reader.get(INFERENCE + name)
        if data is None:
            return None
        known = self._known.pop(name, None)
        if known is None or known[0] != data:
            if len(self._known) >= OPEN_MAX:
                del self._known[next(iter(self._known))]
            known = (data, from_bytes(Inference, data, VALUE_BYTES_MAX))
        self._known[name] = known
        return known[1]


class Duties:
    """One validator's duties. `look` is called after each executed block; `forget` cleans up what was settled."""

    def __init__(
        self,
        identity: Identity,
        chain_id: bytes,
        reader: StateReader,
        blobs: BlobStore,
        fetcher: Fetcher,
        artefacts: Artefacts,
        submit: Callable[[bytes], Awaitable[bytes]],
        start: Callable[..., bool],
    ) -> None:
        self._identity = identity
        self._account = identity.account
        self._chain_id = chain_id
        self._reader = reader
        self._blobs = blobs
        self._fetcher = fetcher
        self._artefacts = artefacts
        self._submit = submit
        self._start = start
        self._height = 0
        self._doing: set[Duty] = set()
        self._sent: dict[Duty, int] = {}
        # Duties that came to nothing: the height from which on to try again, and how many heights that was.
        self._resting: dict[Duty, tuple[int, int]] = {}
        self._results: dict[bytes, AuditResult] = {}
        self._records = _Records()

    def look(self, height: int) -> None:
        """Start a task for every duty owed at the executed `height` that is neither in hand nor sent lately."""
        self._height = height
        self._sent = {duty: until for duty, until in self._sent.items() if until > height}
        owed: dict[Duty, Callable[[Duty], Awaitable[Held | AttestCommit | AttestOpen | None]]] = {}
        for artefact in artefacts_to_hold(self._reader, self._account):
            owed["hold", artefact.artefact, 0] = self._hold
        commits, opens = audits_owed(self._reader, self._account, self._records.inference)
        for audit in commits:
            owed["commit", audit.inference_id, audit.attempt] = self._commit
        for audit in opens:
            owed["open", audit.inference_id, audit.attempt] = self._open
        self._resting = {duty: rest for duty, rest in self._resting.items() if duty in owed}
        for duty, task in owed.items():
            self._begin(duty, task)

    def _begin(
        self, duty: Duty, task: Callable[[Duty], Awaitable[Held | AttestCommit | AttestOpen | None]]
    ) -> None:
        resting = self._resting.get(duty, (0, 0))[0] > self._height
        if duty in self._doing or duty in self._sent or resting or len(self._doing) >= TASKS_MAX:
            return  # the next block asks again
        if self._start(self._do, duty, task):
            self._doing.add(duty)

    async def _do(
        self, duty: Duty, task: Callable[[Duty], Awaitable[Held | AttestCommit | AttestOpen | None]]
    ) -> None:
        try:
            body = await task(duty)
            # Work takes time: what is owed no more would be ordered at the cost of whoever orders it.
            if body is not None and is_owed(self._reader, self._account, body):
                await self._send(duty, body)
        except (LedgerError, NodeError, WorkerBusy, WorkerProtocolError, OSError) as error:
            # Settled meanwhile, or something of this machine's: the state decides at a later block.
            log.info("duty_not_done", duty=duty[0], subject=duty[1].hex(), reason=str(error))
        finally:
            self._doing.discard(duty)
        if duty not in self._sent:
            heights = min(2 * self._resting.get(duty, (0, 0))[1] or 1, REST_HEIGHTS_MAX)
            self._resting[duty] = (self._height + heights, heights)

    async def _send(self, duty: Duty, body: Body) -> None:
        # The same bytes over a restart, so that pools know them again and nobody orders a duty twice.
        until = (self._height // VALID_HEIGHTS + 2) * VALID_HEIGHTS
        transaction = sign_transaction(
            self._identity.account_seed,
            chain_id=self._chain_id,
            nonce=0,
            fee=0,
            valid_until=until,
            body=body,
        )
        await self._submit(encode_transaction(transaction))
        self._sent[duty] = self._height + VALID_HEIGHTS
        log.info("duty_done", duty=duty[0], subject=duty[1].hex())

    # --- the work ---

    async def _hold(self, duty: Duty) -> Held | None:
        """Attest a base that lies here, or an adapter whose published index was rebuilt from this node's own records.

        There is nothing to say of another root: an adapter that too few confirm expires.
        """
        _, artefact, _ = duty
        if get_base(self._reader, artefact) is not None:
            return Held(artefact, b"") if await self._artefacts.holds_base(artefact) else None
        adapter = get_adapter(self._reader, artefact)
        if adapter is None:
            return None
        index_root = await self._artefacts.rebuild_index(artefact, adapter)
        if index_root is None:
            return None
        if index_root != adapter.index_root:
            log.warning(
                "index_root_differs",
                adapter=artefact.hex(),
                published=adapter.index_root.hex(),
                rebuilt=index_root.hex(),
            )
            self._resting[duty] = (self._height, REST_HEIGHTS_MAX)
            return None
        return Held(artefact, index_root)

    async def _commit(self, duty: Duty) -> AttestCommit | None:
        _, inference, attempt = duty
        result = await self._result(inference)
        if result is None:
            return None
        commitment = attestation_commitment(
            inference,
            result.status,
            result.result_hash,
            result.shares,
            self._account,
            self._salt(inference, attempt),
        )
        return AttestCommit(inference, attempt, commitment)

    async def _open(self, duty: Duty) -> AttestOpen | None:
        _, inference, attempt = duty
        result = await self._result(inference)
        if result is None:
            return None
        return AttestOpen(
            inference,
            attempt,
            result.status,
            result.result_hash,
            result.shares,
            self._salt(inference, attempt),
        )

    async def _result(self, inference: bytes) -> AuditResult | None:
        """Recompute an inference, once; None when this machine cannot (nothing is attested then)."""
        known = self._results.get(inference)
        if known is not None:
            return known
        record = get_inference(self._reader, inference)
        if record is None:
            return None
        if not await self._fetcher.blob(record.blob_digest, record.blob_bytes):
            log.warning("opening_missing", inference=inference.hex())
            return None
        result = await self._recompute(record)
        if result is not None:
            if len(self._results) >= RESULTS_MAX:
                del self._results[next(iter(self._results))]
            self._results[inference] = result
        return result

    async def _recompute(self, record: Inference) -> AuditResult | None:
        adapter_id = record.voucher.adapter
        adapter = get_adapter(self._reader, adapter_id)
        if adapter is None:
            return None
        data = await trio.to_thread.run_sync(self._blobs.get, record.blob_digest)
        if data is None:
            return None  # damaged on this disk: this machine's fault, so nothing is said of the provider
        opening = await trio.to_thread.run_sync(opening_of, record, data)
        if opening is None:
            status = AuditStatus.OPENING_INVALID
            return AuditResult(
                status,
                audit_result_hash(adapter.adapter_hash, adapter.index_root, 0, (), (), (), (), status),
                (),
            )
        return await self._artefacts.audit(adapter_id, adapter, record, opening)

    def _salt(self, inference: bytes, attempt: int) -> bytes:
        """32 bytes that only this validator knows, the same after a restart."""
        secret = blake3(
            self._identity.account_seed, derive_key_context="openledger attestation salt v1"
        ).digest()
        salt: bytes = blake3(inference + attempt.to_bytes(8, "big"), key=secret).digest()
        return salt


def is_owed(reader: StateReader, sender: bytes, body: Held | AttestCommit | AttestOpen) -> bool:
    """Whether the ledger would take this duty of this validator now; one that it does not take costs who orders it."""
    if isinstance(body, Held):
        adapter = get_adapter(reader, body.artefact)
        artefact = adapter or get_base(reader, body.artefact)
        root = b"" if adapter is None else adapter.index_root
        return (
            artefact is not None
            and body.index_root == root
            and sender not in artefact.held
            and artefact.status != ArtefactStatus.EXPIRED
        )
    inference = get_inference(reader, body.inference)
    if inference is None or inference.attempt != body.attempt:
        return False
    committed = inference.committed(sender)
    if isinstance(body, AttestCommit):
        return inference.status == InferenceStatus.COMMITTING and committed is None
    opened = inference.opened(sender)
    return (
        inference.status == InferenceStatus.OPENING
        and (opened is None or opened.attempt != body.attempt)
        and committed
        == attestation_commitment(
            body.inference, body.status_code, body.result_hash, body.shares, sender, body.salt
        )
    )


def opening_of(record: Inference, data: bytes) -> Opening | None:
    """The revealed tokens, or None when they are not those that user and provider committed to."""
    try:
        opening = decode_opening(data)
    except MalformedError:
        return None
    agreed = (
        prompt_commitment(opening.prompt_salt, opening.prompt_ids) == record.voucher.prompt_commitment
        and output_commitment(opening.output_salt, opening.output_ids) == record.output_commitment
        and len(opening.prompt_ids) == record.prompt_tokens
        and len(opening.output_ids) == record.output_tokens
    )
    return opening if agreed else None


def forget_opening(blobs: BlobStore, record: Inference) -> None:
    """Remove a revealed opening from disk; a blob of any other kind stays, whatever a provider claimed it to be."""
    data = blobs.get(record.blob_digest)
    if data is not None and opening_of(record, data) is not None:
        blobs.remove(record.blob_digest)
