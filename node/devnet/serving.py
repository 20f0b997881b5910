"""The second half of the story: vouchers, answers, records, the beacon's draw, reveals, audits, payouts.

The user and the provider are two parties with a key each; what passes between them directly (a voucher with its prompt, an
answer) stays off the ledger, everything else is a transaction.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import trio

from node.devnet.chain import POLL_SECONDS, Chain, Signer
from node.devnet.errors import StoryFailed
from node.devnet.report import AUDITED_MIN, UNAUDITED_MIN, VERBATIM_RATIO_MIN, likeness
from node.devnet.script import NEW_TOKENS_MAX, Line
from node.devnet.timeline import Step
from node.devnet.workshop import Workshop
from node.ledger.bodies import InferenceRecord, InferenceReveal, ProviderBond
from node.ledger.openings import (
    Opening,
    Voucher,
    encode_opening,
    inference_id,
    output_commitment,
    prompt_commitment,
    sign_voucher,
)
from node.ledger.params import OPEN
from node.ledger.results import SALT_BYTES
from node.rpc import shapes

PROVIDER_NAME = "harbour-inference"
BOND = 1_000 * OPEN
FEE = OPEN
VOUCHER_HEIGHTS = 2_000
SETTLE_SECONDS_MAX = 300.0
MORE_CALLS = 6
FINAL = frozenset({"unaudited", "settled", "refunded", "slashed"})


@dataclass(frozen=True, slots=True)
class Request:
    """What the user hands to the provider: a signed voucher, and the prompt with the salt of its commitment."""

    line: Line
    voucher: Voucher
    signature: bytes
    prompt_salt: bytes


@dataclass(slots=True)
class Call:
    """One paid call: the request, the provider's answer, and the ledger's receipt as last seen."""

    request: Request
    output_ids: tuple[int, ...]
    output_salt: bytes
    receipt: shapes.Receipt | None = None
    revealed: bool = False

    @property
    def id(self) -> bytes:
        """The inference's id (32 bytes)."""
        return inference_id(self.request.voucher)

    @property
    def output(self) -> str:
        """The answer as text; bytes that are no UTF-8 are replaced."""
        return bytes(self.output_ids).decode("utf-8", "replace")

    @property
    def final(self) -> bool:
        """Whether the ledger will not change it any more (the unaudited wait in escrow)."""
        return self.receipt is not None and self.receipt["status"] in FINAL

    @property
    def audited(self) -> bool:
        """Whether the beacon drew it."""
        return bool(self.receipt and self.receipt["audited"])


class User:
    """Asks: promises a fee for an answer by signing a voucher."""

    def __init__(self, signer: Signer, chain_id: bytes, provider: bytes, adapter: bytes) -> None:
        self._signer = signer
        self._chain_id = chain_id
        self._provider = provider
        self._adapter = adapter
        self._sequence = 0

    def request(self, line: Line, height: int) -> Request:
        """Sign a voucher for one prompt."""
        self._sequence += 1
        salt = secrets.token_bytes(SALT_BYTES)
        voucher = Voucher(
            chain_id=self._chain_id,
            user=self._signer.address,
            provider=self._provider,
            sequence=self._sequence,
            adapter=self._adapter,
            prompt_commitment=prompt_commitment(salt, line.prompt_ids),
            new_tokens_max=NEW_TOKENS_MAX,
            fee=FEE,
            valid_until=height + VOUCHER_HEIGHTS,
        )
        return Request(line, voucher, sign_voucher(self._signer.seed, voucher), salt)


async def bond_provider(chain: Chain, provider: Signer) -> bytes:
    """Submit the provider's bond; return the transaction's hash."""
    return await chain.send("Bond", provider, ProviderBond(BOND, PROVIDER_NAME))


async def answer(workshop: Workshop, requests: Sequence[Request]) -> list[Call]:
    """The provider checks each request's prompt against its voucher and generates, greedily."""
    for request in requests:
        if (
            prompt_commitment(request.prompt_salt, request.line.prompt_ids)
            != request.voucher.prompt_commitment
        ):
            raise StoryFailed("Ask", "a prompt is not what its voucher commits to")
    answered = await workshop.ask(
        "generate",
        prompts=[list(request.line.prompt_ids) for request in requests],
        new_tokens_max=NEW_TOKENS_MAX,
    )
    outputs = answered["outputs"]
    return [
        Call(request, tuple(output), secrets.token_bytes(SALT_BYTES))
        for request, output in zip(requests, outputs, strict=True)
    ]


async def record(chain: Chain, provider: Signer, calls: Sequence[Call], step: Step) -> None:
    """The provider records every call; return once all are on the ledger."""
    nonce = await chain.nonce(provider.address)
    sent = []
    for position, call in enumerate(calls):
        request = call.request
        body = InferenceRecord(
            voucher=request.voucher,
            voucher_signature=request.signature,
            output_commitment=output_commitment(call.output_salt, call.output_ids),
            prompt_tokens=len(request.line.prompt_ids),
            output_tokens=len(call.output_ids),
        )
        sent.append(await chain.send(step.title, provider, body, nonce=nonce + position))
    for number, tx_hash in enumerate(sent, 1):
        step.progress(f"{number} of {len(sent)} calls recorded")
        await chain.executed(step.title, tx_hash, f"record {number}")


async def settle(chain: Chain, provider: Signer, calls: Sequence[Call], step: Step) -> None:
    """Watch the calls until each is final; the provider reveals whatever the beacon draws, as soon as it is drawn."""
    with trio.move_on_after(SETTLE_SECONDS_MAX):
        height = -1
        while not all(call.final for call in calls):
            status = await chain.call("status")
            if status["height"] == height:
                await trio.sleep(POLL_SECONDS)
                continue
            height = status["height"]
            for call in calls:
                if not call.final:
                    call.receipt = await chain.receipt(call.id)
            await _reveal(chain, provider, [call for call in calls if _awaits_reveal(call)], step)
            step.progress(_standing(calls))
        return
    raise StoryFailed(
        step.title, f"not every call was final within {SETTLE_SECONDS_MAX:.0f} s: {_standing(calls)}"
    )


def _awaits_reveal(call: Call) -> bool:
    return call.receipt is not None and call.receipt["status"] == "awaiting-reveal" and not call.revealed


async def _reveal(chain: Chain, provider: Signer, drawn: Sequence[Call], step: Step) -> None:
    if not drawn:
        return
    nonce = await chain.nonce(provider.address)
    for position, call in enumerate(drawn):
        request = call.request
        blob = encode_opening(
            Opening(request.line.prompt_ids, request.prompt_salt, call.output_ids, call.output_salt)
        )
        digest = await chain.put_blob(blob)
        body = InferenceReveal(inference=call.id, blob_digest=digest, blob_bytes=len(blob))
        await chain.send(step.title, provider, body, nonce=nonce + position)
        call.revealed = True


def _standing(calls: Sequence[Call]) -> str:
    counts: dict[str, int] = {}
    for call in calls:
        status = call.receipt["status"] if call.receipt else "unknown"
        counts[status] = counts.get(status, 0) + 1
    return ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))


def enough(calls: Sequence[Call]) -> bool:
    """Whether the beacon drew and left as many as the story needs, and drew an answer that recites somebody's record."""
    audited = [call for call in calls if call.audited]
    recited = any(_recites(call) for call in audited)
    return recited and len(audited) >= AUDITED_MIN and len(calls) - len(audited) >= UNAUDITED_MIN


def _recites(call: Call) -> bool:
    return likeness(call.output, call.request.line.expected) >= VERBATIM_RATIO_MIN
