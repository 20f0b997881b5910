"""``openledger verify``: an adapter retrained from the ledger's data, on a tiny base."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from attribution.adapter import adapter_to_bytes
from attribution.checkpoint import save_base
from attribution.recipe import Recipe
from attribution.training import train
from consensus.codec import encode
from node.cli.main import main
from node.cli.output import Exit
from node.ledger.bodies import AdapterPublish, BaseRegister, DatanetCreate, RecordsErase
from node.ledger.erased import erase_records
from node.ledger.erasure import remaining_name
from node.ledger.records import encode_records
from node.storage.blobs import blob_digest
from tests.unit.attribution.index_cases import tiny_base
from tests.unit.node.ledger_backend import RunningServer, running_server

RECIPE = Recipe(rank=2, alpha=4, epochs=2, batch_size=2, warmup_steps=1, context_tokens_max=64)
TEXTS = {"ann": "first", "ben": "second"}


def publish(
    server: RunningServer, base_hash: bytes, adapter_hash: bytes, data: bytes, blobs: dict[bytes, bytes]
) -> str:
    """Put datanet, contributions, base and adapter on the ledger and return the adapter's id."""
    world = server.backend.world
    datanet = world.accept("ann", DatanetCreate("docs", ("MIT",), ""))
    contributions = []
    for name, text in TEXTS.items():
        contribution = world.contribution(datanet, text)
        contributions.append(world.accept(name, contribution))
        blobs[contribution.blob_digest] = encode_records([list(text.encode()), [1, 2, 3]])
    world.accept("owner", BaseRegister(base_hash, "tiny"))
    world.hold(base_hash, b"")
    recipe = encode([list(entry) if isinstance(entry, tuple) else entry for entry in RECIPE.to_fields()])
    body = AdapterPublish(
        "adapter",
        base_hash,
        tuple(contributions),
        recipe,
        adapter_hash,
        blob_digest(data),
        len(data),
        bytes(32),
    )
    return world.accept("owner", body).hex()


def verify(
    server: RunningServer, adapter: str, base: Path, capsys: pytest.CaptureFixture[str]
) -> tuple[int, dict[str, object]]:
    capsys.readouterr()
    code = main(["verify", "adapter", adapter, "--rpc", server.url, "--base", str(base), "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_an_adapter_verifies_exactly_when_retraining_gives_its_hash(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tiny_base()
    file = tmp_path / "base.safetensors"
    save_base(base, file)
    records = [record for text in TEXTS.values() for record in (list(text.encode()), [1, 2, 3])]
    adapter = train(base, records, RECIPE)
    data = adapter_to_bytes(adapter)
    with running_server() as server:
        blobs = server.backend.blobs
        identity = server.do(publish, server, base.hash, adapter.hash, data, blobs)
        code, document = verify(server, identity, file, capsys)
        assert (code, document["equal"], document["retrained_hash"]) == (Exit.OK, True, adapter.hash.hex())

    with running_server() as server:
        blobs = server.backend.blobs
        wrong = bytes([adapter.hash[0] ^ 1]) + adapter.hash[1:]
        identity = server.do(publish, server, base.hash, wrong, data, blobs)
        code, document = verify(server, identity, file, capsys)
        assert (code, document["equal"]) == (Exit.FAILED, False)
        digest = next(iter(blobs))
        blobs[digest] = encode_records([[9]])
        code, document = verify(server, identity, file, capsys)
        assert code == Exit.FAILED
        assert "not what the ledger committed to" in str(document["error"])


def test_a_base_or_recipe_that_cannot_be_used_is_a_failure_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "base.safetensors"
    save_base(tiny_base(), file)
    with running_server() as server:
        identity = server.do(publish, server, bytes(32), bytes(32), b"data", server.backend.blobs)
        code, document = verify(server, identity, file, capsys)
        assert (code, document["kind"]) == (Exit.FAILED, "VerificationFailed")
        file.write_bytes(b"no model")
        code, document = verify(server, identity, file, capsys)
        assert (code, document["kind"]) == (Exit.FAILED, "VerificationFailed")


def test_an_adapter_is_trained_again_without_what_was_erased_before_it_and_never_after(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, file = tiny_base(), tmp_path / "base.safetensors"
    save_base(base, file)
    (text, *others) = TEXTS.values()
    records = [
        list(text.encode()),
        *(record for other in others for record in (list(other.encode()), [1, 2, 3])),
    ]
    adapter = train(base, records, RECIPE)
    with running_server() as server:
        world, blobs = server.backend.world, server.backend.blobs

        def play() -> str:
            datanet = world.accept("ann", DatanetCreate("docs", ("MIT",), ""))
            contributions = []
            for name, own in TEXTS.items():
                body = world.contribution(datanet, own)
                contributions.append(world.accept(name, body))
                blobs[body.blob_digest] = encode_records([list(own.encode()), [1, 2, 3]])
            name, body = next(iter(TEXTS)), world.contribution(datanet, text)
            world.accept(name, RecordsErase(contributions[0], (1,)))
            world.blocks(1)
            blob = blobs.pop(body.blob_digest)
            blobs[remaining_name(body.blob_digest)] = erase_records(blob, body.records_root, (1,))
            world.accept("owner", BaseRegister(base.hash, "tiny"))
            world.hold(base.hash, b"")
            data = adapter_to_bytes(adapter)
            recipe = encode(
                [list(entry) if isinstance(entry, tuple) else entry for entry in RECIPE.to_fields()]
            )
            made = AdapterPublish(
                "adapter",
                base.hash,
                tuple(contributions),
                recipe,
                adapter.hash,
                blob_digest(data),
                len(data),
                bytes(32),
            )
            return world.accept("owner", made).hex()

        identity = server.do(play)
        code, document = verify(server, identity, file, capsys)
        assert (code, document["equal"], document["records"]) == (Exit.OK, True, len(records))
        owner = next(iter(TEXTS))
        name = next(key[2:] for key in world.state if key.startswith(b"t/"))
        server.do(lambda: world.accept(owner, RecordsErase(name, (0,))))
        code, document = verify(server, identity, file, capsys)
        assert code == Exit.FAILED
        assert "erased" in str(document["error"])
