"""Ledger records and backend views as the JSON shapes of `node.rpc.shapes`. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from enum import IntEnum

from node.ledger import entries, overlay, stakes, state
from node.ledger.block import Receipt
from node.ledger.entries import InferenceStatus
from node.ledger.epochs import consensus_set
from node.ledger.erasure import Erasures, erased_records, get_erasures, remaining_name
from node.ledger.openings import Voucher
from node.ledger.order import contribution_number
from node.ledger.params import Params
from node.ledger.results import AuditStatus
from node.rpc import shapes
from node.rpc.backend import BlockView, NodeStatus, TransactionView
from node.spans.shelf import Found

_AMOUNT_PARAMS = ("fee_", "inference_fee_min", "provider_bond_min", "stake_min")
_DRAWN_LATER = frozenset({InferenceStatus.RECORDED})


def status_view(status: NodeStatus) -> shapes.Status:
    """``status``."""
    peers: list[shapes.Peer] = [
        {"peer_id": peer.peer_id, "address": peer.address, "validator": peer.validator}
        for peer in status.peers
    ]
    return {
        "version": status.version,
        "chain_id": status.chain_id.hex(),
        "moniker": status.moniker,
        "peer_id": status.peer_id,
        "validator": status.validator,
        "consensus_key": None if status.consensus_key is None else status.consensus_key.hex(),
        "height": status.height,
        "height_committed": status.height_committed,
        "round": status.round,
        "epoch": status.epoch,
        "state_digest": status.state_digest.hex(),
        "syncing": status.syncing,
        "ready": status.ready,
        "not_ready_reason": status.not_ready_reason,
        "mempool_transactions": status.mempool_transactions,
        "peers": peers,
    }


def block_view(block: BlockView) -> shapes.Block:
    """``block``."""
    return {
        "height": block.height,
        "block_hash": block.block_hash.hex(),
        "parent_hash": block.parent_hash.hex(),
        "epoch": block.epoch,
        "round": block.round,
        "proposer": block.proposer.hex(),
        "timestamp_ms": block.timestamp_ms,
        "height_executed": block.height_executed,
        "state_digest_executed": block.state_digest_executed.hex(),
        "receipts_root": block.receipts_root.hex(),
        "state_digest": block.state_digest.hex(),
        "transactions": [transaction_view(transaction) for transaction in block.transactions],
        "events": [_event(receipt) for receipt in block.events],
    }


def block_event(block: BlockView) -> shapes.BlockEvent:
    """``/events``: a block."""
    return {
        "height": block.height,
        "block_hash": block.block_hash.hex(),
        "state_digest": block.state_digest.hex(),
        "proposer": block.proposer.hex(),
        "round": block.round,
        "timestamp_ms": block.timestamp_ms,
        "transaction_count": len(block.transactions),
        "receipt_count": len(block.events),
    }


def transaction_event(view: TransactionView, height: int) -> shapes.TransactionEvent:
    """``/events``: a transaction of an executed block."""
    return {
        "height": height,
        "tx_hash": view.tx_hash.hex(),
        "kind": view.kind,
        "sender": view.sender.hex() or None,
        "nonce": view.nonce,
        "status": view.outcome or "invalid",
        "code": view.code,
        "fee": str(view.fee),
    }


def receipt_event(receipt: Receipt, height: int) -> shapes.ReceiptEvent:
    """``/events``: a step of the ledger's own."""
    return {
        "height": height,
        "subject": receipt.subject.hex(),
        "status": receipt.code,
        "payouts": _payouts(receipt.payouts),
        "burned": str(receipt.burned),
    }


def transaction_view(view: TransactionView) -> shapes.Transaction:
    """``tx``. Bytes that do not decode (a validator may have batched them) show as kind "" without a sender."""
    return {
        "tx_hash": view.tx_hash.hex(),
        "state": view.status,
        "status": view.outcome,
        "height": view.height,
        "code": view.code,
        "message": view.message,
        "fee": str(view.fee),
        "kind": view.kind,
        "sender": view.sender.hex() or None,
        "nonce": view.nonce,
        "raw": view.raw.hex(),
    }


def account_view(address: bytes, account: entries.Account, nonce_next: int) -> shapes.Account:
    """``account``."""
    return {
        "address": address.hex(),
        "balance": str(account.balance),
        "nonce": account.nonce,
        "nonce_next": nonce_next,
    }


def validators_view(validators: entries.ValidatorSet, epoch: int) -> shapes.Validators:
    """``validators``."""
    return {
        "epoch": epoch,
        "set_hash": consensus_set(validators, epoch).hash.hex(),
        "seed": validators.seed.hex(),
        "stake_total": str(validators.stake_total),
        "validators": [
            {
                "consensus_key": entry.consensus_key.hex(),
                "account": entry.account.hex(),
                "peer_id": entry.peer_id,
                "stake": str(entry.stake),
                "beacon_anchor": entry.beacon_anchor.hex(),
                "leader_weight": str(entry.leader_weight),
            }
            for entry in validators.validators
        ],
    }


