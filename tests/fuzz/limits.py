"""The table of size limits, as docs/limits.md holds it: read from the code, never written by hand."""

from __future__ import annotations

from node.config import NetworkSection, RpcSection
from node.network.config import Limits
from node.network.fast_path import ARRIVED_BYTES_MAX
from node.recompute.jobs import FRAME_BYTES_MAX
from node.storage.blobs import BLOB_BYTES_MAX
from tests.fuzz.target import ALLOCATED_BYTES_BASE, ALLOCATED_PER_BYTE
from tests.fuzz.targets import targets

_HEAD = """# Size limits

Rendered by `python -m tests.fuzz --limits`; a test holds this file against the code. Each limit is on the bytes as they come, and
is looked at before anything of them is decoded. Below it, a decoder takes at most {base} MiB and {per_byte} bytes of memory for each byte
of input: declared lengths, values, arrays and nesting are counted on the bytes before a value is built (`consensus/codec.py`: at most
65,536 values unless an object needs more, 32,768 arrays, 32 levels).

## What carries bytes

| what | from | bytes at most | stated in |
|---|---|---|---|
"""


def carriers() -> list[tuple[str, str, int, str]]:
    """(what, from whom, bytes, file) of every layer that carries bytes without reading them."""
    limits, network, rpc = Limits(), NetworkSection(), RpcSection()
    adapter, config = "node/network/config.py", "node/config.py"
    return [
        ("direct frame", "peer", limits.frame_bytes_max, adapter),
        ("request", "peer", limits.request_bytes_max, adapter),
        ("answer to a request", "peer", limits.response_bytes_max, adapter),
        ("gossip message", "peer", limits.gossip_bytes_max, adapter),
        ("unread bytes of a connection", "peer", limits.receive_buffer_bytes_max, adapter),
        (
            "what arrived on a connection and is not in a stream yet",
            "peer",
            ARRIVED_BYTES_MAX,
            "node/network/fast_path.py",
        ),
        (
            "direct frame, by default of `network.message_bytes_max`",
            "peer",
            network.message_bytes_max,
            config,
        ),
        ("RPC body, by default of `rpc.body_bytes_max`", "client", rpc.body_bytes_max, config),
        ("blob", "client, peer", BLOB_BYTES_MAX, "node/storage/blobs.py"),
        ("frame of the worker's pipe", "worker", FRAME_BYTES_MAX, "node/recompute/jobs.py"),
    ]


def decoders() -> list[tuple[str, str, int, str]]:
    """(what, from whom, bytes, file) of every decoder with a limit of its own."""
    rows = {
        ("state-*" if target.name.startswith("state-") else target.name): (
            target.sender,
            target.bytes_max,
            target.where,
        )
        for target in targets().values()
        if target.bytes_max is not None
    }
    return [(name, *row) for name, row in rows.items()]


def render() -> str:
    """The text of docs/limits.md."""
    head = _HEAD.format(base=ALLOCATED_BYTES_BASE >> 20, per_byte=ALLOCATED_PER_BYTE)
    second = "\n## What decodes bytes\n\n| target of `tests.fuzz` | from | bytes at most | stated in |\n|---|---|---|---|\n"
    return head + _rows(carriers()) + second + _rows(decoders())


def _rows(rows: list[tuple[str, str, int, str]]) -> str:
    return "".join(f"| {what} | {sender} | {size:,} | `{where}` |\n" for what, sender, size, where in rows)
