"""Committed transactions a second, their finality, and what a daemon's CPU pays for each.

python -m benchmarks.throughput [--validators 4] [--seconds 20] [--rate 1000] [--crash 1] [--profile svg] [--compiled DIR] [--json]

Real daemons on loopback. Transfers are signed beforehand, enter in JSON-RPC batches through the public RPC of all daemons but one,
by an open loop (a late batch counts from when it was due), and count when that other daemon, the observer, has executed them:
finality is from due to executed there. CPU is user and system time of the daemons' processes from ``/proc``; the
load's own is apart. Exits with 1 where an accepted transaction was not committed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.chain import Chain, NodeSeat, rss_bytes, running_chain
from benchmarks.compiled import add_option, go_on_compiled
from benchmarks.load import Answers, prepare, send_all
from node.client import ClientError

DRAIN_S_MAX = 60.0
SETTLE_S_MAX = 60.0
QUIET_CPU_SHARE = 0.25
LANES_MAX = 12
BATCH_MAX = 50
"""What `rpc.batch_max` allows unless it is configured otherwise."""

SENDERS = 1200
IDLE_S = 20.0


@dataclass(slots=True)
class Seen:
    """When the observer had executed each height (monotonic s), as its events said."""

    heights: dict[int, float] = field(default_factory=dict)
    transactions: int = 0
    changed: threading.Condition = field(default_factory=threading.Condition)


def watch(chain: Chain, observer: NodeSeat, seen: Seen) -> None:
    """Follow the observer's block events until it ends."""
    try:
        for event in chain.client(observer).events(types="block"):
            with seen.changed:
                seen.heights[event.data["height"]] = time.monotonic()
                seen.transactions += event.data["transaction_count"]
                seen.changed.notify_all()
    except ClientError:
        return


def settle(chain: Chain, window_s: float = 2.0) -> None:
    """Wait until the daemons and their workers have done what a start takes."""
    until_s = time.monotonic() + SETTLE_S_MAX
    while time.monotonic() < until_s:
        before = sum(os.times()[:4]) + _tree_cpu_s(chain)
        time.sleep(window_s)  # what is measured is the CPU of a stretch of time
        if sum(os.times()[:4]) + _tree_cpu_s(chain) - before < QUIET_CPU_SHARE * window_s * len(
            chain.children
        ):
            return


def _tree_cpu_s(chain: Chain) -> float:
    """CPU seconds of the daemons and of their process groups' workers."""
    groups = {child.pid for child in chain.children.values()}
    total = 0.0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                values = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it ended meanwhile
            if int(values[2]) in groups:
                total += (int(values[11]) + int(values[12])) / os.sysconf("SC_CLK_TCK")
    return total


def drain(answers: Answers, seen: Seen, committed_before: int) -> None:
    """Wait until the observer has executed as many transactions as were accepted, for a minute at most."""
    with seen.changed:
        seen.changed.wait_for(
            lambda: seen.transactions - committed_before >= len(answers.accepted), DRAIN_S_MAX
        )


def commits(chain: Chain, observer: NodeSeat, seen: Seen, first: int) -> dict[bytes, float]:
    """When the observer had executed each transaction that succeeded above a height (monotonic s)."""
    client, found = chain.client(observer), {}
    for height in sorted(height for height in seen.heights if height >= first):
        for row in client.block(height)["transactions"]:
            if row["status"] == "ok":
                found[bytes.fromhex(row["tx_hash"])] = seen.heights[height]
    return found


def percentile(values: list[float], share: float) -> float:
    """The value below which `share` of the sorted values lie."""
    return values[min(len(values) - 1, int(share * len(values)))] if values else 0.0