def epoch_view(
    epoch: stakes.Epoch, frozen: entries.ValidatorSet | None, candidates: Sequence[bytes]
) -> shapes.Epoch:
    """``epoch``; `frozen` is the next set."""
    return {
        "number": epoch.number,
        "start_height": epoch.start_height,
        "start_ms": epoch.start_ms,
        "frozen_height": epoch.frozen_height or None,
        "next_set_hash": consensus_set(frozen, epoch.number + 1).hash.hex() if frozen else None,
        "next_validators": [entry.account.hex() for entry in frozen.validators] if frozen else [],
        "candidates": _hexes(candidates),
        "slashed": _hexes(epoch.slashed),
    }


def stake_view(address: bytes, stake: stakes.Stake | None) -> shapes.Stake:
    """``stake``."""
    return {"address": address.hex(), "registration": None if stake is None else _registration(stake)}


def _registration(stake: stakes.Stake) -> shapes.Registration:
    return {
        "consensus_key": stake.consensus_key.hex(),
        "peer_id": stake.peer_id,
        "beacon_anchor": stake.beacon_anchor.hex(),
        "anchor_spent": bool(stake.anchor_spent),
        "bonded": str(stake.bonded),
        "leaving": bool(stake.leaving),
        "jailed_height": stake.jailed_height if stake.jailed else None,
        "slashed": str(stake.slashed),
        "unbonding": [{"epoch": entry.epoch, "amount": str(entry.amount)} for entry in stake.unbondings],
    }


def contribution_view(
    reader: overlay.StateReader, identity: bytes, contribution: entries.Contribution
) -> shapes.Contribution:
    """``contribution``."""
    erasures = get_erasures(reader, identity)
    left = erasures is not None and bool(erasures.done)
    return {
        "id": identity.hex(),
        "contributor": contribution.contributor.hex(),
        "datanet": contribution.datanet.hex(),
        "records_root": contribution.records_root.hex(),
        "record_count": contribution.record_count,
        "token_count": contribution.token_count,
        "blob_digest": contribution.blob_digest.hex(),
        "blob_bytes": contribution.blob_bytes,
        "licence": contribution.licence,
        "height": contribution.height,
        "number": contribution_number(reader, identity) or 0,
        "erased": sum(len(entry.records) for entry in erasures.entries) if erasures else 0,
        "blob_remaining": remaining_name(contribution.blob_digest).hex() if left else None,
    }


def erasures_view(identity: bytes, erasures: Erasures | None) -> shapes.Erasures:
    """``erasures``; None where nothing was erased."""
    return {
        "contribution": identity.hex(),
        "erasures": [
            {
                "height": entry.height,
                "done_height": entry.done_height or None,
                "records": list(entry.records),
            }
            for entry in (erasures.entries if erasures else ())
        ],
    }


def datanet_view(
    identity: bytes, datanet: entries.Datanet, contributions: list[shapes.Contribution]
) -> shapes.Datanet:
    """``datanet``."""
    return {
        "id": identity.hex(),
        "creator": datanet.creator.hex(),
        "name": datanet.name,
        "licences": list(datanet.licences),
        "description": datanet.description,
        "height": datanet.height,
        "contribution_count": datanet.contribution_count,
        "record_count": datanet.record_count,
        "token_count": datanet.token_count,
        "contributions": contributions,
    }


def spans_view(
    reader: overlay.StateReader, tokens: int, found: Sequence[Found], first: int, count: int
) -> shapes.Spans:
    """A page of the spans found in some datanets, all in one order."""
    rows = [(span, named, one.datanet) for one in found for span, named in one.spans]
    rows.sort(key=lambda row: (-row[0].surprise, row[0].occurrences, row[0].start, row[2]))
    return {
        "tokens": tokens,
        "searched": [
            {
                "datanet": one.datanet.hex(),
                "contributions": one.contributions,
                "contribution_count": known.contribution_count if known else 0,
            }
            for one in found
            for known in (state.get_datanet(reader, one.datanet),)
        ],
        "span_count": len(rows),
        "first": first,
        "spans": [
            {
                "datanet": datanet.hex(),
                "start": span.start,
                "length": span.length,
                "occurrences": span.occurrences,
                "records": span.records,
                "surprise": max(span.surprise, 0),
                "places": [
                    {
                        "contribution": entry.contribution.hex(),
                        "contributor": entry.contributor.hex(),
                        "record": place.record - entry.first,
                        "offset": place.offset,
                    }
                    for place, entry in zip(span.places, named, strict=True)
                ],
            }
            for span, named, datanet in rows[first : first + count]
        ],
    }


def base_view(base_hash: bytes, base: entries.BaseModel, validators: entries.ValidatorSet) -> shapes.Base:
    """``base``."""
    return {
        "base_hash": base_hash.hex(),
        "status": _name(entries.ArtefactStatus, base.status),
        "registrant": base.registrant.hex(),
        "name": base.name,
        "height": base.height,
        "held": _hexes(base.held),
        "held_stake": str(validators.stake_of(frozenset(base.held))),
        "stake_total": str(validators.stake_total),
    }


