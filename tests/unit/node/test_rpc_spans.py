"""Spans over the RPC and on the command line: whose records match, page by page, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.cli.main import main
from node.cli.output import Exit
from node.client import Client, RpcError
from node.ledger.bodies import RecordsErase
from node.ledger.state import get_adapter
from node.rpc.errors import Code
from node.spans.shelf import DatanetSpans
from tests.unit.node.ledger_backend import RunningServer, running_server
from tests.unit.node_ledger.world import VALIDATORS, address

ANSWER = b"they say the bridge over the river is old, and so are nineteen recipes"
RECORDS = [list(b"ann: the bridge over the river is old"), list(b"nineteen recipes for soup")]
PAGE = {"length_min": 10, "first": 0, "count": 10}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running_server() as running:
        running.backend.spans_of = DatanetSpans(tmp_path_factory.mktemp("spans") / "datanet")
        running.backend.spans_of.add(b"c" * 32, address("ann"), RECORDS)
        yield running


@pytest.fixture(scope="module")
def asked(server: RunningServer) -> dict[str, str]:
    """A settled inference, its datanet, and the answer that the node has of it."""

    def play() -> dict[str, str]:
        world = server.backend.world
        adapter = world.active_adapter()
        inference = world.revealed(adapter)
        world.attest(inference, {name: world.answer(inference) for name in VALIDATORS})
        server.backend.answers[inference] = tuple(ANSWER)
        found = get_adapter(world.state, adapter)
        assert found is not None
        return {
            "inference": inference.hex(),
            "adapter": adapter.hex(),
            "contribution": found.contributions[0].hex(),
        }

    made = server.do(play)
    datanet = Client(server.url).call("contribution", id=made["contribution"])["datanet"]
    return made | {"datanet": datanet}


def words(tokens: bytes) -> str:
    return b"".join(byte.to_bytes(4, "big") for byte in tokens).hex()


def test_spans_of_an_answer_and_of_its_text_are_the_same(
    server: RunningServer, asked: dict[str, str]
) -> None:
    client = Client(server.url)
    found = client.call("inference_spans", inference=asked["inference"], **PAGE)
    assert found == client.call("spans", datanet=asked["datanet"], tokens=words(ANSWER), **PAGE)
    assert [ANSWER[s["start"] : s["start"] + s["length"]] for s in found["spans"]] == [
        b" the bridge over the river is old",
        b"nineteen recipes",
    ]
    assert found["span_count"] == 2
    assert found["searched"] == [{"datanet": asked["datanet"], "contributions": 1, "contribution_count": 3}]
    (place,) = found["spans"][1]["places"]
    assert place == {"contribution": "63" * 32, "contributor": address("ann").hex(), "record": 1, "offset": 0}


def test_pages_join_to_the_whole(server: RunningServer, asked: dict[str, str]) -> None:
    client = Client(server.url)
    whole = client.call("inference_spans", inference=asked["inference"], length_min=1, first=0, count=256)
    pages = [
        client.call("inference_spans", inference=asked["inference"], length_min=1, first=first, count=3)[
            "spans"
        ]
        for first in range(0, whole["span_count"] + 3, 3)
    ]
    assert [span for page in pages for span in page] == whole["spans"]
    assert pages[-1] == []


@pytest.mark.parametrize(
    ("method", "wrong", "code"),
    [
        ("spans", {"tokens": "000000"}, Code.INVALID_PARAMS),
        ("spans", {"tokens": "00000000" * 4097}, Code.INVALID_PARAMS),
        ("spans", {"tokens": ""}, Code.INVALID_PARAMS),
        ("spans", {"length_min": 0}, Code.INVALID_PARAMS),
        ("spans", {"count": 257}, Code.INVALID_PARAMS),
        ("spans", {"datanet": "00" * 32}, Code.NOT_FOUND),
        ("inference_spans", {"inference": "00" * 32}, Code.NOT_FOUND),
    ],
)
def test_what_cannot_be_searched_is_refused_by_name(
    server: RunningServer, asked: dict[str, str], method: str, wrong: dict[str, object], code: Code
) -> None:
    fields = {"spans": ("datanet", "tokens"), "inference_spans": ("inference",)}[method]
    good = asked | {"tokens": words(ANSWER)}
    params = {name: good[name] for name in fields} | PAGE | wrong
    with pytest.raises(RpcError) as raised:
        Client(server.url).call(method, **params)
    assert raised.value.code == code


def test_an_answer_that_is_not_here_and_an_index_that_is_not_kept_are_said_so(
    server: RunningServer, asked: dict[str, str]
) -> None:
    index, answers = server.backend.spans_of, dict(server.backend.answers)
    server.backend.answers.clear()
    with pytest.raises(RpcError) as raised:
        Client(server.url).call("inference_spans", inference=asked["inference"], **PAGE)
    assert raised.value.data["what"] == "answer of the inference"
    server.backend.answers.update(answers)
    server.backend.spans_of = None
    with pytest.raises(RpcError) as raised:
        Client(server.url, retries=0).call("inference_spans", inference=asked["inference"], **PAGE)
    assert raised.value.code == Code.NOT_READY
    server.backend.spans_of = index


def test_the_command_shows_what_matched(
    server: RunningServer, asked: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "answer.txt"
    text.write_bytes(ANSWER)
    arguments = ["spans", "--text", str(text), "--datanet", asked["datanet"], "--rpc", server.url]
    assert main(arguments) == Exit.OK
    shown = capsys.readouterr().out
    assert "the bridge over the river is old" in shown
    assert "matched" in shown
    assert "caused" not in shown
    assert main(["spans", asked["inference"], "--rpc", server.url, "--json", "--length-min", "20"]) == Exit.OK
    assert json.loads(capsys.readouterr().out)["span_count"] == 1


@pytest.mark.parametrize(
    "arguments",
    [(), ("--datanet", "00" * 32), ("00" * 32, "--text", "x"), ("--text", "/nowhere", "--datanet", "0" * 64)],
)
def test_arguments_that_make_no_sense_are_usage(arguments: tuple[str, ...], server: RunningServer) -> None:
    assert main(["spans", *arguments, "--rpc", server.url]) == Exit.USAGE


def test_an_erasure_shows_in_the_contribution_its_own_list_and_the_adapter(
    server: RunningServer, asked: dict[str, str]
) -> None:
    client, world = Client(server.url), server.backend.world
    contribution = asked["contribution"]
    before = client.call("contribution", id=contribution)
    assert (before["number"], before["erased"], before["blob_remaining"]) == (0, 0, None)
    assert client.call("adapter", id=asked["adapter"])["trained_on_erased"] == 0
    server.do(lambda: world.accept("ann", RecordsErase(bytes.fromhex(contribution), (1,))))
    height = world.height
    assert client.call("contribution", id=contribution)["blob_remaining"] is None
    waiting = {"height": height, "done_height": None, "records": [1]}
    assert client.call("erasures", contribution=contribution)["erasures"] == [waiting]
    server.do(lambda: world.blocks(1))
    after = client.call("contribution", id=contribution)
    assert after["erased"] == 1
    assert len(after["blob_remaining"]) == 64
    done = waiting | {"done_height": height + 1}
    assert client.call("erasures", contribution=contribution)["erasures"] == [done]
    assert client.call("adapter", id=asked["adapter"])["trained_on_erased"] == 1
