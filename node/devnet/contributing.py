"""The first half of the story: a datanet, its records, a base, an adapter trained from the ledger's blobs, published."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from node.client import RpcError
from node.devnet.chain import NOT_FOUND, Chain, Signer
from node.devnet.errors import StoryFailed
from node.devnet.report import ContributorView
from node.devnet.script import Script
from node.devnet.timeline import Step
from node.devnet.workshop import Workshop
from node.ledger.bodies import AdapterPublish, BaseRegister, ContributionSubmit, DatanetCreate
from node.ledger.records import decode_records, encode_records, records_root, token_count
from node.rpc import shapes
from node.storage.blobs import blob_digest

DATANET_NAME = "devnet-text"
ADAPTER_NAME = "devnet-adapter"
BASE_NAME = "byte-llama-0.8m"
ACTIVE_SECONDS_MAX = 300.0


@dataclass(frozen=True, slots=True)
class Trained:
    """What the workshop made: the adapter's file, its tensors' hash, the canonical recipe, the index's root."""

    adapter_path: Path
    adapter_hash: bytes
    recipe: bytes
    index_root: bytes


async def create_datanet(chain: Chain, owner: Signer, script: Script) -> bytes:
    """Open the datanet and return its id."""
    body = DatanetCreate(DATANET_NAME, (script.licence,), "text of the story's contributors")
    tx_hash = await chain.send("Contribute", owner, body)
    await chain.executed("Contribute", tx_hash, "datanet")
    return tx_hash


async def contribute(
    chain: Chain, datanet: bytes, script: Script, signers: Mapping[str, Signer], step: Step
) -> tuple[ContributorView, ...]:
    """Everybody stores a blob of records and submits its Merkle root; return once all are on the ledger.

    One after the other: an adapter is trained on them in the order of their commitment.
    """
    views = []
    for name, texts in script.records.items():
        step.progress(f"{name} signs {len(texts)} records")
        records = [list(text.encode()) for text in texts]
        blob = encode_records(records)
        digest = await chain.put_blob(blob)
        body = ContributionSubmit(
            datanet=datanet,
            records_root=records_root(records),
            record_count=len(records),
            token_count=token_count(records),
            blob_digest=digest,
            blob_bytes=len(blob),
            licence=script.licence,
        )
        tx_hash = await chain.send(step.title, signers[name], body)
        await chain.executed(step.title, tx_hash, f"{name}'s contribution")
        address, root = signers[name].address.hex(), body.records_root.hex()
        views.append(ContributorView(name, address, body.record_count, body.token_count, tx_hash.hex(), root))
    return tuple(views)


async def register_base(chain: Chain, owner: Signer, base_hash: bytes, step: Step) -> None:
    """Name the base on the ledger, unless it is there already."""
    if await _base(chain, base_hash) is None:
        tx_hash = await chain.send(step.title, owner, BaseRegister(base_hash, BASE_NAME))
        await chain.executed(step.title, tx_hash, "base")


async def base_held(chain: Chain, base_hash: bytes, step: Step) -> shapes.Base:
    """Wait until validators with more than two thirds of the stake attested that they hold the base."""

    async def fetch() -> shapes.Base | None:
        base = await _base(chain, base_hash)
        if base is not None:
            step.progress(f"{len(base['held'])} validators hold the base")
        return base if base is not None and base["status"] == "active" else None

    return await chain.wait_for(step.title, "base held by > 2/3 of stake", fetch, ACTIVE_SECONDS_MAX)


async def _base(chain: Chain, base_hash: bytes) -> shapes.Base | None:
    try:
        return cast("shapes.Base", await chain.call("base", base_hash=base_hash.hex()))
    except RpcError as error:
        if error.code == NOT_FOUND:
            return None
        raise


async def fetch_records(
    chain: Chain, datanet: bytes, contributors: tuple[ContributorView, ...], work: Path, step: Step
) -> list[Path]:
    """Bring every contribution's blob from the ledger, in the order of contributors' names, and check it.

    The blob must hash to the digest, and its records to the Merkle root, that the ledger names.
    """
    listed = await chain.call("datanet_contributions", id=datanet.hex(), first=0, count=len(contributors))
    on_ledger: dict[str, shapes.Contribution] = {row["id"]: row for row in listed["contributions"]}
    paths = []
    for number, view in enumerate(contributors):
        row = on_ledger.get(view.contribution)
        if row is None:
            raise StoryFailed(step.title, f"the datanet does not list {view.name}'s contribution")
        blob = await chain.get_blob(bytes.fromhex(row["blob_digest"]))
        records = decode_records(blob)
        if (
            blob_digest(blob).hex() != row["blob_digest"]
            or records_root(records).hex() != row["records_root"]
        ):
            raise StoryFailed(step.title, f"{view.name}'s blob is not what the ledger names")
        path = work / f"records-{number:02d}.blob"
        path.write_bytes(blob)
        paths.append(path)
    return paths


async def train(workshop: Workshop, records: list[Path], work: Path, step: Step) -> Trained:
    """Train the adapter and build its index; the same records give the same bytes everywhere."""
    adapter_path = work / "adapter.safetensors"
    made = await workshop.ask(
        "train", step.progress, records=[str(path) for path in records], adapter=str(adapter_path)
    )
    return Trained(
        adapter_path,
        bytes.fromhex(made["adapter_hash"]),
        bytes.fromhex(made["recipe"]),
        bytes.fromhex(made["index_root"]),
    )


async def publish(
    chain: Chain,
    owner: Signer,
    base_hash: bytes,
    contributors: tuple[ContributorView, ...],
    trained: Trained,
    step: Step,
) -> bytes:
    """Put the adapter on the ledger and return its id."""
    data = trained.adapter_path.read_bytes()
    digest = await chain.put_blob(data)
    body = AdapterPublish(
        name=ADAPTER_NAME,
        base_hash=base_hash,
        contributions=tuple(bytes.fromhex(view.contribution) for view in contributors),
        recipe=trained.recipe,
        adapter_hash=trained.adapter_hash,
        blob_digest=digest,
        blob_bytes=len(data),
        index_root=trained.index_root,
    )
    tx_hash = await chain.send(step.title, owner, body)
    await chain.executed(step.title, tx_hash, "adapter")
    return tx_hash


async def adapter_confirmed(chain: Chain, adapter: bytes, validators: int, step: Step) -> shapes.Adapter:
    """Wait until every validator rebuilt the index and confirmed its root; only holders owe audits."""

    async def fetch() -> shapes.Adapter | None:
        found = cast("shapes.Adapter", await chain.call("adapter", id=adapter.hex()))
        step.progress(
            f"{len(found['held'])} of {validators} validators rebuilt the index and got the same root"
        )
        if found["status"] == "expired":
            raise StoryFailed(step.title, "the adapter expired: validators did not confirm its index root")
        return found if found["status"] == "active" and len(found["held"]) == validators else None

    return await chain.wait_for(step.title, "adapter confirmed by every validator", fetch, ACTIVE_SECONDS_MAX)
