"""The worker's engine on a tiny model: which answers become which verdict, and which are no verdict at all."""

from dataclasses import replace
from pathlib import Path

import pytest

from attribution.adapter import Adapter, adapter_to_bytes
from attribution.checkpoint import save_base
from attribution.generation import generate
from attribution.index import INDEX_VERSION_SKETCHED, Index
from attribution.scores import score
from node.ledger.erased import erase_records
from node.ledger.openings import TOKENS_MAX
from node.ledger.records import encode_records, records_root
from node.ledger.results import SHARES_TOTAL, AuditResult, AuditStatus, audit_result_hash
from node.recompute.jobs import (
    AuditDone,
    AuditJob,
    EraseJob,
    Gap,
    IndexBuilt,
    IndexJob,
    JobRefused,
    RowsErased,
    TakeJob,
    pack_frame,
    parse_job,
    unfinished_folder,
)
from node.recompute.worker import BlobDamaged, Engine, read_rows
from node.storage.blobs import BlobStore
from tests.unit.attribution.model_cases import records, tiny_adapter, tiny_base

BASE = tiny_base()
ADAPTER = tiny_adapter(BASE)
RECORDS = records(5)
ANN, BEN = b"a" * 32, b"b" * 32
PROMPT = tuple(RECORDS[0][:4])
NEW_TOKENS = 8
POSITIONS = BASE.config.max_position_embeddings


class Desk:
    """Files of one node, and its engine."""

    def __init__(self, folder: Path, adapter: Adapter = ADAPTER) -> None:
        self.blobs = BlobStore(folder / "blobs", 1 << 24)
        self.base = folder / f"{BASE.hash.hex()}.safetensors"
        save_base(BASE, self.base)
        self.adapter = self.blobs.path(self.blobs.put(adapter_to_bytes(adapter)))
        names = [self.blobs.put(encode_records(part)) for part in (RECORDS[:3], RECORDS[3:])]
        self.index = folder / "index"
        self.engine = Engine("cpu", "auto", 1)
        self.index_job = IndexJob(
            str(self.base),
            str(self.adapter),
            adapter.hash,
            tuple(str(self.blobs.path(name)) for name in names),
            str(self.index),
        )
        built = self.engine.perform(self.index_job)
        assert isinstance(built, IndexBuilt)
        self.root = built.index_root
        output = tuple(generate(BASE, adapter, PROMPT, NEW_TOKENS))
        self.audit = AuditJob(
            str(self.base),
            str(self.adapter),
            adapter.hash,
            str(self.index),
            self.root,
            ((ANN, 3), (BEN, 2)),
            PROMPT,
            output,
            NEW_TOKENS,
            0,
        )

    def done(self, **changes: object) -> AuditDone:
        found = self.engine.perform(replace(self.audit, **changes))  # type: ignore[arg-type]
        assert isinstance(found, AuditDone), found
        AuditResult(found.status, found.result_hash, found.shares)  # what the ledger would take
        return found


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_a_true_output_is_paid_in_full_and_two_machines_agree_on_every_byte(
    desk: Desk, tmp_path: Path
) -> None:
    found = desk.done()
    assert found.status == AuditStatus.OK
    assert sum(share for _, share in found.shares) == SHARES_TOTAL
    assert [address for address, _ in found.shares] == sorted(address for address, _ in found.shares)
    other = tmp_path / "other"
    other.mkdir()
    assert Desk(other).done() == found


def test_an_adapter_of_many_coordinates_is_audited_by_sketched_rows_and_the_result_says_so(
    tmp_path: Path,
) -> None:
    wide = tiny_adapter(BASE, rank=256, alpha=256)
    desk = Desk(tmp_path, wide)
    index = Index.open(desk.index, desk.root)
    assert index.header.version == INDEX_VERSION_SKETCHED
    found = desk.done()
    output = desk.audit.output_ids
    scores = score(BASE, wide, index, PROMPT, output).values
    expected = audit_result_hash(wide.hash, desk.root, 3, PROMPT, output, scores, found.shares, found.status)
    assert found.result_hash == expected
    assert sum(share for _, share in found.shares) == SHARES_TOTAL
    assert {ANN, BEN} & {address for address, _ in found.shares}


