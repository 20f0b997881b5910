"""The metrics page: accepted by Prometheus' own checker where there is one, and by the rules of naming everywhere."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import fields
from pathlib import Path

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from node.config import RpcSection
from node.metrics import Metrics, Snapshot
from node.rpc.errors import Code
from node.rpc.methods import METHODS
from tests.unit.node.ledger_backend import running_server
from tests.unit.node.test_rpc_server import code_of, connecting, post

DOCUMENT = Path(__file__).parents[3] / "docs" / "rpc.md"
SNAPSHOT = Snapshot(**{entry.name: number for number, entry in enumerate(fields(Snapshot))})
ABBREVIATED = re.compile(
    r"_(ms|us|ns|msec|sec|mins?|hours|kb|kib|mb|mib|gb|milliseconds|percent|kilobytes)(_|$)"
)


def filled() -> Metrics:
    """Metrics of a node to which everything has happened that is counted."""
    metrics = Metrics()
    metrics.watch(lambda: SNAPSHOT)
    metrics.called("status", "OK", 0.002)
    metrics.called("unknown", "METHOD_NOT_FOUND", 0.0)
    metrics.refused("RATE_LIMITED")
    metrics.executed(1_000, 1, 2, 1, 500, 0.01)
    metrics.executed(2_500, 3, 4, 0, 700, 0.02)
    metrics.job_done("audit", "done", 3.0)
    return metrics


def families(text: bytes) -> dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(text.decode())}


def value(text: bytes, line: str) -> float:
    found = re.findall(rf"^{re.escape(line)} (.+)$", text.decode(), re.MULTILINE)
    assert len(found) == 1, line
    return float(found[0])


def promtool_says(text: bytes) -> str:
    """What Prometheus' checker finds wrong; empty when nothing."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool (of Prometheus) is not installed")
    done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, check=False)
    return (done.stdout + done.stderr).decode() + ("" if done.returncode == 0 else f"exit {done.returncode}")


def test_promtool_accepts_the_page() -> None:
    assert promtool_says(filled().render()) == ""


def test_promtool_would_notice_a_bad_name() -> None:
    assert "counter" in promtool_says(b"# HELP x_requests x\n# TYPE x_requests counter\nx_requests 1\n")


def test_names_are_prefixed_have_help_base_units_and_total_exactly_on_counters() -> None:
    text = filled().render()
    found = families(text)
    assert len(found) > 40
    for name, family in found.items():
        assert name.startswith(("openledger_", "process_")), name
        assert family.documentation.strip(), name
        assert not ABBREVIATED.search(name), name
        assert re.fullmatch(r"[a-z][a-z0-9_]*", name), name
        for sample in family.samples:
            assert sample.name.endswith("_total") == (family.type == "counter"), sample.name
        assert family.type in ("counter", "gauge", "histogram"), name
    assert b"_created" not in text


def test_every_value_of_a_snapshot_is_shown_under_its_name() -> None:
    text = filled().render()
    for number, entry in enumerate(fields(Snapshot)):
        counter = entry.name.endswith(("_dropped", "_penalties", "_bans", "_received_bytes", "_sent_bytes"))
        assert value(text, f"openledger_{entry.name}{'_total' if counter else ''}") == number


def test_blocks_are_counted_with_their_interval_rounds_and_sizes() -> None:
    text = filled().render()
    assert value(text, "openledger_consensus_blocks_total") == 2
    assert value(text, 'openledger_consensus_txs_total{outcome="performed"}') == 6
    assert value(text, 'openledger_consensus_txs_total{outcome="invalid"}') == 1
    assert value(text, "openledger_consensus_block_bytes_total") == 1200
    assert value(text, "openledger_consensus_block_interval_seconds_count") == 1
    assert value(text, "openledger_consensus_block_interval_seconds_sum") == 1.5
    assert value(text, "openledger_consensus_rounds") == 2
    assert value(text, "openledger_consensus_num_txs") == 4
    assert value(text, "openledger_consensus_block_size_bytes") == 700
    assert value(text, "openledger_state_block_processing_seconds_sum") == pytest.approx(0.03)
    assert value(text, 'openledger_worker_jobs_done_total{kind="audit",outcome="done"}') == 1


def test_a_clock_that_goes_back_between_blocks_does_not_break_the_count() -> None:
    metrics = Metrics()
    metrics.executed(5_000, 1, 0, 0, 0, 0.0)
    metrics.executed(1_000, 2, 0, 0, 0, 0.0)
    assert value(metrics.render(), "openledger_consensus_block_interval_seconds_sum") == 0


def test_the_documentation_lists_exactly_the_metrics_that_there_are() -> None:
    section = DOCUMENT.read_text().split("## Metrics")[1].split("## Limits")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    documented = {name for row in rows for name in re.findall(r"`([a-z0-9_]+)(?:\{[a-z,]*\})?`", row)}
    shown = {
        name.removeprefix("openledger_") + ("_total" if family.type == "counter" else "")
        for name, family in families(filled().render()).items()
        if name.startswith("openledger_")
    }
    assert documented == shown


def test_calls_are_counted_by_method_and_code_and_unknown_names_make_no_series() -> None:
    with running_server() as server:
        for method in ("status", "status", "block", *(f"made up {number}" for number in range(50))):
            params = {"height": 10**6} if method == "block" else {}
            body = b'{"jsonrpc":"2.0","id":1,"method":"%b","params":%b}'
            post(server, body % (method.encode(), str(params).replace("'", '"').encode()))
        post(server, b"garbage")
        with connecting(server) as connection:
            connection.request("GET", "/metrics")
            response = connection.getresponse()
            text = response.read()
            assert (response.headers["content-type"] or "").startswith("text/plain; version=")
        assert value(text, 'openledger_rpc_requests_total{code="OK",method="status"}') == 2
        assert value(text, 'openledger_rpc_requests_total{code="NOT_FOUND",method="block"}') == 1
        assert value(text, 'openledger_rpc_requests_total{code="METHOD_NOT_FOUND",method="unknown"}') == 50
        assert value(text, 'openledger_rpc_requests_total{code="PARSE_ERROR",method="unknown"}') == 1
        labels = {sample.labels["method"] for sample in families(text)["openledger_rpc_requests"].samples}
        assert labels <= {*METHODS, "unknown"}


def test_refusals_before_a_call_are_counted_by_reason() -> None:
    with running_server(config=RpcSection(port=0, body_bytes_max=1024)) as server:
        assert code_of(post(server, b" " * 2000)[1]) == Code.BODY_TOO_LARGE
        text = server.backend.metrics.render()
        assert value(text, 'openledger_rpc_refusals_total{reason="BODY_TOO_LARGE"}') == 1
