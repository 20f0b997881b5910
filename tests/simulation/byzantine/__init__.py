"""Nodes named for their misdeed. Each holds a real key and sends what it likes; none is held to its word."""

from tests.simulation.byzantine.amnesiac import Amnesiac
from tests.simulation.byzantine.equivocator import Equivocator
from tests.simulation.byzantine.forger import CertificateForger
from tests.simulation.byzantine.leaders import PayloadWithholder, SilentLeader
from tests.simulation.byzantine.replayer import Replayer
from tests.simulation.byzantine.splitter import HalfSplitter
from tests.simulation.byzantine.stale import StaleClaimer, StaleVoter
from tests.simulation.node import Node

KINDS: dict[str, type[Node]] = {
    "equivocator": Equivocator,
    "payload-withholder": PayloadWithholder,
    "silent-leader": SilentLeader,
    "stale-voter": StaleVoter,
    "stale-claimer": StaleClaimer,
    "certificate-forger": CertificateForger,
    "amnesiac": Amnesiac,
    "replayer": Replayer,
    "half-splitter": HalfSplitter,
}
"""By name; an equivocator takes two places in the network."""
