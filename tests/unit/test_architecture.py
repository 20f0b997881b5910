"""The directions of imports that ARCHITECTURE.md promises."""

import subprocess
import sys
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

ROOT = Path(__file__).parents[2]


def test_every_import_goes_the_way_the_architecture_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert lint_imports(config_filename=str(ROOT / ".importlinter"), cache_dir=None) == 0


@pytest.mark.parametrize(
    "package", ["consensus.replica", "node.ledger.execute", "node.mempool", "node.client"]
)
def test_nobody_pays_for_torch_or_libp2p_by_accident(package: str) -> None:
    check = f"import sys, {package}; sys.exit(bool({{'torch', 'libp2p', 'trio'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=False).returncode == 0
