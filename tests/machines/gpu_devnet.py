"""A devnet whose first validator computes on a GPU and the others on the CPU: `python -m tests.machines.gpu_devnet` (`make gpu-devnet`).

It plays the demo's story. Every audited call must come to one hash from all validators, and the processes that
computed must be those that were asked for: the first validator's worker on CUDA, the others' on the CPU. Where torch sees no CUDA
device it says so and exits 0. `--rehearse` plays it without one, the first validator multiplying int8 limbs instead.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import trio
from rich.console import Console

from benchmarks.measuring import no_device
from node.config import AttributionSection, load_config, render_toml
from node.devnet.chain import probe
from node.devnet.layout import Layout, claim_home
from node.devnet.network import VALIDATORS_MIN, Network, create_network
from node.devnet.report import Report, write_report
from node.devnet.script import read_script
from node.devnet.story import play
from node.devnet.supervisor import Fleet, run_nodes
from node.devnet.timeline import Timeline
from node.devnet.workshop import open_workshop
from node.home import write_atomic
from tests.machines.__main__ import driver

CPU = AttributionSection(device="cpu")
CUDA = AttributionSection(device="cuda")
REHEARSAL = AttributionSection(device="cpu", backend="int8")
WORKER = "node.recompute.worker"

Choices = dict[str, tuple[str, str]]
"""Validator's name -> (device, backend)."""


def main(arguments: Sequence[str]) -> int:
    """Play the story; 0 if every audited call has one hash by the places asked for, or if there is no GPU."""
    parser = argparse.ArgumentParser(prog="python -m tests.machines.gpu_devnet", description=__doc__)
    parser.add_argument(
        "--home", type=Path, help="where everything is kept (default: a new temporary folder)"
    )
    parser.add_argument("--rehearse", action="store_true", help="no GPU: the first validator uses int8 limbs")
    options = parser.parse_args(arguments)
    if not options.rehearse and (reason := no_device("cuda")):
        print(reason)
        return 0
    if not options.rehearse:
        print(f"GPU {torch.cuda.get_device_name()}, driver {driver()}, torch {torch.__version__}", flush=True)
    first = REHEARSAL if options.rehearse else CUDA
    home = options.home or Path(tempfile.mkdtemp(prefix="openledger-gpu-"))
    with claim_home(home) as layout:
        report, ran = trio.run(_play, layout, first)
    problems = differences(report, ran, asked_of(report, first))
    show(report, ran, problems)
    return 1 if problems else 0


async def _play(layout: Layout, first: AttributionSection) -> tuple[Report, Choices]:
    script, timeline = read_script(None), Timeline(Console(highlight=False))
    network = create_network(layout, VALIDATORS_MIN, tuple(script.records))
    place_workers(network, first)
    async with run_nodes(network, print) as fleet:
        await fleet.wait_ready(probe)
        async with open_workshop(layout.work / "workshop.log", 1) as workshop:
            await workshop.ask("open")
            report = await play(network, workshop, script, layout.work, timeline)
        write_report(layout.report_json, report)
        return report, running(fleet)


def place_workers(network: Network, first: AttributionSection) -> None:
    """Write into each validator's configuration where its worker computes; the default would take any GPU it finds."""
    for position, node in enumerate(network.validators):
        config = load_config(node.home.config_path, environment={})
        chosen = replace(config, attribution=first if position == 0 else CPU)
        write_atomic(node.home.config_path, render_toml(chosen).encode(), mode=0o644)


def running(fleet: Fleet) -> Choices:
    """(device, backend) of each validator's worker, as its command line has it."""
    validators = {node.name for node in fleet.network.validators}
    return {child.name: worker_of(child.pid) for child in fleet.children if child.name in validators}


def worker_of(pid: int) -> tuple[str, str]:
    """(device, backend) of the worker that process `pid` started; empty where it has none."""
    for path in Path(f"/proc/{pid}").glob("task/*/children"):
        for child in path.read_text().split():
            words = Path(f"/proc/{child}/cmdline").read_text().split("\0")
            if WORKER in words:
                options = dict(
                    word[2:].split("=", 1) for word in words if word.startswith("--") and "=" in word
                )
                return options.get("device", ""), options.get("backend", "")
    return "", ""


def asked_of(report: Report, first: AttributionSection) -> Choices:
    """What `running` must give."""
    names = sorted(node.name for node in report.nodes if node.validator)
    sections = [first, *[CPU] * (len(names) - 1)]
    return {name: (s.device, s.backend) for name, s in zip(names, sections, strict=True)}


def differences(report: Report, ran: Mapping[str, tuple[str, str]], asked: Choices) -> list[str]:
    """What is not as it must be: a worker in another place, a call that not all attested alike, a promise broken."""
    problems = [
        f"{name} computed on {ran.get(name)}, not {place}"
        for name, place in asked.items()
        if ran.get(name) != place
    ]
    audited = [call for call in report.inferences if call.audited]
    if not audited:
        problems.append("no call was audited")
    for call in audited:
        hashes = {attester.name: attester.result_hash for attester in call.attesters}
        if set(hashes) != set(asked) or set(hashes.values()) != {call.result_hash}:
            problems.append(f"call {call.number}: {hashes or 'nobody attested'}")
    # How long it takes is no promise here: workers without a GPU's speed, or with int8 limbs, take longer.
    problems += [
        f"{check.name}: {check.detail}"
        for check in report.checks
        if not check.passed and "at most" not in check.name
    ]
    return problems


def show(report: Report, ran: Choices, problems: Sequence[str]) -> None:
    """The hashes, and who computed them where."""
    print(f"adapter {report.model.adapter_hash}\nindex   {report.model.index_root}")
    for name, (device, backend) in ran.items():
        print(f"{name} computed on {device or 'nothing'}, backend {backend or '-'}")
    for call in report.inferences:
        if call.audited:
            print(f"call {call.number}: {call.result_hash} by {len(call.attesters)} validators")
    for problem in problems:
        print(f"DIFFERS: {problem}")
    if not problems:
        print(f"one hash for each audited call, from {len(ran)} validators")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