def test_a_false_output_is_the_providers_fault_whatever_is_false_about_it(desk: Desk) -> None:
    output = desk.audit.output_ids
    lies = {output[:-1], (*output, 5), (*output[:-1], output[-1] ^ 1), (10**9,)}
    found = [desk.done(output_ids=lie) for lie in lies]
    assert {entry.status for entry in found} == {AuditStatus.OUTPUT_DIFFERS}
    assert {entry.shares for entry in found} == {()}
    assert len({entry.result_hash for entry in found}) == len(lies)


def test_a_prompt_outside_the_vocabulary_is_an_invalid_opening(desk: Desk) -> None:
    found = desk.done(prompt_ids=(BASE.config.vocab_size,))
    assert (found.status, found.shares) == (AuditStatus.OPENING_INVALID, ())


def test_a_prompt_too_long_for_the_model_blames_nobody(desk: Desk) -> None:
    found = desk.done(prompt_ids=(5,) * POSITIONS)
    assert (found.status, found.shares) == (AuditStatus.LIMIT_EXCEEDED, ())


@pytest.mark.parametrize("new_tokens", [1, 2, 5])
def test_what_can_be_generated_can_be_scored_up_to_the_last_position(desk: Desk, new_tokens: int) -> None:
    """An honest answer that fills the context must be paid like any other."""
    stories = [[2 + (seed * k) % 60 for k in range(POSITIONS)] for seed in range(1, 30)]
    prompts = [tuple(story[: POSITIONS - new_tokens]) for story in stories]
    answers = ((prompt, tuple(generate(BASE, ADAPTER, prompt, new_tokens))) for prompt in prompts)
    prompt, output = next(entry for entry in answers if len(entry[1]) == new_tokens)
    found = desk.done(prompt_ids=prompt, output_ids=output, new_tokens_max=new_tokens)
    assert found.status == AuditStatus.OK


@pytest.mark.parametrize("fault", ["index", "adapter", "base", "record", "root", "owners", "no index"])
def test_a_fault_of_this_machine_or_of_the_asker_is_a_refusal_and_never_a_verdict(
    desk: Desk, fault: str
) -> None:
    job: AuditJob | IndexJob = desk.audit
    if fault == "index":
        rows = desk.index / "rows.bin"
        data = bytearray(rows.read_bytes())
        data[-1] ^= 1
        rows.write_bytes(data)
    elif fault in ("adapter", "base"):
        path = getattr(desk, fault)
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        job = replace(desk.audit, **{fault: str(path.with_name(f"damaged-{path.name}"))})  # type: ignore[arg-type]
        path.with_name(f"damaged-{path.name}").write_bytes(data)
    elif fault == "record":
        path = Path(desk.index_job.contributions[0])
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        job = desk.index_job
    elif fault == "root":
        job = replace(desk.audit, index_root=bytes(32))
    elif fault == "owners":
        job = replace(desk.audit, owners=((ANN, 3),))
    else:
        job = replace(desk.audit, index_folder=str(desk.index / "nowhere"))
    assert isinstance(desk.engine.perform(job), JobRefused)


def test_records_beyond_what_the_engine_takes_are_a_refusal_and_not_a_crash(desk: Desk) -> None:
    """A publisher chooses the contributions: it must not be able to kill the worker of every validator."""
    job = replace(desk.index_job, contributions=())
    assert isinstance(desk.engine.perform(job), JobRefused)
    outside = desk.blobs.put(encode_records([[BASE.config.vocab_size]]))
    job = replace(desk.index_job, contributions=(str(desk.blobs.path(outside)),))
    assert isinstance(desk.engine.perform(job), JobRefused)
    long = desk.blobs.put(encode_records([[5] * (POSITIONS + 1)]))
    job = replace(desk.index_job, contributions=(str(desk.blobs.path(long)),))
    assert isinstance(desk.engine.perform(job), JobRefused)
    assert isinstance(desk.engine.perform(desk.index_job), IndexBuilt)


