"""Other people's attribution libraries beside ours: missing, hanging, dying or lying ones are bounded and said; the model is the same."""

from __future__ import annotations

import ast
import json
import os
import select
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from attribution.importing.directory import open_directory
from attribution.importing.float_model import float_logits
from attribution.importing.peft import read_peft
from benchmarks.lds.network import Network, as_adapter, as_state, padded
from benchmarks.lds.peers import PeerFailed, PeerUnavailable, exchange, methods, processes, speed
from benchmarks.lds.peers.__main__ import main
from benchmarks.lds.peers.child import MODULES
from benchmarks.lds.work import Checkpoint, Settings, Work
from tests.unit.attribution.model_cases import CONFIG, records, tiny_adapter, tiny_base

PEER = methods.Peer("a peer", "numpy", "kronfluence_ekfac")
"""numpy is surely installed, so the process is started."""
SHORT = processes.Bounds(seconds_max=30.0, memory_bytes_max=1 << 30, file_bytes_max=1 << 20)
SHAPE = (8, 6)
FACTS = {"build_s": 1.5, "query_ms": 2, "bytes_per_record": 64, "note": "n"}
Array = npt.NDArray[Any]


def made(tied: bool) -> Work:
    base = tiny_base(CONFIG | {"tie_word_embeddings": tied})
    adapter = tiny_adapter(base)
    state = as_state(adapter)
    network = Network(base, adapter.rank, adapter.alpha).load(state)
    moments = {name: (torch.ones_like(a), torch.ones_like(b)) for name, (a, b) in state.items()}
    rows = tuple(tuple(r) for r in records(8))
    checkpoints = tuple(Checkpoint(step, 1e-3, state, moments) for step in (1, 2))
    return Work(0, Settings(), base, network, checkpoints, rows[:6], (0,) * 6, rows[6:7], (0,), rows[7:])


@pytest.fixture(scope="module")
def work() -> Work:
    return made(False)


def answer(path: Path, scores: Array, facts: object = FACTS) -> None:
    np.savez(path, scores=scores, facts=np.frombuffer(json.dumps(facts).encode(), dtype=np.uint8))


def ones() -> Array:
    scores = np.ones(SHAPE, np.float32)
    scores[0, 0] = 2.0
    return scores


@pytest.fixture
def python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(processes.ENVIRONMENT, sys.executable)


def saying(program: str) -> Callable[[Path, methods.Peer, Path], list[str]]:
    """A peer whose process runs `program` in the exchange folder."""
    return lambda python, _, folder: [str(python), "-c", f"import os; os.chdir({str(folder)!r})\n{program}"]


def true_scores(work: Work) -> Array:
    rows = [methods.gradient(work, ids) for ids in exchange.asked(work)]
    own = [methods.gradient(work, ids) for ids in work.records]
    scores: Array = (torch.stack(rows) @ torch.stack(own).T).numpy()
    return scores


@pytest.mark.parametrize("tied", [False, True])
def test_the_hugging_face_directory_has_the_logits_of_the_works_own_network(
    tied: bool, tmp_path: Path
) -> None:
    work = made(tied)
    merged = Network(work.base, work.network.rank, work.network.alpha)
    for (_, into), (_, m) in zip(merged.adapted(), work.network.adapted(), strict=True):
        product = m.lora_B.weight @ m.lora_A.weight
        into.base_layer.weight.data = m.base_layer.weight + m.scale * product
    exchange.write_model(merged, work.base.config, tmp_path / "model")
    inputs, _ = padded(work.records, work.base.config.eos_token_id)
    with open_directory(tmp_path / "model") as directory, torch.no_grad():
        found = float_logits(directory, inputs.tolist())
        assert (torch.stack(found) - work.network(inputs)).abs().max() < 1e-4


