"""What the ledger is for: money goes only where a quorum recomputed the same integers. Real processes throughout.

validator-4 recomputes with one flipped bit; the provider alters one byte; somebody copies an attestation; a
validator is killed. One network serves all of it, in this order.
"""

from collections.abc import Iterator
from typing import TypeVar

import pytest

from consensus.crypto import public_key
from node.ledger.bodies import AttestCommit, AttestOpen
from node.ledger.transaction import decode_transaction, encode_transaction, sign_transaction
from tests.integration.cluster import FEE, Call, Cluster, running_cluster

T = TypeVar("T", AttestCommit, AttestOpen)

FLIPPER = "validator-4"
HONEST = ("validator-1", "validator-2", "validator-3")

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    root = tmp_path_factory.mktemp("misdeeds") / "devnet"
    with running_cluster(root, {FLIPPER: "tests.integration.misdeeds.flipping_daemon"}) as running:
        running.publish_adapter(root / "work")
        yield running


def account_of(cluster: Cluster, name: str) -> str:
    return public_key(cluster.account_seed_of(name)).hex()


def supply_is_whole(cluster: Cluster) -> bool:
    supply = {name: int(value) for name, value in cluster.client.call("supply").items()}
    parts = supply["free"] + supply["escrowed"] + supply["bonded"] + supply["staked"]
    return parts == supply["total"]


def test_one_flipped_bit_is_outvoted_three_to_one_and_loses_its_share(cluster: Cluster) -> None:
    call = cluster.ask_until_audited("turtle.forward: ")
    cluster.reveal(call)
    receipt = cluster.wait_closed(call)
    assert receipt["status"] == "settled"
    hashes = {entry["account"]: entry["result_hash"] for entry in receipt["attesters"]}
    assert {hashes[account_of(cluster, name)] for name in HONEST} == {receipt["result_hash"]}
    assert hashes[account_of(cluster, FLIPPER)] != receipt["result_hash"]
    paid = [entry["address"] for entry in receipt["payouts"] if entry["role"] == "validator"]
    assert sorted(paid) == sorted(account_of(cluster, name) for name in HONEST)
    assert sum(int(entry["amount"]) for entry in receipt["payouts"]) + int(receipt["burned"]) == FEE
    assert supply_is_whole(cluster)


def test_one_altered_output_byte_gets_no_payout_and_costs_the_bond(cluster: Cluster) -> None:
    def alter(ids: list[int]) -> list[int]:
        return [*ids[:-1], ids[-1] ^ 1]

    provider = cluster.network.account("provider").address.hex()
    call = cluster.ask_until_audited("decimal.sqrt: ", alter)
    before = int(
        cluster.client.call("account", address=cluster.network.account("user").address.hex())["balance"]
    )
    bond = int(cluster.client.call("provider", address=provider)["bond"])
    cluster.reveal(call)
    receipt = cluster.wait_closed(call)
    after = int(
        cluster.client.call("account", address=cluster.network.account("user").address.hex())["balance"]
    )
    assert receipt["status"] == "slashed"
    assert receipt["result_status"] == "output-differs"
    assert [entry["role"] for entry in receipt["payouts"]] == ["refund"]
    assert after == before + FEE
    assert int(receipt["bond_burned"]) == bond > 0
    assert int(cluster.client.call("provider", address=provider)["bond"]) == 0
    assert supply_is_whole(cluster)
    cluster.bond()


def test_a_copied_attestation_does_not_count(cluster: Cluster) -> None:
    """validator-4 is killed; its operator copies validator-1's commitment, then its opening, word for word."""
    cluster.kill(FLIPPER)
    copier = cluster.account_seed_of(FLIPPER)
    victim = account_of(cluster, "validator-1")

    def send(body: AttestCommit | AttestOpen) -> bytes:
        status = cluster.client.status()
        transaction = sign_transaction(
            copier,
            chain_id=cluster.network.chain_id,
            nonce=0,
            fee=0,
            valid_until=status["height"] + 50,
            body=body,
        )
        return cluster.client_of("validator-1").submit(encode_transaction(transaction))

    call = cluster.ask_until_audited("fractions.limit: ")
    cluster.reveal(call)
    committed = await_duty(cluster, call, victim, AttestCommit)
    send(AttestCommit(call.id, committed.attempt, committed.commitment))
    copier_account = account_of(cluster, FLIPPER)
    cluster.wait("the copy to be taken", lambda: copier_account in cluster.receipt(call)["committed"])
    opened = await_duty(cluster, call, victim, AttestOpen)
    copied = send(opened)
    receipt = cluster.wait_closed(call)
    transaction = cluster.client_of("validator-1").transaction(copied)
    assert transaction is None or transaction["status"] != "ok"
    assert copier_account not in {entry["account"] for entry in receipt["attesters"]}
    assert copier_account not in {entry["address"] for entry in receipt["payouts"]}
    assert receipt["status"] == "settled"


def await_duty(cluster: Cluster, call: Call, account: str, kind: type[T]) -> T:
    """What the chain shows to everybody: this account's transaction of this kind about this inference."""
    found: list[T] = []
    height = cluster.receipt(call)["height"]

    def look() -> bool:
        nonlocal height
        while not found and height <= cluster.client.status()["height"]:
            for row in cluster.client.block(height)["transactions"]:
                if row["sender"] == account:
                    body = decode_transaction(bytes.fromhex(row["raw"])).body
                    if isinstance(body, kind) and body.inference == call.id:
                        found.append(body)
            height += 1
        return bool(found)

    cluster.wait(f"{kind.__name__} of {account[:8]}", look)
    return found[0]


def test_a_killed_validator_stops_nobody_and_catches_up_to_the_same_state(cluster: Cluster) -> None:
    """Killed with SIGKILL by the test before, so three of four go on; then it returns."""
    gone_at = cluster.client.status()["height"]
    cluster.client.wait_height(gone_at + 3, 60)
    cluster.start(FLIPPER)
    back = cluster.client_of(FLIPPER)
    cluster.wait("the restarted validator", lambda: back.status()["height"] >= gone_at + 3)
    height = min(back.status()["height"], cluster.client.status()["height"])
    digests = {cluster.client_of(node.name).block(height)["state_digest"] for node in cluster.network.nodes}
    assert len(digests) == 1
    target = back.status()["height"] + 3
    cluster.wait("the restarted validator to follow", lambda: back.status()["height"] >= target)
