"""Real nodes that are killed, stopped, cut off from power, and started again on what their disks hold.

One network serves all of it, in this order; before the hostile ones come, two tests look back over what happened.
"""

import itertools
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import trio

from consensus.crypto import public_key
from node.client import Client, ClientError, WaitTimeout
from node.config import load_config
from node.devnet.ports import free_ports
from node.devnet.processes import last_lines, spawn
from node.keys import load_seed
from node.ledger.batch import encode_batch, sign_batch
from node.ledger.bodies import Transfer
from node.ledger.transaction import encode_transaction, sign_transaction
from node.network import NetworkConfig, PeerAddress
from node.network.errors import NetworkError
from node.network.network import open_network
from node.storage.blobs import blob_digest
from node.wire import (
    BLOB_PART_BYTES,
    Announcement,
    BlockRange,
    Frame,
    Request,
    SyncedBlock,
    Topic,
    encode_announcement,
    encode_range,
)
from tests.integration.cluster import Cluster, running_cluster

pytestmark = pytest.mark.timeout(400)

FEE_UNITS = 1_000_000
"""More than the least fee of a transfer."""

EXIT_S_MAX = 5.0
"""How long a daemon may take to end when it is told to."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    root = tmp_path_factory.mktemp("crashes") / "devnet"
    with running_cluster(root, {}) as running:
        yield running


# --- what the tests say ---


def names(cluster: Cluster) -> list[str]:
    return [node.name for node in cluster.network.nodes]


def height_of(cluster: Cluster, name: str) -> int:
    return cluster.client_of(name).status()["height"]


def wait_everywhere(cluster: Cluster, height: int) -> None:
    """Wait until every node executed `height`, and require that all say the same about it."""
    cluster.wait(
        f"height {height} everywhere",
        lambda: all(height_of(cluster, name) >= height for name in names(cluster)),
    )
    blocks = [cluster.client_of(name).block(height) for name in names(cluster)]
    assert len({(block["block_hash"], block["state_digest"]) for block in blocks}) == 1


def kill_all(cluster: Cluster, *victims: str) -> None:
    """SIGKILL to all at once; then wait for their ends."""
    for name in victims:
        cluster.children[name].popen.send_signal(signal.SIGKILL)
    for name in victims:
        cluster.children[name].popen.wait()


def send_transfers(cluster: Cluster, count: int, first: int | None = None) -> list[bytes]:
    """Submit transfers of one unit through the full node, without waiting for any."""
    user, provider = cluster.network.account("user"), cluster.network.account("provider")
    nonce = cluster.client.account_nonce(user.address) if first is None else first
    body = Transfer(provider.address, 1)
    return [
        cluster.client.send(user.seed, body, nonce=nonce + step, fee=FEE_UNITS).tx_hash
        for step in range(count)
    ]


def wait_executed(cluster: Cluster, sent: list[bytes]) -> None:
    for tx_hash in sent:
        cluster.client.wait_transaction(tx_hash, 90)


def worker_of(pid: int) -> list[int]:
    """Process ids of a daemon's children."""
    text = "".join(path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children"))
    return [int(child) for child in text.split()]


# --- killed ---


def test_two_dead_of_four_stop_the_chain_without_a_fork_and_one_more_moves_it(cluster: Cluster) -> None:
    kill_all(cluster, "validator-1", "validator-2")
    sent = send_transfers(cluster, 3)
    # What had its quorum may still be committed; after that nothing can.
    with pytest.raises(WaitTimeout):
        cluster.client.wait_height(height_of(cluster, "full-node") + 3, 6)
    assert cluster.client.transaction(sent[-1])["state"] == "pending"  # type: ignore[index]
    cluster.start("validator-1")
    wait_executed(cluster, sent)
    cluster.start("validator-2")
    wait_everywhere(cluster, height_of(cluster, "full-node") + 1)


class Load(threading.Thread):
    """Transfers of one account, sent and waited for until the end, whatever becomes of the nodes.

    `acknowledged` holds, by transaction hash, what some node called committed, and where.
    """

    def __init__(self, cluster: Cluster, account: str, entry: str) -> None:
        super().__init__(name=f"load of {account}")
        self.acknowledged: dict[bytes, tuple[str, int]] = {}
        self.ended = threading.Event()
        self._cluster, self._entry = cluster, entry
        self._account = cluster.network.account(account)

    def run(self) -> None:
        receiver = self._cluster.network.account("provider").address
        while not self.ended.is_set():
            with suppress(ClientError):
                self._send_some(receiver)
            self.ended.wait(0.05)

    def _send_some(self, receiver: bytes) -> None:
        entry = Client(self._cluster.node(self._entry).rpc_url, timeout_s=3, retries=0)
        nonce = entry.account_nonce(self._account.address)
        sent = [
            entry.send(self._account.seed, Transfer(receiver, 1), nonce=nonce + step, fee=FEE_UNITS).tx_hash
            for step in range(4)
        ]
        deadline = time.monotonic() + 4
        while sent and time.monotonic() < deadline and not self.ended.is_set():
            for name in names(self._cluster):
                client = Client(self._cluster.node(name).rpc_url, timeout_s=3, retries=0)
                with suppress(ClientError):
                    self._note(client, sent)
            sent = [tx_hash for tx_hash in sent if tx_hash not in self.acknowledged]

    def _note(self, client: Client, sent: list[bytes]) -> None:
        for tx_hash in sent:
            transaction = client.transaction(tx_hash)
            if transaction is not None and transaction["state"] == "committed":
                self.acknowledged[tx_hash] = (str(transaction["status"]), int(transaction["height"] or 0))


def test_what_any_node_called_committed_stays_so_through_kills_and_power_cuts_under_load(
    cluster: Cluster,
) -> None:
    loads = [Load(cluster, "alice", "full-node"), Load(cluster, "bob", "validator-2")]
    for load in loads:
        load.start()
    try:
        for victims in (("validator-1", "full-node"), tuple(names(cluster))):
            before = [len(load.acknowledged) for load in loads]
            cluster.wait(
                "commits under load",
                lambda before=before: all(  # type: ignore[misc]
                    len(load.acknowledged) >= count + 4 for load, count in zip(loads, before, strict=True)
                ),
            )
            kill_all(cluster, *victims)
            for name in victims:
                cluster.start(name)
        wait_everywhere(cluster, max(place for load in loads for _, place in load.acknowledged.values()) + 2)
    finally:
        for load in loads:
            load.ended.set()
        for load in loads:
            load.join()
    wait_everywhere(cluster, height_of(cluster, "full-node"))
    for name in names(cluster):
        client = cluster.client_of(name)
        for load in loads:
            assert len(load.acknowledged) >= 8
            for tx_hash, said in load.acknowledged.items():
                transaction = client.transaction(tx_hash)
                assert transaction is not None
                assert (transaction["status"], transaction["height"]) == said


# --- stopped ---


def test_both_signals_end_a_daemon_and_its_worker_within_the_bound_whatever_clients_do(
    cluster: Cluster,
) -> None:
    for name, number in (("validator-2", signal.SIGTERM), ("full-node", signal.SIGINT)):
        child = cluster.children[name]
        workers = worker_of(child.pid)
        assert bool(workers) == cluster.node(name).validator
        for worker in workers:
            os.kill(worker, signal.SIGSTOP)  # as deep in its work as can be: it hears nothing
        address = urlsplit(cluster.node(name).rpc_url)
        clients = [socket.create_connection((address.hostname, address.port)) for _ in range(2)]
        clients[1].sendall(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{")
        child.popen.send_signal(number)
        cluster.wait("it to take notice", lambda: " stopping " in child.log.read_text())  # noqa: B023
        child.popen.send_signal(signal.SIGINT)  # once more changes nothing
        assert child.popen.wait(EXIT_S_MAX) == 0, cluster.log_of(name)
        assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
        for client in clients:
            client.close()
        cluster.start(name)
    wait_everywhere(cluster, height_of(cluster, "validator-1") + 1)


@pytest.mark.slow
def test_a_validator_whose_database_is_restored_from_a_backup_is_refused_and_goes_on_with_its_own(
    cluster: Cluster, tmp_path: Path
) -> None:
    name = "validator-3"
    home = cluster.node(name).home
    cluster.kill(name)
    shutil.copytree(home.data_path, tmp_path / "backup")
    cluster.start(name)
    wait_everywhere(cluster, height_of(cluster, "full-node") + 2)
    cluster.kill(name)
    shutil.move(home.data_path, tmp_path / "own")
    shutil.copytree(tmp_path / "backup", home.data_path)
    cluster.start(name)
    assert cluster.children[name].popen.wait(60) == 1
    assert "is older than what this key signed last" in cluster.log_of(name)
    assert "never a backup" in cluster.log_of(name)
    shutil.rmtree(home.data_path)
    shutil.move(tmp_path / "own", home.data_path)
    cluster.start(name)
    wait_everywhere(cluster, height_of(cluster, "full-node") + 1)


def test_a_second_daemon_on_a_home_is_refused_and_the_first_goes_on(cluster: Cluster) -> None:
    first = cluster.children["validator-1"]
    cluster.start("validator-1")
    second, cluster.children["validator-1"] = cluster.children["validator-1"], first
    assert second.popen.wait(60) == 1
    assert f"is in use by process {first.pid}" in cluster.log_of("validator-1")
    wait_everywhere(cluster, height_of(cluster, "validator-1") + 1)


@pytest.mark.slow
def test_a_validator_that_stands_still_stops_nobody_and_catches_up(cluster: Cluster) -> None:
    """Longer than the others' patience: they cut it off, and it finds its way back."""
    pid = cluster.children["validator-4"].pid
    os.kill(pid, signal.SIGSTOP)
    try:
        height = height_of(cluster, "full-node")
        cluster.wait("the others to cut it off", lambda: len(cluster.client.status()["peers"]) == 3)
        cluster.client.wait_height(height + 5)
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_everywhere(cluster, height_of(cluster, "full-node") + 1)


# --- transactions ---


def test_a_burst_out_of_order_and_through_two_nodes_executes_everything_exactly_once(
    cluster: Cluster,
) -> None:
    """Three hundred from five senders, in groups that arrive last first: each group is a gap until its end."""
    receiver = public_key(os.urandom(32))
    valid_until = height_of(cluster, "full-node") + 500
    sent: list[bytes] = []
    for name in ("user", "provider", "trainer", "alice", "bob"):
        account = cluster.network.account(name)
        nonce = int(cluster.client.account(account.address)["nonce"])
        rows = [
            encode_transaction(
                sign_transaction(
                    account.seed,
                    chain_id=cluster.network.chain_id,
                    nonce=nonce + step,
                    fee=FEE_UNITS,
                    valid_until=valid_until,
                    body=Transfer(receiver, 1),
                )
            )
            for step in range(60)
        ]
        for start in range(0, len(rows), 20):
            sent += [cluster.client.submit(raw) for raw in reversed(rows[start : start + 20])]
            cluster.client_of("validator-3").submit(rows[start])
    wait_executed(cluster, sent)
    assert int(cluster.client.account(receiver)["balance"]) == len(set(sent)) == 300
    wait_everywhere(cluster, height_of(cluster, "full-node"))


# --- a full disk, and garbage ---


def test_a_validator_that_cannot_write_ends_before_it_signs_and_the_others_go_on(cluster: Cluster) -> None:
    """A limit on the size of files stands for the full disk; it ends with the process."""
    child, home = cluster.children["validator-4"], cluster.node("validator-4").home
    files = [child.log, *(home.data_path / "chain").glob("*.log")]
    size = max(path.stat().st_size for path in files) + 30_000
    resource.prlimit(child.pid, resource.RLIMIT_FSIZE, (size, size))
    cluster.wait("its end", lambda: bool(send_transfers(cluster, 5)) and child.popen.poll() is not None)
    assert child.popen.returncode == 1
    said = cluster.log_of("validator-4")
    assert "is the disk full?" in said
    assert "Make room and start again" in said
    assert "Traceback" not in child.log.read_text()
    # Started while there is still no room, it says so again and breaks nothing.
    command = ["prlimit", "--fsize=2000", sys.executable, "-m", *cluster.commands["validator-4"], "start"]
    again = subprocess.run(
        [*command, "--home", str(home.root)], capture_output=True, text=True, timeout=60, check=False
    )
    assert again.returncode == 1
    assert "is the disk full" in again.stderr
    assert "Traceback" not in again.stderr
    cluster.client.wait_height(height_of(cluster, "full-node") + 2)
    cluster.start("validator-4")
    wait_everywhere(cluster, height_of(cluster, "full-node") + 1)


def test_garbage_on_both_ports_costs_a_node_nothing(cluster: Cluster) -> None:
    node = cluster.node("validator-2")
    section = load_config(node.home.config_path, environment={}).network
    address = urlsplit(node.rpc_url)
    garbage = [
        os.urandom(2000),
        b"\x13/multistream/1.0.0\n" + os.urandom(500),
        b"\x13/multistream/1.0.0\n\x07/noise\n\xff\xff" + os.urandom(70_000),
        b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 5000,
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999\r\n\r\n" + b"x" * 100_000,
        b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nffffffff\r\n" + b"[" * 100_000,
    ]
    for port, data in itertools.product((section.listen_port, address.port), garbage * 5):
        with socket.create_connection((address.hostname, port)) as client, suppress(OSError):
            client.sendall(data)
    wait_everywhere(cluster, height_of(cluster, "validator-2") + 2)


# --- damaged ---


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.slow
def test_a_validator_with_damaged_models_and_records_mends_them_and_attests_what_the_others_do(
    cluster: Cluster, tmp_path: Path
) -> None:
    """A flipped bit in records still decodes: an index of them would be another one, and a verdict a slander."""
    cluster.publish_adapter(tmp_path)
    home = cluster.node("validator-4").home
    cluster.kill("validator-4")
    damaged = [
        *home.blobs_path.glob("*/*"),
        *home.artefacts_path.glob("bases/*"),
        *home.artefacts_path.glob("indices/*/*"),
    ]
    assert len(damaged) == 3 + 1 + 5, damaged
    for path in damaged:
        flip_a_bit(path)
    cluster.start("validator-4")
    call = cluster.ask_until_audited("turtle.forward: ")
    cluster.reveal(call)
    receipt = cluster.wait_closed(call)
    assert receipt["status"] == "settled"
    assert len(receipt["attesters"]) == 4
    assert {entry["result_hash"] for entry in receipt["attesters"]} == {receipt["result_hash"]}


def test_a_log_that_was_cut_in_the_middle_of_a_write_costs_nothing_but_that_write(cluster: Cluster) -> None:
    """The end of a power cut: the last record is torn."""
    wait_everywhere(cluster, height_of(cluster, "full-node") + 1)
    cluster.kill("full-node")
    log = max((cluster.node("full-node").home.data_path / "chain").glob("*.log"))
    os.truncate(log, log.stat().st_size - 7)
    cluster.start("full-node")
    wait_everywhere(cluster, height_of(cluster, "validator-1") + 1)


@pytest.mark.slow
def test_a_damaged_database_ends_the_daemon_with_what_to_do_and_mended_it_goes_on(cluster: Cluster) -> None:
    """Found at the start or at the first read of what is damaged: never a traceback, never a quiet loss."""
    name = "validator-2"
    home = cluster.node(name).home
    for _ in range(2):  # so that there is a table, not only a log
        cluster.kill(name)
        cluster.start(name)
        wait_everywhere(cluster, height_of(cluster, "full-node") + 1)
    cluster.kill(name)
    for pattern in ("*.ldb", "MANIFEST-*", "*.log"):
        damaged = max((home.data_path / "chain").glob(pattern), key=lambda path: path.stat().st_size)
        flip_a_bit(damaged)
        cluster.start(name)
        child = cluster.children[name]
        begin = child.log.stat().st_size
        assert child.popen.wait(60) == 1
        said = child.log.read_bytes()[begin:].decode()
        assert "is damaged" in said
        assert "move it away and restart to sync again" in said
        assert "Traceback" not in said
        # Mended, not replaced by a copy: it may have signed before it met a damaged table, and a copy would be too old.
        flip_a_bit(damaged)
    cluster.start(name)
    wait_everywhere(cluster, height_of(cluster, "full-node") + 1)


def start_from_nothing(cluster: Cluster, name: str) -> None:
    cluster.kill(name)
    home = cluster.node(name).home
    for folder in (home.data_path, home.blobs_path):
        shutil.rmtree(folder)
    cluster.start(name)
    wait_everywhere(cluster, height_of(cluster, "validator-1"))


def test_a_full_node_that_starts_from_nothing_has_every_block_and_state(cluster: Cluster) -> None:
    start_from_nothing(cluster, "full-node")
    there = cluster.client_of("validator-1")
    for height in range(1, height_of(cluster, "full-node") + 1):
        assert cluster.client.block(height) == there.block(height)


@pytest.mark.slow
def test_a_full_node_that_starts_from_nothing_fetches_a_blob_when_it_is_asked_for(
    cluster: Cluster, tmp_path: Path
) -> None:
    if not cluster.adapter:
        cluster.publish_adapter(tmp_path)
    start_from_nothing(cluster, "full-node")
    adapter = cluster.client.call("adapter", id=cluster.adapter.hex())
    assert adapter == cluster.client_of("validator-1").call("adapter", id=cluster.adapter.hex())
    name = bytes.fromhex(adapter["blob_digest"])
    assert blob_digest(cluster.client.get_blob(name)) == name


# --- looking back ---


def test_no_two_nodes_ever_disagreed_about_a_height(cluster: Cluster) -> None:
    top = min(height_of(cluster, name) for name in names(cluster))
    clients = [Client(node.rpc_url) for node in cluster.network.nodes]
    for height in range(1, top + 1, 3):
        blocks = [client.block(height) for client in clients]
        assert len({(block["block_hash"], block["state_digest"]) for block in blocks}) == 1


def test_nobody_contradicted_itself_and_nothing_failed_untyped(cluster: Cluster) -> None:
    """A validator that forgot what it signed before its end would be caught by the others."""
    for node in cluster.network.nodes:
        log = (node.home.logs_path / "node.log").read_text()
        for word in ("misbehaved", "diverged", "Traceback"):
            assert word not in log, log[log.index(word) - 500 : log.index(word) + 2000]


# --- hostile ---


async def misbehave(cluster: Cluster, seconds: float) -> None:
    """Speak with validator-4's own keys: garbage in every kind of frame, claims of a chain that is not there, floods."""
    plan = cluster.node("validator-4")
    section = load_config(plan.home.config_path, environment={}).network
    garbage = [b"", b"\xc0", b"\x91" * 2000, b"\xdd\xff\xff\xff\xff", os.urandom(1000), os.urandom(1 << 20)]
    account = cluster.account_seed_of("validator-4")
    stranger = cluster.network.account("user").seed
    sequence = itertools.count(1)

    def batch(seed: bytes) -> bytes:
        items = ((os.urandom(60_000), ()),) * 8
        return encode_batch(sign_batch(seed, cluster.network.chain_id, next(sequence), items))

    async def answer(_peer_id: str, kind: int, _payload: bytes) -> bytes:
        match kind:
            case Request.STATUS:
                return encode_announcement(Announcement(1 << 60, os.urandom(32)))
            case Request.RANGE:
                return encode_range(BlockRange((SyncedBlock(os.urandom(200), ()),), b"\x90"))
            case Request.BLOB:
                return os.urandom(BLOB_PART_BYTES)
        return os.urandom(1000)

    config = NetworkConfig(
        key_seed=load_seed(plan.home.node_key_path),
        chain_id=cluster.network.chain_id,
        listen_host=section.listen_host,
        listen_port=section.listen_port,
        mesh_peers=tuple(PeerAddress.parse(text) for text in section.mesh_peers),
        gossip_peers=tuple(PeerAddress.parse(text) for text in section.gossip_peers),
    )
    with trio.move_on_after(seconds):
        async with (
            open_network(config, on_request=answer, validate_gossip=lambda _topic, _data: True) as network,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(drain, network.frames)
            nursery.start_soon(drain, network.gossip)
            while True:
                for _ in range(8):  # in bursts, that some arrive before the ban
                    network.broadcast(Frame.BATCH, batch(account))
                await trio.sleep(1)
                network.broadcast(Frame.BATCH, batch(stranger))
                for kind, data in itertools.product((*Frame, 9), garbage):
                    network.broadcast(kind, data)
                for topic in (Topic.TRANSACTIONS, Topic.BLOCKS):
                    with suppress(NetworkError):
                        await network.publish(topic, os.urandom(500), 0.2)
                await trio.sleep(1)


async def drain(inbox: AsyncIterator[object]) -> None:
    async for _ in inbox:
        pass


def memory_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
def test_a_hostile_validator_is_banned_and_costs_the_others_neither_memory_nor_blocks(
    cluster: Cluster,
) -> None:
    cluster.kill("validator-4")
    cluster.kill("full-node")
    shutil.rmtree(cluster.node("full-node").home.data_path)
    honest = ("validator-1", "validator-2", "validator-3")
    before = {name: memory_bytes(cluster.children[name].pid) for name in honest}
    height = height_of(cluster, "validator-1")
    cluster.start("full-node")
    trio.run(misbehave, cluster, 25.0)
    for name in honest:
        assert memory_bytes(cluster.children[name].pid) < before[name] + (128 << 20)
        assert "banned=True" in (cluster.node(name).home.logs_path / "node.log").read_text()
    cluster.start("validator-4")
    wait_everywhere(cluster, height + 5)


@pytest.mark.slow
def test_of_two_daemons_with_one_validators_keys_one_ends_and_nobody_diverges(
    cluster: Cluster, tmp_path: Path
) -> None:
    """A copy of a home on other ports, started with the first: one meets the other's signatures and ends; the chain goes on."""
    cluster.kill("validator-4")
    home = cluster.node("validator-4").home
    twin = Path(shutil.copytree(home.root, tmp_path / "twin"))
    cluster.start("validator-4")
    rpc_port, p2p_port = free_ports(2)
    ports = ["--set", f"rpc.port={rpc_port}", "--set", f"network.listen_port={p2p_port}"]
    command = [sys.executable, "-m", "node.cli.main", "start", "--home", str(twin), *ports]
    second = spawn("twin", command, twin / "twin.log", {**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        height = height_of(cluster, "full-node")
        pair = (cluster.children["validator-4"], second)
        cluster.wait(
            "one of the two to end",
            lambda: (
                bool(send_transfers(cluster, 2)) and any(child.popen.poll() is not None for child in pair)
            ),
        )
        for child in pair:
            if child.popen.poll() is not None:
                assert child.popen.returncode == 1
                assert "another daemon signs with the same key" in last_lines(child.log)
                assert "Traceback" not in child.log.read_text()
        for name in ("validator-1", "validator-2", "validator-3"):
            client = cluster.client_of(name)
            client.wait_height(height + 10)
            assert (
                client.block(height + 10)["state_digest"] == cluster.client.block(height + 10)["state_digest"]
            )
    finally:
        second.popen.kill()
        second.popen.wait()
