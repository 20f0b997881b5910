"""The house's own rules: profiles of the property tests, and warnings that stop."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from hypothesis import settings

from tests.profiles import EFFORT, PROFILE, examples

ROOT = Path(__file__).resolve().parents[2]


def test_a_warning_from_our_modules_is_an_error() -> None:
    with pytest.raises(UserWarning, match="house"):
        warnings.warn_explicit("house", UserWarning, "node/daemon.py", 1, module="node.daemon")


def test_a_warning_filter_names_a_third_party_module_and_never_ours(pytestconfig: pytest.Config) -> None:
    first, *others = pytestconfig.getini("filterwarnings")
    assert first == "error"
    for rule in others:
        module = rule.split(":")[-1]
        assert module.split(".")[0] not in ("", "consensus", "attribution", "node", "tests")


def test_the_profile_that_was_asked_for_is_the_one_in_use() -> None:
    assert settings.get_current_profile_name() == PROFILE
    assert examples(10) == 10 * EFFORT[PROFILE]


@pytest.mark.parametrize(("profile", "status"), [("ci", 0), ("nightly", 0), ("weekly", 1)])
def test_an_unknown_profile_is_refused(profile: str, status: int) -> None:
    environment = {**os.environ, "HYPOTHESIS_PROFILE": profile}
    result = subprocess.run(
        [sys.executable, "-c", "import tests.profiles"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == status
    if status:
        assert "must be one of dev, ci, nightly" in result.stderr


def test_continuous_integration_looks_at_the_same_examples_every_time() -> None:
    assert settings.get_profile("ci").derandomize
    assert settings.get_profile("nightly").max_examples > settings.get_profile("dev").max_examples
    assert "HYPOTHESIS_PROFILE=ci" in (ROOT / ".ci" / "run").read_text()
