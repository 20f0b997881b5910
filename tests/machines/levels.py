"""What decides which kernels torch runs on a processor, which of it this one has, and sets of choices that cover pairs."""

from __future__ import annotations

import itertools
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

Choice = dict[str, str]

ONEDNN = "ONEDNN_MAX_CPU_ISA"
ATEN = "ATEN_CPU_CAPABILITY"
MKL = "MKL_ENABLE_INSTRUCTIONS"
THREADS = "OMP_NUM_THREADS"
BACKEND = "backend"
STARTS = 24

AVX512 = frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl"})
# Level -> what the processor must have for it to differ from the level before.
LEVELS: dict[str, dict[str, frozenset[str]]] = {
    ONEDNN: {
        "SSE41": frozenset({"sse4_1"}),
        "AVX2": frozenset({"avx2"}),
        "AVX512_CORE": AVX512,
        "AVX512_CORE_AMX": AVX512 | {"amx_tile", "amx_int8"},
    },
    ATEN: {"default": frozenset(), "avx2": frozenset({"avx2", "fma"}), "avx512": AVX512},
    # MKL heeds this variable on Intel's own processors only.
    MKL: {
        "SSE4_2": frozenset({"sse4_2", "GenuineIntel"}),
        "AVX2": frozenset({"avx2", "GenuineIntel"}),
        "AVX512": AVX512 | {"GenuineIntel"},
    },
    THREADS: {"1": frozenset(), "2": frozenset()},
}


def processor() -> tuple[str, frozenset[str]]:
    """(name, features and vendor) of this machine's first processor."""
    fields: dict[str, str] = {}
    path = Path("/proc/cpuinfo")
    for line in path.read_text().splitlines() if path.is_file() else ():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    features = frozenset((fields.get("flags") or fields.get("Features") or "").split())
    return fields.get("model name") or platform.machine(), features | {fields.get("vendor_id", "")}


def supported(features: frozenset[str]) -> dict[str, list[str]]:
    """The levels of each variable that take effect on a processor with `features`; of MKL's at least two, to be tried."""
    found = {
        name: [level for level, needs in levels.items() if needs <= features]
        for name, levels in LEVELS.items()
    }
    found[MKL] = found[MKL] if len(found[MKL]) > 1 else ["SSE4_2", "AVX2"]
    return {name: levels or ["default"] for name, levels in found.items()}


def lacking(features: frozenset[str]) -> list[str]:
    """The levels that this processor lacks, which no run here says anything about."""
    return [
        f"{name}={level}"
        for name, levels in LEVELS.items()
        for level, needs in levels.items()
        if not needs <= features
    ]


def once(factors: Mapping[str, Sequence[str]]) -> list[Choice]:
    """As few choices as hold every level of every factor."""
    count = max(len(levels) for levels in factors.values())
    return [{name: levels[i % len(levels)] for name, levels in factors.items()} for i in range(count)]


def covering(factors: Mapping[str, Sequence[str]]) -> list[Choice]:
    """Few choices such that every two levels of different factors meet in one of them, always the same ones.

    Greedy from several starts, the shortest result; `factors` have at most a few hundred combinations.
    """
    rows = every(factors)
    return min(
        (_greedy(rows[i:] + rows[:i]) for i in range(0, len(rows), max(1, len(rows) // STARTS))), key=len
    )


def _greedy(rows: Sequence[Choice]) -> list[Choice]:
    offered = [(row, pairs(row)) for row in rows]
    missing = {pair for _, met in offered for pair in met}
    chosen = []
    while missing:
        row, met = max(offered, key=lambda entry: len(missing & entry[1]))
        missing -= met
        chosen.append(row)
    return chosen


def every(factors: Mapping[str, Sequence[str]]) -> list[Choice]:
    """All combinations."""
    return [dict(zip(factors, levels, strict=True)) for levels in itertools.product(*factors.values())]


def pairs(row: Choice) -> set[tuple[tuple[str, str], ...]]:
    """The pairs of (factor, level) that meet in a choice."""
    return set(itertools.combinations(sorted(row.items()), 2))


def environment(choice: Choice) -> dict[str, str]:
    """This process's environment with the choice in it, and nothing else that steers kernels."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("ONEDNN_", "DNNL_", "ATEN_", "MKL_", "OMP_", "KMP_"))
    }
    # Threads that wait sleep, for several processes share the cores; that changes no kernel.
    chosen = {name: value for name, value in choice.items() if name != BACKEND}
    return kept | {"OMP_WAIT_POLICY": "PASSIVE"} | chosen
