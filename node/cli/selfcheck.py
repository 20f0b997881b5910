"""``openledger selfcheck``: does this machine compute the same bits as every other? Imports torch only once it runs.

Whoever runs a validator on a machine that fails here would attest results that nobody else gets, and lose its bond.
"""

from __future__ import annotations

import argparse
import platform
from pathlib import Path
from typing import TYPE_CHECKING

from node.cli.output import Exit, UsageError, add_example, add_json_argument, print_json, print_result

if TYPE_CHECKING:
    from attribution.selfcheck import Check

FLAGS = ("sse4_1", "avx", "avx2", "fma", "avx_vnni", "avx512f", "avx512_vnni", "amx_int8", "asimd", "i8mm")
"""The processor's features that decide which kernels run, as the kernel names them."""
HASH_DIGITS = 12


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``selfcheck``."""
    text = "where to compute: cpu (default) or cuda"
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help=text)
    text = "CPU threads; changes speed, never bits (default: 1)"
    parser.add_argument("--threads", type=int, default=1, metavar="N", help=text)
    parser.add_argument("--quick", action="store_true", help="leave out training and the index")
    add_json_argument(parser)
    add_example(parser, "openledger selfcheck", "openledger selfcheck --device cuda --json")
    parser.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    """Check, show, and exit with 0 only if everything is as it must be."""
    from attribution.errors import ExactError
    from attribution.exact.backends import devices
    from attribution.machine import describe, set_up
    from attribution.selfcheck import checks

    if parsed.device not in devices():
        raise UsageError(f"torch sees no {parsed.device.upper()} device; leave --device out")
    set_up(parsed.threads)
    found: list[Check] = []
    problem = ""
    try:
        found.extend(checks(parsed.device, parsed.quick))
    except (ExactError, OSError) as error:
        problem = f"the check could not run: {error}"
    passed = not problem and all(check.passed for check in found)
    document: dict[str, object] = {
        "ok": passed,
        "machine": _processor() | describe(parsed.device),
        "checks": [_row(check) for check in found],
        "advice": [] if passed else advice(found, problem),
    }
    if parsed.as_json:
        print_json(document)
    else:
        _show(document)
    return Exit.OK if passed else Exit.FAILED


def advice(found: list[Check], problem: str) -> list[str]:
    """What to do about the checks that failed, the most useful thing first."""
    lines = [problem] if problem else []
    backends = {check.backend for check in found if check.backend}
    failed = {check.backend for check in found if not check.passed}
    if problem or failed:
        lines.append(
            "Do not run a validator on this machine as it is: what it attests could cost its bond, "
            "and a worker that notices refuses to start."
        )
    if failed and backends - failed and "" not in failed:
        lines.append(f"Wrong: {', '.join(sorted(failed))}. Right: {', '.join(sorted(backends - failed))}.")
    elif failed:
        lines.append(
            "Every backend is affected, so the cause is not one kernel but the machine or its settings."
        )
    if failed:
        lines.append(
            "Unset what changes arithmetic (ONEDNN_*, MKL_*, CUBLAS_*, TORCH_ALLOW_TF32_CUBLAS_OVERRIDE, LD_PRELOAD), "
            "install the torch version that requirements.lock names, and check again."
        )
        lines.append(
            "If it still differs, please report this output with --json: it is a bug, here or in a kernel."
        )
    return lines


def _processor() -> dict[str, str | int]:
    """Name and features of the first processor; what /proc/cpuinfo does not tell is left empty."""
    path = Path("/proc/cpuinfo")
    fields: dict[str, str] = {}
    if path.is_file():
        for line in path.read_text().splitlines():
            key, colon, value = line.partition(":")
            if colon:
                fields.setdefault(key.strip(), value.strip())
    name = fields.get("model name") or platform.processor() or platform.machine()
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    return {"cpu": name, "cpu_features": " ".join(flag for flag in FLAGS if flag in flags)}


def _row(check: Check) -> dict[str, object]:
    return {
        "check": check.name,
        "backend": check.backend,
        "ok": check.passed,
        "problem": check.problem,
        "hash": check.found,
        "expected": check.expected,
        "elapsed_us": check.elapsed_us,
        "speed": round(check.speed, 1),
        "unit": check.unit,
    }


def _show(document: dict[str, object]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    machine, rows = document["machine"], document["checks"]
    if not isinstance(machine, dict) or not isinstance(rows, list):
        raise TypeError("the document is not one that `run` made")
    print_result(machine, False, "this machine")
    console = Console(soft_wrap=True)
    table = Table(title="exact arithmetic", title_justify="left", show_edge=False)
    for name in ("check", "backend", "hash", "result"):
        table.add_column(name, no_wrap=name != "result")
    table.add_column("time", justify="right")
    table.add_column("speed", justify="right")
    for row in rows:
        result = (
            "[green]ok[/green]" if row["ok"] else f"[bold red]DIFFERS[/bold red] {escape(row['problem'])}"
        )
        speed = f"{row['speed']:,.0f} {row['unit']}" if row["speed"] else "-"
        digest = row["hash"][:HASH_DIGITS] or "-"
        table.add_row(
            row["check"], row["backend"] or "-", digest, result, f"{row['elapsed_us'] / 1e3:,.0f} ms", speed
        )
    console.print(table)
    if document["ok"]:
        console.print(f"[green]This machine computes what every other one does[/green] ({len(rows)} checks).")
    for line in document["advice"] if isinstance(document["advice"], list) else ():
        console.print(f"[bold red]![/bold red] {escape(line)}")