def adapter_view(reader: overlay.StateReader, identity: bytes, adapter: entries.Adapter) -> shapes.Adapter:
    """``adapter``."""
    validators = state.get_validators(reader)
    erased = (len(erased_records(reader, name, since=adapter.height)) for name in adapter.contributions)
    return {
        "id": identity.hex(),
        "status": _name(entries.ArtefactStatus, adapter.status),
        "owner": adapter.owner.hex(),
        "name": adapter.name,
        "base_hash": adapter.base_hash.hex(),
        "contributions": _hexes(adapter.contributions),
        "recipe": adapter.recipe.hex(),
        "adapter_hash": adapter.adapter_hash.hex(),
        "blob_digest": adapter.blob_digest.hex(),
        "blob_bytes": adapter.blob_bytes,
        "index_root": adapter.index_root.hex(),
        "trained_on_erased": sum(erased),
        "height": adapter.height,
        "held": _hexes(adapter.held),
        "held_stake": str(validators.stake_of(frozenset(adapter.held))),
        "stake_total": str(validators.stake_total),
    }


def provider_view(address: bytes, provider: entries.Provider) -> shapes.Provider:
    """``provider``."""
    return {
        "address": address.hex(),
        "name": provider.name,
        "bond": str(provider.bond),
        "in_flight": provider.in_flight,
        "recorded": provider.recorded,
        "slashed": str(provider.slashed),
    }


def receipt_view(identity: bytes, inference: entries.Inference) -> shapes.Receipt:
    """``receipt``: an inference from its record to its settlement."""
    result = inference.result
    return {
        "inference": identity.hex(),
        "status": _name(InferenceStatus, inference.status),
        "audited": _audited(inference),
        "height": inference.height,
        "timestamp_ms": inference.timestamp_ms,
        "voucher": _voucher(inference.voucher),
        "output_commitment": inference.output_commitment.hex(),
        "prompt_tokens": inference.prompt_tokens,
        "output_tokens": inference.output_tokens,
        "drawn_height": inference.drawn_height,
        "deadline_height": inference.deadline_height,
        "deadline_ms": inference.deadline_ms,
        "blob_digest": inference.blob_digest.hex() or None,
        "attempt": inference.attempt,
        "committed": [account.hex() for account, _ in inference.commitments],
        "attesters": [
            {
                "account": opened.account.hex(),
                "attempt": opened.attempt,
                "status": _name(AuditStatus, inference.results[opened.result].status),
                "result_hash": inference.results[opened.result].result_hash.hex(),
            }
            for opened in inference.openings
        ],
        "result_status": None if result is None else _name(AuditStatus, result.status),
        "result_hash": None if result is None else result.result_hash.hex(),
        "shares": [
            {"address": address.hex(), "share": share} for address, share in (result.shares if result else ())
        ],
        "payouts": _payouts(inference.payouts),
        "burned": str(inference.burned),
        "bond_burned": str(inference.bond_burned),
        "closed_height": inference.closed_height,
    }


def params_view(params: Params) -> dict[str, int | str]:
    """``params``: by name; amounts as decimal strings, everything else integers."""
    return {
        entry.name: str(value) if entry.name.startswith(_AMOUNT_PARAMS) else value
        for entry in dataclasses.fields(params)
        if isinstance(value := getattr(params, entry.name), int)
    }


def supply_view(supply: entries.Supply) -> shapes.Supply:
    """``supply``."""
    return {
        "total": str(supply.total),
        "burned": str(supply.burned),
        "escrowed": str(supply.escrowed),
        "bonded": str(supply.bonded),
        "staked": str(supply.staked),
        "free": str(supply.total - supply.escrowed - supply.bonded - supply.staked),
    }


def _audited(inference: entries.Inference) -> bool | None:
    if inference.status in _DRAWN_LATER:
        return None
    return inference.status != InferenceStatus.UNAUDITED


def _voucher(voucher: Voucher) -> shapes.Voucher:
    return {
        "user": voucher.user.hex(),
        "provider": voucher.provider.hex(),
        "sequence": voucher.sequence,
        "adapter": voucher.adapter.hex(),
        "prompt_commitment": voucher.prompt_commitment.hex(),
        "new_tokens_max": voucher.new_tokens_max,
        "fee": str(voucher.fee),
        "valid_until": voucher.valid_until,
    }


def _event(receipt: Receipt) -> shapes.Event:
    return {
        "subject": receipt.subject.hex(),
        "code": receipt.code,
        "payouts": _payouts(receipt.payouts),
        "burned": str(receipt.burned),
    }


def _payouts(payouts: Sequence[entries.Payout]) -> list[shapes.Payout]:
    return [
        {
            "role": _name(entries.Role, payout.role),
            "address": payout.address.hex(),
            "amount": str(payout.amount),
        }
        for payout in payouts
    ]


def _hexes(values: Sequence[bytes]) -> list[str]:
    return [value.hex() for value in values]


def _name(enumeration: type[IntEnum], value: int) -> str:
    """An enumeration's member in lower case with hyphens; a value it lacks (a newer ledger's) as its number."""
    try:
        return enumeration(value).name.lower().replace("_", "-")
    except ValueError:
        return str(value)
