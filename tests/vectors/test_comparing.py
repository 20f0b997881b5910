"""Somebody else's results: the first difference of each step is named, and a file that holds none is refused with a reason."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.vectors import comparing
from tests.vectors.__main__ import main


@cache
def values() -> dict[str, Any]:
    return dict(comparing.read(comparing.EXPECTED))


def results(steps: dict[str, Any]) -> str:
    return json.dumps({"format": 1, "steps": [{"step": name, "value": steps[name]} for name in steps]})


def checked(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    path = tmp_path / "results.json"
    path.write_text(text)
    status = main(["--check-attribution", str(path)])
    said = capsys.readouterr()
    return status, said.out + said.err


def test_right_results_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, said = checked(tmp_path, results(values()), capsys)
    assert status == 0
    assert said.splitlines()[-1] == f"{len(values())} of {len(values())} steps equal"


def test_some_steps_may_be_given_without_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, said = checked(tmp_path, results({"root": values()["root"]}), capsys)
    assert status == 0
    assert "root: equal" in said
    assert "losses: not given" in said
    assert said.splitlines()[-1] == f"1 of {len(values())} steps equal; {len(values()) - 1} not given"


def changed(step: str, change: Callable[[Any], Any]) -> str:
    value = copy.deepcopy(values()[step])
    return results(values() | {step: change(value)})


def put(place: list[Any], value: Any) -> Callable[[Any], Any]:
    def change(found: Any) -> Any:
        at = found
        for name in place[:-1]:
            at = at[name]
        at[place[-1]] = value
        return found

    return change


def bits_of(factor: str, number: int, bits: int) -> Callable[[Any], Any]:
    """A binary32 number of a factor's array replaced."""

    def change(found: Any) -> Any:
        data = bytearray.fromhex(found[factor]["data"])
        data[4 * number : 4 * number + 4] = bits.to_bytes(4, "little")
        found[factor]["data"] = data.hex()
        return found

    return change


FACTOR = "model.layers.0.self_attn.v_proj.A"


def first_bits(step: str) -> int:
    return int.from_bytes(bytes.fromhex(values()[step][FACTOR]["data"])[:4], "little")


@pytest.mark.parametrize(
    ("step", "change", "said"),
    [
        ("losses", put([1], 3), "at [1]: expected "),
        ("losses", lambda v: [*v, 0], "expected 9 entries, found 10"),
        ("losses", lambda v: v[:-1], "expected 9 entries, found 8"),
        ("losses", lambda _: {}, "expected a list, found {}"),
        ("losses", lambda v: [float(x) for x in v], "at [0]: expected "),
        ("leaders", put([0], False), "at [0]: expected 0, found False"),
        ("root", lambda v: "ff" + v[2:], "at the value, byte 0: expected "),
        ("root", lambda v: v[:-2], "expected 32 bytes, found 31"),
        ("root", lambda _: "\x1b[2Jno", "expected bytes in hexadecimal, found '\\x1b[2Jno'"),
        ("header", lambda _: 7, "expected bytes in hexadecimal, found 7"),
        ("rows", put([3], "00"), "at [3], byte 0"),
        ("proof", put(["path", 1], "00"), "at [path][1], byte 0"),
        ("shares", put([1, ""], 5), "at [1][]: expected 224016699, found 5"),
        ("shares", put([1, "aa"], 5), "at [1]: 'aa' should not be there"),
        ("gradients", lambda v: {k: v[k] for k in v if k != FACTOR}, f"'{FACTOR}' is missing"),
        ("gradients", put([FACTOR], []), "expected an object of dtype, shape and data, found []"),
        ("gradients", put([FACTOR, "shape"], [7, 3, 7]), "expected the shape [7, 7, 3], found [7, 3, 7]"),
        ("gradients", put([FACTOR, "dtype"], "float64"), "expected the dtype float32, found 'float64'"),
        ("gradients", put([FACTOR, "data"], "00"), "expected 588 bytes of data in hexadecimal"),
        ("gradients", bits_of(FACTOR, 0, 0x7FC00000), f"at [{FACTOR}][0, 0, 0]: expected "),
        ("gradients", bits_of(FACTOR, 31, 0x3F800000), f"at [{FACTOR}][1, 3, 1]: expected "),
        (
            "weights",
            bits_of(FACTOR, 0, first_bits("weights") + 1),
            "1 units in the last place apart, so a rounding differs",
        ),
    ],
)
def test_the_first_difference_of_a_step_is_named(
    step: str, change: Callable[[Any], Any], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, text = checked(tmp_path, changed(step, change), capsys)
    assert status == 1
    lines = text.splitlines()
    assert [line.split(":")[0] for line in lines if "DIFFERS" in line] == [step]
    assert said in next(line for line in lines if line.startswith(f"{step}: "))
    assert f"1 differ; begin with {step}" in lines[-1]
    assert "\x1b" not in text


def test_a_negative_zero_is_called_one() -> None:
    zero, negative = ({"dtype": "float32", "shape": [1], "data": data} for data in ("00000000", "00000080"))
    assert "negative zero" in (comparing.difference(zero, negative) or "")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no JSON could be read"),
        ("\ud800".encode("utf-8", "surrogatepass").decode("latin-1"), "no JSON could be read"),
        ("[" * 100_000, "nested too deeply"),
        ("[]", 'not an object with "format": 1'),
        ('{"format": 2, "steps": []}', 'not an object with "format": 1'),
        ('{"format": 1, "steps": {}}', '"steps" is not a list'),
        ('{"format": 1, "steps": []}', "no step is given"),
        ('{"format": 1, "steps": [7]}', "entry 0"),
        ('{"format": 1, "steps": [{"step": "root"}]}', "entry 0"),
        (
            '{"format": 1, "steps": [{"step": "roots", "value": 1}]}',
            "there is no step 'roots'; there are: minima",
        ),
        ('{"format": 1, "steps": [{"step": "root", "value": NaN}]}', "NaN is not a number"),
        ('{"format": 1, "format": 1, "steps": []}', "a name twice"),
        (
            '{"format": 1, "steps": [{"step": "root", "value": ""}, {"step": "root", "value": ""}]}',
            "'root' is there twice",
        ),
        (
            '{"format": 1, "steps": [{"step": "losses", "value": [1' + "0" * 5000 + "]}]}",
            "no JSON could be read",
        ),
        (" " * (comparing.FILE_BYTES_MAX + 1), f"more than {comparing.FILE_BYTES_MAX} bytes"),
    ],
    ids=range(15),
)
def test_a_file_without_results_is_refused_with_a_reason(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, found = checked(tmp_path, text, capsys)
    assert status == 2
    assert said in found


def test_a_file_that_is_not_there_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check-attribution", str(tmp_path / "nothing.json")]) == 2
    assert "No such file" in capsys.readouterr().err


def test_checking_takes_neither_torch_nor_numpy_nor_our_packages(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(results(values()))
    missing = ("torch", "numpy", "msgpack", "nacl", "blake3", "attribution", "consensus", "node")
    program = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({missing!r}))\n"
        "from tests.vectors.__main__ import main\n"
        f"sys.exit(main(['--check-attribution', {str(path)!r}]))"
    )
    found = subprocess.run(
        [sys.executable, "-c", program],
        cwd=comparing.EXPECTED.parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
