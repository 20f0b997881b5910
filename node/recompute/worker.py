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
from collections.abc import Callable, Collection, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from consensus.digest import digest
from node.ledger.erased import read_remaining
from node.ledger.errors import LedgerError, MalformedError
from node.ledger.records import decode_records
from node.ledger.results import TREASURY, AuditStatus, Shares, audit_result_hash
from node.recompute.jobs import (
    AuditDone,
    AuditJob,
    EraseJob,
    Gap,
    IndexBuilt,
    IndexJob,
    IndexRefused,
    Job,
    JobRefused,
    JobResult,
    RowsErased,
    TakeJob,
    pack_frame,
    parse_job,
    read_frame,
    unfinished_folder,
)

if TYPE_CHECKING:
    from attribution.adapter import Adapter
    from attribution.model import Base

JOBS_WAITING_MAX = 4
LEADERS_REMEMBERED_MAX = 16
SHARDED_RECORDS_MIN = 64
"""Fewer records are not worth the start of further processes (2 s of CPU each)."""
SHARDS_PER_PROCESS = 4


class BlobDamaged(Exception):
    """A blob's bytes do not hash to the name of its file."""

    def __init__(self, path: str) -> None:
        self.path = path
        super().__init__(f"{path} is damaged")


class RecordsErased(Exception):
    """Records that the job needs were erased: nobody can do it any more."""


