"""What holds for every test."""

import signal

from hypothesis import settings

from tests.profiles import PROFILE

settings.load_profile(PROFILE)

# A shell's background job ignores Ctrl-C, and so would every process that a test starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)
