"""`openledger selfcheck`, and what a worker does on a machine that computes wrongly."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from attribution import exact, golden
from attribution.exact import elementary
from attribution.exact.products import PRODUCTS, product_fp64, product_int8
from attribution.selfcheck import Check
from attribution.spans import matching
from node.cli.main import main
from node.cli.output import Exit
from node.cli.selfcheck import tokens_per_s_min, too_slow
from node.ledger.params import Params
from node.recompute.worker import Engine
from tests.machines.running import ROOT

SECONDS_MAX = 30


def selfcheck(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    code = main(["selfcheck", "--json", *arguments])
    return code, json.loads(capsys.readouterr().out)


def failed(document: dict[str, Any]) -> set[tuple[str, str]]:
    return {(row["check"], row["backend"]) for row in document["checks"] if not row["ok"]}


def one_bit(product: Callable[[Tensor, Tensor], Tensor], rows_min: int) -> Callable[[Tensor, Tensor], Tensor]:
    """A product whose first entry is off in binary32's last places, where it has at least so many rows."""

    def wrong(qa: Tensor, qb: Tensor) -> Tensor:
        out = product(qa, qb)
        if out.shape[0] >= rows_min:
            out[0, 0] += max(1.0, 2.0**-22 * abs(float(out[0, 0])))
        return out

    return wrong


def test_a_sound_machine_passes_in_time_and_is_told_what_ran(capsys: pytest.CaptureFixture[str]) -> None:
    started = time.process_time()
    code, document = selfcheck(capsys)
    assert time.process_time() - started < SECONDS_MAX
    assert (code, document["ok"]) == (Exit.OK, True)
    # A busy machine may be too slow; that is said, and is no difference.
    assert document["fast_enough"] == (document["advice"] == [])
    hashes = golden.golden_hashes()
    for backend in ("fp64", "fp32", "int8"):
        rows = {row["check"]: row for row in document["checks"] if row["backend"] in (backend, "")}
        assert {name: row["hash"] for name, row in rows.items() if row["hash"]} == hashes
        assert rows["products = oracle"]["speed"] > 0
    assert sum(row["check"] == "spans" for row in document["checks"]) == 1
    # What the node's default parameters ask of a validator: 1,536 tokens in half of 30 s, twice.
    needed = {row["check"]: row["speed_min"] for row in document["checks"] if row["speed_min"]}
    assert needed == {"decoding": 102.4, "scores": 102.4}
    machine = document["machine"]
    assert (machine["torch"], machine["device"]) == (torch.__version__, "cpu")
    assert machine["cpu"]
    assert machine["products_by"] in exact.BACKENDS


def test_the_table_is_for_people(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    assert main(["selfcheck", "--quick"]) == Exit.OK
    shown = capsys.readouterr().out
    assert "computes what every other one does" in shown
    for word in ("check", "hash", "ok", "tokens/s", "GFLOP/s", torch.__version__):
        assert word in shown


def test_a_wrong_bit_in_one_backend_is_found_and_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PRODUCTS, "int8", ("cpu", one_bit(product_int8, 1)))
    code, document = selfcheck(capsys, "--quick")
    assert (code, document["ok"]) == (Exit.FAILED, False)
    assert failed(document) == {("products = oracle", "int8")}
    right = ", ".join(sorted(set(exact.BACKENDS) - {"int8"}))
    assert f"Wrong: int8. Right: {right}." in document["advice"]
    assert document["advice"][0].startswith("The first to differ: products = oracle by int8")
    # The worker refuses to start here, whatever backend is asked for: nobody is told otherwise.
    assert not any("config.toml" in line for line in document["advice"])


def test_a_wrong_bit_that_the_start_up_check_is_too_small_to_see_is_found(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PRODUCTS, "fp64", ("cpu", one_bit(product_fp64, 30)))
    code, document = selfcheck(capsys, "--quick")
    assert code == Exit.FAILED
    assert failed(document) == {("products", "fp64")}
    assert any('backend = "fp32" in [attribution]' in line for line in document["advice"])
    assert exact.backends.chosen_backend() is None


