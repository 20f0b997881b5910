"""The OpenRPC document: what a validator says to it, and whether every answer is what it declares."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

import pytest
from jsonschema import Draft7Validator
from referencing import Registry
from referencing.jsonschema import DRAFT7

from node.client import Client, RpcError
from node.ledger.bodies import Transfer
from node.rpc.discover import method_codes
from node.rpc.errors import CODES, Code
from node.rpc.methods import METHODS
from node.rpc.schemas import schema_of
from node.spans.shelf import DatanetSpans
from tests.unit.node.ledger_backend import RunningServer, running_server
from tests.unit.node_ledger.world import BASE_HASH, VALIDATORS, address

META = Path(__file__).parent / "openrpc"
Document = dict[str, Any]


def meta_validator() -> Draft7Validator:
    meta = json.loads((META / "meta-schema.json").read_text())
    schema = DRAFT7.create_resource(json.loads((META / "json-schema.json").read_text()))
    named = {"https://meta.json-schema.tools": schema, "https://meta.json-schema.tools/": schema}
    return Draft7Validator(meta, registry=Registry().with_resources(named.items()))


def result_validator(document: Document, method: str) -> Draft7Validator:
    """Of a method's result, with the document's components in reach."""
    described = next(entry for entry in document["methods"] if entry["name"] == method)
    return Draft7Validator({**described["result"]["schema"], "components": document["components"]})


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running_server() as running:
        yield running


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Client:
    return Client(server.url)


@pytest.fixture(scope="module")
def document(client: Client) -> Document:
    served: Document = client.call("rpc.discover")
    return served


@pytest.fixture(scope="module")
def calls(server: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, object]]:
    """For every method, parameters that it answers with a result on a chain with a settled inference."""

    def play() -> dict[str, dict[str, object]]:
        world = server.backend.world
        adapter = world.active_adapter()
        settled = world.revealed(adapter)
        world.attest(settled, {name: world.answer(settled) for name in VALIDATORS})
        raw = world.tx("ann", Transfer(address("ben"), 5))
        server.backend.answers[settled] = tuple(b"the bridge over the river")
        return {
            "adapter": {"id": adapter.hex()},
            "receipt": {"inference": settled.hex()},
            "tx_submit": {"tx": raw.hex()},
            "tx": {"hash": world.id(raw).hex()},
            "block": {"height": world.height},
        }

    made = server.do(play)
    index = DatanetSpans(tmp_path_factory.mktemp("spans") / "datanet")
    index.add(bytes(32), address("ann"), [list(b"a bridge over the river is old")])
    server.backend.spans_of = index
    client = Client(server.url)
    contribution = client.call("adapter", **made["adapter"])["contributions"][0]
    datanet = client.call("contribution", id=contribution)["datanet"]
    parties = {"user": address("user").hex(), "provider": address("provider").hex()}
    client.submit(bytes.fromhex(str(made["tx_submit"]["tx"])))
    digest = client.put_blob(b"records").hex()
    return made | {
        "rpc.discover": {},
        "status": {},
        "contribution": {"id": contribution},
        "erasures": {"contribution": contribution},
        "account": {"address": address("ann").hex()},
        "validators": {},
        "epoch": {},
        "stake": {"address": address("ann").hex()},
        "spans": {"datanet": datanet, "tokens": "00000061" * 9, "length_min": 1, "first": 0, "count": 5},
        "inference_spans": {**made["receipt"], "length_min": 9, "first": 0, "count": 5},
        "datanet": {"id": datanet},
        "datanet_contributions": {"id": datanet, "first": 0, "count": 5},
        "base": {"base_hash": BASE_HASH.hex()},
        "provider": {"address": address("provider").hex()},
        "voucher_sequence": parties,
        "params": {},
        "supply": {},
        "blob_put": {"data": "00"},
        "blob_get": {"digest": digest},
    }


def test_the_meta_schema_of_openrpc_accepts_the_document(document: Document) -> None:
    assert [error.message for error in meta_validator().iter_errors(document)] == []
    assert document["openrpc"].startswith("1.3.")


@pytest.mark.parametrize("spoil", ["params", "name"])
def test_the_meta_schema_notices_what_is_missing(document: Document, spoil: str) -> None:
    spoilt = json.loads(json.dumps(document))
    del spoilt["methods"][1][spoil]
    assert list(meta_validator().iter_errors(spoilt))


def test_the_document_lists_the_methods_parameters_and_errors_that_are_served(document: Document) -> None:
    served = {
        name: ([param.name for param in method.params], {code.name for code in method_codes(method)})
        for name, method in METHODS.items()
    }
    assert served == {
        entry["name"]: (
            [param["name"] for param in entry["params"]],
            {error["$ref"].rsplit("/", 1)[1] for error in entry["errors"]},
        )
        for entry in document["methods"]
    }
    assert {error["code"] for error in document["components"]["errors"].values()} == set(CODES)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_answer_is_what_the_document_declares(
    client: Client, document: Document, calls: dict[str, dict[str, object]], method: str
) -> None:
    result = client.call(method, **calls[method])
    assert [error.message for error in result_validator(document, method).iter_errors(result)] == []


def test_blocks_of_all_kinds_are_what_the_document_declares(
    server: RunningServer, client: Client, document: Document, calls: object
) -> None:
    validator = result_validator(document, "block")
    for height in range(1, server.backend.world.height + 1):
        block = client.block(height)
        validator.validate(block)
        assert not validator.is_valid({**block, "surprise": 1})
        assert not validator.is_valid({**block, "height": -1})
        assert not validator.is_valid({**block, "block_hash": "AB" * 32})


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.params])
def test_declared_parameters_accept_what_is_accepted_and_refuse_what_is_refused(
    client: Client, document: Document, calls: dict[str, dict[str, object]], method: str
) -> None:
    described = next(entry for entry in document["methods"] if entry["name"] == method)
    for param in described["params"]:
        schema = Draft7Validator(param["schema"])
        assert schema.is_valid(calls[method][param["name"]])
        hostile: tuple[object, ...] = (None, "AB" * 32, "zz", "", -1, 1.5, 2**64, [])
        for bad in hostile:
            assert not schema.is_valid(bad), (param["name"], bad)
            with pytest.raises(RpcError) as caught:
                client.call(method, **{**calls[method], param["name"]: bad})
            assert caught.value.code == Code.INVALID_PARAMS


def test_annotations_become_the_schemas_that_they_mean() -> None:
    class Inner(TypedDict):
        """Inner."""

        word: Annotated[str, "^a$"]

    components: dict[str, Any] = {}
    assert schema_of(list[int | None], components) == {
        "type": "array",
        "items": {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "null"}]},
    }
    assert schema_of(Literal["a", "b"], components) == {"type": "string", "enum": ["a", "b"]}
    assert schema_of(dict[str, bool], components)["additionalProperties"] == {"type": "boolean"}
    assert schema_of(dict[str, Any], components)["additionalProperties"] == {}
    assert components == {}
    with pytest.raises(TypeError, match="no JSON Schema"):
        schema_of(complex, components)
