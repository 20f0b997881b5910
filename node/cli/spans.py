"""``openledger spans``: which stretches of an answer, or of any text, match records of a datanet word for word."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, cast

from node.cli.connection import add_node_arguments, connect, hex_argument, reading_answers
from node.cli.output import Exit, UsageError, add_example, add_json_argument, print_result
from node.rpc.methods import SPAN_TOKEN_BYTES, SPAN_TOKENS_MAX, SPANS_PAGE_MAX

if TYPE_CHECKING:
    from node.rpc import shapes

LENGTH_MIN = 16
SHOWN = 20
_EXCERPT = 80


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``spans``."""
    text = "an inference: its answer is searched, while what its provider revealed is at the node"
    parser.add_argument("id", nargs="?", type=hex_argument(32), metavar="ID", help=text)
    parser.add_argument("--text", type=Path, metavar="FILE", help="search this text instead, byte by byte")
    parser.add_argument(
        "--datanet", type=hex_argument(32), metavar="ID", help="the datanet that --text is searched in"
    )
    text = f"tokens of the shortest span shown, 1 to {SPAN_TOKENS_MAX} (default: {LENGTH_MIN})"
    parser.add_argument(
        "--length-min", type=_count(SPAN_TOKENS_MAX), default=LENGTH_MIN, metavar="N", help=text
    )
    text = f"spans shown, 1 to {SPANS_PAGE_MAX} (default: {SHOWN})"
    parser.add_argument("--count", type=_count(SPANS_PAGE_MAX), default=SHOWN, metavar="N", help=text)
    parser.add_argument("--first", type=_count(1 << 20, 0), default=0, metavar="N", help="spans passed over")
    add_node_arguments(parser)
    add_json_argument(parser)
    add_example(
        parser, "openledger spans 4bf5...e1", "openledger spans --text answer.txt --datanet 9c01...aa"
    )
    parser.set_defaults(run=run)


def _count(high: int, low: int = 1) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isascii() or not text.isdigit() or len(text) > 9 or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"expected {low} to {high}, got {text[:80]!r}")
        return int(text)

    return parse


def run(parsed: argparse.Namespace) -> int:
    """Ask the node and show the spans, long and rare first."""
    if (parsed.id is None) == (parsed.text is None):
        raise UsageError("give an inference's ID, or --text FILE with --datanet ID")
    page = {"length_min": parsed.length_min, "first": parsed.first, "count": parsed.count}
    data = None if parsed.text is None else _read(parsed.text)
    if data is not None and parsed.datanet is None:
        raise UsageError("--text needs the --datanet in which it is searched")
    client = connect(parsed, retries=0)
    with reading_answers(client):
        if data is None:
            found = client.call("inference_spans", inference=parsed.id.hex(), **page)
        else:
            tokens = b"".join(byte.to_bytes(SPAN_TOKEN_BYTES, "big") for byte in data)
            found = client.call("spans", datanet=parsed.datanet.hex(), tokens=tokens.hex(), **page)
        rows = [_row(span, data) for span in cast("shapes.Spans", found)["spans"]]
    document = dict(found) if parsed.as_json else {**found, "spans": rows}
    print_result(document, parsed.as_json, "matched word for word")
    return Exit.OK


def _row(span: shapes.Span, data: bytes | None) -> dict[str, object]:
    """A span as a line of the table; its text where the text is ours."""
    start, end = span["start"], span["start"] + span["length"]
    place = span["places"][0] if span["places"] else None
    row: dict[str, object] = {"start": start, "length": span["length"], "bits": span["surprise"] // 1024}
    if data is not None:
        row["matched"] = data[start:end][:_EXCERPT].decode("utf-8", "replace")
    row["occurrences"] = span["occurrences"]
    row["records"] = span["records"]
    row["first_record"] = None if place is None else f"{place['contribution']} #{place['record']}"
    row["contributor"] = None if place is None else place["contributor"]
    return row


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(SPAN_TOKENS_MAX + 1)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    if not 1 <= len(data) <= SPAN_TOKENS_MAX:
        raise UsageError(f"{path}: expected 1 to {SPAN_TOKENS_MAX} bytes")
    return data
