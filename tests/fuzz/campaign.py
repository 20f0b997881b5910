"""Runs targets: seeded mutation in this process, or coverage-guided by atheris in a process for each target."""

from __future__ import annotations

import hashlib
import random
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tests.fuzz.mutation import mutated
from tests.fuzz.target import Target, judge, judge_memory

FOUND = Path(__file__).with_name("found")
MEMORY_EVERY = 50
"""One input in so many is also measured, which costs some ten times its time."""

KEPT_PER_TARGET_MAX = 8
_UNITS = re.compile(rb"stat::number_of_executed_units: (\d+)")
_COVERED = re.compile(rb"cov: (\d+)")
_ARTIFACT = re.compile(rb"Test unit written to (\S+)")


@dataclass(slots=True)
class Finding:
    """An input after which something was raised that may not be, and what."""

    data: bytes
    error: str


@dataclass(slots=True)
class Report:
    """What came of one target. `slowest_s` is the longest that one input took, `peak_bytes` the most one allocated."""

    name: str
    inputs: int = 0
    read: int = 0
    slowest_s: float = 0.0
    peak_bytes: int = 0
    covered: int = 0
    findings: dict[str, Finding] = field(default_factory=dict)

    def line(self) -> str:
        """One line for people."""
        parts = [f"{self.name:18} {self.inputs:9,} inputs"]
        if self.read:
            parts.append(f"{self.read:8,} read")
        if self.covered:
            parts.append(f"{self.covered:5,} edges")
        if self.slowest_s:
            parts.append(f"slowest {1000 * self.slowest_s:6.1f} ms, peak {self.peak_bytes / 1024:7.0f} KiB")
        return ", ".join([*parts, f"{len(self.findings)} found"])


def search(target: Target, seed: int, inputs: int, seconds: float = float("inf")) -> Report:
    """Judge mutated inputs until `inputs` of them or `seconds` are over; the same seed tries the same inputs."""
    rng, report, start = random.Random(f"{seed} {target.name}"), Report(target.name), time.monotonic()
    while report.inputs < inputs and time.monotonic() - start < seconds:
        examine(target, mutated(rng, target.seeds, target.text), report)
    return report


def examine(target: Target, data: bytes, report: Report) -> None:
    """Judge one input, and count it."""
    measured = report.inputs % MEMORY_EVERY == 0
    report.inputs += 1
    start = time.perf_counter()
    try:
        if measured:
            report.peak_bytes = max(report.peak_bytes, judge_memory(target, data))
        else:
            report.read += judge(target, data)
    except Exception as error:  # whatever it is, it is the finding
        where = traceback.extract_tb(error.__traceback__)[-1]
        key = f"{type(error).__name__} at {Path(where.filename).name}:{where.lineno}"
        if len(report.findings) < KEPT_PER_TARGET_MAX:
            report.findings.setdefault(key, Finding(data, f"{key}: {str(error)[:160]}"))
    if not measured:
        report.slowest_s = max(report.slowest_s, time.perf_counter() - start)


def keep(target: str, findings: Iterable[Finding]) -> list[Path]:
    """Save inputs for the tests to replay; returns where."""
    FOUND.mkdir(exist_ok=True)
    paths = []
    for finding in findings:
        path = FOUND / f"{target}--{hashlib.sha256(finding.data).hexdigest()[:12]}.bin"
        path.write_bytes(finding.data)
        paths.append(path)
    return paths


def guided(target: Target, seed: int, seconds: float) -> Report:
    """Search one target with atheris, in a process of its own: libFuzzer does not give a process back."""
    report = Report(target.name)
    with tempfile.TemporaryDirectory(prefix="openledger-corpus-") as folder:
        corpus = Path(folder) / "corpus"
        corpus.mkdir()
        for number, data in enumerate(target.seeds):
            (corpus / f"seed-{number}").write_bytes(data)
        options = [
            f"-max_total_time={max(1, round(seconds))}",
            f"-seed={seed}",
            "-max_len=65536",
            "-print_final_stats=1",
            f"-artifact_prefix={folder}/",
        ]
        command = [sys.executable, "-m", "tests.fuzz.atheris_child", target.name, *options, str(corpus)]
        done = subprocess.run(command, capture_output=True, check=False, timeout=seconds * 3 + 120)
        counted, covered = _UNITS.search(done.stderr), _COVERED.findall(done.stderr)
        report.inputs = int(counted[1]) if counted else 0
        report.covered = int(covered[-1]) if covered else 0
        artifact = _ARTIFACT.search(done.stderr)
        if artifact:
            data = Path(artifact[1].decode()).read_bytes()
            examine(target, data, report)
            if not report.findings:
                report.findings["libFuzzer"] = Finding(data, done.stderr.decode(errors="replace")[-400:])
        elif done.returncode or not counted:
            report.findings["libFuzzer"] = Finding(b"", done.stderr.decode(errors="replace")[-400:])
    return report
