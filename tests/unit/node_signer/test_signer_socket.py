"""What reaches the signer's socket: garbage, halves, crowds, strangers. It goes on, and its daemon's connection lives."""

from __future__ import annotations

import os
import socket
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from consensus.errors import SafetyRefusal
from node.home import Home, lock_home
from node.signer.errors import SocketUnusable
from node.signer.frames import PATH_BYTES_MAX, admits, pack, peer_uid
from node.signer.protocol import REQUEST_BYTES_MAX, AskStatus, AskVote, encode_request
from node.signer.remote import Channel, RemoteSigner, SignerLink
from node.signer.server import CONNECTIONS_MAX, listening
from tests.unit.consensus.lab import CHAIN, GENESIS, KEYS, Chain
from tests.unit.node_signer.desk import ME, Desk, custodian, found, serving

MADE = Chain()
ONE = MADE.block(GENESIS, 1)
TWO = MADE.block(ONE, 2)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with serving(custodian(found(tmp_path / "signer")), tmp_path / "run" / "signer.sock") as running:
        yield running
    assert running.ended is None


def connect(desk: Desk, timeout_s: float = 10) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(desk.path))  # waits where the backlog is full; with a time limit it would not
    connection.settimeout(timeout_s)
    return connection


def is_closed(connection: socket.socket) -> bool:
    """Whether the other end closes it, within the socket's time."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def still_signs(signer: RemoteSigner) -> None:
    assert signer.sign_vote(ONE).round == 1


GARBAGE = {
    "bytes of another protocol": b"GET / HTTP/1.1\r\n\r\n",
    "no length": bytes(4),
    "too long": (REQUEST_BYTES_MAX + 1).to_bytes(4, "big"),
    "no array": pack(b"\xff" * 20),
    "deep nesting": pack(b"\x91" * 5000 + b"\x00"),
    "a lying length": pack(b"\xdd\xff\xff\xff\xff"),
    "another version": pack(b"\x93\x02\xa6status\x90"),
    "a request that is cut short": pack(encode_request(AskVote(ONE))[:-1]),
    "a request and a byte": pack(encode_request(AskVote(ONE)) + b"\x00"),
}


@pytest.mark.parametrize("data", GARBAGE.values(), ids=GARBAGE)
def test_garbage_closes_its_connection_and_nothing_else(desk: Desk, data: bytes) -> None:
    signer = desk.asker()
    with connect(desk) as stranger:
        stranger.sendall(data)
        assert is_closed(stranger)
    still_signs(signer)
    assert desk.server.turned_away == 1


def test_half_a_frame_has_its_time_and_then_is_closed(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.signer.server.FRAME_S_MAX", 0.3)
    signer = desk.asker()
    with connect(desk) as silent, connect(desk) as leaving:
        silent.sendall(pack(encode_request(AskVote(ONE)))[:50])
        leaving.sendall(pack(encode_request(AskVote(ONE)))[:50])
        leaving.close()
        still_signs(signer)
        assert is_closed(silent)
    still_signs(signer)


def test_who_never_asks_is_closed_and_who_has_asked_may_be_silent(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.signer.server.FIRST_REQUEST_S_MAX", 0.3)
    signer = desk.asker()
    with connect(desk) as silent:
        assert is_closed(silent)
    still_signs(signer)


def test_who_does_not_take_its_answer_is_closed(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.signer.server.FRAME_S_MAX", 0.3)
    signer = desk.asker()
    with connect(desk) as greedy:
        many = pack(encode_request(AskStatus())) * 1_000_000
        with pytest.raises((BrokenPipeError, ConnectionResetError)):  # it is cut off while it still asks
            greedy.sendall(many)
        still_signs(signer)


@pytest.mark.parametrize("crowd", [1_000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_thousands_of_connections_leave_the_daemons_own_alone(desk: Desk, crowd: int) -> None:
    signer = desk.asker()
    signer.sign_vote(ONE)
    before = len(os.listdir("/proc/self/fd"))
    batch: list[socket.socket] = []
    for number in range(crowd):
        batch.append(connect(desk))
        if number % 200 == 199:
            assert signer.sign_vote(ONE).round == 1
            # Ours, and of theirs what is open and what is about to be closed.
            assert len(os.listdir("/proc/self/fd")) <= before + len(batch) + 100
            for each in batch:
                each.close()
            batch.clear()
    assert signer.sign_vote(TWO).round == 2


def test_an_asker_keeps_its_place_among_silent_ones_and_a_crowd_of_askers_keeps_newcomers_out(
    desk: Desk,
) -> None:
    signer = desk.asker()
    askers = [desk.asker() for _ in range(CONNECTIONS_MAX - 1)]
    with connect(desk) as late:
        assert is_closed(late)
    for each in (signer, *askers):
        still_signs(each)


def test_requests_of_many_connections_at_once_are_answered_one_after_the_other(desk: Desk) -> None:
    rivals = [MADE.block(GENESIS, 1, timestamp_ms=GENESIS.header.timestamp_ms + 10 + n) for n in range(12)]
    signed: list[bytes] = []
    signers = [desk.asker() for _ in rivals]
    start = threading.Barrier(len(rivals))

    def rival(number: int) -> None:
        signer = signers[number]
        start.wait()
        with suppress(SafetyRefusal):
            signed.append(signer.sign_vote(rivals[number]).block_id)

    threads = [threading.Thread(target=rival, args=(number,)) for number in range(len(rivals))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(signed) == 1


# --- the socket itself ---


def test_the_socket_is_for_its_owner_alone_and_goes_with_the_signer(tmp_path: Path) -> None:
    path = tmp_path / "run" / "signer.sock"
    with listening(path):
        assert stat.S_IMODE(path.lstat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.lstat().st_mode) == 0o700
    assert not path.exists()


def test_a_folder_that_others_may_enter_is_closed_to_them(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    folder.chmod(0o777)
    with listening(folder / "signer.sock"):
        assert stat.S_IMODE(folder.lstat().st_mode) == 0o700


def test_a_stale_socket_is_replaced_and_anything_else_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "run" / "signer.sock"
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as earlier:
        earlier.bind(str(path))  # a killed signer leaves this behind
    with listening(path) as listener, socket.socket(socket.AF_UNIX) as caller:
        caller.connect(str(path))
        assert listener.getsockname() == str(path)
    for make in (lambda: path.write_text("mine"), lambda: path.mkdir()):
        make()
        with pytest.raises(SocketUnusable, match="an earlier signer left"), listening(path):
            pass
        assert path.exists()
        path.unlink() if path.is_file() else path.rmdir()


def test_a_link_in_the_folders_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SocketUnusable), listening(tmp_path / "run" / "signer.sock"):
        pass


def test_a_path_that_the_kernel_would_cut_is_refused(tmp_path: Path) -> None:
    path = tmp_path / ("x" * PATH_BYTES_MAX) / "signer.sock"
    with pytest.raises(SocketUnusable, match="107 bytes"), listening(path):
        pass
    with pytest.raises(SocketUnusable, match="107 bytes"):
        Channel(path)


def test_another_users_process_is_turned_away_unless_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = os.geteuid()
    assert admits(ours, ())
    assert not admits(ours + 1, ())
    assert admits(ours + 1, (ours + 1,))
    left, right = socket.socketpair(socket.AF_UNIX)
    with left, right:
        assert peer_uid(left) == ours


def test_whoever_is_of_another_user_gets_no_answer(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's word is held against our own user id; here that id changes, which takes no second user."""
    ours = os.geteuid()
    monkeypatch.setattr("node.signer.frames.os.geteuid", lambda: ours + 1)
    with connect(desk) as stranger:
        with suppress(OSError):
            stranger.sendall(pack(encode_request(AskStatus())))
        assert is_closed(stranger)
    monkeypatch.undo()
    still_signs(desk.asker())