def main(argv: Sequence[str] | None = None) -> int:
    """Serve jobs until standard input closes."""
    parser = argparse.ArgumentParser(prog="openledger-recompute")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args(argv)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the daemon's to handle
    # What torch prints must not reach the pipe that carries results.
    results = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    settings = (options.device, options.backend, options.threads, options.processes)
    serve(sys.stdin.buffer, results, lambda: Engine(*settings))
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
                case _:
                    answer(IndexRefused("an index is being built"))

    while True:
        match parse_job(waiting.get()):
            case AuditJob() as audit:
                answer(engine.perform(audit))
            case index:
                result = engine.perform(index, between)
                if isinstance(result, JobRefused):
                    result = IndexRefused(result.reason, result.index_damaged)
                answer(result)


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

    def __init__(self, device: str, backend: str, threads: int, processes: int = 1) -> None:
        from attribution.machine import prepare

        self._device = prepare(device, backend, threads)
        self._backend = backend
        self._threads = threads
        self._processes = processes
        self._leaders: dict[tuple[str, tuple[int, ...]], tuple[int, ...]] = {}

    def perform(self, job: Job, between: Callable[[], None] = lambda: None) -> JobResult:
        """Do one job; a file that is missing or damaged is a refusal, never a crash and never a verdict.

        `between` is called again and again while an index is built.
        """
        from attribution.errors import ExactError
        from attribution.index import IndexFileError

        # ValueError: what another's adapter or records ask is beyond what the engine takes.
        refusals = (
            BlobDamaged,
            RecordsErased,
            ExactError,
            IndexFileError,
            LedgerError,
            OSError,
            ValueError,
            MemoryError,
        )
        try:
            match job:
                case IndexJob():
                    return self._build_index(job, between)
                case AuditJob():
                    return self._audit(job)
                case EraseJob():
                    return self._erase_rows(job, between)
                case TakeJob():
                    return self._take_index(job, between)
        except refusals as error:
            return JobRefused(f"{type(error).__name__}: {error}", isinstance(error, IndexFileError))

    def _build_index(self, job: IndexJob, between: Callable[[], None]) -> IndexBuilt:
        from attribution.duplicates import leaders
        from attribution.errors import ContextTooLong
        from attribution.index_files import build_index_files
        from attribution.sharding import Processes, build_index_sharded

        rows = read_rows(job.contributions, job.gaps)
        records = [record for record in rows if record is not None]
        if len(records) < len(rows):
            raise RecordsErased(f"{len(rows) - len(records)} records of the index were erased")
        base, adapter = self._models(job.base, job.adapter, job.adapter_hash)
        folder = Path(job.index_folder)
        # A folder under the final name is always whole: a killed build leaves only the other one.
        unfinished = unfinished_folder(folder)
        shutil.rmtree(unfinished, ignore_errors=True)
        longest, limit = max(map(len, records), default=0), base.config.max_position_embeddings
        if longest > limit:  # before anything is done for records that the model cannot read
            raise ContextTooLong(longest, limit)
        # In the order of commitment, which the ledger sees to: of near-duplicates the earliest counts.
        led = leaders(records, between=between)
        if self._processes > 1 and len(records) >= SHARDED_RECORDS_MIN:
            engine = Processes(self._processes, self._device, self._backend, self._threads)
            shards, path = SHARDS_PER_PROCESS * self._processes, Path(job.base)
            index = build_index_sharded(
                base, adapter, records, unfinished, engine, shards, between, led, path
            )
        else:
            index = build_index_files(base, adapter, records, unfinished, between, led)
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.rename(folder)
        return IndexBuilt(index.root, index.record_count)

    def _erase_rows(self, job: EraseJob, between: Callable[[], None]) -> RowsErased:
        """Make rows zeros, on disk and for good; what a killed build left beside the index goes too."""
        from attribution.index import Index
        from attribution.index_files import erase_rows

        folder = Path(job.index_folder)
        shutil.rmtree(unfinished_folder(folder), ignore_errors=True)
        if not folder.is_dir():
            return RowsErased(0)
        standing = Index.open(folder).standing
        if not standing.erased.keys() >= set(job.rows):
            gone = {*standing.erased, *job.rows}
            led = standing.clusters is not None
            erase_rows(folder, gone, self._leaders_without(job, gone, between) if led else None)
        return RowsErased(len(job.rows))

    def _take_index(self, job: TakeJob, between: Callable[[], None]) -> IndexBuilt:
        """Believe nothing of a fetched index but what its root covers, and of that everything."""
        from attribution.index import Index, IndexFileError
        from attribution.index_files import erase_rows

        folder = Path(job.index_folder)
        fetched = unfinished_folder(folder)
        standing = Index.open(fetched, job.index_root).standing
        if standing.clusters is None:
            raise IndexFileError("an index without leaders")
        if not standing.erased.keys() <= set(job.rows):  # its sender may only be some blocks ahead
            raise RecordsErased("rows that count here are erased in it")
        index = erase_rows(fetched, job.rows, self._leaders_without(job, job.rows, between))
        shutil.rmtree(folder, ignore_errors=True)
        fetched.rename(folder)
        return IndexBuilt(job.index_root, index.record_count)

    def _leaders_without(
        self, job: AuditJob | EraseJob | TakeJob, erased: Collection[int], between: Callable[[], None]
    ) -> tuple[int, ...]:
        """Leaders of the index's records, as if the erased ones had never been there; remembered."""
        from attribution.duplicates import leaders

        key = (job.index_folder, tuple(sorted(erased)))  # an adapter's folder: its records never change
        found = self._leaders.get(key)
        if found is None:
            rows = read_rows(job.contributions, job.gaps)
            live = [None if row in erased else record for row, record in enumerate(rows)]
            if any(record is None and row not in erased for row, record in enumerate(live)):
                raise RecordsErased("records that still count were erased here")
            if len(self._leaders) >= LEADERS_REMEMBERED_MAX:
                del self._leaders[next(iter(self._leaders))]
            found = self._leaders[key] = leaders(live, between=between)
        return found

    def _audit(self, job: AuditJob) -> AuditDone:
        """Recompute the output first: what was not the model's answer is attributed to nobody."""
        from attribution.errors import BadTokens, ContextTooLong, NotRepresentable
        from attribution.generation import generate
        from attribution.index import Index
        from attribution.index_standing import without_rows
        from attribution.scores import score
        from attribution.shares import attribute

        base, adapter = self._models(job.base, job.adapter, job.adapter_hash)
        index = Index.open(Path(job.index_folder), job.index_root)
        if not index.standing.erased.keys() <= set(job.erased):
            raise RecordsErased("rows that this inference is paid by were erased here")

        def done(status: AuditStatus, scores: Sequence[int] = (), shares: Shares = ()) -> AuditDone:
            result_hash = audit_result_hash(
                job.adapter_hash,
                job.index_root,
                index.header.version,
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
        if job.erased:
            scores = without_rows(scores, job.erased, self._leaders_without(job, job.erased, lambda: None))
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


def read_rows(paths: Sequence[str], gaps: Sequence[Gap]) -> "list[tuple[int, ...] | None]":
    """Training records of contributions' blobs, in order; None for one that was erased since the adapter was published.

    Raises BlobDamaged on bytes that are neither the blob of that name nor what is left of the gap's contribution.
    """
    by_place = {gap.place: gap for gap in gaps}
    rows: list[tuple[int, ...] | None] = []
    for place, path in enumerate(paths):
        gap = by_place.get(place)
        if gap is None:
            rows += decode_records(read_blob(path))
            continue
        try:
            remaining = read_remaining(Path(path).read_bytes(), gap.root)
        except MalformedError as error:
            raise BlobDamaged(path) from error
        omitted = frozenset(gap.omitted)
        rows += [
            None if isinstance(record, bytes) else record
            for number, record in enumerate(remaining)
            if number not in omitted
        ]
    return rows


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
