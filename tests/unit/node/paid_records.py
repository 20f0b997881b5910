"""A validator that really recomputes: a world's ledger, blobs on disk, and the worker's engine in this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import trio

from attribution.adapter import Adapter, adapter_to_bytes
from attribution.checkpoint import save_base
from attribution.duplicates import leaders
from attribution.generation import generate
from attribution.index import build_index
from consensus.digest import digest
from node.artefacts import Artefacts
from node.erasing import Eraser
from node.executor import ExecutedBlock
from node.ledger.blobs import REFERRING, blob_referred
from node.ledger.block import BlockOutcome
from node.ledger.bodies import (
    AdapterPublish,
    BaseRegister,
    ContributionSubmit,
    DatanetCreate,
    InferenceRecord,
    ProviderBond,
    RecordsErase,
)
from node.ledger.erased import read_remaining
from node.ledger.erasure import remaining_name
from node.ledger.openings import (
    Opening,
    Voucher,
    inference_id,
    output_commitment,
    prompt_commitment,
    sign_voucher,
)
from node.ledger.records import encode_records, records_root, token_count
from node.ledger.results import AuditResult
from node.ledger.state import get_adapter, get_contribution
from node.recompute.jobs import Job, JobResult
from node.recompute.worker import Engine
from node.storage.blobs import BlobStore
from tests.unit.attribution.index_cases import adapter as random_adapter
from tests.unit.attribution.index_cases import tiny_base
from tests.unit.node.rooms import Room, run
from tests.unit.node_ledger.world import PARAMS, SALT, World, address, seed

if TYPE_CHECKING:
    from node.recompute.process import RecomputeProcess
    from node.storage.chain import ChainStore

Records = Sequence[Sequence[int]]
NEW_TOKENS = 6
PEER = "peer-val0"
FLOORLESS = replace(PARAMS, attribution_floor_ppm=0)


class WorldStore:
    """A world's state as the stored one is read."""

    def __init__(self, world: World) -> None:
        self._world = world

    def get(self, key: bytes) -> bytes | None:
        return self._world.state.get(key)

    def scan_state(self, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        for key in sorted(self._world.state):
            if key.startswith(prefix):
                yield key[len(prefix) :], self._world.state[key]


class EngineWorker:
    """The worker's engine, without its process."""

    def __init__(self) -> None:
        self.engine = Engine("cpu", "auto", 1)
        self.jobs: list[Job] = []

    async def submit(self, job: Job) -> JobResult:
        self.jobs.append(job)
        await trio.lowlevel.checkpoint()
        return self.engine.perform(job)


class PaidRecords:
    """Contributions of real records, an adapter over them, audits of its answers."""

    def __init__(
        self,
        folder: Path,
        contributions: Sequence[tuple[str, Records]],
        beside: PaidRecords | None = None,
    ) -> None:
        """``beside``: another validator of the same chain, which has everything and is asked; this one starts with nothing."""
        self.world: World = World(FLOORLESS) if beside is None else beside.world
        self.room = Room("val0" if beside is None else "val1", folder)
        self.blobs = self.room.blobs
        self.worker = EngineWorker()
        self.store = cast("ChainStore", WorldStore(self.world))
        self.artefacts = Artefacts(
            folder / "artefacts",
            self.blobs,
            self.world.state,
            self.room.fetcher,
            cast("RecomputeProcess", self.worker),
        )
        self.room.sync._index_part = self.artefacts.index_part
        base = tiny_base()
        save_base(base, self.artefacts.base_path(base.hash))
        self._sequence = 0
        if beside is not None:
            self.contributions: list[bytes] = beside.contributions
            self.room.loopback.answers[PEER] = beside.room.sync.answer
            self.eraser = self.new_eraser()
            self.eraser.recall()
            return
        self.datanet = self.world.accept("owner", DatanetCreate("docs", ("MIT",), ""))
        self.world.accept("owner", BaseRegister(base.hash, "tiny"))
        self.world.hold(base.hash, b"")
        self.world.accept("provider", ProviderBond(10 * PARAMS.provider_bond_min, "serves"))
        self.contributions = [self.contribute(name, records) for name, records in contributions]
        self.eraser = self.new_eraser()

    def close(self) -> None:
        self.room.close()

    def new_eraser(self) -> Eraser:
        """As after a restart."""
        return Eraser(self.store, self.blobs, self.artefacts, lambda task, *args: True)

    def contribute(self, name: str, records: Records, datanet: bytes | None = None) -> bytes:
        """A contribution whose blob lies here; returns its id."""
        blob = encode_records(records)
        self.blobs.put(blob)
        body = ContributionSubmit(
            datanet or self.datanet,
            records_root(records),
            len(records),
            token_count(records),
            digest("blob", blob),
            len(blob),
            "MIT",
        )
        return self.world.accept(name, body)

    def publish(self, adapter: Adapter, contributions: Sequence[bytes], records: Records) -> bytes:
        """Publish an adapter over contributions with the root of an index of these records; everybody holds it."""
        data = adapter_to_bytes(adapter)
        root = build_index(tiny_base(), adapter, records, clusters=leaders(records)).root
        body = AdapterPublish(
            "adapter",
            tiny_base().hash,
            tuple(contributions),
            b"\x90",
            adapter.hash,
            self.blobs.put(data),
            len(data),
            root,
        )
        adapter_id = self.world.accept("owner", body)
        assert self.rebuilt(adapter_id) == root
        self.world.hold(adapter_id, root)
        return adapter_id

    def rebuilt(self, adapter_id: bytes) -> bytes | None:
        """The root that this node finds from its own blobs."""
        found: list[bytes | None] = []
        adapter = get_adapter(self.world.state, adapter_id)
        assert adapter is not None

        async def main() -> None:
            found.append(await self.artefacts.rebuild_index(adapter_id, adapter))

        run(main)
        return found[0]

    def ask(self, adapter_id: bytes, adapter: Adapter, prompt: Sequence[int]) -> tuple[bytes, Opening]:
        """Record an honest inference; returns its id and what its provider can open."""
        world, output = self.world, generate(tiny_base(), adapter, prompt, NEW_TOKENS)
        self._sequence += 1
        voucher = Voucher(
            world.chain,
            address("user"),
            address("provider"),
            self._sequence,
            adapter_id,
            prompt_commitment(SALT, prompt),
            NEW_TOKENS,
            10**9,
            world.height + 50,
        )
        signature = sign_voucher(seed("user"), voucher)
        body = InferenceRecord(voucher, signature, output_commitment(SALT, output), len(prompt), len(output))
        world.accept("provider", body)
        return inference_id(voucher), Opening(tuple(prompt), SALT, tuple(output), SALT)

    def audit(self, adapter_id: bytes, asked: tuple[bytes, Opening]) -> AuditResult | None:
        """What this validator would attest."""
        name, opening = asked
        record, adapter = self.world.inference(name), get_adapter(self.world.state, adapter_id)
        assert adapter is not None
        found: list[AuditResult | None] = []

        async def main() -> None:
            found.append(await self.artefacts.audit(adapter_id, adapter, record, opening))

        run(main)
        return found[0]

    def erase(self, name: str, contribution: bytes, *records: int) -> None:
        """Erase records on the ledger, alone."""
        self.world.accept(name, RecordsErase(contribution, records))

    def carry_out(self) -> None:
        """Do what this node does once an erasure is done, to its end."""
        self.eraser.recall()
        run(lambda: self.eraser._work(self.world.height))

    def tell(self, outcome: BlockOutcome) -> None:
        """Tell the eraser of a block, as the daemon does."""
        references = tuple(
            (key, blob_referred(key, value))
            for key, value in outcome.changes.items()
            if key.startswith(REFERRING)
        )
        self.eraser.executed(cast("ExecutedBlock", _Told(references, _Head(outcome.height))))

    def remaining(self, contribution: bytes) -> tuple[tuple[int, ...] | bytes, ...]:
        """Records and hashes of a contribution as this node has them."""
        found = get_contribution(self.world.state, contribution)
        assert found is not None
        data = self.blobs.get(remaining_name(found.blob_digest)) or self.blobs.get(found.blob_digest)
        assert data is not None
        return read_remaining(data, found.records_root)

    def erased(self, contribution: bytes) -> list[bool]:
        """Of each record of a contribution, whether only its hash is left here."""
        return [isinstance(record, bytes) for record in self.remaining(contribution)]

    def on_disk(self, text: bytes) -> bool:
        """Whether these bytes stand in any file of this node's blobs."""
        return any(text in path.read_bytes() for path in self.blobs.folder.rglob("*") if path.is_file())


class _Head:
    def __init__(self, height: int) -> None:
        self.height = height


class _Told:
    def __init__(self, references: tuple[tuple[bytes, bytes | None], ...], head: _Head) -> None:
        self.references = references
        self.head = head


def reopened(blobs: BlobStore) -> BlobStore:
    """The same folder after a restart."""
    return BlobStore(blobs.folder, blobs.bytes_max)


def an_adapter(number: int = 4) -> Adapter:
    """An adapter with random factors: every record has some score."""
    return random_adapter(number)