def measure(options: argparse.Namespace, root: Path) -> dict[str, object]:
    """One run; returns the figures."""
    batch = options.batch or max(1, min(BATCH_MAX, options.rate // 50))
    settings = [f"rpc.batch_max={max(batch, BATCH_MAX)}", *options.set]
    with running_chain(root, options.validators, SENDERS, settings) as chain:
        settle(chain)
        observer, *others = reversed(chain.seats)
        for seat in others[: options.crash]:
            chain.kill(seat)
        idle = _idle(chain) if options.idle else {}
        entries = [seat.url for seat in reversed(others[options.crash :] or [observer])]
        return {
            **_loaded(options, chain, observer, entries, batch),
            "rate_offered": options.rate,
            "validators": options.validators,
            "crashed": options.crash,
            "batch": batch,
            "load_average": round(os.getloadavg()[0], 2),
            **idle,
        }


def _loaded(
    options: argparse.Namespace, chain: Chain, observer: NodeSeat, urls: list[str], batch: int
) -> dict[str, object]:
    """Warm up, then measure the window in which the load is offered, and after it until all of it is committed."""
    seen = Seen()
    threading.Thread(target=watch, args=(chain, observer, seen), daemon=True).start()
    nonces = {sender.address: 0 for sender in chain.senders}
    lanes = min(LANES_MAX, SENDERS // batch)
    warm, _ = prepare(chain.id, chain.senders, nonces, lanes, batch, options.rate, options.warm)
    requests, size_bytes = prepare(
        chain.id, chain.senders, nonces, lanes, batch, options.rate, options.seconds
    )
    drain(send_all(urls, warm, time.monotonic()), seen, 0)
    profile = _profiler(options, chain)
    before, first, committed_before = chain.cpu_s(), max(seen.heights, default=0) + 1, seen.transactions
    own_before, start_s = sum(os.times()[:2]), time.monotonic()
    answers = send_all(urls, requests, start_s)
    drain(answers, seen, committed_before)
    spent = {name: after - before[name] for name, after in chain.cpu_s().items()}
    own_s = sum(os.times()[:2]) - own_before
    if profile is not None:
        profile.wait()
    rss_max = max(rss_bytes(child.pid) for child in chain.children.values())
    last = max(seen.heights, default=first)
    return {
        **report(answers, commits(chain, observer, seen, first), spent, start_s),
        "transaction_bytes": size_bytes,
        "blocks_per_second": round((last - first + 1) / max(seen.heights.get(last, 0.0) - start_s, 1e-9), 1),
        "load_cpu_us_per_tx": round(1e6 * own_s / max(1, len(answers.due_s)), 1),
        "rss_mb_max": rss_max >> 20,
    }


def report(
    answers: Answers, found: dict[bytes, float], spent: dict[str, float], start_s: float
) -> dict[str, object]:
    """The figures of one measured window."""
    committed = {name: at for name, at in found.items() if name in answers.due_s}
    lost = answers.accepted - committed.keys()
    delays = sorted(1000 * (at - answers.due_s[name]) for name, at in committed.items())
    window_s = max(committed.values(), default=start_s) - start_s
    return {
        "committed_tx_per_second": round(len(committed) / window_s, 1) if window_s else 0.0,
        "finality_p50_ms": round(percentile(delays, 0.50), 1),
        "finality_p99_ms": round(percentile(delays, 0.99), 1),
        "cpu_us_per_tx_per_node": round(1e6 * sum(spent.values()) / len(spent) / max(1, len(committed)), 1),
        "offered": len(answers.due_s),
        "accepted": len(answers.accepted),
        "committed": len(committed),
        "lost": len(lost),
        "refused": dict(answers.refused.most_common(5)),
        "late_ms_max": round(1000 * answers.late_s_max, 1),
    }


def _idle(chain: Chain) -> dict[str, object]:
    """CPU of a daemon on a chain with nothing to order, in per cent of one core."""
    before = chain.cpu_s()
    time.sleep(IDLE_S)  # the stretch of time that is measured
    shares = [100 * (after - before[name]) / IDLE_S for name, after in chain.cpu_s().items()]
    return {"idle_cpu_percent_max": round(max(shares), 2), "idle_cpu_percent": [round(x, 2) for x in shares]}


def _profiler(options: argparse.Namespace, chain: Chain) -> subprocess.Popen[bytes] | None:
    """Sample the first daemon with py-spy for the measured window, if asked."""
    if not options.profile:
        return None
    tool = shutil.which("py-spy")
    if tool is None:
        raise SystemExit("--profile needs py-spy on the PATH (pip install py-spy)")
    kind = "flamegraph" if options.profile.endswith(".svg") else "raw"
    child = chain.children[chain.seats[0].name]
    command = [
        tool,
        "record",
        "--pid",
        str(child.pid),
        "--duration",
        str(int(options.seconds)),
        "--rate",
        "200",
    ]
    command += ["--format", kind, "--output", options.profile, "--function"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def main() -> int:
    """Measure, print, and fail where a transaction was lost."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--validators", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rate", type=int, default=1000, help="transactions offered a second")
    parser.add_argument("--batch", type=int, default=0, help="calls in a JSON-RPC batch (default: rate / 50)")
    parser.add_argument("--warm", type=float, default=3.0, help="seconds of the same load beforehand")
    parser.add_argument("--crash", type=int, default=0, help="validators killed before the load")
    parser.add_argument("--idle", action="store_true", help="measure the idle daemons first")
    parser.add_argument("--profile", default="", metavar="FILE", help="py-spy's flame graph (.svg) or stacks")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--json", action="store_true")
    add_option(parser)
    options = parser.parse_args()
    if options.compiled is not None:
        go_on_compiled("benchmarks.throughput", options.compiled)
    with tempfile.TemporaryDirectory(prefix="openledger-throughput-") as folder:
        figures = measure(options, Path(folder))
    if options.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:28} {value}")
    return 1 if figures["lost"] or not figures["committed"] else 0


if __name__ == "__main__":
    sys.exit(main())