def test_the_files_of_a_work_hold_its_base_adapters_and_texts(work: Work, tmp_path: Path) -> None:
    exchange.write_work(work, tmp_path)
    document = json.loads((tmp_path / "work.json").read_text())
    assert document["records"] == [list(r) for r in work.records]
    assert document["asked"] == [list(r) for r in [*work.asked, *work.records]]
    assert {p.name for p in (tmp_path / "adapters").iterdir()} == {"0", "final"}
    final = read_peft(tmp_path / "adapters" / "final", work.base.config.num_hidden_layers)
    assert final.hash == as_adapter(work.network, work.network.state()).hash
    with open_directory(tmp_path / "model", bos=0, eos=1) as directory:
        for name, tensor in (("model.norm", work.network.model.norm.weight),):
            assert torch.equal(directory.tensor(f"{name}.weight"), tensor)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_transformers_and_peft_read_those_files_as_the_same_model(work: Work, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed: pip install transformers")
    pytest.importorskip("peft", reason="peft is not installed: pip install peft")
    from benchmarks.lds.peers import loading

    exchange.write_work(work, tmp_path)
    model = loading.adapted_model(tmp_path)
    assert loading.check_logits(model, tmp_path) < 1e-4
    assert loading.check_logits(loading.merged_model(tmp_path), tmp_path) < 1e-4
    assert len(loading.linear_names(model, "lora")) == 2 * len(loading.linear_names(model, "base")) == 28
    with pytest.raises(loading.Unequal, match="differ by"):
        loading.check_logits(loading.base_model(tmp_path), tmp_path)


def test_a_missing_peer_is_said_with_the_way_to_install_it(
    work: Work, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(processes.ENVIRONMENT, "/nowhere/python")
    for name, method in methods.methods().items():
        with pytest.raises(PeerUnavailable, match=r"not installed: run sh scripts/peers\.sh"):
            method(work)
        assert name
    assert main(["--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["installed"].values()) == {processes.HOW}
    monkeypatch.setenv(processes.ENVIRONMENT, sys.executable)
    with pytest.raises(PeerUnavailable, match="not installed"):
        processes.found(processes.interpreter(), "no-such-package-of-a-peer")
    assert (Path(processes.ROOT) / "scripts" / "peers.sh").is_file()


def test_speed_beside_missing_peers_is_our_own_and_says_so(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(processes.ENVIRONMENT, "/nowhere/python")
    adapter = as_adapter(work.network, work.network.state())
    rows = speed.measure(work.base, adapter, work.records, (2, 6), 1)
    assert [row["what"] for row in rows] == ["exact index", "bergson", "kronfluence"]
    assert all("scripts/peers.sh" in row["skipped"] for row in rows[1:])
    assert "exact index" in speed.show(rows)


@pytest.mark.usefixtures("python")
@pytest.mark.parametrize("sign", [1, -1])
def test_a_peers_answer_becomes_scores_with_a_word_on_their_sense(
    work: Work, tmp_path: Path, sign: int
) -> None:
    answer(tmp_path / "made.npz", sign * true_scores(work))
    program = f"import shutil; shutil.copy({str(tmp_path / 'made.npz')!r}, 'answer.npz')"
    if sign < 0:
        with pytest.raises(PeerFailed, match="make no sense"):
            methods.score(PEER, work, SHORT, saying(program))
        return
    scored = methods.score(PEER, work, SHORT, saying(program))
    assert scored.scores.shape == (len(work.asked), len(work.records))
    assert (scored.build_s, scored.query_ms, scored.bytes_per_record) == (1.5, 2.0, 64)
    assert "itself first 6/6, GradDot correlation 1.00" in scored.note


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("import sys; print('out of luck'); sys.exit(7)", "ended with status 7 .*out of luck"),
        ("import os; os.kill(os.getpid(), 9)", "ended by signal SIGKILL"),
        ("data = bytearray(1 << 31)", "MemoryError"),
        ("open('big', 'wb').write(b'x' * (1 << 21))", "File too large"),
        ("print('x' * (1 << 22))", "ended with status"),
    ],
    ids=["dies", "is killed", "takes memory", "fills the disk", "talks without end"],
)
def test_a_peer_that_dies_or_takes_too_much_is_reported(tmp_path: Path, program: str, why: str) -> None:
    command = saying(program)(Path(sys.executable), PEER, tmp_path)
    with pytest.raises(PeerFailed, match=why):
        processes.run(command, tmp_path, SHORT)
    assert (tmp_path / "log").stat().st_size <= SHORT.file_bytes_max


@pytest.mark.parametrize(
    ("scores", "facts", "why"),
    [
        (np.zeros((3, 3), np.float32), FACTS, r"scores float32 \(3, 3\) where"),
        (np.zeros(SHAPE, np.float64), FACTS, "scores float64"),
        (np.zeros(SHAPE, np.float32), FACTS, "all the same"),
        (np.full(SHAPE, np.nan, np.float32), FACTS, "not finite"),
        (np.array([[print]]), FACTS, "cannot be read: ValueError: Object arrays"),
        (ones(), [1], "its facts are not an object"),
        (ones(), {}, "cannot be read: KeyError"),
        (ones(), FACTS | {"build_s": float("nan")}, "build_s is 'nan'"),
        (ones(), FACTS | {"note": "x" * (1 << 15)}, "its facts are not JSON"),
    ],
    ids=["shape", "dtype", "constant", "nan", "pickle", "list", "no facts", "false facts", "long facts"],
)
def test_an_answer_that_is_not_finite_scores_of_that_shape_is_refused(
    tmp_path: Path, scores: Array, facts: object, why: str
) -> None:
    answer(tmp_path / "answer.npz", scores, facts)
    with pytest.raises(PeerFailed, match=why):
        exchange.read_answer(tmp_path / "answer.npz", SHAPE)


def test_an_answer_that_is_missing_or_garbage_or_too_large_is_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "answer.npz"
    with pytest.raises(PeerFailed, match="cannot be read: FileNotFoundError"):
        exchange.read_answer(path, SHAPE)
    path.write_bytes(b"garbage" * 99)
    with pytest.raises(PeerFailed, match="cannot be read: BadZipFile"):
        exchange.read_answer(path, SHAPE)
    monkeypatch.setattr(exchange, "ANSWER_BYTES_MAX", 600)
    with pytest.raises(PeerFailed, match="its answer has 693 bytes"):
        exchange.read_answer(path, SHAPE)
    np.savez_compressed(path, scores=np.zeros((99, 99)))
    assert path.stat().st_size < 600
    with pytest.raises(PeerFailed, match="unpacks to too much"):
        exchange.read_answer(path, SHAPE)


def test_a_peer_that_hangs_is_ended_with_its_children(tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    os.mkfifo(alive)
    watched = os.open(alive, os.O_RDONLY | os.O_NONBLOCK)
    program = (
        "import os, signal, subprocess, sys\n"
        f"held = os.open({str(alive)!r}, os.O_WRONLY)\n"
        "pause = [sys.executable, '-c', 'import signal; signal.alarm(60); signal.pause()']\n"
        "child = subprocess.Popen(pause, pass_fds=[held])\n"
        "print('still thinking', flush=True)\nchild.wait()"
    )
    try:
        with pytest.raises(PeerFailed, match="no answer within 4 s; last words: still thinking"):
            processes.run([sys.executable, "-c", program], tmp_path, processes.Bounds(seconds_max=4.0))
        poll = select.poll()
        poll.register(watched, 0)
        assert poll.poll(30_000) == [(watched, select.POLLHUP)]  # nobody holds the other end any more
    finally:
        os.close(watched)


def test_the_peers_side_imports_nothing_of_the_project_but_itself() -> None:
    """The peers' environment has torch and the peers, not what the node needs."""
    room = Path(processes.ROOT) / "benchmarks" / "lds" / "peers"
    here = "benchmarks.lds.peers"
    seen, left = set[str](), ["child", *MODULES]
    while left:
        name = left.pop()
        seen.add(name)
        for node in ast.walk(ast.parse((room / f"{name}.py").read_text())):
            named = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                named = [
                    f"{node.module}.{a.name}" if node.module == here else str(node.module) for a in node.names
                ]
            for module in named:
                assert module.split(".")[0] not in ("attribution", "consensus", "node")
                if module.startswith("benchmarks"):
                    assert module.startswith(f"{here}.")
                    left += [m for m in [module.split(".")[3]] if m not in seen]
    assert "loading" in seen
    assert "exchange" not in seen
