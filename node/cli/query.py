"""``openledger status`` and ``openledger query``: one subcommand for each RPC query, built from the method table."""

from __future__ import annotations

import argparse
import re
from functools import partial
from pathlib import Path

from node.cli.connection import add_node_arguments, connect, reading_answers
from node.cli.output import Exit, UsageError, add_example, add_json_argument, print_result
from node.errors import HomeExists, NodeError
from node.home import write_new
from node.rpc.methods import METHODS
from node.rpc.params import Param
from node.rpc.protocol import Method

# Not queries: they store or submit; `tx` and `blob` have better doors.
_NOT_QUERIES = frozenset({"tx_submit", "blob_put", "blob_get"})
_EXAMPLE_ID = "4bf5...e1"
_INTEGER = re.compile("[0-9]{1,19}")


class AnswerFalse(NodeError):
    """What a node answered is provably not what was asked for."""


def configure_status(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``status``."""
    # A status is asked for when something seems wrong: a node that accepts and never answers must not cost minutes.
    add_node_arguments(parser, timeout_s=10.0)
    add_json_argument(parser)
    add_example(
        parser,
        "openledger status --home ~/.openledger",
        "openledger status --rpc http://127.0.0.1:7550 --json",
    )
    parser.set_defaults(run=partial(_run, METHODS["status"]))


def configure_query(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``query``: a subcommand for each query, a positional argument for each of its parameters."""
    add_example(parser, "openledger query block 12", "openledger query account ADDRESS --json")
    kinds = parser.add_subparsers(dest="query", metavar="WHAT", required=True)
    for method in METHODS.values():
        if method.name in _NOT_QUERIES:
            continue
        child = _child(kinds, method.name.replace("_", "-"), method.summary)
        for param in method.params:
            child.add_argument(
                param.name, type=partial(_parse, param), help=param.expected, metavar=param.name.upper()
            )
        shown = " ".join("12" if "integer" in param.expected else _EXAMPLE_ID for param in method.params)
        add_example(child, f"openledger query {method.name.replace('_', '-')} {shown}".rstrip())
        child.set_defaults(run=partial(_run, method))
    blob = _child(kinds, "blob", "fetch a blob's bytes into a new file")
    digest = METHODS["blob_get"].params[0]
    blob.add_argument("digest", type=partial(_parse, digest), help=digest.expected, metavar="DIGEST")
    blob.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="where to write it; never overwritten"
    )
    add_example(blob, f"openledger query blob {_EXAMPLE_ID} --out records.blob")
    blob.set_defaults(run=_run_blob)


def _child(
    kinds: argparse._SubParsersAction[argparse.ArgumentParser], name: str, text: str
) -> argparse.ArgumentParser:
    child = kinds.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_node_arguments(child)
    add_json_argument(child)
    return child


def _parse(param: Param, text: str) -> str | int:
    """Check an argument by the RPC's own rule, so that a typing error costs no round trip."""
    value: str | int = int(text) if "integer" in param.expected and _INTEGER.fullmatch(text) else text
    if param.parse(value) is None:
        raise argparse.ArgumentTypeError(f"expected {param.expected}, got {text[:80]!r}")
    return value


def _run(method: Method, parsed: argparse.Namespace) -> int:
    # Whoever asks is there to ask again; a retry would only hide for how long the node did not answer.
    client = connect(parsed, retries=0)
    params = {param.name: getattr(parsed, param.name) for param in method.params}
    with reading_answers(client):
        result = dict(client.call(method.name, **params))
    print_result(result, parsed.as_json, method.name.replace("_", " "))
    return Exit.OK


def _run_blob(parsed: argparse.Namespace) -> int:
    from node.storage.blobs import blob_digest

    client = connect(parsed)
    with reading_answers(client):
        data = client.get_blob(bytes.fromhex(parsed.digest))
    if blob_digest(data).hex() != parsed.digest:
        raise AnswerFalse("the node answered with other bytes than were asked for; ask another with --rpc")
    try:
        write_new(parsed.out, data, mode=0o644)
    except HomeExists as error:
        raise UsageError(str(error)) from error
    print_result({"digest": parsed.digest, "bytes": len(data), "file": str(parsed.out)}, parsed.as_json)
    return Exit.OK
