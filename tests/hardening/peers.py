"""What keeps another library's process, and the file it answers with, from stopping or deceiving a benchmark."""

from __future__ import annotations

from tests.hardening.removal import Removal

PROCESSES = "benchmarks/lds/peers/processes.py"
EXCHANGE = "benchmarks/lds/peers/exchange.py"
METHODS = "benchmarks/lds/peers/methods.py"
_TESTS = "tests/unit/benchmarks/test_peers.py::"
_TAKES = f"{_TESTS}test_a_peer_that_dies_or_takes_too_much_is_reported"
_HANGS = f"{_TESTS}test_a_peer_that_hangs_is_ended_with_its_children"
_REFUSED = f"{_TESTS}test_an_answer_that_is_not_finite_scores_of_that_shape_is_refused"
_UNREAD = f"{_TESTS}test_an_answer_that_is_missing_or_garbage_or_too_large_is_refused_unread"

REMOVALS: tuple[Removal, ...] = (
    Removal("a peer that hangs", PROCESSES, "process.wait(bounds.seconds_max)", "process.poll()", (_HANGS,)),
    Removal(
        "what a peer started and left",
        PROCESSES,
        "os.killpg(process.pid, signal.SIGKILL)",
        "process.kill()",
        (_HANGS,),
    ),
    Removal(
        "a peer that takes all memory",
        PROCESSES,
        "resource.setrlimit(resource.RLIMIT_DATA, (bounds.memory_bytes_max, bounds.memory_bytes_max))",
        "pass",
        (f"{_TAKES}[takes memory]",),
    ),
    Removal(
        "a peer that fills the disk",
        PROCESSES,
        "resource.setrlimit(resource.RLIMIT_FSIZE, (bounds.file_bytes_max, bounds.file_bytes_max))",
        "pass",
        (f"{_TAKES}[fills the disk]", f"{_TAKES}[talks without end]"),
    ),
    Removal("a peer that failed", PROCESSES, "    if status:\n", "    if False:\n", (f"{_TAKES}[dies]",)),
    Removal(
        "an answer too large to read",
        EXCHANGE,
        "if path.stat().st_size > ANSWER_BYTES_MAX:",
        "if False:",
        (_UNREAD,),
    ),
    Removal(
        "an answer that unpacks to too much",
        EXCHANGE,
        "if sum(info.file_size for info in archive.infolist()) > ANSWER_BYTES_MAX:",
        "if False:",
        (_UNREAD,),
    ),
    Removal(
        "code in an answer", EXCHANGE, "allow_pickle=False", "allow_pickle=True", (f"{_REFUSED}[pickle]",)
    ),
    Removal(
        "scores that are not numbers",
        EXCHANGE,
        "if not np.isfinite(answer.scores).all():",
        "if False:",
        (f"{_REFUSED}[nan]",),
    ),
    Removal(
        "scores of something else",
        EXCHANGE,
        "if scores.dtype != np.float32 or scores.shape != shape:",
        "if False:",
        (f"{_REFUSED}[shape]",),
    ),
    Removal(
        "scores that say nothing",
        EXCHANGE,
        "if not answer.scores.std() > 0:",
        "if False:",
        (f"{_REFUSED}[constant]",),
    ),
    Removal(
        "scores with the wrong sign",
        METHODS,
        "if near == 0 and correlation < 0:",
        "if False:",
        (f"{_TESTS}test_a_peers_answer_becomes_scores_with_a_word_on_their_sense[-1]",),
    ),
)
