"""From the ledger to the shares of an audit: copies earn their copier nothing, erased records are as if never there."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio

from attribution.index import Index
from node import artefacts, erasing, fetch
from node.ledger.bodies import DatanetCreate, ProviderBond
from node.ledger.erased import Remaining, erase_records, read_remaining
from node.ledger.erasure import get_erasures, remaining_name
from node.ledger.openings import Opening
from node.ledger.results import AuditResult, AuditStatus
from node.ledger.state import get_contribution
from node.network.errors import RequestRefused
from node.recompute.jobs import AuditJob, TakeJob
from node.storage.blobs import BlobStore
from node.storage.errors import BlobErased
from node.wire import BLOB_PART_BYTES, INDEX_FILES, Request, decode_index_request
from tests.unit.node.paid_records import PEER, PaidRecords, an_adapter, reopened
from tests.unit.node.test_duties import no_shipped_base
from tests.unit.node_ledger.world import PARAMS, address

__all__ = ["no_shipped_base"]

ANN = tuple(
    tuple(text)
    for text in (
        b"ann writes of bridges that cross the river",
        b"ann also counts the boats below the bridge",
        b"ann once measured how deep the water was",
    )
)
BEN = tuple(
    tuple(text)
    for text in (
        b"ben has nineteen recipes for barley soup",
        b"ben never peels the carrots for his soup",
    )
)
NEAR = tuple((*record[:-1], 33 + k) for k, record in enumerate((*ANN, *ANN[:2])))
"""Each with its last letter changed."""
PROMPT = ANN[0][:20]


def paid(found: AuditResult | None) -> dict[bytes, int]:
    assert found is not None
    assert found.status == AuditStatus.OK
    return dict(found.shares)


def with_all(
    folder: Path, contributions: Sequence[tuple[str, Sequence[tuple[int, ...]]]]
) -> tuple[PaidRecords, bytes]:
    """A chain with these contributions and one adapter over all of them."""
    folder.mkdir(exist_ok=True)
    made = PaidRecords(folder, contributions)
    records = [record for _, part in contributions for record in part]
    return made, made.publish(an_adapter(), made.contributions, records)


def shares(made: PaidRecords, adapter: bytes) -> dict[bytes, int]:
    found = paid(made.audit(adapter, made.ask(adapter, an_adapter(), PROMPT)))
    made.close()
    return found


def test_copies_by_another_contributor_change_no_share(tmp_path: Path) -> None:
    """The first chain has the originals alone, the second the same and near and exact copies of them, committed later."""
    alone = shares(*with_all(tmp_path / "alone", [("ann", ANN), ("ben", BEN)]))
    assert alone[address("ann")] > 0
    assert alone[address("ben")] > 0
    copied = shares(*with_all(tmp_path / "copied", [("ann", ANN), ("ben", BEN), ("cid", (*NEAR, ANN[0]))]))
    assert copied == alone


def test_who_committed_first_leads_even_a_copy(tmp_path: Path) -> None:
    copy = tuple((*record[:-1], 33) for record in ANN)
    found = shares(*with_all(tmp_path, [("cid", copy), ("ann", ANN), ("ben", BEN)]))
    assert address("ann") not in found
    assert found[address("cid")] > 0


def test_a_publisher_cannot_put_the_copy_before_the_original(tmp_path: Path) -> None:
    made = PaidRecords(tmp_path, [("ann", ANN), ("cid", NEAR)])
    with pytest.raises(AssertionError, match="contributions-out-of-order"):
        made.publish(an_adapter(), made.contributions[::-1], (*NEAR, *ANN))
    made.close()


def test_an_inference_of_after_an_erasure_pays_as_if_the_record_were_not_there(tmp_path: Path) -> None:
    """And one of before pays as before, at whatever height it is audited; bytes and rows change neither."""
    made, adapter = with_all(tmp_path, [("ann", ANN), ("ben", BEN)])
    before = made.ask(adapter, an_adapter(), PROMPT)
    at_first = made.audit(adapter, before)
    made.erase("ann", made.contributions[0], 0, 1, 2)
    after = made.ask(adapter, an_adapter(), PROMPT)
    assert made.audit(adapter, before) == at_first
    omitted = made.audit(adapter, after)
    assert address("ann") in paid(at_first)
    assert address("ann") not in paid(omitted)
    assert address("ben") in paid(omitted)
    rows = made.artefacts.index_folder(adapter)
    assert not Index.open(rows).standing.erased  # the inference of before is still open
    made.erase("ben", made.contributions[1], 1)
    assert made.audit(adapter, after) == omitted
    made.close()


def settle(made: PaidRecords) -> None:
    """Empty blocks until every erasure is done: the provider never reveals, so its calls end by themselves."""
    for _ in range(40):
        waits = [
            entry
            for name in made.contributions
            if (found := get_erasures(made.world.state, name)) is not None
            for entry in found.entries
            if not entry.done_height
        ]
        if not waits:
            return
        made.world.block()
    raise AssertionError("an erasure is never done")


def test_blanked_rows_give_the_result_that_the_same_rows_gave_before(tmp_path: Path) -> None:
    """A validator that has carried the erasure out and one that has not yet agree on every byte."""
    made, adapter = with_all(tmp_path, [("ann", ANN), ("ben", (*BEN, NEAR[0]))])
    made.erase("ann", made.contributions[0], 0)
    asked = made.ask(adapter, an_adapter(), PROMPT)
    early = made.audit(adapter, asked)
    settle(made)
    assert made.on_disk(bytes(ANN[0]))
    made.carry_out()
    folder = made.artefacts.index_folder(adapter)
    index = Index.open(folder)
    assert set(index.standing.erased) == {0}
    assert not index.rows[0].any()
    assert index.leaders[5] == 5  # the copy that the erased record led leads now
    assert made.audit(adapter, asked) == early
    assert early is not None
    assert not made.on_disk(bytes(ANN[0]))
    assert made.on_disk(bytes(ANN[1]))
    made.close()


def test_an_adapter_of_after_the_erasure_is_built_from_what_is_left(tmp_path: Path) -> None:
    made = PaidRecords(tmp_path, [("ann", ANN), ("ben", BEN)])
    made.erase("ann", made.contributions[0], 1)
    adapter = made.publish(an_adapter(), made.contributions, (ANN[0], ANN[2], *BEN))
    asked = made.ask(adapter, an_adapter(), PROMPT)
    early = made.audit(adapter, asked)
    settle(made)
    made.carry_out()
    assert made.audit(adapter, asked) == early
    assert made.rebuilt(adapter) == Index.open(made.artefacts.index_folder(adapter)).root
    made.erase("ann", made.contributions[0], 0)
    later = made.ask(adapter, an_adapter(), PROMPT)
    assert paid(made.audit(adapter, later)) != paid(early)
    made.close()


def test_an_index_of_which_records_were_erased_is_never_built_from_the_rest(tmp_path: Path) -> None:
    """Sums over all records made its bases: whoever lost it attests nothing rather than something else."""
    made, adapter = with_all(tmp_path, [("ann", ANN), ("ben", BEN)])
    asked = made.ask(adapter, an_adapter(), PROMPT)
    made.erase("ann", made.contributions[0], 0)
    settle(made)
    made.carry_out()
    assert made.audit(adapter, asked) is None  # of before: its rows are gone, and nobody owes it any more
    rows = made.artefacts.index_folder(adapter) / "rows.bin"
    rows.write_bytes(rows.read_bytes()[:-1])
    made.world.accept("provider", ProviderBond(PARAMS.provider_bond_min, "serves"))  # the first was slashed
    assert made.audit(adapter, made.ask(adapter, an_adapter(), PROMPT)) is None
    assert made.rebuilt(adapter) is None
    made.close()


def test_erased_bytes_do_not_come_back_by_any_door(tmp_path: Path) -> None:
    made = PaidRecords(tmp_path, [("ann", ANN), ("ben", BEN)])
    found = get_contribution(made.world.state, made.contributions[0])
    assert found is not None
    name, original = found.blob_digest, made.blobs.get(found.blob_digest)
    assert original is not None
    made.erase("ann", made.contributions[0], 0)
    settle(made)
    made.carry_out()
    blobs = made.blobs
    with pytest.raises(BlobErased):
        blobs.put(original)
    with pytest.raises(BlobErased):
        blobs.put(original, expected=name)
    with pytest.raises(BlobErased):  # a peer that has not erased it yet offers it as the rest
        blobs.put(original, expected=remaining_name(name))
    blobs.path(name).write_bytes(original)  # out of a backup
    assert blobs.read_part(name, 5, 10) is None
    assert blobs.read_part(name, 0, 10) is None
    assert blobs.get(name) is None
    assert not blobs.has(name)
    blobs.path(name).write_bytes(original)
    made.eraser = made.new_eraser()
    made.carry_out()
    assert not made.on_disk(bytes(ANN[0]))
    assert made.erased(made.contributions[0]) == [True, False, False]
    made.close()


def test_a_peers_rest_is_taken_only_with_every_record_that_was_not_erased(tmp_path: Path) -> None:
    made = PaidRecords(tmp_path, [("ann", ANN)])
    found = get_contribution(made.world.state, made.contributions[0])
    assert found is not None
    original = made.blobs.get(found.blob_digest)
    assert original is not None
    made.erase("ann", made.contributions[0], 0)
    settle(made)
    made.carry_out()
    left = remaining_name(found.blob_digest)
    rest = made.blobs.get(left)
    assert rest is not None
    made.blobs.remove(left)
    for wrong in (erase_records(original, found.records_root, (0, 1)), b"\x91\x01", rest[:-1]):
        with pytest.raises(Exception, match="expected blob"):
            made.blobs.put(wrong, expected=left)
    made.blobs.put(rest, expected=left)
    assert made.blobs.get(left) == rest
    with pytest.raises(Exception, match="expected blob"):
        made.blobs.put(rest, expected=b"n" * 32)
    made.close()


@pytest.mark.parametrize("step", ["put", "remove"])
def test_a_node_killed_in_the_middle_finishes_at_its_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    made, _ = with_all(tmp_path, [("ann", ANN), ("ben", BEN)])
    made.erase("ann", made.contributions[0], 0)
    settle(made)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(BlobStore, step, killed)
        with pytest.raises(KeyboardInterrupt):
            made.carry_out()
    assert made.on_disk(bytes(ANN[0]))
    made.blobs = reopened(made.blobs)
    made.artefacts._blobs = made.blobs
    made.eraser = made.new_eraser()
    made.carry_out()
    made.carry_out()  # and again changes nothing
    assert not made.on_disk(bytes(ANN[0]))
    assert made.erased(made.contributions[0]) == [True, False, False]
    made.close()


def test_nobody_erases_what_another_contributed_too(tmp_path: Path) -> None:
    """The same blob in two datanets is one file: only what both have erased goes."""
    made = PaidRecords(tmp_path, [("ann", ANN)])
    other = made.world.accept("cid", DatanetCreate("mine", ("MIT",), ""))
    copy = made.contribute("cid", ANN, other)
    made.contributions.append(copy)
    made.erase("cid", copy, 0, 1)
    settle(made)
    made.carry_out()
    assert made.remaining(made.contributions[0]) == ANN
    made.erase("ann", made.contributions[0], 1, 2)
    settle(made)
    made.carry_out()
    assert made.erased(made.contributions[0]) == [False, True, False]
    made.close()


def test_further_erasures_blank_what_the_first_left(tmp_path: Path) -> None:
    made = PaidRecords(tmp_path, [("ann", ANN), ("ben", BEN)])
    for number in (2, 0):
        made.erase("ann", made.contributions[0], number)
        settle(made)
        made.carry_out()
        assert not made.on_disk(bytes(ANN[number]))
    assert made.erased(made.contributions[0]) == [True, False, True]
    made.close()


def test_the_eraser_follows_the_blocks_and_looks_again_where_it_could_not(tmp_path: Path) -> None:
    made = PaidRecords(tmp_path, [("ann", ANN), ("ben", BEN)])
    started: list[int] = []

    def start(task: object, height: int) -> bool:
        started.append(height)
        return True

    made.eraser._start = start
    made.erase("ann", made.contributions[0], 0)
    made.tell(made.world.outcomes[-1])
    assert not started  # not done yet
    made.tell(made.world.block())
    assert started == [made.world.height]
    made.close()


def test_a_rest_is_proven_once_and_again_when_it_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every peer that asks for its first part has it checked."""
    made = PaidRecords(tmp_path, [("ann", ANN)])
    found = get_contribution(made.world.state, made.contributions[0])
    assert found is not None
    left = remaining_name(found.blob_digest)
    made.erase("ann", made.contributions[0], 0)
    settle(made)
    made.carry_out()
    proofs: list[int] = []

    def counted(blob: bytes, root: bytes) -> Remaining:
        proofs.append(len(blob))
        return read_remaining(blob, root)

    monkeypatch.setattr(erasing, "read_remaining", counted)
    for _ in range(3):
        assert made.blobs.read_part(left, 0, 10) is not None
    assert not proofs
    data = made.blobs.get(left)
    assert data is not None
    made.blobs.path(left).write_bytes(data[:-1])  # damaged
    assert made.blobs.get(left) is None
    assert len(proofs) == 1
    made.blobs.put(data, expected=left)
    made.erase("ann", made.contributions[0], 1)
    settle(made)
    made.carry_out()
    assert made.erased(made.contributions[0]) == [True, True, False]
    made.close()


