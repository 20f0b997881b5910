"""A signer beside one of the daemons, as an operator lays it out: the key moves there, the daemon is told the socket."""

import shutil
import signal
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from node.devnet.network import NodePlan
from node.devnet.processes import Child, child_environment, spawn
from node.keys import public_key_of, read_key
from node.signer.home import SignerHome, take_over

ENTRY = "node.cli.main"
END_S_MAX = 10.0


@dataclass(slots=True)
class SignerSeat:
    """One `openledger signer`. The socket lies in a short path of its own: a test's folder may be too long for an address."""

    name: str
    place: SignerHome
    socket: Path
    public: str
    child: Child | None = None
    stopped: bool = field(default=False)

    @property
    def log(self) -> Path:
        """What it writes to standard error."""
        return self.place.root / "signer.log"

    @property
    def running(self) -> bool:
        """Whether its process lives."""
        return self.child is not None and self.child.popen.poll() is None

    @property
    def settings(self) -> dict[str, str]:
        """What its daemon must be told."""
        return {"signer.socket": str(self.socket), "signer.public_key": self.public}

    def start(self) -> None:
        """Start it. Main thread only."""
        command = [sys.executable, "-m", ENTRY, "signer", "--home", str(self.place.root)]
        command += ["--socket", str(self.socket)]
        self.child = spawn(self.name, command, self.log, child_environment())

    def send(self, number: signal.Signals) -> None:
        """Send it a signal; after SIGKILL its end is waited for, which is at once."""
        if self.child is None or not self.running:
            return
        self.stopped = number == signal.SIGSTOP or (self.stopped and number != signal.SIGCONT)
        self.child.popen.send_signal(number)
        if number == signal.SIGKILL:
            self.child.popen.wait(END_S_MAX)
            self.stopped = False

    def close(self) -> None:
        """End it, and remove the socket's folder."""
        self.send(signal.SIGKILL)
        shutil.rmtree(self.socket.parent, ignore_errors=True)


def lay_signer(plan: NodePlan) -> SignerSeat:
    """Move the key of a validator that does not run into a signer's home beside its own."""
    place = SignerHome(plan.home.root.with_name(f"{plan.name}-signer"))
    take_over(place, plan.home)
    public = public_key_of(read_key(place.home.consensus_key_path)).hex()
    socket = Path(tempfile.mkdtemp(prefix="ol-")) / "signer.sock"
    return SignerSeat(f"the signer of {plan.name}", place, socket, public)