def test_another_golden_hash_fails(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    document = json.loads(golden.GOLDEN_PATH.read_text())
    document["hashes"]["logits"] = "00" * 32
    altered = tmp_path / "golden.json"
    altered.write_text(json.dumps(document))
    monkeypatch.setattr(golden, "GOLDEN_PATH", altered)
    code, shown = selfcheck(capsys, "--quick")
    assert code == Exit.FAILED
    assert failed(shown) == {("logits", name) for name in exact.BACKENDS}
    assert any("not one kernel" in line for line in shown["advice"])
    for text in ("{}", "[", '{"hashes": {"logits": ""}}'):
        altered.write_text(text)
        code, shown = selfcheck(capsys, "--quick")
        assert (code, [row["check"] for row in shown["checks"]]) == (Exit.FAILED, ["signatures"])
        assert "golden.json" in shown["advice"][0]


def test_a_root_that_is_not_rounded_correctly_is_found(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def careless(x: Tensor) -> Tensor:
        return x.pow(0.5)

    monkeypatch.setattr(elementary, "sqrt", careless)
    monkeypatch.setattr(elementary, "log", lambda x: torch.log(x.double()))
    code, document = selfcheck(capsys, "--quick")
    assert code == Exit.FAILED
    assert ("functions = oracle", "") in failed(document)


def test_spans_that_differ_are_told_apart_from_what_pays(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matching, "log2_floor", lambda number: number.bit_length() - 1)
    code, document = selfcheck(capsys, "--quick")
    assert code == Exit.FAILED
    assert failed(document) == {("spans", "")}
    assert any("pay nobody" in line for line in document["advice"])


def check(name: str, backend: str, speed: float) -> Check:
    return Check(name, backend, "", "00", "00", 1, speed, "tokens/s")


def test_a_machine_too_slow_for_the_longest_call_is_told_so() -> None:
    needed = {"decoding": 100.0, "scores": 100.0}
    found = [check("decoding", "fp32", 99.0), check("scores", "fp32", 101.0), check("decoding", "int8", 1.0)]
    (line,) = too_slow(found, needed, "fp32")
    assert "decoding runs at 99 tokens/s, the longest call needs 100" in line
    # What this machine would not use does not matter, nor does work that has no deadline.
    assert too_slow([check("index root", "fp32", 1.0), *found[1:]], needed, "fp32") == []


@pytest.mark.parametrize("changed", [{"commit_window_ms": 15_000}, {"prompt_tokens_max": 2_560}])
def test_what_is_needed_follows_the_parameters(changed: dict[str, int]) -> None:
    assert tokens_per_s_min(Params()) == 102.4
    assert tokens_per_s_min(replace(Params(), **changed)) == 204.8


def test_cuda_without_a_gpu_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    code, document = selfcheck(capsys, "--device", "cuda")
    assert (code, document["kind"]) == (Exit.USAGE, "UsageError")


@pytest.mark.parametrize("backend", ["auto", "fp64", "int8"])
def test_a_worker_refuses_to_start_on_a_machine_that_multiplies_wrongly(
    monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    """A validator must never lose its bond to its hardware."""
    monkeypatch.setitem(PRODUCTS, "fp64", ("cpu", one_bit(product_fp64, 1)))
    with pytest.raises(exact.BackendRefused, match="fp64"):
        Engine("cpu", backend, 1)


def test_a_worker_refuses_to_start_where_subnormal_numbers_are_flushed() -> None:
    """A library built with -ffast-math switches that on for the process that loads it."""
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormal numbers")
    try:
        with pytest.raises(exact.BackendRefused, match="underflow"):
            Engine("cpu", "auto", 1)
    finally:
        torch.set_flush_denormal(False)


def test_a_worker_refuses_to_start_where_a_function_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elementary, "log", lambda x: torch.log(x.double()) * (1.0 + 2.0**-50))
    with pytest.raises(exact.BackendRefused, match="functions on cpu"):
        Engine("cpu", "auto", 1)


def test_the_worker_process_ends_before_its_first_job_on_such_a_machine() -> None:
    """Its daemon sees a worker that dies and answers no audit, rather than a wrong answer."""
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormal numbers")
    torch.set_flush_denormal(False)
    script = (
        "import sys, torch; torch.set_flush_denormal(True)\n"
        "from node.recompute.worker import main; sys.exit(main(['--device=cpu']))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        text=True,
    ) as worker:
        # Its input stays open: it must end by itself.
        assert worker.stdout is not None
        assert worker.stderr is not None
        written, complaint = worker.stdout.read(), worker.stderr.read()
        assert worker.wait() != 0
    assert written == ""
    assert "BackendRefused" in complaint
