"""How the kernels are compiled, kept and admitted: no fused multiply-add, code under the digest of its sources, a check at each start."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from attribution import exact, machine
from attribution.exact import backends, fused, products
from attribution.exact.backends import BACKENDS
from attribution.exact.fused import kept
from attribution.exact.oracle_functions import oracle_exp, rounded
from tests.hardening.exact import KERNELS
from tests.hardening.removal import Removal
from tests.unit.attribution.fused_cases import drawn, needs_kernels

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def _default_backend() -> Iterator[None]:
    yield
    exact.set_backend(None)


def kernels() -> dict[str, Any]:
    """Every kernel that Python calls, by module and name."""
    from attribution.exact.fused import attention, elementwise, limbs, products, scanning, turning

    return {
        f"{module.__name__.rsplit('.', 1)[1]}.{name}": value
        for module in (products, limbs, turning, attention, elementwise, scanning)
        for name, value in vars(module).items()
        if hasattr(value, "py_func") and value.py_func.__module__ == module.__name__ and value.signatures
    }


@needs_kernels
@pytest.mark.slow
def test_no_kernel_contracts_a_product_and_a_sum_into_one_rounding() -> None:
    from attribution.exact.fused import compiling

    exact.selfcheck()
    listed, pairs = kernels(), 0
    assert len(listed) >= 23
    for name, kernel in listed.items():
        # Machine code that was read from a file cannot be shown; the same compiler makes it again.
        again = compiling.compiled(kernel.py_func, False)
        for signature in kernel.signatures:
            again.compile(signature)
            text = again.inspect_asm(signature)
            # x86 and ARM, scalar and vector.
            found = re.findall(r"\b(?:vfn?m(?:add|sub)\w*|fn?m(?:add|sub)\w*|fml[as]\w*)\b", text)
            assert not found, (name, found[:3])
            pairs += text.count("pmaddwd")
    if "avx2" in Path("/proc/cpuinfo").read_text():
        assert pairs > 100


@needs_kernels
def test_the_exponential_rounds_each_operation_where_contraction_would_show() -> None:
    from attribution.exact.fused import steps

    logits = torch.cat([torch.zeros(4096, 1), -drawn(3, "exp", 4096, 1).abs() * 40.0], 1)
    p, _, den = steps.probabilities(logits)
    x = logits.view(-1).tolist()
    divided = [
        rounded(rounded(oracle_exp(v)) / d)
        for v, d in zip(x, den.float().expand(-1, 2).reshape(-1).tolist(), strict=True)
    ]
    assert p.view(-1).tolist() == divided
    contracted = sum(_contracted(v) != oracle_exp(v) for v in x)
    # The comparison above can tell: a fused polynomial differs in many of these places.
    assert contracted > 400


def _contracted(x: float) -> float:
    """The polynomial of `exp` with each product and sum rounded together."""
    from attribution.exact.elementary import EXP2_32, LOG2_E_32

    t = rounded(x * LOG2_E_32)
    k = round(t)
    t = rounded(t - k)
    p = np.float64(EXP2_32[-1])
    for c in EXP2_32[-2::-1]:
        # Products of binary32 numbers are exact in binary64; the sum's error there is far below binary32's.
        p = np.float64(rounded(float(p * t + c)))
    return float(p) * 2.0**k


@needs_kernels
def test_a_wrong_kernel_is_found_at_the_start_and_refuses_the_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from attribution.exact.fused import steps

    right = steps.swiglu_backward
    monkeypatch.setattr(steps, "swiglu_backward", lambda dm, wide, s: right(dm, wide, s) * (1.0 + 2.0**-23))
    (report,) = (r for r in exact.selfcheck(strict=False) if r.name == "kernels on cpu")
    assert report.failed_case == "between products"
    with pytest.raises(exact.BackendRefused):
        machine.prepare("cpu")


@needs_kernels
def test_the_check_leaves_the_chosen_backend_as_it_was() -> None:
    for name in (None, "fp32"):
        exact.set_backend(name)
        exact.selfcheck()
        assert backends.chosen_backend() == name


def test_without_numba_there_is_no_such_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "ready", lambda: False)
    assert "fused" not in backends._candidates()
    monkeypatch.setattr(backends, "BACKENDS", tuple(n for n in BACKENDS if n != "fused"))
    assert backends.family_for(torch.device("cpu")) == "fp32"
    assert "kernels on cpu" not in {r.name for r in exact.selfcheck()}


def test_a_kernel_that_cannot_be_compiled_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(qa: object, qb: object) -> object:
        raise ValueError("no such instruction")

    monkeypatch.setitem(products.PRODUCTS, "fused", ("cpu", refused))
    (report,) = exact.selfcheck(("fused",), strict=False)
    assert report.failed_case == "same sign"


PROGRAM = """
import json, sys, torch
torch.set_num_threads(1)
from attribution import exact
from attribution.golden import CASES, Materials
if "fused" in exact.BACKENDS:
    exact.set_backend("fused")
