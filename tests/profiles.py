"""How hard Hypothesis looks: `HYPOTHESIS_PROFILE=dev|ci|nightly pytest ...`.

- dev (default): new examples every run, so that everyone who works here searches a little.
- ci: the same examples every run, so that a change is judged by itself and not by chance.
- nightly: twenty times as many, and the shrinking that goes with it; `make nightly`.
"""

import os

from hypothesis import HealthCheck, settings

EFFORT = {"dev": 1, "ci": 1, "nightly": 20}
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "dev")

if PROFILE not in EFFORT:
    raise ValueError(f"HYPOTHESIS_PROFILE={PROFILE}: must be one of {', '.join(EFFORT)}")

# A deadline per example measures the machine's load, not the program; pytest-timeout bounds every test instead.
settings.register_profile("dev", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, database=None, print_blob=True)
settings.register_profile(
    "nightly", deadline=None, print_blob=True, max_examples=2000, suppress_health_check=[HealthCheck.too_slow]
)


def examples(count: int) -> int:
    """How many examples a property gets in this profile that gets `count` in an ordinary run."""
    return count * EFFORT[PROFILE]
