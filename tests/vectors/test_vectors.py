"""Golden bytes: the code computes what the files say, a reader made from the documents computes it too, and no kind is missing."""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from consensus.messages import decode_message
from node.ledger.bodies import BODIES
from node.wire import Frame, Request
from tests.vectors import files, reader
from tests.vectors.__main__ import main
from tests.vectors.notation import FOLDER, VectorMismatch

ROOT = Path(__file__).resolve().parents[2]
HASHED = ("consensus.json", "transactions.json", "ledger.json", "content.json")


def stored(name: str) -> Any:
    return json.loads((FOLDER / name).read_text())


def hashed() -> list[Any]:
    return [
        pytest.param(vector, id=vector["name"].replace(" ", "-"))
        for name in HASHED
        for vector in stored(name)["vectors"]
    ]


def test_the_code_computes_exactly_what_the_files_hold(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check"]) == 0, capsys.readouterr().out
    assert set(files.documents()) == {path.name for path in FOLDER.glob("*.json")}


def test_a_changed_vector_is_noticed() -> None:
    vector = files.hashed()["consensus.json"][0]
    with pytest.raises(VectorMismatch):
        type(vector)(vector.name, "votes", vector.chain_id, vector.fields, vector.found).to_json()


@pytest.mark.parametrize("vector", hashed())
def test_a_reader_made_from_the_documents_finds_the_same_preimage_digest_and_signature(
    vector: dict[str, Any],
) -> None:
    assert reader.preimage(vector).hex() == vector["preimage"]
    found = bytes.fromhex(vector["digest"])
    assert reader.hashed(bytes.fromhex(vector["preimage"]), len(found)) == found
    if "seed" in vector:
        public, signature = reader.signature(bytes.fromhex(vector["seed"]), found)
        assert (public.hex(), signature.hex()) == (vector["public_key"], vector["signature"])


@pytest.mark.parametrize(
    "entry", [pytest.param(entry, id=entry["name"]) for entry in stored("encodings.json")["encodings"]]
)
def test_a_second_encoder_writes_the_same_bytes(entry: dict[str, Any]) -> None:
    value = reader.value_of(entry["value"])
    if isinstance(value, dict):  # named: the order is the documents'
        value = documented(entry["name"], value)
    data = value.encode() if isinstance(value, str) else reader.pack(value)
    assert data.hex() == entry["bytes"]


def documented(name: str, value: dict[str, Any]) -> list[Any]:
    """Named fields in the order of the documents."""
    objects = {row[0]: reader.split(row[1]) for row in reader.tables("formats.md")[3]}
    orders = {
        "voucher": reader.KINDS["voucher"].fields,
        "accumulator": reader.KINDS["accumulator-root"].fields,
        "params": reader.NESTED["params"],
        "validators": ("validators[validator]", "seed"),
    }
    if name.startswith("transaction "):
        return reader.array(value, reader.KINDS["transaction"].fields)
    if name.startswith("receipt"):
        order = tuple("payouts[payout]" if field == "payouts" else field for field in objects["receipt"])
        return reader.array(value, order)
    return reader.array(value, orders.get(name) or objects[name])


def test_every_kind_that_the_code_hashes_is_documented_and_has_a_vector() -> None:
    kinds = hashed_kinds() - reader.LOCAL
    assert len(kinds) > 30
    assert kinds == set(reader.KINDS), "say in docs/formats.md what is hashed, and give it a vector"
    vectors = [vector.values[0] for vector in hashed()]
    assert kinds == {vector["kind"] for vector in vectors}
    signed = {kind for kind, row in reader.KINDS.items() if row.signed}
    assert signed == {vector["kind"] for vector in vectors if "signature" in vector}


def hashed_kinds() -> set[str]:
    """Kinds in the source: first arguments of the functions that hash, and domains that are written out."""
    found = set()
    for package in ("consensus", "attribution", "node"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
                    called = getattr(node.func, "id", getattr(node.func, "attr", ""))
                    if called in ("digest", "tensors_digest", "_ids_commitment"):
                        found.add(node.args[0].value)
                if isinstance(node, ast.Constant) and isinstance(node.value, bytes):
                    match = re.fullmatch(rb"openledger/([a-z0-9-]+)/v1\0", node.value)
                    found |= {match[1].decode()} if match else set()
    return {kind for kind in found if isinstance(kind, str)}


def test_nothing_is_hashed_without_a_domain() -> None:
    """Calls of BLAKE3 by file; a new one has a domain before its data, or is covered by a digest that has one."""
    assert hash_calls() == {
        "consensus/digest.py": 1,
        "attribution/merkle.py": 3,
        "attribution/index.py": 1,
        "attribution/exact/fused/kept.py": 1,  # the name of a folder of machine code
        "attribution/sharding/files.py": 3,
        "attribution/exact/random.py": 1,
        "attribution/golden.py": 1,
        "attribution/tensor_hash.py": 2,  # a tensor's bytes, then the set of them in its domain
        "node/ledger/lthash.py": 1,
        "node/duties.py": 2,  # salts out of the account's secret, in BLAKE3's own key derivation
    }


def hash_calls() -> Counter[str]:
    calls = Counter[str]()
    for package in ("consensus", "attribution", "node"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if (
                    isinstance(node, ast.Call)
                    and getattr(node.func, "id", getattr(node.func, "attr", "")) == "blake3"
                ):
                    calls[str(path.relative_to(ROOT))] += 1
    return calls


def test_every_kind_of_transaction_message_frame_and_request_has_a_vector() -> None:
    assert set(reader.BODIES) == set(BODIES)
    vectors = [vector.values[0] for vector in hashed()]
    for kind in ("transaction", "transaction-sign"):
        assert {v["fields"]["kind"] for v in vectors if v["kind"] == kind} == set(BODIES)
    entries = {
        entry["name"]: bytes.fromhex(entry["bytes"]) for entry in stored("encodings.json")["encodings"]
    }
    messages = {entries[name][2] for name in entries if name.startswith("message ")}
    assert messages == set(range(1, 8))
    assert (
        len({type(decode_message(data)) for name, data in entries.items() if name.startswith("message ")})
        == 7
    )
    carried = {
        Frame.CONSENSUS: "message 2 VoteMessage 2",
        Frame.BATCH: "batch",
        Frame.TRANSACTIONS: "transactions",
        Frame.STORAGE_RECEIPT: "storage receipt frame",
        Request.BLOCK: "block request",
        Request.RANGE: "range request",
        Request.BLOB: "blob request",
        Request.CHUNK: "chunk request",
        Request.EPOCHS: "epochs request",
        Request.INDEX: "index request",
    }
    assert set(carried.values()) <= set(entries)
    # These say nothing: the request is empty, or it is the 32 bytes of a digest.
    assert {*Frame, *Request} == {*carried} | {Request.STATUS, Request.BATCH, Request.SNAPSHOT}


def test_roots_follow_from_their_leaves_by_the_documented_rules() -> None:
    found = stored("derived.json")
    for tree in found["merkle"]:
        assert reader.merkle_root([bytes.fromhex(leaf) for leaf in tree["leaves"]]).hex() == tree["root"]
    records = found["records"]
    assert reader.merkle_root([reader.pack(record) for record in records["records"]]).hex() == records["root"]
    receipts = found["receipts"]
    assert reader.merkle_root([bytes.fromhex(leaf) for leaf in receipts["leaves"]]).hex() == receipts["root"]
    leaves = [bytes([number]) * 32 for number in found["accumulator"]["leaf_bytes"]]
    roots = [reader.accumulator_root(leaves[:count]).hex() for count in range(8)]
    assert roots == found["accumulator"]["roots_of_0_to_7_leaves"]
    state = found["state"]
    entries = [(bytes.fromhex(key), bytes.fromhex(value)) for key, value in state["entries"]]
    assert reader.state_digest(entries, bytes.fromhex(state["chain_id"])).hex() == state["digest"]
    index = {name: value for name, value in found["index"].items() if name != "rows"}
    parts = [bytes.fromhex(index[name]) for name in ("header", "bases", "weights")]
    rows = [bytes.fromhex(row) for row in found["index"]["rows"]]
    assert reader.merkle_root([*parts, *rows]).hex() == index["root"]


def test_beacon_and_leaders_follow_the_documented_rules() -> None:
    found = stored("derived.json")
    value = reader.digest("beacon-start", bytes.fromhex(found["beacon"]["seed"]))
    chain = [value]
    for _ in range(found["beacon"]["length"]):
        chain.append(reader.digest("beacon-reveal", chain[-1]))
    assert chain[-1].hex() == found["beacon"]["anchor"]
    assert [value.hex() for value in reversed(chain[:-1])] == found["beacon"]["reveals_1_to_5"]
    for case in found["leaders"]:
        assert reader.leaders(case["stakes"], 64) == case["rounds_1_to_64"]
    drawn = found["drawn_leaders"]
    seed, weights = bytes.fromhex(drawn["seed"]), drawn["weights"]
    assert reader.drawn_leaders(seed, weights, range(1, 65)) == drawn["rounds_1_to_64"]
    assert reader.drawn_leaders(seed, weights, range(4, 9)) == drawn["missed_between_3_and_9"]
    for frame in found["frame_headers"]:
        header = (frame["payload_bytes"] + 1).to_bytes(4, "big") + bytes([frame["kind"]])
        assert header.hex() == frame["header"]