def test_a_user_who_is_named_may_come_in_and_then_the_kernels_word_is_all_that_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, path = os.geteuid(), tmp_path / "run" / "signer.sock"
    with listening(path, shared=True):
        assert stat.S_IMODE(path.lstat().st_mode) == 0o666
        assert stat.S_IMODE(path.parent.lstat().st_mode) == 0o711
    desk = Desk(custodian(found(tmp_path / "signer")), path, uids=(ours,)).open()
    monkeypatch.setattr("node.signer.frames.os.geteuid", lambda: ours + 1)
    link = SignerLink(path, KEYS[ME], CHAIN, uids=(ours,))
    try:
        link.connect()
        still_signs(RemoteSigner(link, 0))
    finally:
        link.close()
        desk.close()
    assert desk.ended is None


def test_a_home_serves_one_signer_at_a_time(tmp_path: Path) -> None:
    from node.errors import HomeLocked
    from node.signer.home import SignerHome, open_signer

    place = SignerHome(found(tmp_path / "signer"))
    place.home.genesis_path.write_text("{}")
    place.home.consensus_key_path.parent.mkdir(mode=0o700)
    with (
        lock_home(Home(place.root)),
        pytest.raises(HomeLocked),
        open_signer(place, None),
    ):
        pass


def test_time_goes_by_without_a_busy_loop(desk: Desk) -> None:
    desk.asker()
    before = time.process_time()
    threading.Event().wait(0.5)
    assert time.process_time() - before < 0.25
