"""The report: every promise fails when what it promises does not hold, and the terminal shows what the file says."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from node.devnet.render import render_report, render_running
from node.devnet.report import (
    RECORD_BEGINNING,
    UNATTRIBUTED,
    UNRELATED,
    Attester,
    ContributorView,
    Earned,
    InferenceView,
    ModelView,
    NodeState,
    PayoutView,
    ProviderView,
    Report,
    Share,
    TimeView,
    UnrelatedView,
    check_report,
    format_open,
    likeness,
    read_report,
    write_report,
)

FEE = 1_000_000_000
VALIDATORS = tuple(f"validator-{number}" for number in range(1, 5))
DIGEST = "ab" * 32


def audited(number: int, about: str | None = "alice", output: str = "the turtle forward.") -> InferenceView:
    return InferenceView(
        number=number,
        id=f"{number:064x}",
        kind=RECORD_BEGINNING if about else UNRELATED,
        about=about,
        prompt="turtle.forward: Move",
        output=output,
        expected="the turtle forward." if about else None,
        fee=str(FEE),
        status="settled",
        audited=True,
        result_hash="cd" * 32,
        attesters=tuple(Attester(name, "cd" * 32) for name in VALIDATORS),
        shares=(Share(UNATTRIBUTED, 100_000_000), Share("alice", 900_000_000)),
        payouts=(
            PayoutView("alice", "contributor", "900000000"),
            PayoutView(UNATTRIBUTED, "unattributed", "50000000"),
        ),
        burned="50000000",
    )


def waiting(number: int) -> InferenceView:
    return replace(
        audited(number),
        audited=False,
        status="unaudited",
        result_hash=None,
        attesters=(),
        shares=(),
        payouts=(),
        burned="0",
    )


def story() -> Report:
    """A report of four audited calls and two that were not drawn, in which every promise holds."""
    nodes = [
        NodeState(name, True, f"http://127.0.0.1:{20000 + place}", "peer", DIGEST)
        for place, name in enumerate(VALIDATORS)
    ]
    burned, total = 4 * 50_000_000, 10**15
    report = Report(
        chain_id="11" * 32,
        story="stdlib",
        nodes=(*nodes, NodeState("full-node", False, "http://127.0.0.1:20009", "peer", DIGEST)),
        height=42,
        datanet="22" * 32,
        contributors=(ContributorView("alice", "33" * 32, 20, 1600, "44" * 32, "55" * 32),),
        model=ModelView("66" * 32, "77" * 32, "88" * 32, "99" * 32, "active", VALIDATORS, "trainer"),
        provider=ProviderView("harbour-inference", "aa" * 32, str(10**12)),
        inferences=(*(audited(number) for number in range(1, 5)), waiting(5), waiting(6)),
        supply_before=str(total),
        supply_after=str(total - burned),
        burned=str(burned),
        free=str(total - burned - 2 * FEE - 10**12 - 10**13),
        escrowed=str(2 * FEE),
        bonded=str(10**12),
        staked=str(10**13),
        earned=(
            Earned("alice", "contributor", "3600000000", 4),
            *(Earned(name, "validator", "1", 4) for name in VALIDATORS),
            Earned(UNATTRIBUTED, "unattributed", "200000000", 4),
        ),
        unrelated=UnrelatedView(24, 999_000_000, 980_000_000),
        submitted_at=("http://127.0.0.1:20009",),
        time=(TimeView("Network", 10.0), TimeView("Ask", 1.0), TimeView("Ask", 2.0)),
        seconds=60.0,
    )
    return replace(report, checks=check_report(report))


def with_call(report: Report, position: int, call: InferenceView) -> Report:
    calls = list(report.inferences)
    calls[position] = call
    return replace(report, inferences=tuple(calls))


def rendered(report: Report, width: int = 110) -> str:
    from node.devnet.report import to_document

    console = Console(file=io.StringIO(), width=width, color_system=None)
    render_report(console, to_document(report))
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def test_every_promise_holds_in_the_example() -> None:
    assert [check.name for check in story().checks if not check.passed] == []
    assert story().ok


BREAKS: dict[str, Callable[[Report], Report]] = {
    "entered at the full node": lambda r: replace(r, submitted_at=(*r.submitted_at, r.nodes[0].rpc_url)),
    "adapter is active": lambda r: replace(r, model=replace(r.model, status="pending")),
    "rebuilt its index": lambda r: replace(r, model=replace(r.model, held_by=VALIDATORS[:2])),
    "at least 4 calls": lambda r: with_call(r, 0, waiting(1)),
    "left at least 2": lambda r: with_call(r, 5, audited(6)),
    "every validator attests": lambda r: with_call(
        r, 1, replace(r.inferences[1], attesters=r.inferences[1].attesters[:3])
    ),
    "same result": lambda r: with_call(
        r,
        1,
        replace(
            r.inferences[1], attesters=(Attester(VALIDATORS[0], "00" * 32), *r.inferences[1].attesters[1:])
        ),
    ),
    "every audited call": lambda r: with_call(r, 1, replace(r.inferences[1], status="slashed")),
    "shares sum to one": lambda r: with_call(
        r, 2, replace(r.inferences[2], shares=(Share("alice", 999_999_999),))
    ),
    "payouts and burn to the fee": lambda r: with_call(r, 2, replace(r.inferences[2], burned="50000001")),
    "nearly verbatim": lambda r: replace(
        r,
        inferences=tuple(replace(call, output="something else entirely, at length") for call in r.inferences),
    ),
    "its owner leads": lambda r: replace(
        r, inferences=tuple(replace(call, about="bob") for call in r.inferences)
    ),
    "almost wholly unattributed": lambda r: replace(
        r, unrelated=replace(r.unrelated, unattributed_mean=949_999_999)
    ),
    "wait in escrow": lambda r: replace(r, escrowed=str(2 * FEE - 1)),
    "supply before": lambda r: replace(r, supply_after=str(int(r.supply_after) + 1)),
    "escrow counted": lambda r: replace(r, free=str(int(r.free) - 1)),
    "same state digest": lambda r: replace(
        r, nodes=(replace(r.nodes[0], state_digest="ba" * 32), *r.nodes[1:])
    ),
    "at most 150 s": lambda r: replace(r, seconds=150.1),
}


@pytest.mark.parametrize("promise", BREAKS)
def test_a_promise_that_is_broken_is_named_and_fails_the_report(promise: str) -> None:
    broken = BREAKS[promise](story())
    broken = replace(broken, checks=check_report(broken))
    assert any(promise in check.name for check in broken.checks if not check.passed)
    assert not broken.ok
    assert "✗" in rendered(broken)


def test_anybodys_own_text_is_promised_no_time() -> None:
    report = replace(story(), seconds=10_000.0, seconds_max=None)
    assert all(check.passed for check in check_report(report))
    assert "of 150 s" not in rendered(report)


def test_a_report_without_checks_is_not_ok() -> None:
    assert not replace(story(), checks=()).ok


def test_the_file_holds_the_document_and_is_read_back(tmp_path: Path) -> None:
    document = write_report(tmp_path / "report.json", story())
    read = read_report(tmp_path / "report.json")
    assert read["ok"] is True
    assert read["version"] == document["version"] == 1
    assert [call["number"] for call in read["inferences"]] == [1, 2, 3, 4, 5, 6]
    assert read["inferences"][0]["attesters"][0] == {"name": "validator-1", "result_hash": "cd" * 32}


@pytest.mark.parametrize("width", [80, 100, 112])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    assert max(map(len, rendered(story(), width).splitlines())) <= width


def test_the_tables_say_who_was_asked_who_earned_and_what_was_promised() -> None:
    text = rendered(story())
    for part in (
        "turtle.forward: Move",
        "= record",
        "4 of 4",
        "90 % █████████ alice",
        "3.6000",
        "4 validators",
        "treasury",
    ):
        assert part in text
    assert text.count("wait in escrow") >= 2
    assert "all 11 promises held" in text


def test_steps_that_came_twice_are_one_line_of_the_time_budget() -> None:
    lines = [line for line in rendered(story()).splitlines() if line.strip().startswith("Ask")]
    assert len(lines) == 1
    assert "3.0 s" in lines[0]


def test_markup_in_somebodys_text_is_shown_as_it_is() -> None:
    report = with_call(story(), 0, replace(audited(1), prompt="[red]x[/red]", output="[bold]y"))
    assert "[red]x[/red]" in rendered(report)
    assert "[bold]y" in rendered(report)


def test_a_running_devnet_shows_urls_a_curl_and_the_keys() -> None:
    from node.devnet.report import to_document

    console = Console(file=io.StringIO(), width=100, color_system=None)
    devnet = {
        "nodes": [],
        "accounts": [{"name": "alice", "address": "00", "secret_key_file": "/d/accounts/alice.key"}],
    }
    render_running(console, to_document(story()), devnet)
    file = console.file
    assert isinstance(file, io.StringIO)
    text = file.getvalue()
    for part in ("http://127.0.0.1:20009", "curl", f"{1:064x}", "/d/accounts/NAME.key", "Ctrl-C"):
        assert part in text


def test_likeness_is_of_the_answer_and_the_records_rest() -> None:
    assert likeness("all exceptions.", "all exceptions.") == 1.0
    assert likeness("all exceptions.", None) == 0.0
    assert 0.9 <= likeness("all exceptions, here.", "all exceptions here.") < 1.0


@pytest.mark.parametrize(
    ("units", "decimals", "text"),
    [(1, 2, "0.00"), (1_999_999_999, 2, "1.99"), (10**12, 0, "1,000"), ("50000000", 4, "0.0500")],
)
def test_amounts_are_rounded_down(units: int | str, decimals: int, text: str) -> None:
    assert format_open(units, decimals) == text
