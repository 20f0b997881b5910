"""What holds for every test."""

import os
import signal
import sys
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.profiles import PROFILE

settings.load_profile(PROFILE)

# Two runners and the daemons they start share the cores. Threads that wait for each other would keep them busy with waiting.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# A shell's background job ignores Ctrl-C, and so would every process that a test starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _torch_as_it_starts() -> Iterator[None]:
    """A test may set this process up as a daemon's (`attribution.machine`): the next one finds torch's defaults again.

    Without it a test's result would depend on which other files its process ran before. Torch is not loaded for it.
    """
    torch = sys.modules.get("torch")
    threads = torch.get_num_threads() if torch else 0
    if torch:
        torch.set_grad_enabled(True)
    yield
    if torch:
        torch.set_num_threads(threads)