# --- an index that nobody can build any more ---


def with_newcomer(tmp_path: Path) -> tuple[PaidRecords, PaidRecords, bytes, tuple[bytes, Opening]]:
    """A chain whose adapter lost a record, an inference of after that, and a validator that has nothing yet."""
    made, adapter = with_all(tmp_path / "made", [("ann", ANN), ("ben", (*BEN, NEAR[0]))])
    made.erase("ann", made.contributions[0], 0)
    settle(made)
    made.carry_out()
    made.world.accept("provider", ProviderBond(PARAMS.provider_bond_min, "serves"))  # the first was slashed
    (tmp_path / "newcomer").mkdir()
    return (
        made,
        PaidRecords(tmp_path / "newcomer", (), made),
        adapter,
        made.ask(adapter, an_adapter(), PROMPT),
    )


def ended(*nodes: PaidRecords) -> None:
    for node in nodes:
        assert not list((node.artefacts.index_folder(bytes(32)).parent).glob("*.part"))
        node.close()


def test_a_newcomer_fetches_the_index_that_an_erasure_left_and_finds_the_same(tmp_path: Path) -> None:
    made, newcomer, adapter, asked = with_newcomer(tmp_path)
    result = newcomer.audit(adapter, asked)
    assert result == made.audit(adapter, asked)
    assert paid(result)
    taken = Index.open(newcomer.artefacts.index_folder(adapter))
    assert taken.standing == Index.open(made.artefacts.index_folder(adapter)).standing
    assert not newcomer.on_disk(bytes(ANN[0]))
    assert newcomer.room.loopback.blamed == []
    assert [type(job) for job in newcomer.worker.jobs] == [TakeJob, AuditJob]
    # Others can have it from the newcomer now, and whoever lost it has it back.
    (made.artefacts.index_folder(adapter) / "rows.bin").write_bytes(b"")
    made.room.loopback.answers["newcomer"] = newcomer.room.sync.answer
    assert made.audit(adapter, asked) == result
    ended(made, newcomer)


