"""``openledger tx``: one subcommand for each kind of transaction, its flags built from the kind's fields.

Where a kind names a blob by digest and size, ``--file`` may give the bytes instead, and for a contribution ``--records`` a
JSONL file of texts: the blob is stored at the node first, the fields are computed. For a registration or a new anchor
``--from-home`` reads a validator's keys and signs the proof of possession.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
from functools import partial
from pathlib import Path
from typing import Any

from node.cli.connection import (
    add_node_arguments,
    add_signer_arguments,
    connect,
    load_signer,
    reading_answers,
)
from node.cli.output import Exit, Interrupted, UsageError, add_example, add_json_argument, print_result
from node.cli.registration import anchor_field, registration_fields
from node.client import VALID_HEIGHTS, Client, Sent
from node.keys import public_key
from node.ledger.bodies import (
    BODIES,
    AdapterPublish,
    Body,
    ContributionSubmit,
    RecordsErase,
    ValidatorAnchor,
    ValidatorRegister,
)
from node.ledger.errors import MalformedError
from node.ledger.fields import U63_MAX, validate
from node.ledger.openings import decode_voucher
from node.ledger.params import OPEN
from node.ledger.records import RECORDS_BYTES_MAX, RECORDS_MAX, encode_records, records_root, token_count
from node.storage.blobs import BLOB_BYTES_MAX, blob_digest

_BLOB_FIELDS = ("blob_digest", "blob_bytes")
_RECORD_FIELDS = ("records_root", "record_count", "token_count", *_BLOB_FIELDS)
_FROM_HOME: dict[type[Any], tuple[str, ...]] = {
    ValidatorRegister: ("consensus_key", "possession", "peer_id", "beacon_anchor"),
    ValidatorAnchor: ("beacon_anchor",),
}
"""Fields that a validator's home stands for."""

