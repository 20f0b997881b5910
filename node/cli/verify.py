"""``openledger verify``: recompute what the ledger claims, on this machine. Imports torch only once it runs."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from node.cli.connection import (
    add_home_argument,
    add_node_arguments,
    connect,
    hex_argument,
    home_of,
    reading_answers,
)
from node.cli.output import (
    Exit,
    UsageError,
    add_example,
    add_json_argument,
    print_result,
)
from node.client import Client
from node.errors import NodeError
from node.ledger.errors import MalformedError

if TYPE_CHECKING:
    from attribution.adapter import Adapter
    from attribution.model import Base
    from attribution.training import Progress
    from node.rpc import shapes

RECIPE_BYTES_MAX = 4096
_NOT_COMMITTED = "the node's blob is not what the ledger committed to"
_THREADS_MAX = 256


class VerificationFailed(NodeError):
    """What the ledger claims could not be recomputed from what the node gave; the message says why."""


def configure_verify(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``verify``."""
    add_example(parser, "openledger verify adapter 4bf5...e1")
    kinds = parser.add_subparsers(dest="what", metavar="WHAT", required=True)
    text = "retrain an adapter from the ledger's data and compare its hash"
    adapter = kinds.add_parser(
        "adapter",
        help=text,
        description=f"{text[0].upper()}{text[1:]}; exits with 0 only if they are equal.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    adapter.add_argument("id", type=hex_argument(32), metavar="ID", help="the adapter's id, 64 hex digits")
    text = "the base model's file (default: the one that ships with OpenLedger, or that of --home)"
    adapter.add_argument("--base", type=Path, metavar="FILE", help=text)
    adapter.add_argument(
        "--threads",
        type=_threads,
        default=1,
        metavar="N",
        help="CPU threads, 1 to 256 (default: 1); changes speed, never bits",
    )
    add_node_arguments(adapter)
    add_json_argument(adapter)
    add_example(adapter, "openledger verify adapter 4bf5...e1 --rpc http://127.0.0.1:7550")
    adapter.set_defaults(run=run_adapter)
    _configure_proofs(kinds)


def _configure_proofs(kinds: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Arguments of the light client: `node.light`."""
    text = "check a proof file, offline: from the genesis through every hand-over to a final block and a receipt in it"
    proof = kinds.add_parser("proof", help=text, description=f"{text[0].upper()}{text[1:]}.")
    proof.add_argument("file", type=Path, metavar="FILE", help="the file that `make-proof` wrote")
    proof.add_argument("--genesis", type=Path, required=True, metavar="FILE", help="the chain's genesis.json")
    add_json_argument(proof)
    add_example(proof, "openledger verify proof receipt.proof --genesis genesis.json")
    proof.set_defaults(run=run_proof)
    text = "write a proof file of the newest final block, and of a transaction's receipt, from a stopped node's home"
    make = kinds.add_parser("make-proof", help=text, description=f"{text[0].upper()}{text[1:]}.")
    make.add_argument("tx", nargs="?", type=hex_argument(32), metavar="TX", help="a transaction's hash")
    make.add_argument(
        "--file", type=Path, required=True, metavar="FILE", help="where to write; never overwritten"
    )
    add_home_argument(make, "home of the node, which must not run")
    add_json_argument(make)
    add_example(make, "openledger verify make-proof 4bf5...e1 --home ~/.openledger --file receipt.proof")
    make.set_defaults(run=run_make_proof)


def run_proof(parsed: argparse.Namespace) -> int:
    """Check a proof file against a genesis."""
    from node.ledger.block import ReceiptStatus
    from node.light import FILE_BYTES_MAX, light_proof_from_bytes, verify_light_proof
    from node.signer.epoch import genesis_root
    from node.startup import read_genesis

    root = genesis_root(read_genesis(parsed.genesis))
    try:
        with parsed.file.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise UsageError(f"{parsed.file}: {error.strerror}") from error
    shown = verify_light_proof(root, light_proof_from_bytes(data))
    document: dict[str, object] = {
        "chain_id": shown.header.chain_id.hex(),
        "epoch": shown.validators.epoch,
        "validators": len(shown.validators),
        "validators_hash": shown.validators.hash.hex(),
        "height": shown.header.height,
        "block_hash": shown.block_id.hex(),
        "timestamp_ms": shown.header.timestamp_ms,
    }
    if shown.receipt is not None:
        document |= {
            "receipt_height": shown.receipt_height,
            "subject": shown.receipt.subject.hex(),
            "status": ReceiptStatus(shown.receipt.status).name.lower(),
            "code": shown.receipt.code,
            "fee": shown.receipt.fee,
        }
    print_result(document, parsed.as_json, "proven")
    return Exit.OK


def run_make_proof(parsed: argparse.Namespace) -> int:
    """Write a proof file."""
    from node.home import write_new
    from node.light import make_light_proof
    from node.offline import open_offline

    with open_offline(home_of(parsed)) as offline:
        proof = make_light_proof(offline.store, offline.epochs, parsed.tx)
    data = proof.to_bytes()
    write_new(parsed.file.absolute(), data, mode=0o644)
    document = {
        "file": str(parsed.file),
        "bytes": len(data),
        "epoch": proof.header.epoch,
        "height": proof.header.height,
    }
    print_result(document, parsed.as_json, "written")
    return Exit.OK


def _threads(text: str) -> int:
    if not re.fullmatch("[0-9]{1,3}", text) or not 1 <= int(text) <= _THREADS_MAX:
        raise argparse.ArgumentTypeError(f"expected 1 to {_THREADS_MAX}, got {text[:80]!r}")
    return int(text)


def run_adapter(parsed: argparse.Namespace) -> int:
    """Retrain and compare."""
    client = connect(parsed)
    with reading_answers(client):
        claimed = _checked(client.call("adapter", id=parsed.id.hex()))
    path = _base_path(parsed, bytes.fromhex(claimed["base_hash"]))
    trained, count = _retrain(client, claimed, path, parsed)
    equal = trained.hash.hex() == claimed["adapter_hash"]
    document: dict[str, object] = {
        "adapter": claimed["id"],
        "records": count,
        "claimed_hash": claimed["adapter_hash"],
        "retrained_hash": trained.hash.hex(),
        "equal": equal,
    }
    print_result(document, parsed.as_json, "verified" if equal else "NOT what the ledger claims")
    return Exit.OK if equal else Exit.FAILED


def _checked(answer: Any) -> shapes.Adapter:
    """Return the node's answer once every member that is used has its form; raises what reading another form raises."""
    for name, size_bytes in (("base_hash", 32), ("adapter_hash", 32), ("id", 32), ("recipe", None)):
        if size_bytes not in (None, len(bytes.fromhex(answer[name]))):
            raise ValueError(name)
    for identity in answer["contributions"]:
        bytes.fromhex(identity)
    return cast("shapes.Adapter", answer)


def _retrain(
    client: Client, claimed: shapes.Adapter, path: Path, parsed: argparse.Namespace
) -> tuple[Adapter, int]:
    """Return the adapter trained from the ledger's data, and the number of its records."""
    from attribution.errors import ExactError
    from consensus.errors import CodecError

    try:
        records = _fetch_records(client, claimed)
        trained = _train(path, claimed, records, parsed.threads, show_progress=not parsed.as_json)
    except (ExactError, CodecError, MalformedError) as error:
        raise VerificationFailed(f"{type(error).__name__}: {error}") from error
    return trained, len(records)


def _fetch_records(client: Client, claimed: shapes.Adapter) -> list[tuple[int, ...]]:
    """Fetch every contribution's blob, in training order, and hold it against the ledger's digest and Merkle root."""
    from node.ledger.erased import read_remaining
    from node.storage.blobs import blob_digest

    if claimed["trained_on_erased"]:
        raise VerificationFailed(
            f"{claimed['trained_on_erased']} of its training records were erased since: nobody can train it again"
        )
    records: list[tuple[int, ...]] = []
    for number, identity in enumerate(claimed["contributions"], 1):
        with reading_answers(client):
            contribution = cast("shapes.Contribution", client.call("contribution", id=identity))
            left, whole = contribution["blob_remaining"], contribution["blob_digest"]
            root, omitted = bytes.fromhex(contribution["records_root"]), frozenset[int]()
            if contribution["erased"]:
                omitted = _omitted(client.call("erasures", contribution=identity), claimed["height"])
            blob = client.get_blob(bytes.fromhex(left or whole))
        try:
            found = read_remaining(blob, root)
        except MalformedError as error:
            raise VerificationFailed(f"contribution {identity}: {_NOT_COMMITTED}") from error
        if left is None and blob_digest(blob).hex() != whole:
            raise VerificationFailed(f"contribution {identity}: {_NOT_COMMITTED}")
        for number, record in enumerate(found):
            if number in omitted:
                continue
            if isinstance(record, bytes):
                raise VerificationFailed(f"contribution {identity}: the node withholds record {number}")
            records.append(record)
        print(f"fetched contribution {number} of {len(claimed['contributions'])}", file=sys.stderr)
    return records


def _omitted(answer: shapes.Erasures, height: int) -> frozenset[int]:
    """Records that were erased before an adapter of this height was published, and so are not in its training."""
    return frozenset(
        number for entry in answer["erasures"] if entry["height"] < height for number in entry["records"]
    )


def _base_path(parsed: argparse.Namespace, base_hash: bytes) -> Path:
    from attribution.models import BASE_HASH, BASE_PATH

    if parsed.base is not None:
        return cast("Path", parsed.base)
    if base_hash == BASE_HASH:
        return BASE_PATH
    held = home_of(parsed).artefacts_path / "bases" / f"{base_hash.hex()}.safetensors"
    if not held.is_file():
        raise UsageError(f"base {base_hash.hex()} does not ship with OpenLedger; give its file with --base")
    return held


def _train(
    path: Path, claimed: shapes.Adapter, records: list[tuple[int, ...]], threads: int, show_progress: bool
) -> Adapter:
    from attribution.checkpoint import load_base
    from attribution.machine import prepare
    from attribution.recipe import Recipe
    from attribution.training import train
    from consensus.codec import decode

    # A machine whose arithmetic is off would accuse an honest publisher.
    prepare("cpu", threads=threads)
    base: Base = load_base(path)
    if base.hash.hex() != claimed["base_hash"]:
        raise VerificationFailed(
            f"{path} is base {base.hash.hex()}, the adapter names {claimed['base_hash']}"
        )
    recipe = Recipe.from_fields(decode(bytes.fromhex(claimed["recipe"]), RECIPE_BYTES_MAX))
    if not show_progress:
        return train(base, records, recipe)
    from rich.console import Console
    from rich.progress import Progress as Bar

    with Bar(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("training", total=None)

        def advance(progress: Progress) -> None:
            bar.update(task, completed=progress.step, total=progress.steps)

        return train(base, records, recipe, advance)