def test_who_is_to_attest_a_published_index_never_takes_anothers(tmp_path: Path) -> None:
    made, newcomer, adapter, _ = with_newcomer(tmp_path)
    assert newcomer.rebuilt(adapter) is None
    assert not any(kind == Request.INDEX for _, kind, _ in newcomer.room.loopback.requests)
    ended(made, newcomer)


def test_an_inference_of_before_the_erasure_fetches_nothing(tmp_path: Path) -> None:
    made, adapter = with_all(tmp_path / "made", [("ann", ANN), ("ben", BEN)])
    before = made.ask(adapter, an_adapter(), PROMPT)
    made.erase("ann", made.contributions[0], 0)
    settle(made)
    made.carry_out()
    made.room.loopback.answers["peer"] = made.room.sync.answer
    assert made.audit(adapter, before) is None
    assert made.room.loopback.requests == []
    ended(made)


@pytest.mark.parametrize("lie", ["noise", "endless", "silent", "refuses", "another", "blank"])
def test_a_peer_that_sends_another_index_is_left_for_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lie: str
) -> None:
    made, newcomer, adapter, asked = with_newcomer(tmp_path)
    monkeypatch.setattr(fetch, "INDEX_BYTES_MAX", 1 << 20)
    monkeypatch.setattr(fetch, "REQUEST_TIMEOUT_S", 0.2)
    honest = made.room.sync.answer

    async def liar(asker: str, kind: int, payload: bytes) -> bytes:
        if kind != Request.INDEX:
            return await honest(asker, kind, payload)
        if lie == "noise":
            return b"noise"
        if lie == "endless":
            return bytes(BLOB_PART_BYTES)
        if lie == "silent":
            await trio.sleep_forever()
        if lie == "refuses":
            raise RequestRefused(1, "busy")
        answer = bytearray(await honest(asker, kind, payload))
        _, file, offset = decode_index_request(payload)
        if INDEX_FILES[file] == "rows.bin" and not offset:
            if lie == "blank":  # a row that counts, as if it were erased
                answer[-1000:] = bytes(1000)
            else:
                answer[-1] ^= 1
        return bytes(answer)

    newcomer.room.loopback.answers = {"liar": liar, PEER: honest}
    assert newcomer.audit(adapter, asked) == made.audit(adapter, asked)
    assert newcomer.room.loopback.blamed == (["liar"] if lie in ("noise", "another", "blank") else [])
    ended(made, newcomer)