_LINE_BYTES_MAX = 64 * 1024


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``tx``."""
    add_example(parser, "openledger tx transfer --to ADDRESS --amount 1.5open --key alice --wait")
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    for body in BODIES.values():
        name = body.NAME.replace("_", "-")
        text = (body.__doc__ or name).split("\n")[0]
        child = kinds.add_parser(
            name,
            help=text,
            description=text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        for entry in dataclasses.fields(body):
            _add_field(child, body, entry)
        if _names(body) >= set(_BLOB_FIELDS):
            child.add_argument(
                "--file", type=Path, metavar="FILE", help="the blob; replaces --blob-digest and --blob-bytes"
            )
        if body is ContributionSubmit:
            text = 'JSONL, {"text": ...} a line, tokenised byte by byte; replaces all fields but --datanet and --licence'
            child.add_argument("--records", type=Path, metavar="FILE", help=text)
        if body in _FROM_HOME:
            flags = ", ".join(f"--{field.replace('_', '-')}" for field in _FROM_HOME[body])
            text = f"home of the validator, whose account has to sign; replaces {flags}"
            child.add_argument("--from-home", type=Path, metavar="DIR", help=text)
        _add_common(child)
        add_example(child, _example(name, body))
        child.set_defaults(run=partial(_run, body))


def _add_common(parser: argparse.ArgumentParser) -> None:
    add_signer_arguments(parser)
    add_node_arguments(parser)
    parser.add_argument(
        "--fee",
        type=_amount,
        metavar="AMOUNT",
        help=f"{_AMOUNT_HELP} (default: what the node's parameters ask for)",
    )
    parser.add_argument("--nonce", type=_integer, metavar="N", help="(default: the account's next)")
    text = f"heights until it expires, at least 1 (default: {VALID_HEIGHTS})"
    parser.add_argument("--valid-heights", type=_heights, default=VALID_HEIGHTS, metavar="N", help=text)
    parser.add_argument("--dry-run", action="store_true", help="build and sign, print, submit nothing")
    parser.add_argument(
        "--wait", action="store_true", help="wait until it executed; at most --timeout seconds"
    )
    add_json_argument(parser)


def _names(body: type[Any]) -> set[str]:
    return {entry.name for entry in dataclasses.fields(body)}


def _computed(body: type[Any]) -> set[str]:
    """Fields that a file may stand for, and that are therefore not required as flags."""
    if body is ContributionSubmit:
        return set(_RECORD_FIELDS)
    if body in _FROM_HOME:
        return set(_FROM_HOME[body])
    return set(_BLOB_FIELDS) if _names(body) >= set(_BLOB_FIELDS) else set()


def _add_field(parser: argparse.ArgumentParser, body: type[Any], entry: dataclasses.Field[Any]) -> None:
    kind = _kind_of_value(entry)
    metavar, many = _KINDS_OF_VALUE[kind][1:]
    parser.add_argument(
        f"--{entry.name.replace('_', '-')}",
        dest=f"field_{entry.name}",
        type=partial(_parse_value, kind),
        required=entry.name not in _computed(body) and str(entry.type) != "Shares",
        nargs="*" if many else None,
        metavar=metavar,
        help=_AMOUNT_HELP if kind == _AMOUNT else None,
    )


def _kind_of_value(entry: dataclasses.Field[Any]) -> str:
    return _AMOUNT if entry.name in _AMOUNT_FIELDS else str(entry.type)


def _hex(text: str) -> bytes:
    data = bytes.fromhex(text)
    if data.hex() != text:
        raise ValueError(text)
    return data


def _share(text: str) -> tuple[bytes, int]:
    address, _, share = text.partition("=")
    return _hex(address), _integer(share)


def _integer(text: str) -> int:
    """A whole number from 0 to 2^63 - 1 in ASCII digits: `int` alone takes signs, spaces, underscores and other scripts."""
    if not re.fullmatch("[0-9]{1,19}", text) or int(text) > U63_MAX:
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 to {U63_MAX}, got {text[:80]!r}")
    return int(text)


def _heights(text: str) -> int:
    value = _integer(text)
    if not 1 <= value <= _VALID_HEIGHTS_MAX:
        raise argparse.ArgumentTypeError(f"expected 1 to {_VALID_HEIGHTS_MAX} heights, got {text!r}")
    return value


def _amount(text: str) -> int:
    """Units of money, or OPEN where the text says so: ``1500000000`` and ``1.5open`` are the same."""
    found = re.fullmatch(r"([0-9]{1,19})(?:(?:\.([0-9]+))?open)?", text)
    if found is None:
        expected = f"whole units, or OPEN such as 1.5open (1 OPEN is {OPEN} units)"
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text[:80]!r}")
    whole, decimals = found[1], found[2] or ""
    if len(decimals) > _DECIMALS:
        raise argparse.ArgumentTypeError(f"expected at most {_DECIMALS} decimals, got {text[:80]!r}")
    units = int(whole) * OPEN + int(decimals.ljust(_DECIMALS, "0")) if text.endswith("open") else int(whole)
    if units > U63_MAX:
        raise argparse.ArgumentTypeError(f"expected at most {U63_MAX} units, got {text[:80]!r}")
    return units


_AMOUNT = "amount"
_AMOUNT_HELP = "units, or OPEN such as 1.5open"
_AMOUNT_FIELDS = frozenset({"amount", "stake"})
_DECIMALS = 9
_VALID_HEIGHTS_MAX = 1_000_000

# A field's annotation, or `_AMOUNT` -> parser of one value, metavar, whether it repeats.
_KINDS_OF_VALUE: dict[str, tuple[Any, str, bool]] = {
    "bytes": (_hex, "HEX", False),
    "int": (_integer, "N", False),
    _AMOUNT: (_amount, "AMOUNT", False),
    "str": (str, "TEXT", False),
    "tuple[str, ...]": (str, "TEXT", True),
    "tuple[bytes, ...]": (_hex, "HEX", True),
    "tuple[int, ...]": (_integer, "N", True),
    "Voucher": (lambda text: decode_voucher(_hex(text)), "HEX", False),
    "Shares": (_share, "ADDRESS=SHARE", True),
}


def _parse_value(kind: str, text: str) -> object:
    parse, metavar, _ = _KINDS_OF_VALUE[kind]
    try:
        return parse(text)
    except (ValueError, MalformedError) as error:
        what = "lowercase hex digits" if metavar == "HEX" else metavar
        raise argparse.ArgumentTypeError(f"expected {what}, got {text[:80]!r}") from error


def _example(name: str, body: type[Any]) -> str:
    required = [entry for entry in dataclasses.fields(body) if entry.name not in _computed(body)]
    flags = [
        f"--{entry.name.replace('_', '-')} {_KINDS_OF_VALUE[_kind_of_value(entry)][1]}" for entry in required
    ]
    if body is ContributionSubmit:
        flags.append("--records FILE")
    elif body in _FROM_HOME:
        flags.append("--from-home DIR")
    elif _computed(body):
        flags.append("--file FILE")
    return " ".join(["openledger tx", name, *flags, "--key alice --wait"])


def _run(body_class: type[Any], parsed: argparse.Namespace) -> int:
    # What costs nobody anything comes first: a person asked for a passphrase has no typing error left.
    body, blob = _build_body(body_class, parsed)
    client = connect(parsed)
    seed = load_signer(parsed)
    with reading_answers(client):
        if isinstance(body, AdapterPublish):
            _check_order(client, body)
        if blob is not None and not parsed.dry_run:
            client.put_blob(blob)
        raw, sent = client.build(
            seed, body, nonce=parsed.nonce, fee=parsed.fee, valid_heights=parsed.valid_heights
        )
    document: dict[str, object] = {
        "tx_hash": sent.tx_hash.hex(),
        "kind": body.NAME,
        "sender": public_key(seed).hex(),
        "nonce": sent.nonce,
        "fee": str(sent.fee),
        "valid_until": sent.valid_until,
        "submitted": not parsed.dry_run,
    }
    if parsed.dry_run:
        document["tx"] = raw.hex()
    else:
        with reading_answers(client):
            _submit(client, raw, sent, parsed, document)
    print_result(document, parsed.as_json, "transaction")
    return Exit.OK


def _check_order(client: Client, body: AdapterPublish) -> None:
    """Say which order of contributions the ledger takes, before a fee is paid to hear that it was another."""
    if len(body.contributions) < 2:
        return
    numbers = {name: int(client.call("contribution", id=name.hex())["number"]) for name in body.contributions}
    if list(body.contributions) != sorted(body.contributions, key=numbers.__getitem__):
        ordered = " ".join(name.hex() for name in sorted(body.contributions, key=numbers.__getitem__))
        raise UsageError(
            "an adapter is trained on its contributions in the order in which they were committed, so that of near "
            f"copies the earliest counts; train again in this order: {ordered}"
        )


def _submit(
    client: Client, raw: bytes, sent: Sent, parsed: argparse.Namespace, document: dict[str, object]
) -> None:
    try:
        client.submit(raw)
        if not parsed.wait:
            return
        executed = client.wait_transaction(sent.tx_hash, parsed.timeout, sent.valid_until)
    except KeyboardInterrupt:
        # The node may have it before its answer is here, and stopping to wait takes nothing back.
        look = f"`openledger query tx {sent.tx_hash.hex()}` says what became of it"
        raise Interrupted(f"interrupted; the transaction may have been submitted: {look}") from None
    document |= {"status": executed["status"], "height": executed["height"], "fee": executed["fee"]}


def _build_body(body_class: type[Any], parsed: argparse.Namespace) -> tuple[Body, bytes | None]:
    """Return the transaction's body and the blob to store before it, if the arguments bring one."""
    values = {entry.name: getattr(parsed, f"field_{entry.name}") for entry in dataclasses.fields(body_class)}
    blob = None
    if getattr(parsed, "records", None) is not None:
        blob = _fill(values, "--records", _from_records(parsed.records))
    elif getattr(parsed, "from_home", None) is not None:
        fields = registration_fields if body_class is ValidatorRegister else anchor_field
        _fill(values, "--from-home", (fields(parsed.from_home, parsed.passphrase_file), b""))
    elif getattr(parsed, "file", None) is not None:
        data = _read(parsed.file, BLOB_BYTES_MAX)
        blob = _fill(values, "--file", ({"blob_digest": blob_digest(data), "blob_bytes": len(data)}, data))
    missing = [name for name in _computed(body_class) if values[name] is None]
    if missing:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(missing))
        replaced = "--from-home" if body_class in _FROM_HOME else "--file"
        other = "--records" if body_class is ContributionSubmit else replaced
        raise UsageError(f"give {flags}, or {other}")
    if "licences" in values:
        values["licences"] = sorted(set(values["licences"]))
    if body_class is RecordsErase:
        values["records"] = sorted(set(values["records"]))
    listed = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    if "shares" in listed and listed["shares"] is None:
        listed["shares"] = ()
    return validate(body_class(**listed)), blob


