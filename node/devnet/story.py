"""The story: from contributions to a payout agreed by quorum, played through the full node's RPC.

Contributors' records become an adapter, the adapter answers paid prompts, the beacon draws some answers for audit, every
validator recomputes those, and the fee goes to whose records shaped them. Nothing here talks to a validator except to
read state digests at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import trio

from attribution.models import BASE_HASH
from node.client import ClientError
from node.devnet import contributing, serving
from node.devnet.chain import Chain, Signer
from node.devnet.collecting import Books, collect_states, supply_now
from node.devnet.errors import StoryFailed
from node.devnet.network import Network
from node.devnet.report import SECONDS_MAX, ContributorView, Report, TimeView, UnrelatedView, check_report
from node.devnet.script import FIRST_CALLS, STDLIB, Line, Script
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
        adapter_id, adapter, first = await self._publish(contributors, trained)
        unrelated: list[UnrelatedView] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._score_unrelated, unrelated)
            calls = await self._serve(first)
        with self.timeline.step("Verify") as step:
            books = Books(self.network, contributors, adapter)
            height, nodes = await collect_states(self.network)
            supply_after = await supply_now(self.chain)
            step.done(f"{len(nodes)} state digests at height {height}, supply, escrow")
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
            unrelated=unrelated[0],
            submitted_at=tuple(sorted(self.chain.submitted_at)),
            time=tuple(TimeView(entry.step, round(entry.seconds, 2)) for entry in self.timeline.times),
            seconds=round(self.timeline.seconds, 2),
            # How long anybody's own text takes depends on how much there is of it.
            seconds_max=SECONDS_MAX if self.script.source == STDLIB else None,
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
            step.done(f"{records} records; Merkle roots on the ledger, bytes at the validators")
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
    ) -> tuple[bytes, shapes.Adapter, _Asked]:
        with self.timeline.step("Publish") as step:
            trainer = self.signers["trainer"]
            bonded = await serving.bond_provider(self.chain, self.signers["provider"])
            adapter = await contributing.publish(self.chain, trainer, BASE_HASH, contributors, trained, step)
            count = len(self.network.validators)
            asked: list[_Asked] = []

            async def answer_first() -> None:
                # The provider has the adapter already, so nobody has to wait for its answers later.
                provider = self.signers["provider"].address
                user = User(self.signers["user"], self.network.chain_id, provider, adapter)
                asked.append(_Asked(user, await self._answer(user, self.script.lines[:FIRST_CALLS])))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(answer_first)
                confirmed = await contributing.adapter_confirmed(self.chain, adapter, count, step)
                await self.chain.executed(step.title, bonded, "bond")
                step.progress("the provider answers")
            held = len(confirmed["held"])
            step.done(
                f"{held} of {count} validators rebuilt the index and got the root {confirmed['index_root'][:12]}…"
            )
        return adapter, confirmed, asked[0]

    async def _serve(self, first: _Asked) -> list[Call]:
        """Record what was answered and settle it; ask again while the beacon has not drawn what the story needs."""
        lines, calls, batch = self.script.lines, list[Call](), first.calls
        while not serving.enough(calls) and len(calls) < len(lines):
            with self.timeline.step("Ask") as step:
                batch = batch or await self._answer(first.user, lines[len(calls) :][: serving.MORE_CALLS])
                await serving.record(self.chain, self.signers["provider"], batch, step)
                step.done(
                    f"{len(batch)} prompts answered by {serving.PROVIDER_NAME}; {len(batch)} fees in escrow"
                )
            calls += batch
            batch = []
            await self._settle(calls)
        return calls

    async def _answer(self, user: User, lines: Sequence[Line]) -> list[Call]:
        height = (await self.chain.call("status"))["height"]
        return await serving.answer(self.workshop, [user.request(line, height) for line in lines])

    async def _settle(self, calls: Sequence[Call]) -> None:
        with self.timeline.step("Audit") as step:
            await serving.settle(self.chain, self.signers["provider"], calls, step)
            audited = sum(1 for call in calls if call.audited)
            step.done(
                f"the beacon drew {audited} of {len(calls)}; every validator recomputed them and attested"
            )

    async def _score_unrelated(self, found: list[UnrelatedView]) -> None:
        floor_ppm = (await self.chain.params()).attribution_floor_ppm
        texts = [list(text.encode()) for text in self.script.unrelated]
        scored = await self.workshop.ask("unrelated", texts=texts, floor_ppm=floor_ppm)
        parts: list[int] = scored["unattributed"]
        found.append(UnrelatedView(len(parts), sum(parts) // len(parts), min(parts)))


@dataclass(frozen=True, slots=True)
class _Asked:
    """The user, and its first calls: answered, not yet recorded."""

    user: User
    calls: list[Call]
