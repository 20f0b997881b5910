"""What can go wrong with a development network, as nouns that say what to do about it."""

from __future__ import annotations

from pathlib import Path

from node.errors import NodeError


class DevnetError(NodeError):
    """Base of the errors of `node.devnet`."""


class DevnetHomeForeign(DevnetError):
    """The directory holds something that no devnet made; nothing in it was touched."""

    def __init__(self, root: Path, found: str) -> None:
        self.root = root
        self.found = found
        super().__init__(f"{root} holds something else ({found}); name an empty or new directory with --home")


class DevnetHomeBusy(DevnetError):
    """A devnet, or one of its nodes, still runs in this directory. ``pid`` where it is known."""

    def __init__(self, root: Path, pid: int | None) -> None:
        self.root = root
        self.pid = pid
        who = "a process" if pid is None else f"process {pid}"
        super().__init__(
            f"{who} still runs in {root}; stop it (Ctrl-C, or `kill PID`) or name another --home"
        )


class PortsExhausted(DevnetError):
    """No free TCP ports were found on the loopback interface."""

    def __init__(self, wanted: int, tries: int) -> None:
        self.wanted = wanted
        super().__init__(f"{wanted} free TCP ports on 127.0.0.1 were not found in {tries} tries")


class NodeDied(DevnetError):
    """A node ended before the network was up. ``last_lines`` are the end of its log."""

    def __init__(self, name: str, code: int, log: Path, last_lines: str) -> None:
        self.name = name
        self.code = code
        self.log = log
        self.last_lines = last_lines
        how = f"exit code {code}" if code >= 0 else f"signal {-code}"
        super().__init__(f"{name} ended with {how} while starting; the end of {log}:\n{last_lines}")


class NetworkNotReady(DevnetError):
    """The nodes run, but did not get together in time. ``waiting`` says for what, node by node."""

    def __init__(self, seconds: float, waiting: str, log: Path, last_lines: str) -> None:
        self.waiting = waiting
        self.log = log
        self.last_lines = last_lines
        super().__init__(
            f"after {seconds:.0f} s still waiting for {waiting}; the end of {log}:\n{last_lines}"
        )


class StoryFailed(DevnetError):
    """A step of the story did not come to its end. ``step`` names it."""

    def __init__(self, step: str, reason: str) -> None:
        self.step = step
        self.reason = reason
        super().__init__(f"{step}: {reason}")


class StoryTextInvalid(DevnetError):
    """The contributors' text cannot be used; the message names the file and, where there is one, the line."""