def _fill(values: dict[str, Any], flag: str, made: tuple[dict[str, object], bytes]) -> bytes:
    fields, data = made
    for name, value in fields.items():
        if values[name] is not None:
            raise UsageError(f"--{name.replace('_', '-')} and {flag} exclude each other")
        values[name] = value
    return data


def _from_records(path: Path) -> tuple[dict[str, object], bytes]:
    records = [list(text.encode()) for text in _read_texts(path)]
    data = encode_records(records)
    fields: dict[str, object] = {
        "records_root": records_root(records),
        "record_count": len(records),
        "token_count": token_count(records),
        "blob_digest": blob_digest(data),
        "blob_bytes": len(data),
    }
    return fields, data


def _read_texts(path: Path) -> list[str]:
    texts = []
    for number, line in enumerate(_read(path, 4 * RECORDS_BYTES_MAX).splitlines(), 1):
        try:
            entry = json.loads(line[:_LINE_BYTES_MAX])
        except (ValueError, RecursionError):
            entry = None
        if not isinstance(entry, dict) or not isinstance(entry.get("text"), str) or not entry["text"]:
            raise UsageError(
                f'{path}, line {number}: expected {{"text": "..."}} of at most {_LINE_BYTES_MAX} bytes'
            )
        texts.append(entry["text"])
    if not 1 <= len(texts) <= RECORDS_MAX:
        raise UsageError(f"{path}: expected 1 to {RECORDS_MAX} lines, got {len(texts)}")
    return texts


def _read(path: Path, bytes_max: int) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(bytes_max + 1)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    if len(data) > bytes_max:
        raise UsageError(f"{path}: over {bytes_max} bytes")
    return data
