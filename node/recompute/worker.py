"""The worker process: reads jobs from standard input, writes results to standard output, dies with its daemon.

torch is imported here and in no other process of a node. Before its first job the worker holds its arithmetic
against the integer oracle and refuses to work on a machine that fails: a validator must never be slashed for
its hardware.
"""

import argparse
import os
import queue
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from consensus.digest import digest
from node.ledger.errors import LedgerError
from node.ledger.records import decode_records
from node.ledger.results import TREASURY, AuditStatus, Shares, audit_result_hash
from node.recompute.jobs import (
    AuditDone,
    AuditJob,
    IndexBuilt,
    IndexJob,
    IndexRefused,
    Job,
    JobRefused,
    JobResult,
    pack_frame,
    parse_job,
    read_frame,
)

if TYPE_CHECKING:
    from attribution.adapter import Adapter
    from attribution.model import Base

JOBS_WAITING_MAX = 4


class BlobDamaged(Exception):
    """A blob's bytes do not hash to the name of its file."""

    def __init__(self, path: str) -> None:
        self.path = path
        super().__init__(f"{path} is damaged")


def main(argv: Sequence[str] | None = None) -> int:
    """Serve jobs until standard input closes."""
    parser = argparse.ArgumentParser(prog="openledger-recompute")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(argv)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the daemon's to handle
    # What torch prints must not reach the pipe that carries results.
    results = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(sys.stdin.buffer, results, lambda: Engine(options.device, options.backend, options.threads))
    return 0


def serve(jobs: BinaryIO, results: BinaryIO, make_engine: Callable[[], "Engine"]) -> None:
    """Answer each job in turn, for ever; `_read_jobs` ends the process when the daemon has gone.

    An audit that comes while an index is built is done between two batches of its records: audits have deadlines.
    """
    waiting: queue.Queue[bytes] = queue.Queue(JOBS_WAITING_MAX)
    # Before the engine, whose making takes seconds in which the daemon may die too.
    threading.Thread(target=_read_jobs, args=(jobs, waiting), daemon=True).start()
    engine = make_engine()

    def answer(result: JobResult) -> None:
        results.write(pack_frame(result.fields()))
        results.flush()

    def between() -> None:
        while not waiting.empty():  # only this thread takes from it
            match parse_job(waiting.get()):
                case AuditJob() as audit:
                    answer(engine.perform(audit))
                case IndexJob():
                    answer(IndexRefused("an index is being built"))

    while True:
        match parse_job(waiting.get()):
            case AuditJob() as audit:
                answer(engine.perform(audit))
            case IndexJob() as index:
                result = engine.perform(index, between)
                answer(IndexRefused(result.reason) if isinstance(result, JobRefused) else result)


def _read_jobs(jobs: BinaryIO, waiting: "queue.Queue[bytes]") -> None:
    """Read ahead, so that a daemon that dies in the middle of a job is noticed at once.

    Linux could send a signal instead (PR_SET_PDEATHSIG), but it does so when the *thread* that started this process
    ends, and trio starts processes from threads that come and go.
    """
    while (body := read_frame(jobs)) is not None:
        waiting.put(body)
    os._exit(0)


