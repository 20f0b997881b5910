"""What is contributed and asked, and how the supervisor speaks of nodes that do not come up."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from node.devnet.errors import NetworkNotReady, NodeDied, StoryTextInvalid
from node.devnet.layout import claim_home
from node.devnet.network import Network, create_network
from node.devnet.report import INVENTED, RECORD_BEGINNING, UNRELATED
from node.devnet.script import (
    CALLS_MAX,
    FIRST_CALLS,
    NEW_TOKENS_MAX,
    account_names,
    read_script,
)
from node.devnet.supervisor import NodeView, run_nodes
from node.keys import account_path


def test_the_first_dozen_has_beginnings_of_everybodys_records_unrelated_text_and_an_invented_name() -> None:
    script = read_script(None)
    first = script.lines[:FIRST_CALLS]
    for name in script.records:
        assert sum(line.about == name for line in first) >= 2
    assert {line.kind for line in first} == {RECORD_BEGINNING, UNRELATED, INVENTED}
    assert len(script.lines) <= CALLS_MAX
    assert len({line.prompt for line in script.lines}) == len(script.lines)


def test_a_beginning_and_what_is_expected_make_up_its_contributors_record() -> None:
    script = read_script(None)
    for line in script.lines:
        if line.about is None:
            assert line.expected is None
        else:
            assert line.prompt + (line.expected or "") in script.records[line.about]


def test_the_same_installation_tells_the_same_story() -> None:
    assert read_script(None) == read_script(None)


def test_unrelated_sentences_are_nobodys_records() -> None:
    script = read_script(None)
    assert script.unrelated
    assert not set(script.unrelated) & {record for records in script.records.values() for record in records}


def write_texts(folder: Path, name: str, texts: list[str]) -> None:
    (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def test_anybodys_text_gets_accounts_by_file_name_and_expects_no_more_than_an_answer_may_say(
    tmp_path: Path,
) -> None:
    write_texts(tmp_path, "Zoë Müller", ["Über den Wolken muss die Freiheit wohl grenzenlos sein. " * 5])
    write_texts(
        tmp_path, "ann", ["A sentence that is long enough to be cut somewhere.", "Another sentence of hers."]
    )
    script = read_script(tmp_path)
    assert list(script.records) == ["ann", "zo-m-ller"]
    for line in script.lines:
        if line.about == "zo-m-ller":
            assert line.expected is not None
            assert len(line.expected.encode()) <= NEW_TOKENS_MAX


def test_text_that_cannot_be_used_is_refused_by_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "ann.jsonl").write_text('{"text": "fine enough"}\n{"txet": "no"}\n')
    with pytest.raises(StoryTextInvalid, match=r"ann\.jsonl, line 2"):
        read_script(tmp_path)


def test_account_names_are_plain_distinct_and_not_those_of_other_roles(tmp_path: Path) -> None:
    names = account_names(["Ann B.", "ann-b", "user", "***", "validator-1"])
    assert sorted(names.values()) == sorted(["Ann B.", "ann-b", "user", "***", "validator-1"])
    assert not {"user", "validator-1"} & set(names)
    for name in names:
        assert account_path(tmp_path, name).parent == tmp_path


@pytest.fixture
def network(tmp_path: Path) -> Network:
    """A network of which only one validator is ever started."""
    with claim_home(tmp_path / "home") as layout:
        made = create_network(layout, 4, ("alice",))
    return replace(made, nodes=made.nodes[:1])


def test_a_node_that_dies_while_starting_is_named_with_the_end_of_its_log(network: Network) -> None:
    node = network.nodes[0]
    node.home.config_path.write_text("[node]\nshoe_size = 43\n")

    async def silent(url: str) -> NodeView | None:
        return None

    async def start() -> None:
        async with run_nodes(network, lambda text: None) as fleet:
            await fleet.wait_ready(silent, seconds_max=60)

    with pytest.raises(BaseExceptionGroup) as group:
        trio.run(start)
    died = group.value.subgroup(NodeDied)
    assert died is not None
    assert "shoe_size" in str(died.exceptions[0])


def test_nodes_that_do_not_get_together_are_named_with_what_they_wait_for(network: Network) -> None:
    async def at_genesis(url: str) -> NodeView | None:
        return NodeView(height=0, peers=3)

    async def start() -> None:
        async with run_nodes(network, lambda text: None) as fleet:
            await fleet.wait_ready(at_genesis, seconds_max=0.5)

    with pytest.raises(BaseExceptionGroup) as group:
        trio.run(start)
    waiting = group.value.subgroup(NetworkNotReady)
    assert waiting is not None
    assert "validator-1 (height 0, 3 peers)" in str(waiting.exceptions[0])
