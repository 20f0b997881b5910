"""The worker process: reads jobs from standard input, writes results to standard output, dies with its daemon.

torch is imported here and in no other process of a node. Before its first job the worker holds its arithmetic
against the integer oracle and refuses to work on a machine that fails: a validator must never be slashed for
its hardware.
"""

import argparse
import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from node.ledger.records import decode_records
from node.ledger.results import AuditStatus, audit_result_hash
from node.recompute.jobs import (
    AuditDone,
    AuditJob,
    IndexBuilt,
    IndexJob,
    Job,
    JobRefused,
    JobResult,
    pack_frame,
    parse_job,
    read_frame,
)

if TYPE_CHECKING:
    from attribution.adapter import Adapter
    from attribution.index import Index
    from attribution.model import Base

PR_SET_PDEATHSIG = 1


def main(argv: Sequence[str] | None = None) -> int:
    """Serve jobs until standard input closes."""
    parser = argparse.ArgumentParser(prog="openledger-recompute")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(argv)
    _die_with_parent()
    # What torch prints must not reach the pipe that carries results.
    results = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(sys.stdin.buffer, results, Engine(options.device, options.backend, options.threads))
    return 0


def serve(jobs: BinaryIO, results: BinaryIO, engine: "Engine") -> None:
    """Answer each job in turn; end when the daemon has gone."""
    while (body := read_frame(jobs)) is not None:
        results.write(pack_frame(engine.perform(parse_job(body)).fields()))
        results.flush()


def _die_with_parent() -> None:
    """Ask Linux for SIGKILL when the daemon dies; elsewhere the closed pipe ends us after the current job."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the daemon's to handle
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Engine:
    """The arithmetic of this machine, checked once, with the models it has opened."""

    def __init__(self, device: str, backend: str, threads: int) -> None:
        import torch

        from attribution import exact

        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self.device = exact.choose_device(device)
        exact.selfcheck(backend=backend, device=self.device)

    def perform(self, job: Job) -> JobResult:
        """Do one job; a file that is missing or damaged is a refusal, never a crash."""
        from attribution.errors import AttributionError

        try:
            match job:
                case IndexJob():
                    return self._build_index(job)
                case AuditJob():
                    return self._audit(job)
        except (AttributionError, OSError, ValueError) as error:
            return JobRefused(f"{type(error).__name__}: {error}")

    def _build_index(self, job: IndexJob) -> IndexBuilt:
        from attribution.index import build_index

        records = [record for path in job.contributions for record in decode_records(Path(path).read_bytes())]
        index = build_index(
            _open_base(job.base, self.device),
            _open_adapter(job.adapter, job.adapter_hash, self.device),
            records,
        )
        index.save(Path(job.index_folder))
        return IndexBuilt(index.root, index.record_count)

    def _audit(self, job: AuditJob) -> AuditDone:
        """Recompute the output first: what was not the model's answer is not attributed to anyone."""
        raise NotImplementedError


@lru_cache(maxsize=4)
def _open_base(path: str, device: str) -> "Base":
    from attribution.model import load_base

    return load_base(Path(path), device=device)