class Engine:
    """The arithmetic of this machine, checked once, with the models it has opened."""

    def __init__(self, device: str, backend: str, threads: int) -> None:
        from attribution.machine import prepare

        self._device = prepare(device, backend, threads)

    def perform(self, job: Job, between: Callable[[], None] = lambda: None) -> JobResult:
        """Do one job; a file that is missing or damaged is a refusal, never a crash and never a verdict.

        `between` is called again and again while an index is built.
        """
        from attribution.errors import ExactError
        from attribution.index import IndexFileError

        # ValueError: what another's adapter or records ask is beyond what the engine takes.
        refusals = (BlobDamaged, ExactError, IndexFileError, LedgerError, OSError, ValueError, MemoryError)
        try:
            match job:
                case IndexJob():
                    return self._build_index(job, between)
                case AuditJob():
                    return self._audit(job)
        except refusals as error:
            return JobRefused(f"{type(error).__name__}: {error}")

    def _build_index(self, job: IndexJob, between: Callable[[], None]) -> IndexBuilt:
        from attribution.index_files import build_index_files

        records = [record for path in job.contributions for record in decode_records(read_blob(path))]
        base, adapter = self._models(job.base, job.adapter, job.adapter_hash)
        folder = Path(job.index_folder)
        # A folder under the final name is always whole: a killed build leaves only the other one.
        unfinished = folder.with_suffix(".part")
        shutil.rmtree(unfinished, ignore_errors=True)
        index = build_index_files(base, adapter, records, unfinished, between)
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.rename(folder)
        return IndexBuilt(index.root, index.record_count)

    def _audit(self, job: AuditJob) -> AuditDone:
        """Recompute the output first: what was not the model's answer is attributed to nobody."""
        from attribution.errors import BadTokens, ContextTooLong, NotRepresentable
        from attribution.generation import generate
        from attribution.index import INDEX_VERSION, Index
        from attribution.scores import score
        from attribution.shares import attribute

        base, adapter = self._models(job.base, job.adapter, job.adapter_hash)
        index = Index.open(Path(job.index_folder), job.index_root)

        def done(status: AuditStatus, scores: Sequence[int] = (), shares: Shares = ()) -> AuditDone:
            result_hash = audit_result_hash(
                job.adapter_hash,
                job.index_root,
                INDEX_VERSION,
                job.prompt_ids,
                job.output_ids,
                scores,
                shares,
                status,
            )
            return AuditDone(status, result_hash, shares)

        try:
            output_ids = generate(base, adapter, job.prompt_ids, job.new_tokens_max)
            if tuple(output_ids) != job.output_ids:
                return done(AuditStatus.OUTPUT_DIFFERS)
            scores = score(base, adapter, index, job.prompt_ids, job.output_ids)
        except ContextTooLong:
            return done(AuditStatus.LIMIT_EXCEEDED)
        except NotRepresentable:
            return done(AuditStatus.NON_FINITE)
        except BadTokens:
            return done(AuditStatus.OPENING_INVALID)
        owners = [owner for owner, record_count in job.owners for _ in range(record_count)]
        found = attribute(scores, owners, job.floor_ppm)
        return done(AuditStatus.OK, scores.values, ledger_shares(found.by_owner, found.unattributed))

    def _models(self, base: str, adapter: str, adapter_hash: bytes) -> "tuple[Base, Adapter]":
        return _open_base(base, self._device), _open_adapter(adapter, adapter_hash, self._device)


def ledger_shares(by_owner: Sequence[tuple[bytes, int]], unattributed: int) -> Shares:
    """Shares as the ledger pays them: positive, in order of address, the unattributed part to the treasury."""
    rows = [(owner, share) for owner, share in by_owner if share > 0]
    if unattributed > 0:
        rows.append((TREASURY, unattributed))
    return tuple(sorted(rows))


def read_blob(path: str) -> bytes:
    """The bytes of a blob, checked against its name; raises BlobDamaged.

    Records with one flipped byte still decode, and would make this machine attest an index that nobody else has.
    """
    data = Path(path).read_bytes()
    if digest("blob", data).hex() != Path(path).name:
        raise BlobDamaged(path)
    return data


@lru_cache(maxsize=4)
def _open_base(path: str, device: str) -> "Base":
    from attribution.checkpoint import load_base
    from attribution.errors import BadModel

    base = load_base(Path(path), device=device)
    if base.hash.hex() != Path(path).stem:
        raise BadModel(f"{path} holds the base {base.hash.hex()}")
    return base


@lru_cache(maxsize=16)
def _open_adapter(path: str, adapter_hash: bytes, device: str) -> "Adapter":
    from attribution.adapter import adapter_from_bytes
    from attribution.errors import BadAdapter

    adapter = adapter_from_bytes(read_blob(path), device=device)
    if adapter.hash != adapter_hash:
        raise BadAdapter(f"{path} holds the adapter {adapter.hash.hex()}, not {adapter_hash.hex()}")
    return adapter


if __name__ == "__main__":
    sys.exit(main())
