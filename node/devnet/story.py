"""The story: from contributions to a payout agreed by quorum, played through the full node's RPC.

Contributors' records become an adapter, the adapter answers paid prompts, the beacon draws some answers for audit, every
validator recomputes those, and the fee goes to whose records shaped them. Nothing here talks to a validator except to
read state digests at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from attribution.models import BASE_HASH
from node.client import ClientError
from node.devnet import contributing, serving
from node.devnet.chain import Chain, Signer
from node.devnet.collecting import Books, collect_states, supply_now
from node.devnet.errors import StoryFailed
from node.devnet.network import Network
from node.devnet.report import ContributorView, Report, TimeView, UnrelatedView, check_report
from node.devnet.script import CALLS_MAX, FIRST_CALLS, Line, Script
from node.devnet.serving import Call, User
from node.devnet.timeline import Timeline
from node.devnet.workshop import Workshop
from node.rpc import shapes


async def play(
    network: Network, workshop: Workshop, script: Script, work: Path, timeline: Timeline
) -> Report:
    """Play the whole story and return its report, checked.

    Raises `StoryFailed` (or `node.devnet.workshop.WorkshopFailed`) where a step does not come to its end.
    """
    chain = Chain(network.full_node.rpc_url)
    signers = {
        account.name: Signer(account.name, account.address, account.seed) for account in network.accounts
    }
    try:
        return await _Play(network, chain, workshop, script, work, timeline, signers).run()
    except ClientError as error:
        raise StoryFailed("RPC", str(error)) from error


class _Play:
    """What the acts share."""

    def __init__(
        self,
        network: Network,
        chain: Chain,
        workshop: Workshop,
        script: Script,
        work: Path,
        timeline: Timeline,
        signers: dict[str, Signer],
    ) -> None:
        self.network = network
        self.chain = chain
        self.workshop = workshop
        self.script = script
        self.work = work
        self.timeline = timeline
        self.signers = signers

    async def run(self) -> Report:
        """All acts in order."""
        supply_before = await supply_now(self.chain)
        datanet, contributors = await self._contribute()
        trained = await self._train(datanet, contributors)
        adapter_id, adapter = await self._publish(contributors, trained)
        calls = await self._serve(adapter_id)
        with self.timeline.step("Verify") as step:
            unrelated = await self._unrelated(step.progress)
            books = Books(self.network, contributors, adapter)
            height, nodes = await collect_states(self.network)
            supply_after = await supply_now(self.chain)
            step.done(f"supply, escrow and {len(nodes)} state digests at height {height}")
        report = Report(
            chain_id=self.network.chain_id.hex(),
            story=self.script.source,
            nodes=nodes,
            height=height,
            datanet=datanet.hex(),
            contributors=contributors,
            model=books.model(adapter_id),
            provider=await books.provider(self.chain),
            inferences=books.inferences(calls),
            supply_before=supply_before["total"],
            supply_after=supply_after["total"],
            burned=str(int(supply_after["burned"]) - int(supply_before["burned"])),
            free=supply_after["free"],
            escrowed=supply_after["escrowed"],
            bonded=supply_after["bonded"],
            staked=supply_after["staked"],
            earned=books.earned(calls),
            unrelated=unrelated,
            submitted_at=tuple(sorted(self.chain.submitted_at)),
            time=tuple(TimeView(entry.step, round(entry.seconds, 2)) for entry in self.timeline.times),
            seconds=round(self.timeline.seconds, 2),
        )
        return replace(report, checks=check_report(report))

    async def _contribute(self) -> tuple[bytes, tuple[ContributorView, ...]]:
        with self.timeline.step("Contribute") as step:
            trainer = self.signers["trainer"]
            datanet = await contributing.create_datanet(self.chain, trainer, self.script)
            # Holders of the base gather while the contributors sign.
            await contributing.register_base(self.chain, trainer, BASE_HASH, step)
            views = await contributing.contribute(self.chain, datanet, self.script, self.signers, step)
            records = ", ".join(f"{view.name} {view.records}" for view in views)
            step.done(f"records by {records}; Merkle roots on the ledger, bytes held by validators")
        return datanet, views

    async def _train(self, datanet: bytes, contributors: tuple[ContributorView, ...]) -> contributing.Trained:
        with self.timeline.step("Train") as step:
            await contributing.base_held(self.chain, BASE_HASH, step)
            records = await contributing.fetch_records(self.chain, datanet, contributors, self.work, step)
            trained = await contributing.train(self.workshop, records, self.work, step)
            step.done(
                f"LoRA adapter {trained.adapter_hash.hex()[:12]}… from the ledger's blobs, in exact arithmetic"
            )
        return trained

    async def _publish(
        self, contributors: tuple[ContributorView, ...], trained: contributing.Trained
    ) -> tuple[bytes, shapes.Adapter]:
        with self.timeline.step("Publish") as step:
            trainer = self.signers["trainer"]
            bonded = await serving.bond_provider(self.chain, self.signers["provider"])
            adapter = await contributing.publish(self.chain, trainer, BASE_HASH, contributors, trained, step)
            count = len(self.network.validators)
            confirmed = await contributing.adapter_confirmed(self.chain, adapter, count, step)
            await self.chain.executed(step.title, bonded, "bond")
            held = len(confirmed["held"])
            step.done(
                f"{held} of {count} validators rebuilt the index: root {confirmed['index_root'][:12]}… confirmed"
            )
        return adapter, confirmed

    async def _serve(self, adapter: bytes) -> list[Call]:
        provider, lines = self.signers["provider"], self.script.lines
        user = User(self.signers["user"], self.network.chain_id, provider.address, adapter)
        calls: list[Call] = []
        batch = lines[:FIRST_CALLS]
        while batch:
            calls += await self._ask(user, batch)
            await self._settle(calls)
            more = 0 if serving.enough(calls) else serving.MORE_CALLS
            batch = lines[len(calls) : min(len(calls) + more, CALLS_MAX)]
        return calls

    async def _ask(self, user: User, batch: Sequence[Line]) -> list[Call]:
        with self.timeline.step("Ask") as step:
            height = (await self.chain.call("status"))["height"]
            requests = [user.request(line, height) for line in batch]
            calls = await serving.answer(self.workshop, requests, step)
            await serving.record(self.chain, self.signers["provider"], calls, step)
            step.done(
                f"{len(calls)} prompts answered by {serving.PROVIDER_NAME}, {len(calls)} fees in escrow"
            )
        return calls

    async def _settle(self, calls: Sequence[Call]) -> None:
        with self.timeline.step("Audit") as step:
            await serving.settle(self.chain, self.signers["provider"], calls, step)
            audited = sum(1 for call in calls if call.audited)
            step.done(
                f"the beacon drew {audited} of {len(calls)}; recomputed by every validator, attested, paid out"
            )

    async def _unrelated(self, progress: Callable[[str], None]) -> UnrelatedView:
        floor_ppm = (await self.chain.params()).attribution_floor_ppm
        texts = [list(text.encode()) for text in self.script.unrelated]
        scored = await self.workshop.ask("unrelated", progress, texts=texts, floor_ppm=floor_ppm)
        parts: list[int] = scored["unattributed"]
        return UnrelatedView(len(parts), sum(parts) // len(parts), min(parts))
