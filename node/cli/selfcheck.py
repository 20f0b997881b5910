"""``openledger selfcheck``: does this machine compute the same bits as every other? Imports torch only once it runs.

Whoever runs a validator on a machine that fails here would attest results that nobody else gets, and lose its bond.
"""

from __future__ import annotations

import argparse
import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING

from node.cli.output import Exit, UsageError, add_example, add_json_argument, print_json, print_result

if TYPE_CHECKING:
    from attribution.selfcheck import Check
    from node.ledger.params import Params

FLAGS = ("sse4_1", "avx", "avx2", "fma", "avx_vnni", "avx512f", "avx512_vnni", "amx_int8", "asimd", "i8mm")
"""The processor's features that decide which kernels run, as the kernel names them."""
HASH_DIGITS = 12
ORACLE = "products = oracle"
SIGNATURES = "signatures"
AUDIT_PARTS = ("decoding", "scores")
"""What an audit consists of: the answer again, then its scores. Each may take half of the window for attestations."""


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
    from node.ledger.params import Params

    if parsed.device not in devices():
        raise UsageError(f"torch sees no {parsed.device.upper()} device; leave --device out")
    set_up(parsed.threads)
    found: list[Check] = []
    problem = ""
    try:
        found.append(_signatures())
        found.extend(checks(parsed.device, parsed.quick))
    except (ExactError, OSError) as error:
        problem = f"the check could not run: {error}"
    passed = not problem and all(check.passed for check in found)
    machine = _processor() | describe(parsed.device)
    needed = dict.fromkeys(AUDIT_PARTS, tokens_per_s_min(Params()))
    prefix = "cuda-" if parsed.device == "cuda" else ""
    slow = too_slow(found, needed, f"{prefix}{machine.get('weights_by', '')}")
    document: dict[str, object] = {
        "ok": passed,
        "fast_enough": not slow,
        "machine": machine,
        "checks": [_row(check, needed.get(check.name, 0.0)) for check in found],
        "advice": ([] if passed else advice(found, problem)) + slow,
    }
    if parsed.as_json:
        print_json(document)
    else:
        _show(document)
    return Exit.OK if passed else Exit.FAILED


def tokens_per_s_min(params: Params) -> float:
    """Tokens a second at which the longest call that `params` allow is half audited in half of the window to attest."""
    tokens = params.prompt_tokens_max + params.new_tokens_max
    return 2000.0 * tokens / max(1, params.commit_window_ms)


def too_slow(found: list[Check], needed: dict[str, float], backend: str) -> list[str]:
    """A line for each part of an audit that `backend`, which this machine uses by default, is too slow for."""
    return [
        f"Too slow to be sure of attesting in time: {check.name} runs at {check.speed:,.0f} {check.unit}, the longest call "
        f"needs {needed[check.name]:,.0f} (default parameters, shipped base). Give the node a faster or less busy "
        "processor, or a GPU; who is late loses its share of the fee, not its bond."
        for check in found
        if check.backend == backend
        and check.passed
        and check.speed
        and check.speed < needed.get(check.name, 0.0)
    ]


def advice(found: list[Check], problem: str) -> list[str]:
    """What to do about the checks that failed, the most useful thing first."""
    lines = [problem] if problem else []
    lines += [check.problem for check in found if check.name == SIGNATURES and not check.passed]
    found = [check for check in found if check.name != SIGNATURES]
    first = next((check for check in found if not check.passed), None)
    if first is not None:
        by = f" by {first.backend}" if first.backend else ""
        lines.append(f"The first to differ: {first.name}{by} ({first.problem}).")
    if first is not None and first.name == "spans":
        lines.append("Verbatim spans pay nobody, but what this node answers about them would be wrong.")
    backends = {check.backend for check in found if check.backend}
    failed = {check.backend for check in found if not check.passed}
    if problem or failed:
        lines.append(
            "Do not run a validator on this machine as it is: what it attests could cost its bond, "
            "and a worker that notices refuses to start."
        )
    if failed and backends - failed and "" not in failed:
        right = sorted(backends - failed)
        lines.append(f"Wrong: {', '.join(sorted(failed))}. Right: {', '.join(right)}.")
        if all(check.passed for check in found if check.name == ORACLE):
            name = right[0].removeprefix("cuda-")
            lines.append(
                f'Until it is mended, backend = "{name}" in [attribution] of config.toml keeps to one that is right.'
            )
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


def _signatures() -> Check:
    """Whether this machine's library takes exactly the signatures that count."""
    from attribution.selfcheck import Check
    from node.signature_rule import SignatureRuleDiffers, check_signature_rule

    problem, start_s = "", time.perf_counter()
    try:
        check_signature_rule()
    except SignatureRuleDiffers as error:
        problem = str(error)
    return Check(SIGNATURES, "", problem, "", "", int(1e6 * (time.perf_counter() - start_s)), 0.0, "")


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


def _row(check: Check, needed: float) -> dict[str, object]:
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
        "speed_min": round(needed, 1),
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
    table.add_column("needed", justify="right")
    for row in rows:
        result = (
            "[green]ok[/green]" if row["ok"] else f"[bold red]DIFFERS[/bold red] {escape(row['problem'])}"
        )
        speed = f"{row['speed']:,.0f} {row['unit']}" if row["speed"] else "-"
        digest = row["hash"][:HASH_DIGITS] or "-"
        took, needed = (
            f"{row['elapsed_us'] / 1e3:,.0f} ms",
            f"{row['speed_min']:,.0f}" if row["speed_min"] else "-",
        )
        table.add_row(row["check"], row["backend"] or "-", digest, result, took, speed, needed)
    console.print(table)
    if document["ok"]:
        console.print(f"[green]This machine computes what every other one does[/green] ({len(rows)} checks).")
        if document["fast_enough"]:
            console.print(
                "It is fast enough to audit the longest call in time (default parameters, shipped base)."
            )
    for line in document["advice"] if isinstance(document["advice"], list) else ():
        console.print(f"[bold red]![/bold red] {escape(line)}")
