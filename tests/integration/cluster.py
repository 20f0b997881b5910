"""A devnet of real processes for tests, with a small adapter that all validators have confirmed."""

import os
import secrets
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attribution.models import BASE_HASH, BASE_PATH
from consensus.codec import encode
from node.client import Client, ClientError
from node.devnet.layout import claim_home
from node.devnet.network import CANDIDATE_PREFIX, PARAMS, Account, Network, NodePlan, create_network
from node.devnet.processes import Child, last_lines, spawn
from node.keys import load_seed
from node.ledger.bodies import (
    AdapterPublish,
    BaseRegister,
    Body,
    ContributionSubmit,
    DatanetCreate,
    InferenceRecord,
    InferenceReveal,
    ProviderBond,
)
from node.ledger.openings import (
    Opening,
    Voucher,
    encode_opening,
    inference_id,
    output_commitment,
    prompt_commitment,
    sign_voucher,
)
from node.ledger.params import OPEN, Params
from node.ledger.records import encode_records, records_root, token_count

FEE = OPEN
NEW_TOKENS_MAX = 12
WAIT_S = 120.0
HEARTBEAT_MS = 500
"""Shorter than a node's own: what is waited for here is mostly the next block of an idle chain."""

TEXTS = {
    "alice": [
        "turtle.forward: Move the turtle forward.",
        "turtle.left: Turn the turtle left by angle units.",
    ],
    "bob": ["decimal.sqrt: Return the square root.", "fractions.limit: Closest fraction to self."],
}


@dataclass(slots=True)
class Call:
    """One paid inference: what was asked, what the provider says it answered, and the salts."""

    voucher: Voucher
    prompt_ids: tuple[int, ...]
    prompt_salt: bytes
    output_ids: tuple[int, ...]
    output_salt: bytes

    @property
    def id(self) -> bytes:
        return inference_id(self.voucher)