def test_the_longest_inference_that_the_ledger_takes_fits_a_frame(desk: Desk) -> None:
    longest = (2**32 - 1,) * TOKENS_MAX
    job = replace(desk.audit, prompt_ids=longest, output_ids=longest, owners=((ANN, 10_000),) * 512)
    assert parse_job(pack_frame(job.fields())[4:]) == job


def test_an_audit_between_two_batches_of_an_index_changes_neither(desk: Desk) -> None:
    alone, found = desk.done(), []

    def between() -> None:
        found.append(desk.engine.perform(desk.audit))

    many = tuple(desk.index_job.contributions) * 8  # three batches of records
    other = replace(desk.index_job, contributions=many, index_folder=f"{desk.index}-many")
    built = desk.engine.perform(other, between)
    assert isinstance(built, IndexBuilt)
    assert built == desk.engine.perform(other)
    assert len(found) == 2 * 3 + 1 + 3  # and once for the records' hashes, once for 16 that are compared
    assert set(found) == {alone}


# --- erased records ---

ROOTS = tuple(records_root(part) for part in (RECORDS[:3], RECORDS[3:]))
GAPS = (Gap(0, ROOTS[0], ()),)


def erase_job(desk: Desk, *rows: int) -> EraseJob:
    return EraseJob(str(desk.index), rows, desk.index_job.contributions, GAPS)


def test_rows_are_erased_once_however_often_it_is_asked_and_the_root_stays(desk: Desk) -> None:
    asked = replace(desk.audit, erased=(1,), contributions=desk.index_job.contributions, gaps=GAPS)
    early = desk.engine.perform(asked)
    assert desk.engine.perform(erase_job(desk, 1)) == RowsErased(1)
    blanked = Index.open(desk.index, desk.root)
    assert [bool(row.any()) for row in blanked.rows] == [True, False, True, True, True]
    assert desk.engine.perform(erase_job(desk, 1)) == RowsErased(1)
    assert desk.engine.perform(asked) == early
    assert isinstance(desk.engine.perform(desk.audit), JobRefused)
    assert desk.engine.perform(erase_job(desk, 0)) == RowsErased(1)
    assert set(Index.open(desk.index, desk.root).standing.erased) == {0, 1}


def test_an_index_that_is_not_here_has_no_rows_and_half_of_one_goes(desk: Desk) -> None:
    """A build that was killed left gradients and rows of the record beside the place where the index would be."""
    left = desk.index.with_suffix(".part")
    left.mkdir()
    (left / "gradients.part").write_bytes(b"of erased records")
    job = replace(erase_job(desk, 1), index_folder=f"{desk.index}-nowhere")
    assert desk.engine.perform(job) == RowsErased(0)
    assert desk.engine.perform(erase_job(desk, 1)) == RowsErased(1)
    assert not left.exists()


@pytest.mark.parametrize("fault", ["root", "damaged blob", "rows beyond", "records gone"])
def test_an_erasure_that_cannot_be_right_is_refused_and_changes_nothing(desk: Desk, fault: str) -> None:
    job, path = erase_job(desk, 1), Path(desk.index_job.contributions[0])
    if fault == "root":
        job = replace(job, gaps=(Gap(0, bytes(32), ()),))
    elif fault == "damaged blob":
        path.write_bytes(path.read_bytes()[:-1])
    elif fault == "rows beyond":
        job = replace(job, rows=(5,))
    else:  # of a record that was not erased only the hash is left here
        path.write_bytes(erase_records(path.read_bytes(), ROOTS[0], (0,)))
    assert isinstance(desk.engine.perform(job), JobRefused)
    assert Index.open(desk.index, desk.root).rows.any(1).all()


