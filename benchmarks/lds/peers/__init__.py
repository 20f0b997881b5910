"""Other people's attribution libraries on the same work: kronfluence, bergson and dattri, each in a process of its own.

`methods()` gives every peer as a `Method`. What a peer needs is in an environment of its own (docs/peers.md,
`scripts/peers.sh`); where it is missing a method raises `PeerUnavailable`, where it fails `PeerFailed`: the run says so
and goes on. This file and `child.py` import nothing of the project, for they run in that environment, too.
"""


class PeerUnavailable(Exception):
    """The peer is not installed; the text says how to install it."""


class PeerFailed(Exception):
    """The peer was started and gave no usable scores; the text says why."""
