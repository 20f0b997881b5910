"""The daemon: opens a home, wires the rooms together in one nursery, and ends them together.

    openledger start --home HOME

Every task below runs until the daemon stops; one that fails ends them all with its reason. SIGINT and SIGTERM
are the same request to stop. Nothing has to be saved on the way out: whatever matters was written when it
happened, so stopping and being killed differ only in manners.
"""

import gc
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

import structlog
import trio

from consensus.errors import ConsensusError
from node import __version__
from node.config import Config, load_config
from node.errors import ConfigInvalid, KeyFileInvalid, NodeError
from node.form import form
from node.home import Home, lock_home, open_home
from node.ledger.errors import LedgerError
from node.log import configure_logging
from node.node import Node
from node.signature_rule import check_signature_rule
from node.snapshot.late import StartAnew
from node.stacks import write_stacks_on_signal
from node.storage.errors import StorageError

log = structlog.get_logger(__name__)

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)

# The command line's exit codes (`node.cli.output.Exit`) for what keeps a daemon from running.
EXIT_FAILED = 1
EXIT_USAGE = 2

# A thread that comes back from the curve, the disk or a socket waits so long for the one that computes, instead of 5 ms:
# a batch of signatures has 64 such returns, and votes wait behind a block that executes.
SWITCH_INTERVAL_S = 0.001
# Objects between two collections. Transactions come by the thousand and are in no cycles; 700 would look at them in vain.
GC_THRESHOLDS = (20_000, 20, 20)


def main(root: Path, overrides: Mapping[str, object] | None = None) -> int:
    """Run the node whose home is `root` until it is told to stop; returns the exit code."""
    try:
        home = open_home(root)
        config = load_config(home.config_path, overrides=overrides)
        configure_logging(config.log, moniker=config.node.moniker)
        log.info("starting", version=__version__, code=form())
        check_signature_rule()
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        with lock_home(home):
            return _run(home, config)
    except (NodeError, StorageError, LedgerError, ConsensusError, OSError) as error:
        log.error("cannot_start", error=str(error), kind=type(error).__name__)
        return EXIT_USAGE if isinstance(error, ConfigInvalid | KeyFileInvalid) else EXIT_FAILED


def _run(home: Home, config: Config) -> int:
    faults: list[BaseException] = [StartAnew(0)]
    while any(isinstance(fault, StartAnew) for fault in faults):
        faults = []
        node = Node(home, config)
        try:
            trio.run(_serve, node)
        except* (NodeError, StorageError, OSError) as errors:
            faults = _leaves(errors)
        finally:
            node.close()
    for fault in faults:
        log.error("stopped", error=str(fault), kind=type(fault).__name__)
    return EXIT_FAILED if faults else 0


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    return [
        leaf
        for error in group.exceptions
        for leaf in (_leaves(error) if isinstance(error, BaseExceptionGroup) else [error])
    ]


async def _serve(node: Node) -> None:
    """Run the node's tasks until a signal arrives."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_stop_on_signal, node, nursery.cancel_scope)
        nursery.start_soon(write_stacks_on_signal, node.home)
        await nursery.start(node.run)
        # What is here now stays, so no later collection has to look at it.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)


async def _stop_on_signal(node: Node, scope: trio.CancelScope) -> None:
    with trio.open_signal_receiver(*STOP_SIGNALS) as signals:
        number = await anext(signals)
    # Stopping takes a bounded time; a second Ctrl-C must not turn it into a traceback.
    for each in STOP_SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    log.info("stopping", signal=signal.Signals(number).name)
    await node.stop()
    scope.cancel()