@dataclass(slots=True)
class Cluster:
    """The running network and one client per node; `client` is the full node's, where everything enters."""

    network: Network
    commands: dict[str, list[str]]
    children: dict[str, Child] = field(default_factory=dict)
    sequence: int = 0
    adapter: bytes = b""
    models: Any = None

    @property
    def client(self) -> Client:
        return Client(self.network.full_node.rpc_url)

    def node(self, name: str) -> NodePlan:
        return next(node for node in self.network.nodes if node.name == name)

    def client_of(self, name: str) -> Client:
        return Client(self.node(name).rpc_url)

    def account_seed_of(self, name: str) -> bytes:
        return load_seed(self.node(name).home.account_key_path)

    # --- processes ---

    def start(self, name: str) -> None:
        node = self.node(name)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        command = [sys.executable, "-m", *self.commands[name], "start", "--home", str(node.home.root)]
        command += ["--set", f"consensus.heartbeat_ms={HEARTBEAT_MS}"]
        self.children[name] = spawn(name, command, node.home.logs_path / "node.log", environment)

    def kill(self, name: str) -> None:
        self.children[name].popen.send_signal(signal.SIGKILL)
        self.children[name].popen.wait()

    def log_of(self, name: str) -> str:
        return last_lines(self.children[name].log)

    # --- waiting ---

    def wait(self, what: str, done: Callable[[], bool], timeout_s: float = WAIT_S) -> None:
        def ready() -> bool:
            try:
                return done()
            except ClientError:
                return False

        self.client.wait_until(what, ready, timeout_s)

    def send(self, account: Account, body: Body) -> dict[str, Any]:
        return dict(self.client.send_and_wait(account.seed, body, WAIT_S))

    # --- inferences ---

    def ask(self, prompt: str, alter: Callable[[list[int]], list[int]] = lambda ids: ids) -> Call:
        """Serve and record one prompt; `alter` is what a dishonest provider does to the answer."""
        from attribution.generation import generate

        base, adapter = self.models
        user, provider = self.network.account("user"), self.network.account("provider")
        prompt_ids = tuple(prompt.encode())
        salt = secrets.token_bytes(32)
        self.sequence += 1
        voucher = Voucher(
            chain_id=self.network.chain_id,
            user=user.address,
            provider=provider.address,
            sequence=self.sequence,
            adapter=self.adapter,
            prompt_commitment=prompt_commitment(salt, prompt_ids),
            new_tokens_max=NEW_TOKENS_MAX,
            fee=FEE,
            valid_until=self.client.status()["height"] + 1000,
        )
        output_ids = tuple(alter(generate(base, adapter, prompt_ids, NEW_TOKENS_MAX)))
        call = Call(voucher, prompt_ids, salt, output_ids, secrets.token_bytes(32))
        self.send(
            provider,
            InferenceRecord(
                voucher=voucher,
                voucher_signature=sign_voucher(user.seed, voucher),
                output_commitment=output_commitment(call.output_salt, output_ids),
                prompt_tokens=len(prompt_ids),
                output_tokens=len(output_ids),
            ),
        )
        return call

    def receipt(self, call: Call) -> dict[str, Any]:
        return dict(self.client.call("receipt", inference=call.id.hex()))

    def ask_until_audited(
        self, prompt: str, alter: Callable[[list[int]], list[int]] = lambda ids: ids
    ) -> Call:
        """Ask until the beacon draws one; each is drawn with probability 1/2."""
        for _ in range(30):
            call = self.ask(prompt, alter)
            self.wait("the draw", lambda call=call: self.receipt(call)["audited"] is not None)  # type: ignore[misc]
            if self.receipt(call)["audited"]:
                return call
        raise AssertionError("thirty draws in a row left an inference unaudited")

    def reveal(self, call: Call) -> None:
        opening = encode_opening(
            Opening(call.prompt_ids, call.prompt_salt, call.output_ids, call.output_salt)
        )
        digest = self.client.put_blob(opening)
        self.send(self.network.account("provider"), InferenceReveal(call.id, digest, len(opening)))

    def wait_closed(self, call: Call) -> dict[str, Any]:
        self.wait("the end of the audit", lambda: self.receipt(call)["closed_height"] > 0)
        return self.receipt(call)

    # --- preparation ---

    def publish_adapter(self, work: Path) -> None:
        """Contribute, train a little, publish, and wait until more than two thirds of stake confirmed."""
        from attribution.adapter import adapter_to_bytes
        from attribution.checkpoint import load_base
        from attribution.duplicates import leaders
        from attribution.index import build_index
        from attribution.recipe import Recipe
        from attribution.training import train

        trainer = self.network.account("trainer")
        base = load_base(BASE_PATH)
        registered = self.client.send(trainer.seed, BaseRegister(BASE_HASH, "base"))
        created = self.client.send(
            trainer.seed, DatanetCreate("tests", ("CC0-1.0",), ""), nonce=registered.nonce + 1
        )
        self.client.wait_transaction(created.tx_hash, WAIT_S)
        contributions = []
        for name, texts in TEXTS.items():
            records = [list(text.encode()) for text in texts]
            blob = encode_records(records)
            body = ContributionSubmit(
                datanet=created.tx_hash,
                records_root=records_root(records),
                record_count=len(records),
                token_count=token_count(records),
                blob_digest=self.client.put_blob(blob),
                blob_bytes=len(blob),
                licence="CC0-1.0",
            )
            contributions.append(self.client.send(self.network.account(name).seed, body).tx_hash)
            self.client.wait_transaction(contributions[-1], WAIT_S)  # trained on in this order
        everything = [list(text.encode()) for texts in TEXTS.values() for text in texts]
        recipe = Recipe(rank=4, alpha=8, epochs=2, batch_size=2, warmup_steps=1)
        adapter = train(base, everything, recipe)
        index = build_index(base, adapter, everything, clusters=leaders(everything))
        data = adapter_to_bytes(adapter)
        self.wait(
            "the base", lambda: self.client.call("base", base_hash=BASE_HASH.hex())["status"] == "active"
        )
        published = self.send(
            trainer,
            AdapterPublish(
                name="tests",
                base_hash=BASE_HASH,
                contributions=tuple(contributions),
                recipe=encode(recipe.to_fields()),
                adapter_hash=adapter.hash,
                blob_digest=self.client.put_blob(data),
                blob_bytes=len(data),
                index_root=index.root,
            ),
        )
        self.adapter = bytes.fromhex(published["tx_hash"])
        self.models = (base, adapter)
        self.bond()
        self.wait(
            "the adapter",
            lambda: self.client.call("adapter", id=self.adapter.hex())["status"] == "active",
        )

    def bond(self) -> None:
        self.send(self.network.account("provider"), ProviderBond(200 * OPEN, "tests"))


@contextmanager
def running_cluster(
    root: Path, misdeeds: dict[str, str], *, candidates: int = 0, params: Params = PARAMS
) -> Iterator[Cluster]:
    """Four validators and a full node; `misdeeds` names the module that runs instead of the honest command line.

    Candidates are not started.
    """
    with claim_home(root) as layout:
        network = create_network(layout, 4, list(TEXTS), candidates=candidates, params=params)
        commands = {node.name: [misdeeds.get(node.name, "node.cli.main")] for node in network.nodes}
        cluster = Cluster(network, commands)
        try:
            started = [node for node in network.nodes if not node.name.startswith(CANDIDATE_PREFIX)]
            for node in started:
                cluster.start(node.name)
            for node in started:
                client = Client(node.rpc_url, timeout_s=5, retries=0)
                cluster.wait(f"{node.name} to execute a block", lambda: client.status()["height"] >= 1)  # noqa: B023
            yield cluster
        finally:
            for child in cluster.children.values():
                child.popen.kill()
                child.popen.wait()
