"""The RPC methods: one literal table from name to parameters and function. ``docs/rpc.md`` describes each."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import cache
from typing import Any

from node.ledger import overlay, stakes, state
from node.ledger.erasure import get_erasures
from node.ledger.queries import datanet_contributions
from node.ledger.transaction import TRANSACTION_BYTES_MAX
from node.rpc import shapes, views
from node.rpc.backend import Backend
from node.rpc.discover import openrpc_document
from node.rpc.errors import Code, invalid_param, not_found
from node.rpc.params import Param, blob_param, hex_param, integer_param
from node.rpc.protocol import Arguments, Method

HEIGHT_MAX = 2**63 - 1
CONTRIBUTIONS_PAGE_MAX = 256
SPANS_PAGE_MAX = 256
SPAN_TOKENS_MAX = 4_096
SPAN_TOKEN_BYTES = 4
_BLOB_PARAM_BYTES_MAX = 2**40
"""The body's limit comes first; how large a blob may be is the store's to say, as a typed error."""

Handler = Callable[[Backend, Arguments], Awaitable[object]]

_HASH = hex_param("hash")
_BASE_HASH = hex_param("base_hash")
_ID = hex_param("id")
_ADDRESS = hex_param("address")
_DIGEST = hex_param("digest")


def _bytes(arguments: Arguments, name: str) -> bytes:
    value = arguments[name]
    if not isinstance(value, bytes):
        raise TypeError(name)
    return value


def _integer(arguments: Arguments, name: str) -> int:
    value = arguments[name]
    if not isinstance(value, int):
        raise TypeError(name)
    return value


async def _status(backend: Backend, _arguments: Arguments) -> shapes.Status:
    return views.status_view(backend.status())


async def _block(backend: Backend, arguments: Arguments) -> shapes.Block:
    height = _integer(arguments, "height")
    block = backend.block(height)
    if block is None:
        raise not_found("block", height)
    return views.block_view(block)


async def _tx_submit(backend: Backend, arguments: Arguments) -> shapes.SubmittedTransaction:
    tx_hash = await backend.submit_transaction(_bytes(arguments, "tx"))
    return {"tx_hash": tx_hash.hex()}


async def _tx_submit_many(backend: Backend, arguments: Sequence[Arguments]) -> list[object]:
    taken = await backend.submit_transactions([_bytes(given, "tx") for given in arguments])
    return [row if isinstance(row, Exception) else {"tx_hash": row.hex()} for row in taken]


async def _tx(backend: Backend, arguments: Arguments) -> shapes.Transaction:
    tx_hash = _bytes(arguments, "hash")
    view = backend.transaction(tx_hash)
    if view is None:
        raise not_found("transaction", tx_hash)
    return views.transaction_view(view)


async def _account(backend: Backend, arguments: Arguments) -> shapes.Account:
    address = _bytes(arguments, "address")
    account = state.get_account(backend.reader(), address)
    return views.account_view(address, account, backend.next_nonce(address))


async def _validators(backend: Backend, _arguments: Arguments) -> shapes.Validators:
    reader = backend.reader()
    return views.validators_view(state.get_validators(reader), stakes.get_epoch(reader).number)


async def _epoch(backend: Backend, _arguments: Arguments) -> shapes.Epoch:
    reader = backend.reader()
    frozen = stakes.get_next_validators(reader)
    return views.epoch_view(stakes.get_epoch(reader), frozen, stakes.get_candidates(reader))


async def _stake(backend: Backend, arguments: Arguments) -> shapes.Stake:
    address = _bytes(arguments, "address")
    return views.stake_view(address, stakes.get_stake(backend.reader(), address))


async def _datanet(backend: Backend, arguments: Arguments) -> shapes.Datanet:
    identity = _bytes(arguments, "id")
    reader = backend.reader()
    datanet = state.get_datanet(reader, identity)
    if datanet is None:
        raise not_found("datanet", identity)
    contributions = _contributions(reader, identity, 0, CONTRIBUTIONS_PAGE_MAX)
    return views.datanet_view(identity, datanet, contributions)


async def _datanet_contributions(backend: Backend, arguments: Arguments) -> shapes.ContributionPage:
    identity, first = _bytes(arguments, "id"), _integer(arguments, "first")
    reader = backend.reader()
    datanet = state.get_datanet(reader, identity)
    if datanet is None:
        raise not_found("datanet", identity)
    return {
        "datanet": identity.hex(),
        "first": first,
        "contribution_count": datanet.contribution_count,
        "contributions": _contributions(reader, identity, first, _integer(arguments, "count")),
    }


def _contributions(
    reader: overlay.StateReader, identity: bytes, first: int, count: int
) -> list[shapes.Contribution]:
    page = datanet_contributions(reader, identity, first, count)
    return [views.contribution_view(reader, name, contribution) for name, contribution in page]


async def _contribution(backend: Backend, arguments: Arguments) -> shapes.Contribution:
    identity = _bytes(arguments, "id")
    reader = backend.reader()
    contribution = state.get_contribution(reader, identity)
    if contribution is None:
        raise not_found("contribution", identity)
    return views.contribution_view(reader, identity, contribution)


async def _erasures(backend: Backend, arguments: Arguments) -> shapes.Erasures:
    identity = _bytes(arguments, "contribution")
    reader = backend.reader()
    if state.get_contribution(reader, identity) is None:
        raise not_found("contribution", identity)
    return views.erasures_view(identity, get_erasures(reader, identity))


async def _spans(backend: Backend, arguments: Arguments) -> shapes.Spans:
    datanet, data = _bytes(arguments, "datanet"), _bytes(arguments, "tokens")
    if state.get_datanet(backend.reader(), datanet) is None:
        raise not_found("datanet", datanet)
    if len(data) % SPAN_TOKEN_BYTES:
        raise invalid_param("tokens", f"{2 * SPAN_TOKEN_BYTES} hex digits for each token id")
    tokens = [
        int.from_bytes(data[at : at + SPAN_TOKEN_BYTES], "big")
        for at in range(0, len(data), SPAN_TOKEN_BYTES)
    ]
    return await _spans_page(backend, arguments, (datanet,), tokens)


async def _inference_spans(backend: Backend, arguments: Arguments) -> shapes.Spans:
    identity = _bytes(arguments, "inference")
    reader = backend.reader()
    inference = state.get_inference(reader, identity)
    if inference is None:
        raise not_found("inference", identity)
    tokens = await backend.answer_of(identity)
    if tokens is None:
        raise not_found("answer of the inference", identity)
    if len(tokens) > SPAN_TOKENS_MAX:
        raise invalid_param("inference", f"one with an answer of at most {SPAN_TOKENS_MAX} tokens")
    adapter = state.get_adapter(reader, inference.voucher.adapter)
    found = (state.get_contribution(reader, name) for name in (adapter.contributions if adapter else ()))
    datanets = dict.fromkeys(contribution.datanet for contribution in found if contribution is not None)
    return await _spans_page(backend, arguments, tuple(datanets), tokens)


async def _spans_page(
    backend: Backend, arguments: Arguments, datanets: Sequence[bytes], tokens: Sequence[int]
) -> shapes.Spans:
    length_min = _integer(arguments, "length_min")
    found = [await backend.spans(datanet, tokens, length_min) for datanet in datanets]
    first, count = _integer(arguments, "first"), _integer(arguments, "count")
    return views.spans_view(backend.reader(), len(tokens), found, first, count)


async def _base(backend: Backend, arguments: Arguments) -> shapes.Base:
    base_hash = _bytes(arguments, "base_hash")
    reader = backend.reader()
    base = state.get_base(reader, base_hash)
    if base is None:
        raise not_found("base", base_hash)
    return views.base_view(base_hash, base, state.get_validators(reader))


async def _adapter(backend: Backend, arguments: Arguments) -> shapes.Adapter:
    identity = _bytes(arguments, "id")
    reader = backend.reader()
    adapter = state.get_adapter(reader, identity)
    if adapter is None:
        raise not_found("adapter", identity)
    return views.adapter_view(reader, identity, adapter)


async def _provider(backend: Backend, arguments: Arguments) -> shapes.Provider:
    address = _bytes(arguments, "address")
    provider = state.get_provider(backend.reader(), address)
    if provider is None:
        raise not_found("provider", address)
    return views.provider_view(address, provider)


async def _receipt(backend: Backend, arguments: Arguments) -> shapes.Receipt:
    identity = _bytes(arguments, "inference")
    inference = state.get_inference(backend.reader(), identity)
    if inference is None:
        raise not_found("inference", identity)
    return views.receipt_view(identity, inference)


async def _voucher_sequence(backend: Backend, arguments: Arguments) -> shapes.VoucherSequence:
    user, provider = _bytes(arguments, "user"), _bytes(arguments, "provider")
    sequence = state.get_voucher_sequence(backend.reader(), user, provider)
    return {"user": user.hex(), "provider": provider.hex(), "sequence": sequence}


async def _params(backend: Backend, _arguments: Arguments) -> dict[str, int | str]:
    return views.params_view(state.get_params(backend.reader()))


async def _supply(backend: Backend, _arguments: Arguments) -> shapes.Supply:
    return views.supply_view(state.get_supply(backend.reader()))


async def _blob_put(backend: Backend, arguments: Arguments) -> shapes.StoredBlob:
    data = _bytes(arguments, "data")
    digest = await backend.put_blob(data)
    return {"digest": digest.hex(), "bytes": len(data)}


async def _blob_get(backend: Backend, arguments: Arguments) -> shapes.Blob:
    digest = _bytes(arguments, "digest")
    data = await backend.get_blob(digest)
    if data is None:
        raise not_found("blob", digest)
    return {"digest": digest.hex(), "bytes": len(data), "data": data.hex()}


_HEIGHT: Param = integer_param("height", 0, HEIGHT_MAX)
_PAGE = (_ID, integer_param("first", 0, HEIGHT_MAX), integer_param("count", 1, CONTRIBUTIONS_PAGE_MAX))

_SPANS_PAGE = (
    integer_param("length_min", 1, SPAN_TOKENS_MAX),
    integer_param("first", 0, SPAN_TOKENS_MAX * CONTRIBUTIONS_PAGE_MAX),
    integer_param("count", 1, SPANS_PAGE_MAX),
)

_SUBMIT_CODES = (
    Code.TRANSACTION_REFUSED,
    Code.MEMPOOL_FULL,
    Code.MEMPOOL_SENDER_FULL,
    Code.TRANSACTION_UNDERPRICED,
    Code.BLOB_MISSING,
    Code.STORAGE_FULL,
)
_PUT_CODES = (Code.BLOB_TOO_LARGE, Code.STORAGE_FULL, Code.BLOB_ERASED)


async def _discover(_backend: Backend, _arguments: Arguments) -> dict[str, Any]:
    return _document()


@cache
def _document() -> dict[str, Any]:
    return openrpc_document(METHODS)


def _lookup(name: str, summary: str, params: tuple[Param, ...], handle: Handler, result: Any) -> Method:
    """A method that looks for one thing, and answers NOT_FOUND where there is none."""
    return Method(name, summary, params, handle, result, (Code.NOT_FOUND,))


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("rpc.discover", "this document", (), _discover, dict[str, Any]),
        Method("status", "where the node stands: height, state digest, peers", (), _status, shapes.Status),
        _lookup("block", "an executed block, its transactions' fate", (_HEIGHT,), _block, shapes.Block),
        Method(
            "tx_submit",
            "submit a signed transaction",
            (blob_param("tx", TRANSACTION_BYTES_MAX),),
            _tx_submit,
            shapes.SubmittedTransaction,
            _SUBMIT_CODES,
            _tx_submit_many,
        ),
        _lookup("tx", "a pending or committed transaction", (_HASH,), _tx, shapes.Transaction),
        Method("account", "balance and nonce of an account", (_ADDRESS,), _account, shapes.Account),
        Method("validators", "the validators in force and their stake", (), _validators, shapes.Validators),
        Method("epoch", "the epoch in progress, the next set, the candidates", (), _epoch, shapes.Epoch),
        Method("stake", "an account's registration as a validator", (_ADDRESS,), _stake, shapes.Stake),
        _lookup("datanet", "a datanet with its first contributions", (_ID,), _datanet, shapes.Datanet),
        _lookup(
            "datanet_contributions",
            "contributions of a datanet, by page",
            _PAGE,
            _datanet_contributions,
            shapes.ContributionPage,
        ),
        _lookup("contribution", "a contribution", (_ID,), _contribution, shapes.Contribution),
        _lookup(
            "erasures",
            "which records of a contribution were erased, and when",
            (hex_param("contribution"),),
            _erasures,
            shapes.Erasures,
        ),
        _lookup(
            "spans",
            "stretches of a text that match records of a datanet word for word",
            (hex_param("datanet"), blob_param("tokens", SPAN_TOKEN_BYTES * SPAN_TOKENS_MAX), *_SPANS_PAGE),
            _spans,
            shapes.Spans,
        ),
        _lookup(
            "inference_spans",
            "stretches of an inference's answer that match records word for word, while the answer is here",
            (hex_param("inference"), *_SPANS_PAGE),
            _inference_spans,
            shapes.Spans,
        ),
        _lookup("base", "a base model by its content hash", (_BASE_HASH,), _base, shapes.Base),
        _lookup("adapter", "an adapter, its holders, what it learnt from", (_ID,), _adapter, shapes.Adapter),
        _lookup("provider", "a provider's bond and history", (_ADDRESS,), _provider, shapes.Provider),
        _lookup(
            "receipt",
            "an inference's whole life: audit, shares, payouts",
            (hex_param("inference"),),
            _receipt,
            shapes.Receipt,
        ),
        Method(
            "voucher_sequence",
            "the last voucher sequence between a user and a provider",
            (hex_param("user"), hex_param("provider")),
            _voucher_sequence,
            shapes.VoucherSequence,
        ),
        Method("params", "the ledger's parameters", (), _params, shapes.Params),
        Method("supply", "units in existence, burned, and where they are bound", (), _supply, shapes.Supply),
        Method(
            "blob_put",
            "store a blob",
            (blob_param("data", _BLOB_PARAM_BYTES_MAX),),
            _blob_put,
            shapes.StoredBlob,
            _PUT_CODES,
        ),
        _lookup("blob_get", "a blob's bytes", (_DIGEST,), _blob_get, shapes.Blob),
    )
}
