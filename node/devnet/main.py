"""`run_devnet` and `run_demo`: a network, the story on it, the report; then the end, or a network that stays up."""

from __future__ import annotations

import json
import signal
import sys
import tempfile
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio
from rich.console import Console

from node.devnet.chain import probe
from node.devnet.errors import DevnetError
from node.devnet.layout import Layout, claim_home
from node.devnet.network import VALIDATORS_MIN, Network, create_network
from node.devnet.render import limited_console, render_files, render_report, render_running
from node.devnet.report import Report, write_report
from node.devnet.script import Script, read_script
from node.devnet.story import play
from node.devnet.supervisor import run_nodes, write_devnet_json
from node.devnet.timeline import Timeline
from node.devnet.workshop import open_workshop

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_INTERRUPTED = 130
TRAINING_THREADS = 1
"""Products of a model so small take less time than waking a second thread: two were ten times slower under load."""


def run_demo(
    home: Path | None = None,
    data: Path | None = None,
    validators: int = VALIDATORS_MIN,
    as_json: bool = False,
) -> int:
    """Play the story, stop everything, and return 0 only if every promise held; ``home`` keeps the report.

    Raises `node.devnet.errors.DevnetError` for what a person can mend.
    """
    return run_devnet(home, validators, data, stay_up=False, as_json=as_json)


def run_devnet(
    home: Path | None = None,
    validators: int = VALIDATORS_MIN,
    data: Path | None = None,
    stay_up: bool = True,
    as_json: bool = False,
) -> int:
    """Start ``validators`` validators and a full node, play the story on ``data`` (None: the standard library).

    With ``stay_up`` the network then runs until SIGINT, SIGTERM or SIGHUP, which end everything within 5 s at any
    time. ``home`` None takes a new temporary folder. ``as_json`` prints the report's document and nothing else.
    """
    script = read_script(data)
    root = Path(tempfile.mkdtemp(prefix="openledger-")) if home is None else home
    show = Show(as_json)
    plan = Plan(validators, script, stay_up, show, Timeline(show.console))
    with claim_home(root) as layout:
        try:
            return trio.run(_run, layout, plan)
        except* DevnetError as errors:
            raise _first(errors) from None


class Show:
    """What goes to the terminal: everything to standard output, or, for programs, one document there."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self.console = None if as_json else limited_console(Console(highlight=False))

    def note(self, text: str) -> None:
        """One line about something that happened by itself; to standard error for programs."""
        if self.console is None:
            print(text, file=sys.stderr)
        else:
            self.console.print(f"[yellow]![/] {text}")

    def headline(self, validators: int, stay_up: bool) -> None:
        """What is about to happen."""
        if self.console is not None:
            what = f"{validators} validators and a full node, each a process of its own"
            self.console.print(f"\n[bold]OpenLedger {'devnet' if stay_up else 'demo'}[/]  [dim]{what}[/]\n")

    def report(self, path: Path, document: dict[str, Any]) -> None:
        """The report, rendered from its document."""
        if self.console is None:
            print(json.dumps(document, indent=2, ensure_ascii=False), flush=True)
        else:
            render_report(self.console, document)
            render_files(self.console, path)

    def running(self, document: dict[str, Any], devnet: dict[str, Any]) -> None:
        """What a network that stays up offers."""
        if self.console is not None:
            render_running(self.console, document, devnet)


@dataclass(frozen=True, slots=True)
class Plan:
    """What was asked for."""

    validators: int
    script: Script
    stay_up: bool
    show: Show
    timeline: Timeline


async def _run(layout: Layout, plan: Plan) -> int:
    """Everything, under one cancel scope that a signal cancels."""
    interrupted = trio.Event()
    result = EXIT_INTERRUPTED
    async with trio.open_nursery() as nursery:
        await nursery.start(_cancel_on_signal, nursery.cancel_scope, interrupted)
        result = await _play(layout, plan)
        nursery.cancel_scope.cancel()
    if interrupted.is_set():
        plan.show.note("stopped; nothing is left running")
        # A devnet whose story was told was asked to end: that is success. Anything less was cut short.
        return EXIT_OK if plan.stay_up and layout.report_json.exists() else EXIT_INTERRUPTED
    return result


async def _cancel_on_signal(
    scope: trio.CancelScope,
    interrupted: trio.Event,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    wanted = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup asked us to outlive the terminal
        wanted.append(signal.SIGHUP)
    with trio.open_signal_receiver(*wanted) as signals:
        task_status.started()
        async for _ in signals:
            interrupted.set()
            scope.cancel()
            return


async def _play(layout: Layout, plan: Plan) -> int:
    show, timeline = plan.show, plan.timeline
    show.headline(plan.validators, plan.stay_up)
    async with AsyncExitStack() as stack:
        with timeline.step("Network") as step:
            step.progress("drawing keys, writing homes and the genesis")
            names = tuple(plan.script.records)
            network = await trio.to_thread.run_sync(create_network, layout, plan.validators, names)
            step.progress("starting the nodes")
            fleet = await stack.enter_async_context(run_nodes(network, show.note))
            views = await fleet.wait_ready(probe)
            write_devnet_json(layout, fleet)
            height = min(view.height for view in views.values())
            step.done(
                f"{len(views)} nodes at height {height} and up; the story enters at {network.full_node.rpc_url}"
            )
        report = await _tell(layout, network, plan)
        document = write_report(layout.report_json, report)
        show.report(layout.report_json, document)
        if plan.stay_up:
            show.running(document, json.loads(layout.devnet_json.read_bytes()))
            await trio.sleep_forever()
        return EXIT_OK if report.ok else EXIT_FAILED


async def _tell(layout: Layout, network: Network, plan: Plan) -> Report:
    async with (
        open_workshop(layout.work / "workshop.log", TRAINING_THREADS) as workshop,
        trio.open_nursery() as nursery,
    ):
        # torch takes seconds to import; the contributors need none of it yet.
        nursery.start_soon(workshop.ask, "open")
        return await play(network, workshop, plan.script, layout.work, plan.timeline)


def _first(errors: BaseExceptionGroup[DevnetError]) -> DevnetError:
    """The first error of a group, whose causes are all one: the rest was cancelled."""
    found: BaseException = errors
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    if not isinstance(found, DevnetError):
        raise errors
    return found