def test_records_that_were_erased_before_the_adapter_are_not_read(desk: Desk) -> None:
    """The blob may hold them or their hashes: the rows are those of the others, in order."""
    path, whole = Path(desk.index_job.contributions[0]), desk.index_job.contributions
    left = path.with_name("left")
    left.write_bytes(erase_records(path.read_bytes(), ROOTS[0], (1,)))
    for first in (str(path), str(left)):
        rows = read_rows((first, whole[1]), (Gap(0, ROOTS[0], (1,)),))
        assert rows == [tuple(RECORDS[0]), tuple(RECORDS[2]), *map(tuple, RECORDS[3:])]
    assert read_rows((str(left), whole[1]), GAPS)[1] is None
    with pytest.raises(BlobDamaged):
        read_rows((str(left), whole[1]), ())


# --- an index of another's ---


def take_job(desk: Desk, *rows: int) -> TakeJob:
    return TakeJob(str(desk.index), desk.root, rows, desk.index_job.contributions, GAPS)


def fetched(desk: Desk) -> Path:
    """The index as it came from a peer, which has erased row 1; here there is none."""
    folder = unfinished_folder(desk.index)
    assert desk.engine.perform(erase_job(desk, 1)) == RowsErased(1)
    desk.index.rename(folder)
    return folder


def test_an_index_of_anothers_is_taken_with_the_leaders_of_ones_own(desk: Desk) -> None:
    asked = replace(desk.audit, erased=(1,), contributions=desk.index_job.contributions, gaps=GAPS)
    early = desk.engine.perform(asked)
    folder = fetched(desk)
    standing = Index.open(folder).standing
    # Whoever sends it may say that each record leads itself, or another one.
    lying = replace(standing, clusters=(0, 1, 0, 0, 0))
    lying.save(folder, 5)
    assert desk.engine.perform(take_job(desk, 1)) == IndexBuilt(desk.root, 5)
    assert Index.open(desk.index, desk.root).standing == standing
    assert not folder.exists()
    assert desk.engine.perform(asked) == early


def test_rows_that_the_sender_has_not_blanked_yet_are_blanked(desk: Desk) -> None:
    fetched(desk)
    assert desk.engine.perform(take_job(desk, 0, 1)) == IndexBuilt(desk.root, 5)
    assert [bool(row.any()) for row in Index.open(desk.index, desk.root).rows] == [
        False,
        False,
        True,
        True,
        True,
    ]


@pytest.mark.parametrize("file", ["header.bin", "bases.bin", "weights.bin", "rows.bin", "standing.bin"])
@pytest.mark.parametrize("fault", ["bit", "short", "gone"])
def test_what_the_root_does_not_prove_is_refused_and_its_senders_fault(
    desk: Desk, file: str, fault: str
) -> None:
    path = fetched(desk) / file
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    if fault == "gone":
        path.unlink()
    else:
        path.write_bytes(data if fault == "bit" else data[:-1])
    result = desk.engine.perform(take_job(desk, 1))
    assert isinstance(result, JobRefused)
    assert result.index_damaged
    assert not desk.index.exists()


def test_an_index_without_rows_that_count_here_is_refused_and_nobodys_fault(desk: Desk) -> None:
    fetched(desk)
    result = desk.engine.perform(replace(take_job(desk), rows=(0,)))
    assert isinstance(result, JobRefused)
    assert not result.index_damaged
    assert not desk.index.exists()


def test_only_files_that_are_not_the_roots_are_called_damaged(desk: Desk) -> None:
    result = desk.engine.perform(replace(desk.audit, adapter_hash=bytes(32)))
    assert isinstance(result, JobRefused)
    assert not result.index_damaged
    (desk.index / "rows.bin").write_bytes(b"")
    result = desk.engine.perform(desk.audit)
    assert isinstance(result, JobRefused)
    assert result.index_damaged