def test_where_nobody_has_it_nothing_is_attested_and_nothing_stays(tmp_path: Path) -> None:
    made, newcomer, adapter, asked = with_newcomer(tmp_path)
    shutil.rmtree(made.artefacts.index_folder(adapter))
    assert newcomer.audit(adapter, asked) is None
    ended(made, newcomer)


def test_a_full_disk_in_the_middle_costs_nothing_but_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, newcomer, adapter, asked = with_newcomer(tmp_path)

    async def full(*_: object) -> object:
        raise OSError(errno.ENOSPC, "no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(trio, "open_file", full)
        with pytest.raises(OSError, match="no space"):
            newcomer.audit(adapter, asked)
    assert not list(newcomer.artefacts.index_folder(adapter).parent.iterdir())  # the disk is full enough
    assert newcomer.audit(adapter, asked) == made.audit(adapter, asked)
    ended(made, newcomer)


def test_liars_who_are_many_are_passed_by_in_turn(tmp_path: Path) -> None:
    made, newcomer, adapter, asked = with_newcomer(tmp_path)

    async def nothing(asker: str, kind: int, payload: bytes) -> bytes:
        return b""

    answers = newcomer.room.loopback.answers
    honest = answers.pop(PEER)
    answers.update({f"liar {k}": nothing for k in range(artefacts.PEERS_ASKED_MAX)})
    answers[PEER] = honest
    assert newcomer.audit(adapter, asked) is None
    assert newcomer.audit(adapter, asked) == made.audit(adapter, asked)
    ended(made, newcomer)
