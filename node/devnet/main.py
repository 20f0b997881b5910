"""`run_devnet` and `run_demo`: a network, the story on it, the report; then the end, or a network that stays up."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import trio
from rich.console import Console

from node.devnet.chain import probe
from node.devnet.errors import DevnetError
from node.devnet.layout import Layout, claim_home
from node.devnet.network import VALIDATORS_MIN, Network, create_network
from node.devnet.render import limited_console, render_files, render_report, render_running
from node.devnet.report import write_report
from node.devnet.script import Script, read_script
from node.devnet.story import play
from node.devnet.supervisor import Fleet, run_nodes, write_devnet_json
from node.devnet.timeline import Timeline
from node.devnet.workshop import open_workshop

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_INTERRUPTED = 130
_THREADS_MAX = 2


def run_demo(
    home: Path | None = None,
    data: Path | None = None,
    validators: int = VALIDATORS_MIN,
    as_json: bool = False,
) -> int:
    """Play the story, stop everything, and return 0 only if every promise held; ``home`` keeps the report.

    Raises `node.devnet.errors.DevnetError` and `node.devnet.stories.StoryError` for what a person can mend.
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
    with claim_home(root) as layout:
        network = create_network(layout, validators, tuple(script.records))
        show = Show(as_json)
        try:
            return trio.run(_run, layout, network, script, show, stay_up)
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

    def headline(self, network: Network, stay_up: bool) -> None:
        """What is about to happen."""
        if self.console is not None:
            self.console.print(
                f"[bold]OpenLedger {'devnet' if stay_up else 'demo'}[/] "
                f"[dim]{len(network.validators)} validators and a full node, each a process of its own[/]\n"
            )

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


async def _run(layout: Layout, network: Network, script: Script, show: Show, stay_up: bool) -> int:
    """Everything, under one cancel scope that a signal cancels."""
    interrupted = trio.Event()
    result = EXIT_INTERRUPTED
    async with trio.open_nursery() as nursery:
        await nursery.start(_cancel_on_signal, nursery.cancel_scope, interrupted)
        result = await _play(layout, network, script, show, stay_up)
        nursery.cancel_scope.cancel()
    if interrupted.is_set():
        show.note("stopped")
        # A devnet's story was told and its network was asked to end: that is success. Anything less was cut short.
        return EXIT_OK if stay_up and layout.report_json.exists() else EXIT_INTERRUPTED
    return result


async def _cancel_on_signal(
    scope: trio.CancelScope,
    interrupted: trio.Event,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        task_status.started()
        async for _ in signals:
            interrupted.set()
            scope.cancel()
            return


async def _play(layout: Layout, network: Network, script: Script, show: Show, stay_up: bool) -> int:
    timeline = Timeline(show.console)
    show.headline(network, stay_up)
    async with AsyncExitStack() as stack:
        with timeline.step("Network") as step:
            step.progress("starting the nodes")
            fleet = await stack.enter_async_context(run_nodes(network, show.note))
            await _until_up(layout, fleet)
            full = network.full_node
            step.done(
                f"{len(fleet.children)} nodes agree on blocks; everything enters at the full node, {full.rpc_url}"
            )
        workshop_log = layout.work / "workshop.log"
        async with open_workshop(workshop_log, _threads()) as workshop:
            await workshop.ask("open")
            report = await play(network, workshop, script, layout.work, timeline)
        document = write_report(layout.report_json, report)
        show.report(layout.report_json, document)
        if stay_up:
            show.running(document, json.loads(layout.devnet_json.read_bytes()))
            await trio.sleep(math.inf)
        return EXIT_OK if report.ok else EXIT_FAILED


async def _until_up(layout: Layout, fleet: Fleet) -> None:
    await fleet.wait_ready(probe)
    write_devnet_json(layout, fleet)


def _threads() -> int:
    """Validators idle while the adapter is trained, so training may have two cores; more do not help a model so small."""
    return min(_THREADS_MAX, os.cpu_count() or 1)


def _first(errors: BaseExceptionGroup[DevnetError]) -> DevnetError:
    """The first error of a group, whose causes are all one: the rest was cancelled."""
    found: BaseException = errors
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    if not isinstance(found, DevnetError):
        raise errors
    return found
