"""Open-loop load over the public RPC: transfers signed beforehand, batches sent by schedule whatever the answers."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from benchmarks.chain import Sender
from node.ledger.bodies import Transfer
from node.ledger.transaction import encode_transaction, hash_transaction_bytes, sign_transaction

FEE = 500_000
"""More than a transfer of this size needs by the default parameters."""

AMOUNT = 2**40
VALID_UNTIL = 90_000
TIMEOUT_S = 20.0
_HEADERS = {"content-type": "application/json"}


@dataclass(frozen=True, slots=True)
class Request:
    """One JSON-RPC batch: when it is due (s after the start), its body, and the hashes of its transactions."""

    due_s: float
    body: bytes
    hashes: tuple[bytes, ...]


@dataclass(slots=True)
class Answers:
    """What the nodes said: when each transaction was due (monotonic s), which were accepted, why others were not."""

    due_s: dict[bytes, float] = field(default_factory=dict)
    accepted: set[bytes] = field(default_factory=set)
    refused: Counter[str] = field(default_factory=Counter)
    late_s_max: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)


def prepare(
    chain_id: bytes,
    senders: Sequence[Sender],
    nonces: dict[bytes, int],
    lanes: int,
    batch: int,
    rate: int,
    seconds: float,
) -> tuple[list[list[Request]], int]:
    """Sign every transfer and encode every request; returns them by lane (connection), and the bytes of one transfer.

    Each sender keeps to one lane, so that its nonces arrive in order. `nonces` (next of each address) is moved on. The
    k-th batch of all is due at k * batch / rate seconds.
    """
    requests: list[list[Request]] = [[] for _ in range(lanes)]
    groups = [senders[at : at + batch] for at in range(0, len(senders) - batch + 1, batch)]
    groups = groups[: len(groups) // lanes * lanes]
    size_bytes = 0
    for number in range(int(rate * seconds) // batch):
        group = groups[number % len(groups)]
        calls, hashes = [], []
        for position, sender in enumerate(group):
            to = groups[(number + 1) % len(groups)][position].address
            raw = signed_transfer(chain_id, sender, nonces[sender.address], to)
            nonces[sender.address] += 1
            hashes.append(hash_transaction_bytes(raw, chain_id))
            calls.append(
                {"jsonrpc": "2.0", "id": position, "method": "tx_submit", "params": {"tx": raw.hex()}}
            )
            size_bytes = len(raw)
        body = json.dumps(calls, separators=(",", ":")).encode()
        requests[number % lanes].append(Request(number * batch / rate, body, tuple(hashes)))
    return requests, size_bytes


def signed_transfer(chain_id: bytes, sender: Sender, nonce: int, to: bytes) -> bytes:
    """Canonical bytes of one transfer."""
    transaction = sign_transaction(
        sender.seed,
        chain_id=chain_id,
        nonce=nonce,
        fee=FEE,
        valid_until=VALID_UNTIL,
        body=Transfer(to, AMOUNT // 2**30 + nonce),
    )
    return encode_transaction(transaction)


def send_all(urls: Sequence[str], requests: list[list[Request]], start_s: float) -> Answers:
    """Send every lane from a thread of its own, to the URLs in turn; returns when the last answer is in."""
    answers = Answers()
    threads = [
        threading.Thread(target=_send_lane, args=(urls[at % len(urls)], lane, start_s, answers), daemon=True)
        for at, lane in enumerate(requests)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def _send_lane(url: str, lane: list[Request], start_s: float, answers: Answers) -> None:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=TIMEOUT_S)
    for request in lane:
        due_s = start_s + request.due_s
        # The schedule is the point of an open loop: it waits for the clock, never for an answer.
        time.sleep(max(0.0, due_s - time.monotonic()))
        late_s = time.monotonic() - due_s
        try:
            connection.request("POST", "/", request.body, _HEADERS)
            rows = json.loads(connection.getresponse().read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            connection.close()
            rows = {"error": {"message": type(error).__name__}}
        with answers.lock:
            answers.late_s_max = max(answers.late_s_max, late_s)
            _note(request, rows, due_s, answers)
    connection.close()


def _note(request: Request, rows: object, due_s: float, answers: Answers) -> None:
    """Count each transaction of a batch as accepted, or refused for its reason."""
    if not isinstance(rows, list):
        reason = (
            str(rows.get("error", {}).get("message", "?"))[:80] if isinstance(rows, dict) else "no answer"
        )
        answers.refused[reason] += len(request.hashes)
        # It may have been taken all the same; its commits are counted, but none is owed.
        answers.due_s.update(dict.fromkeys(request.hashes, due_s))
        return
    for tx_hash, row in zip(request.hashes, rows, strict=True):
        answers.due_s[tx_hash] = due_s
        if "result" in row:
            answers.accepted.add(tx_hash)
        else:
            data = row["error"].get("data") or {}
            answers.refused[str(data.get("reason") or data.get("code") or row["error"]["message"])[:80]] += 1