materials = Materials("cpu")
found = {case.name: case.compute(materials) for case in CASES if case.by_backend}
print(json.dumps([exact.BACKENDS, "numba" in sys.modules, found]))
"""


def tree(folder: Path) -> Path:
    """A copy of the engine, with no machine code in it."""
    shutil.copytree(
        ROOT / "attribution", folder / "attribution", ignore=shutil.ignore_patterns("__pycache__")
    )
    return folder


def begin(folder: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """A Python process in a tree, whose user's cache is in it, too."""
    settings = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1", **environment}
    settings.pop(kept.ASKED, None)
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=folder,
        env=settings,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def ended(process: subprocess.Popen[str]) -> str:
    """The last line that a process printed; it must have ended well."""
    out, errors = process.communicate()
    assert process.returncode == 0, errors[-2000:]
    return out.splitlines()[-1]


def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if numba were there."""
    monkeypatch.setattr(kept, "INSTALLED", True)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1")
    kept.ready.cache_clear()


def test_the_folder_of_machine_code_is_named_by_the_sources_and_old_ones_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch)
    for age, name in enumerate(("kernels-1", "kernels-2", "kernels-3", "kernels-4")):
        (tmp_path / name / "index").mkdir(parents=True)
        (tmp_path / name / "index" / "code.nbc").write_bytes(b"code")
        os.utime(tmp_path / name, (age, age))
    (tmp_path / "other").mkdir()
    folder = kept.folder_in((tmp_path,))
    assert folder == tmp_path / f"kernels-{kept.digest()}"
    assert {path.name for path in tmp_path.iterdir()} == {folder.name, "kernels-4", "kernels-3", "other"}


def test_a_changed_source_or_setting_has_another_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch)
    before = kept.digest()
    copied = tree(tmp_path) / "attribution" / "exact" / "fused"
    monkeypatch.setattr(kept, "_HERE", copied)
    assert kept.digest() == before
    monkeypatch.setenv("NUMBA_CPU_NAME", "x86-64")
    assert kept.digest() != before
    monkeypatch.delenv("NUMBA_CPU_NAME")
    (copied / "vector.py").write_text((copied / "vector.py").read_text() + "\n# changed\n")
    assert kept.digest() != before


def test_where_nothing_can_be_written_nothing_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch)
    blocked = tmp_path / "a file"
    blocked.write_text("")
    assert kept.folder_in((blocked / "below",)) is None
    second = kept.folder_in((blocked / "below", tmp_path / "second"))
    assert second is not None
    kept.complete(second)
    # Complete code is preferred to an earlier place without any.
    assert kept.folder_in((tmp_path / "first", tmp_path / "second")) == second


def test_kernels_serve_only_once_all_were_compiled_and_found_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch)
    monkeypatch.delenv(kept.ASKED, raising=False)
    monkeypatch.setattr(kept, "places", lambda: (tmp_path,))
    try:
        folder = kept.folder_in((tmp_path,))
        assert folder is not None
        assert not kept.ready()
        kept.complete(folder)
        kept.ready.cache_clear()
        assert kept.ready()
        monkeypatch.setattr(kept, "INSTALLED", False)
        kept.ready.cache_clear()
        assert not kept.ready()
    finally:
        kept.ready.cache_clear()


@needs_kernels
@pytest.mark.slow
def test_a_tree_without_machine_code_imports_no_compiler_and_several_may_compile_at_once(
    tmp_path: Path,
) -> None:
    folder = tree(tmp_path)
    before = json.loads(ended(begin(folder, "-c", PROGRAM)))
    assert ("fused" in before[0], before[1]) == (False, False)
    for process in [begin(folder, "-m", "attribution.exact.fused") for _ in range(2)]:
        assert "compiled and right" in ended(process)
    after = json.loads(ended(begin(folder, "-c", PROGRAM)))
    assert ("fused" in after[0], after[1]) == (True, True)
    assert before[2] == after[2]


@needs_kernels
@pytest.mark.slow
@pytest.mark.parametrize("features", ["-avx,-avx2,-fma,-avx512f", "-avx2,-fma", "+avx2,+fma"])
def test_machine_code_for_other_instruction_sets_gives_the_golden_hashes(
    tmp_path: Path, features: str
) -> None:
    from attribution.golden import golden_hashes

    folder = tree(tmp_path)
    settings = {"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": features}
    assert "compiled and right" in ended(begin(folder, "-m", "attribution.exact.fused", **settings))
    backends_there, _, found = json.loads(ended(begin(folder, "-c", PROGRAM, **settings)))
    assert "fused" in backends_there
    expected = golden_hashes()
    assert found == {name: expected[name] for name in found}
    assert len(found) >= 9


@needs_kernels
def test_the_kernels_agree_with_torch_on_the_shipped_model() -> None:
    from attribution.golden import Materials, golden_hashes, gradients

    assert gradients(Materials("cpu")) == golden_hashes()["gradients"]


@pytest.mark.parametrize("removal", KERNELS, ids=lambda removal: removal.threat)
def test_the_hardenings_of_kernels_are_where_their_list_says(removal: Removal) -> None:
    assert (ROOT / removal.file).read_text().count(removal.text) == 1
    for test in removal.tests:
        path, _, name = test.partition("::")
        assert f"def {name}(" in (ROOT / path).read_text()
