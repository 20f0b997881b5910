"""Datanets and contributions."""

from __future__ import annotations

from dataclasses import replace

from node.ledger.block import Receipt
from node.ledger.bodies import ContributionSubmit, DatanetCreate
from node.ledger.entries import CONTRIBUTION, DATANET, DATANET_ENTRY, RECORDS_ROOT, Contribution, Datanet
from node.ledger.environment import Environment
from node.ledger.errors import FailedTransactionError, FailureCode
from node.ledger.order import note_contribution
from node.ledger.overlay import Overlay
from node.ledger.state import get_datanet


def datanet_entry_key(datanet: bytes, number: int) -> bytes:
    """Key of a datanet's contribution by its number, counted from 0 in the order of the ledger."""
    return DATANET_ENTRY + datanet + number.to_bytes(8, "big")


def create_datanet(
    overlay: Overlay, env: Environment, sender: bytes, body: DatanetCreate, tx_hash: bytes
) -> list[Receipt]:
    """Open a datanet named by the transaction's hash."""
    datanet = Datanet(sender, body.name, body.licences, body.description, env.context.height)
    overlay.put_record(DATANET + tx_hash, datanet)
    return []


def submit_contribution(
    overlay: Overlay, env: Environment, sender: bytes, body: ContributionSubmit, tx_hash: bytes
) -> list[Receipt]:
    """Add records to a datanet; exactly the same records a second time are refused, whoever sends them."""
    datanet = get_datanet(overlay, body.datanet)
    if datanet is None:
        raise FailedTransactionError(FailureCode.UNKNOWN_DATANET, datanet=body.datanet)
    if body.licence not in datanet.licences:
        raise FailedTransactionError(FailureCode.LICENCE_NOT_ALLOWED, licence=body.licence)
    same = RECORDS_ROOT + body.datanet + body.records_root
    earlier = overlay.get(same)
    if earlier is not None:
        raise FailedTransactionError(FailureCode.DUPLICATE, contribution=earlier)
    overlay.put(same, tx_hash)
    note_contribution(overlay, tx_hash)
    overlay.put(datanet_entry_key(body.datanet, datanet.contribution_count), tx_hash)
    overlay.put_record(
        CONTRIBUTION + tx_hash,
        Contribution(
            sender,
            body.datanet,
            body.records_root,
            body.record_count,
            body.token_count,
            body.blob_digest,
            body.blob_bytes,
            body.licence,
            env.context.height,
        ),
    )
    overlay.put_record(
        DATANET + body.datanet,
        replace(
            datanet,
            contribution_count=datanet.contribution_count + 1,
            record_count=datanet.record_count + body.record_count,
            token_count=datanet.token_count + body.token_count,
        ),
    )
    return []
