"""A daemon like any other that forgets at each start what its key has signed: no record, no guard, no pause to listen."""

import sys

from node import node, startup
from node.cli.main import main
from node.replicas import Replicas

if __name__ == "__main__":
    setattr(startup, "_safety_record", lambda _store, _epoch: None)  # noqa: B010 - forgetting is the misdeed
    setattr(node, "guard_record", lambda *_: None)  # noqa: B010
    setattr(node, "refuse_lost_record", lambda *_: None)  # noqa: B010
    setattr(Replicas, "listen_ms", lambda *_: 0)  # noqa: B010
    sys.exit(main())
