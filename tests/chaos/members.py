"""Changes of the validator set while faults happen: who joins, leaves, or moves its stake, and how it is known to have happened."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

import trio

from consensus.beacon import BeaconChain
from node.devnet.network import PARAMS, STAKE, Account
from node.keys import load_seed, public_key
from node.ledger.bodies import (
    Body,
    Transfer,
    ValidatorBond,
    ValidatorLeave,
    ValidatorRegister,
    ValidatorUnbond,
)
from node.ledger.params import OPEN
from node.ledger.stakes import sign_possession
from node.startup import BEACON_REVEALS
from tests.chaos.fleet import Fleet, NotInTime
from tests.chaos.load import Load
from tests.chaos.rpc import NodeSilent, Refused, call
from tests.chaos.witness import FINAL

SNAPSHOT_HEIGHTS = 16
PARAMS_CHANGING = replace(
    PARAMS,
    epoch_heights=12,
    epoch_ms=500,
    snapshot_heights=SNAPSHOT_HEIGHTS,
    stake_min=1_000 * OPEN,
    unbonding_heights=40,
    unbonding_ms=4_000,
    evidence_heights=40,
    evidence_ms=4_000,
    slash_equivocation_ppm=50_000,
)
"""Epochs of seconds and snapshots as often, so that a run of minutes has many of both."""

TREASURER = "trainer"
"""Pays the fees of validators, which own nothing but their stake."""

FEE = OPEN
TOP_UP = 20 * OPEN
PART = 1_500 * OPEN
"""Taken out of a full stake; small enough that f validators never have a third, whoever's stakes have moved."""

CHANGE_S_MAX = 90.0
AGAIN_S = 1.0


@dataclass(slots=True)
class Members:
    """Sends what changes the set, and waits for the set that comes of it; counts what came about."""

    fleet: Fleet
    load: Load
    joined: int = 0
    left: int = 0
    moved: int = 0

    # --- what is sent ---

    async def register(self, name: str) -> None:
        """A candidate stakes what every validator has; raises `NotInTime`."""
        home = self.fleet.seats[name].plan.home
        key = load_seed(home.consensus_key_path)
        body = ValidatorRegister(
            consensus_key=public_key(key),
            possession=sign_possession(key, self.fleet.network.chain_id, self.operator(name).address),
            peer_id=self.fleet.seats[name].plan.peer_id,
            beacon_anchor=BeaconChain(load_seed(home.beacon_key_path), BEACON_REVEALS).anchor,
            stake=STAKE,
        )
        await self._execute(self.operator(name), body)

    async def leave(self, name: str) -> None:
        """A validator takes its whole stake out; raises `NotInTime`."""
        await self._execute(self.operator(name), ValidatorLeave())

    async def move_stake(self, name: str) -> int:
        """A validator takes a part of a full stake out, or adds to another; returns the stake that it has then."""
        address = self.operator(name).address
        bonded = await self._bonded(address)
        full = bonded >= STAKE
        pocket = Transfer(address, FEE if full else FEE + TOP_UP)
        await self._execute(self.fleet.network.account(TREASURER), pocket)
        await self._execute(self.operator(name), ValidatorUnbond(PART) if full else ValidatorBond(TOP_UP))
        return bonded - PART if full else bonded + TOP_UP

    def operator(self, name: str) -> Account:
        """The account that a node's home belongs to."""
        plan = self.fleet.seats[name].plan
        return Account(name, plan.address, load_seed(plan.home.account_key_path), plan.home.account_key_path)

    # --- what comes of it ---

    async def until_member(self, name: str, present: bool) -> None:
        """Wait until every honest node runs an epoch with (or without) this validator; raises `NotInTime`."""
        address = self.operator(name).address.hex()
        await self._until_set(
            f"a set with{'' if present else 'out'} {name} on every node",
            lambda stakes: (address in stakes) is present,
        )
        self.joined += present
        self.left += not present

    async def until_stake(self, name: str, stake: int) -> None:
        """Wait until every honest node runs an epoch in which a validator has this stake; raises `NotInTime`."""
        address = self.operator(name).address.hex()
        what = f"a set in which {name} has {stake // OPEN} OPEN on every node"
        await self._until_set(what, lambda stakes: stakes.get(address) == stake)
        self.moved += 1

    async def _until_set(self, what: str, good: Callable[[Mapping[str, int]], bool]) -> None:
        with trio.move_on_after(CHANGE_S_MAX):
            for name in self.fleet.live:
                while True:
                    stakes = await self._stakes(name)
                    if stakes is not None and good(stakes):
                        break
                    await trio.sleep(AGAIN_S)
            return
        raise NotInTime(what, CHANGE_S_MAX)

    async def _stakes(self, name: str) -> dict[str, int] | None:
        """Stakes by account, in force at one node; None where it does not answer now."""
        try:
            found = await call(self.fleet.url(name), "validators")
        except (NodeSilent, Refused):
            return None
        return {row["account"]: int(row["stake"]) for row in found["validators"]}

    async def _bonded(self, address: bytes) -> int:
        """The stake that an account has registered, now; raises `NotInTime`."""
        with trio.move_on_after(CHANGE_S_MAX):
            while True:
                for name in self.fleet.live:
                    try:
                        found = await call(self.fleet.url(name), "stake", address=address.hex())
                    except (NodeSilent, Refused):
                        continue
                    return int(found["registration"]["bonded"])
                await trio.sleep(AGAIN_S)
        raise NotInTime("an answer about a stake", CHANGE_S_MAX)

    async def _execute(self, account: Account, body: Body) -> None:
        """Send a transaction until some node executed it with success; raises `NotInTime`."""
        hashes: set[str] = set()
        outcomes: list[str] = []

        def listen(_node: str, members: dict[str, object]) -> None:
            if members["tx_hash"] in hashes and members["status"] in FINAL:
                outcomes.append(f"{members['status']} {members['code']}")

        self.fleet.listeners.append(listen)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.load.insist, account, self.fleet.live, hashes, body, FEE)
                with suppress(NotInTime):
                    await self.fleet.until(
                        f"{body.NAME} of {account.name}", lambda: bool(outcomes), CHANGE_S_MAX
                    )
                nursery.cancel_scope.cancel()
        finally:
            self.fleet.listeners.remove(listen)
        if not outcomes or not outcomes[0].startswith("ok"):
            raise NotInTime(f"{body.NAME} of {account.name} ({outcomes[:1] or 'not executed'})", CHANGE_S_MAX)
