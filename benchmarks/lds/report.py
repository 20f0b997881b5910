"""The table: a row a method, over all seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.lds import counterfactual, statistics
from benchmarks.lds.running import SeedResult, names
from benchmarks.lds.statistics import Interval

REFERENCE = "EK-FAC"


def rows_of(results: Sequence[SeedResult], resamples: int = statistics.RESAMPLES) -> list[dict[str, Any]]:
    """A row a method: LDS with its interval, less the reference's on the same samples, cost, rises after removal, floor."""
    samples = {}
    for name in names(results):
        measured = [r.measured[name] for r in results]
        samples[name] = (statistics.lds(measured), statistics.resampled(measured, resamples))
    rows = []
    for name, (mean, drawn) in samples.items():
        scored = [r.scored[name] for r in results]
        row: dict[str, Any] = {
            "method": name,
            "lds": _triple(statistics.interval(mean, drawn)),
            "lds_by_seed": [round(statistics.lds([r.measured[name]]), 3) for r in results],
            "bytes_per_record": scored[0].bytes_per_record,
            "build_s": round(float(np.mean([s.build_s for s in scored])), 1),
            "query_ms": round(float(np.mean([s.query_ms for s in scored])), 1),
            "needs_retraining": scored[0].needs_retraining,
            "note": scored[0].note,
        }
        if REFERENCE in samples and name != REFERENCE:
            other = samples[REFERENCE]
            row["lds_less_reference"] = _triple(statistics.interval(mean - other[0], drawn - other[1]))
        row |= removal(results, name)
        if all(name in r.attributed for r in results):
            floors = [r.attributed[name] for r in results]
            row |= {key: round(float(np.mean([f[key] for f in floors])), 4) for key in floors[0]}
        rows.append(row)
    if any("random records" in r.rises for r in results):
        rows.append({"method": "random records", **removal(results, "random records")})
    return rows


def removal(results: Sequence[SeedResult], name: str) -> dict[str, Any]:
    """Rises of the loss after removal by a method, over the seeds that have them."""
    found = [rise for r in results for rise in r.rises.get(name, [])]
    if not found:
        return {}
    return {
        f"removal_{round(100 * share)}_percent": _triple(counterfactual.summary(found, share))
        for share in counterfactual.SHARES
    }


def document(
    results: Sequence[SeedResult], machine: dict[str, object], resamples: int = statistics.RESAMPLES
) -> dict[str, Any]:
    """All of it, for `--json`."""
    refused = {name: reason for r in results for name, reason in r.refused.items()}
    return {
        "machine": machine,
        "seeds": [r.seed for r in results],
        "subsets": [len(next(iter(r.measured.values())).real) for r in results if r.measured],
        "rows": rows_of(results, resamples),
        "refused": refused,
    }


def show(found: dict[str, Any]) -> None:
    """The same for people."""
    print(f"seeds {found['seeds']}, half-subsets {found['subsets']}\n")
    print(
        f"{'method':50} {'LDS':>22} {'less EK-FAC':>24} {'bytes':>9} {'build s':>8} {'query ms':>9} "
        f"{'removal 1 %':>20} {'removal 5 %':>20} {'strange':>8} {'queries':>8}"
    )
    for row in found["rows"]:
        print(
            f"{row['method']:50} {_shown(row.get('lds')):>22} {_shown(row.get('lds_less_reference'), True):>24} "
            f"{row.get('bytes_per_record', ''):>9} {row.get('build_s', ''):>8} {row.get('query_ms', ''):>9} "
            f"{_shown(row.get('removal_1_percent')):>20} {_shown(row.get('removal_5_percent')):>20} "
            f"{row.get('unrelated_at_default', ''):>8} {row.get('queries_at_default', ''):>8}"
        )
    print(
        "\nRemoval: rise of the mean loss, nats a query. Strange, queries: share attributed at the default floor."
    )
    for name, reason in found["refused"].items():
        print(f"{name:50} not run: {reason}")


def _triple(found: Interval) -> list[float | None]:
    """Mean, low, high; None for a bound that one value cannot have."""
    return [round(x, 3) if np.isfinite(x) else None for x in (found.mean, found.low, found.high)]


def _shown(triple: list[float | None] | None, sign: bool = False) -> str:
    if triple is None or triple[0] is None:
        return ""
    mean, low, high = triple
    if low is None or high is None:
        return f"{mean:+.3f}" if sign else f"{mean:.3f}"
    return f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]" if sign else f"{mean:.3f} [{low:.3f}, {high:.3f}]"
