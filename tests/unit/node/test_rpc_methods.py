"""Every RPC method over HTTP, against the state of the real ledger."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from node.client import Client, RpcError
from node.ledger.bodies import DatanetCreate, Transfer
from node.ledger.lthash import state_digest
from node.ledger.params import OPEN, params_to_dict
from node.ledger.results import TREASURY
from node.ledger.state import get_account, get_supply
from node.ledger.transaction import encode_transaction, sign_transaction
from node.rpc.errors import Code
from node.rpc.methods import METHODS
from tests.unit.node.ledger_backend import LedgerBackend, RunningServer, running_server
from tests.unit.node_ledger.world import BASE_HASH, INDEX_ROOT, PEOPLE, VALIDATORS, World, address, seed

UNKNOWN = "ab" * 32


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    """A chain with a settled inference, shared by tests that only read."""
    with running_server() as running:
        yield running


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Client:
    return Client(server.url)


@pytest.fixture(scope="module")
def story(server: RunningServer) -> dict[str, bytes]:
    """A settled inference and one that still waits for its draw."""

    def play() -> dict[str, bytes]:
        world = server.backend.world
        adapter = world.active_adapter()
        settled = world.revealed(adapter)
        world.attest(settled, {name: world.answer(settled) for name in VALIDATORS})
        waiting = world.record(adapter, 2)
        return {"adapter": adapter, "settled": settled, "waiting": waiting}

    return server.do(play)


def refusal(client: Client, method: str, **params: object) -> RpcError:
    with pytest.raises(RpcError) as caught:
        client.call(method, **params)
    return caught.value


def test_status_shows_executed_height_with_its_digest(
    server: RunningServer, client: Client, story: object
) -> None:
    world = server.backend.world
    status = client.status()
    assert status["height"] == world.height
    assert status["state_digest"] == state_digest(world.lthash, world.chain).hex()
    assert status["chain_id"] == world.chain.hex()
    assert (status["syncing"], status["ready"], status["validator"]) == (False, True, False)
    assert status["peers"] == [
        {"peer_id": "16Uiu2HAmOther", "address": "/ip4/127.0.0.1/tcp/1", "validator": True}
    ]


def test_block_shows_transactions_events_and_the_digest_after_it(
    server: RunningServer, client: Client, story: dict[str, bytes]
) -> None:
    world = server.backend.world
    blocks = [client.block(height) for height in range(1, world.height + 1)]
    assert [block["state_digest"] for block in blocks] == [
        outcome.state_digest.hex() for outcome in world.outcomes
    ]
    events = [event for block in blocks for event in block["events"]]
    settled = [event for event in events if event["code"] == "settled"]
    assert [event["subject"] for event in settled] == [story["settled"].hex()]
    assert sum(int(payout["amount"]) for payout in settled[0]["payouts"]) + int(settled[0]["burned"]) == OPEN
    kinds = {transaction["kind"] for block in blocks for transaction in block["transactions"]}
    assert {"datanet_create", "contribution", "inference_record", "attest_open"} <= kinds


@pytest.mark.parametrize("height", [0, 10**6])
def test_a_block_that_is_not_there_is_not_found(client: Client, height: int) -> None:
    error = refusal(client, "block", height=height)
    assert (error.code, error.data) == (Code.NOT_FOUND, {"what": "block", "id": height})


def test_account_shows_balance_as_text_and_unknown_accounts_as_empty(
    server: RunningServer, client: Client
) -> None:
    account = get_account(server.backend.world.state, address("user"))
    shown = client.account(address("user"))
    assert (shown["balance"], shown["nonce"]) == (str(account.balance), account.nonce)
    assert client.account(bytes(31) + b"\x01") == {
        "address": "00" * 31 + "01",
        "balance": "0",
        "nonce": 0,
        "nonce_next": 0,
    }


def test_datanet_lists_its_contributions_in_order(client: Client, story: dict[str, bytes]) -> None:
    adapter = client.call("adapter", id=story["adapter"].hex())
    first = client.call("contribution", id=adapter["contributions"][0])
    datanet = client.call("datanet", id=first["datanet"])
    assert [row["id"] for row in datanet["contributions"]] == adapter["contributions"]
    assert [row["contributor"] for row in datanet["contributions"]] == [
        address(name).hex() for name in ("ann", "ben", "cid")
    ]
    assert datanet["licences"] == ["CC-BY-4.0", "MIT"]
    page = client.call("datanet_contributions", id=first["datanet"], first=1, count=1)
    assert page["contributions"] == datanet["contributions"][1:2]
    assert page["contribution_count"] == 3
    assert client.call("datanet_contributions", id=first["datanet"], first=3, count=9)["contributions"] == []


def test_adapter_and_base_show_who_holds_them(client: Client, story: dict[str, bytes]) -> None:
    adapter = client.call("adapter", id=story["adapter"].hex())
    base = client.call("base", base_hash=BASE_HASH.hex())
    for artefact in (adapter, base):
        assert artefact["status"] == "active"
        assert set(artefact["held"]) == {address(name).hex() for name in VALIDATORS}
        assert artefact["held_stake"] == artefact["stake_total"] == str(4_000 * OPEN)
    assert (adapter["base_hash"], adapter["index_root"]) == (BASE_HASH.hex(), INDEX_ROOT.hex())


def test_receipt_shows_the_whole_life_of_an_inference(
    server: RunningServer, client: Client, story: dict[str, bytes]
) -> None:
    receipt = client.call("receipt", inference=story["settled"].hex())
    result = server.backend.world.inference(story["settled"]).result
    assert result is not None
    assert (receipt["status"], receipt["audited"], receipt["result_status"]) == ("settled", True, "ok")
    assert receipt["result_hash"] == result.result_hash.hex()
    assert {row["account"] for row in receipt["attesters"]} == {address(name).hex() for name in VALIDATORS}
    assert {row["result_hash"] for row in receipt["attesters"]} == {receipt["result_hash"]}
    assert sum(row["share"] for row in receipt["shares"]) == 10**9
    assert TREASURY.hex() in {row["address"] for row in receipt["shares"]}
    paid = sum(int(row["amount"]) for row in receipt["payouts"])
    assert paid + int(receipt["burned"]) == int(receipt["voucher"]["fee"]) == OPEN
    assert {"owner", "provider", "validator", "contributor", "unattributed"} <= {
        r["role"] for r in receipt["payouts"]
    }


def test_receipt_of_an_undrawn_inference_is_neither_audited_nor_unaudited(
    client: Client, story: dict[str, bytes]
) -> None:
    receipt = client.call("receipt", inference=story["waiting"].hex())
    assert (receipt["status"], receipt["audited"], receipt["result_hash"]) == ("recorded", None, None)
    assert (receipt["shares"], receipt["payouts"], receipt["attesters"]) == ([], [], [])


def test_provider_and_voucher_sequence(client: Client, story: dict[str, bytes]) -> None:
    provider = client.call("provider", address=address("provider").hex())
    assert (provider["name"], provider["bond"], provider["recorded"]) == ("serves", str(100 * OPEN), 2)
    parties = {"user": address("user").hex(), "provider": address("provider").hex()}
    assert client.call("voucher_sequence", **parties) == {**parties, "sequence": 2}


def test_supply_is_accounted_for(server: RunningServer, client: Client, story: dict[str, bytes]) -> None:
    supply = {name: int(value) for name, value in client.call("supply").items()}
    expected = get_supply(server.backend.world.state)
    assert supply["free"] == sum(
        server.backend.world.balance(name) for name in (*PEOPLE, *VALIDATORS, "treasury")
    )
    assert supply["burned"] == expected.burned > 0
    assert supply["total"] == supply["free"] + supply["escrowed"] + supply["bonded"] + supply["staked"]
    assert supply["escrowed"] == OPEN


def test_params_show_amounts_as_text_and_the_rest_as_integers(server: RunningServer, client: Client) -> None:
    params = client.call("params")
    assert {name: int(value) for name, value in params.items()} == params_to_dict(server.backend.world.params)
    assert {name for name, value in params.items() if isinstance(value, str)} == {
        name
        for name in params
        if name.startswith("fee_") or name in ("inference_fee_min", "provider_bond_min", "stake_min")
    }


def test_validators_show_keys_and_stake(client: Client) -> None:
    shown = client.call("validators")
    assert shown["stake_total"] == str(4_000 * OPEN)
    assert {row["account"] for row in shown["validators"]} == {address(name).hex() for name in VALIDATORS}


@pytest.mark.parametrize(
    ("method", "param", "what"),
    [
        ("tx", "hash", "transaction"),
        ("datanet", "id", "datanet"),
        ("contribution", "id", "contribution"),
        ("base", "base_hash", "base"),
        ("adapter", "id", "adapter"),
        ("provider", "address", "provider"),
        ("receipt", "inference", "inference"),
        ("blob_get", "digest", "blob"),
    ],
)
def test_unknown_identities_are_not_found_by_name(client: Client, method: str, param: str, what: str) -> None:
    error = refusal(client, method, **{param: UNKNOWN})
    assert (error.code, error.data) == (Code.NOT_FOUND, {"what": what, "id": UNKNOWN})


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_names_its_missing_and_unknown_parameters(client: Client, method: str) -> None:
    params = METHODS[method].params
    error = refusal(client, method, **{"surprise": 1})
    assert (error.code, error.data["param"]) == (Code.INVALID_PARAMS, "surprise")
    if params:
        error = refusal(client, method)
        assert error.code == Code.INVALID_PARAMS
        assert error.data == {"param": params[0].name, "expected": params[0].expected}


@pytest.mark.parametrize(
    "bad", ["AB" * 32, "ab" * 31, "ab" * 33, "zz" * 32, "0x" + "ab" * 31, 5, None, ["ab" * 32], "ａｂ" * 16]
)
def test_identities_are_exactly_64_lowercase_hex_digits(client: Client, bad: object) -> None:
    error = refusal(client, "adapter", id=bad)
    assert (error.code, error.data) == (
        Code.INVALID_PARAMS,
        {"param": "id", "expected": "64 lowercase hex digits"},
    )


@pytest.mark.parametrize("bad", [-1, 2**63, True, 1.0, "1", None])
def test_heights_are_json_integers_in_range(client: Client, bad: object) -> None:
    error = refusal(client, "block", height=bad)
    assert (error.code, error.data["param"]) == (Code.INVALID_PARAMS, "height")


def test_a_transaction_is_pending_then_committed() -> None:
    with running_server() as server:
        client = Client(server.url)
        sent = client.send(seed("ann"), Transfer(address("ben"), 5))
        pending = client.transaction(sent.tx_hash)
        assert pending is not None
        assert (pending["state"], pending["status"], pending["height"]) == ("pending", None, None)
        assert (pending["kind"], pending["sender"]) == ("transfer", address("ann").hex())
        assert client.account(address("ann"))["nonce_next"] == 1
        server.do(server.backend.execute)
        done = client.transaction(sent.tx_hash)
        assert done is not None
        assert (done["state"], done["status"], done["height"], done["code"]) == ("committed", "ok", 1, "")
        assert done["fee"] == str(sent.fee)


def test_submitting_twice_gives_the_same_hash_and_one_transaction() -> None:
    with running_server() as server:
        client = Client(server.url)
        raw = server.backend.world.tx("ann", Transfer(address("ben"), 5))
        assert client.submit(raw) == client.submit(raw)
        assert client.status()["mempool_transactions"] == 1


def _signed(world: World, **changes: int | bytes) -> bytes:
    fields: dict[str, int | bytes] = {
        "chain_id": world.chain,
        "nonce": 0,
        "fee": 10**9,
        "valid_until": 50,
        **changes,
    }
    return encode_transaction(sign_transaction(seed("ann"), body=Transfer(address("ben"), 1), **fields))  # type: ignore[arg-type]


def test_refused_transactions_say_why_and_change_nothing() -> None:
    with running_server() as server:
        world, client = server.backend.world, Client(server.url)
        before = client.status()
        good = _signed(world)
        cases = [
            (good[:-1], "malformed"),
            (good + b"\0", "malformed"),
            (b"\x90", "malformed"),
            (good[:-1] + bytes([good[-1] ^ 1]), "bad-signature"),
            (_signed(world, nonce=10**6), "wrong-nonce"),
            (_signed(world, fee=1), "fee-too-low"),
            (_signed(world, fee=2**62), "fee-unpayable"),
            (_signed(world, valid_until=0), "expired"),
            (_signed(world, chain_id=bytes(32)), "wrong-chain"),
        ]
        for raw, code in cases:
            error = refusal(client, "tx_submit", tx=raw.hex())
            assert (error.code, error.data["code"]) == (Code.TRANSACTION_REFUSED, code), code
        assert (
            refusal(client, "tx_submit", tx=_signed(world, nonce=999).hex()).data["fields"]["expected"] == "0"
        )
        assert client.status() == before


def test_a_nonce_that_was_used_is_refused_with_the_next_one_and_a_replay_does_nothing() -> None:
    with running_server(LedgerBackend(execute_at_once=True)) as server:
        world, client = server.backend.world, Client(server.url)
        first = _signed(world)
        tx_hash = client.submit(first)
        height, balance = client.status()["height"], client.account(address("ben"))["balance"]
        error = refusal(client, "tx_submit", tx=_signed(world, fee=10**9 + 1).hex())
        assert (error.code, error.data["code"]) == (Code.TRANSACTION_REFUSED, "wrong-nonce")
        assert (error.data["fields"]["nonce"], error.data["fields"]["expected"]) == ("0", "1")
        assert client.submit(first) == tx_hash
        assert (client.status()["height"], client.account(address("ben"))["balance"]) == (height, balance)


def test_who_cannot_pay_the_fee_is_told_what_is_there() -> None:
    with running_server() as server:
        client, world = Client(server.url), server.backend.world
        balance = get_account(world.state, address("ann")).balance
        error = refusal(client, "tx_submit", tx=_signed(world, fee=balance + 1).hex())
        assert (error.code, error.data["code"]) == (Code.TRANSACTION_REFUSED, "fee-unpayable")
        assert str(balance) in error.data["fields"].values()


def test_mempool_limit_is_a_typed_error() -> None:
    with running_server(LedgerBackend(pending_max=1)) as server:
        client = Client(server.url)
        client.send(seed("ann"), Transfer(address("ben"), 5))
        raw = server.backend.world.tx("ben", Transfer(address("ann"), 5))
        error = refusal(client, "tx_submit", tx=raw.hex())
        assert (error.code, error.data) == (Code.MEMPOOL_FULL, {"limit": 1, "unit": "transactions"})


def test_blobs_come_back_as_they_went_and_over_a_limit_are_refused() -> None:
    with running_server(LedgerBackend(blobs_max=1)) as server:
        client = Client(server.url)
        digest = client.put_blob(b"records")
        assert client.get_blob(digest) == b"records"
        error = refusal(client, "blob_put", data="00" * 4097)
        assert (error.code, error.data) == (Code.BLOB_TOO_LARGE, {"bytes": 4097, "bytes_max": 4096})
        assert refusal(client, "blob_put", data="01").code == Code.STORAGE_FULL
        assert refusal(client, "blob_put", data="").data["param"] == "data"
        assert refusal(client, "blob_put", data="0").data["param"] == "data"


def test_a_transaction_that_names_an_absent_blob_says_which() -> None:
    with running_server() as server:
        client, world = Client(server.url), server.backend.world
        datanet = server.do(world.accept, "ann", DatanetCreate("docs", ("MIT",), ""))
        body = world.contribution(datanet, "absent")
        error = refusal(client, "tx_submit", tx=world.tx("ann", body).hex())
        assert (error.code, error.data) == (Code.BLOB_MISSING, {"digest": body.blob_digest.hex()})
