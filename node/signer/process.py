"""The signer's process: opens its home, listens, and ends on a signal or when nothing more may be signed.

openledger signer --home SIGNER
"""

import signal
import socket
from collections.abc import Collection
from pathlib import Path

import structlog
import trio

from consensus.errors import ConsensusError
from node.config import LogSection
from node.errors import ConfigInvalid, KeyFileInvalid, NodeError
from node.ledger.errors import LedgerError
from node.log import configure_logging
from node.passphrase import Unlock
from node.signature_rule import check_signature_rule
from node.signer.home import SignerHome, is_plain, open_signer
from node.signer.server import Server, listening
from node.storage.errors import StorageError

log = structlog.get_logger(__name__)

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
EXIT_FAILED = 1
EXIT_USAGE = 2


def main(place: SignerHome, unlock: Unlock, socket_path: Path, uids: Collection[int], form: str) -> int:
    """Run the signer whose home is `place` until it is told to stop; returns the exit code."""
    configure_logging(LogSection(format=form), moniker="signer")
    faults: list[BaseException] = []
    try:
        check_signature_rule()
        with open_signer(place, unlock) as custodian, listening(socket_path, shared=bool(uids)) as listener:
            if is_plain(place):
                log.info("key_in_the_clear", remedy="make the home with a passphrase")
            record = custodian.record
            log.info("listening", socket=str(socket_path), epoch=record.epoch, last_voted=record.last_voted)
            trio.run(_serve, Server(custodian, uids), listener)
            counts = {name.replace(" ", "_"): count for name, count in sorted(custodian.counts.items())}
            log.info("stopping", **counts)
    except* (NodeError, StorageError, LedgerError, ConsensusError, OSError) as errors:
        faults = _leaves(errors)
    for fault in faults:
        log.error("stopped", error=str(fault), kind=type(fault).__name__)
    if any(isinstance(fault, ConfigInvalid | KeyFileInvalid) for fault in faults):
        return EXIT_USAGE
    return EXIT_FAILED if faults else 0


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    return [
        leaf
        for error in group.exceptions
        for leaf in (_leaves(error) if isinstance(error, BaseExceptionGroup) else [error])
    ]


async def _serve(server: Server, listener: socket.socket) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_stop_on_signal, nursery.cancel_scope)
        nursery.start_soon(server.run, listener)


async def _stop_on_signal(scope: trio.CancelScope) -> None:
    with trio.open_signal_receiver(*STOP_SIGNALS) as signals:
        await anext(signals)
    scope.cancel()
