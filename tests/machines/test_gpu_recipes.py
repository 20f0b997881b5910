"""What the GPU recipes would notice, and the devnet's recipe on real processes with another backend in the GPU's place."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from node.config import load_config
from node.devnet.layout import claim_home
from node.devnet.network import create_network
from node.devnet.report import Attester, Report, check_report, read_report
from tests.machines import gpu, gpu_devnet
from tests.machines.gpu import Part
from tests.machines.gpu_devnet import CUDA, Choices, asked_of, differences, worker_of
from tests.unit.node.test_devnet_report import story

ASKED = asked_of(story(), CUDA)


def told(report: Report, ran: Choices = ASKED) -> list[str]:
    return differences(replace(report, checks=check_report(report)), ran, ASKED)


def test_one_hash_from_the_places_asked_for_is_no_difference() -> None:
    assert ASKED["validator-1"] == ("cuda", "auto")
    assert {ASKED[f"validator-{number}"] for number in (2, 3, 4)} == {("cpu", "auto")}
    assert told(story()) == []


def another_hash(report: Report) -> Report:
    call = report.inferences[0]
    attesters = (Attester("validator-1", "ee" * 32), *call.attesters[1:])
    return replace(report, inferences=(replace(call, attesters=attesters), *report.inferences[1:]))


def the_gpu_is_silent(report: Report) -> Report:
    call = report.inferences[0]
    return replace(report, inferences=(replace(call, attesters=call.attesters[1:]), *report.inferences[1:]))


def nothing_audited(report: Report) -> Report:
    return replace(report, inferences=report.inferences[4:])


@pytest.mark.parametrize("change", [another_hash, the_gpu_is_silent, nothing_audited])
def test_what_would_make_the_claim_empty_is_a_difference(change: Callable[[Report], Report]) -> None:
    assert told(change(story()))


@pytest.mark.parametrize("place", [("cpu", "auto"), ("", "")])
def test_a_first_validator_that_did_not_compute_on_the_gpu_is_a_difference(place: tuple[str, str]) -> None:
    assert any("validator-1 computed on" in line for line in told(story(), {**ASKED, "validator-1": place}))
    everywhere = dict.fromkeys(ASKED, ("cuda", "auto"))
    assert len(told(story(), everywhere)) == 3


def test_a_slow_story_is_no_difference() -> None:
    assert told(replace(story(), seconds=1e6)) == []


def test_each_validators_worker_is_told_its_place(tmp_path: Path) -> None:
    """Left to itself a worker takes any GPU that it finds, and four on one GPU would agree about nothing new."""
    with claim_home(tmp_path / "devnet") as layout:
        network = create_network(layout, 4, ["alice"])
    gpu_devnet.place_workers(network, CUDA)
    sections = [load_config(node.home.config_path, environment={}) for node in network.nodes]
    assert [config.attribution.device for config in sections] == ["cuda", "cpu", "cpu", "cpu", "auto"]
    assert [config.node.validator for config in sections] == [True] * 4 + [False]


def test_a_worker_is_read_from_the_process_that_started_it() -> None:
    script = (
        "import subprocess, sys\n"
        "child = 'print(1, flush=True); input()'\n"
        "words = [sys.executable, '-c', child, 'node.recompute.worker', '--device=cuda', '--backend=int8']\n"
        "subprocess.Popen(words, stdin=0).wait()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "1\n"
        assert worker_of(parent.pid) == ("cuda", "int8")
        assert worker_of(1 << 30) == ("", "")
        parent.communicate("\n")


@pytest.mark.parametrize(
    ("parts", "code", "said"),
    [
        ((Part("first", "no_such_module_here", ()), Part("second", "this", ())), 1, "FAILED: first"),
        (
            (Part("speed", "no_such_module_here", (), must_pass=False), Part("second", "this", ())),
            0,
            "passed",
        ),
    ],
)
def test_every_part_of_the_check_runs_and_counts(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    parts: tuple[Part, ...],
    code: int,
    said: str,
) -> None:
    monkeypatch.setattr(gpu, "no_device", lambda device: "")
    monkeypatch.setattr(gpu, "PARTS", parts)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    assert gpu.main([]) == code
    shown = capfd.readouterr().out
    assert said in shown
    assert "The Zen of Python" in shown


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_four_validators_one_with_another_backend_come_to_one_hash(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "devnet"
    assert gpu_devnet.main(["--rehearse", "--home", str(home)]) == 0, capsys.readouterr().out
    shown = capsys.readouterr().out
    assert "validator-1 computed on cpu, backend int8" in shown
    assert shown.count("computed on cpu, backend auto") == 3
    assert len(read_report(home / "report.json")["inferences"]) >= 6
