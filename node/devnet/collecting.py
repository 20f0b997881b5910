"""Turning what the ledger says after the story into the report's rows: names for addresses, text for token ids."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import cast

from node.client import RpcError
from node.devnet.chain import NOT_FOUND, Chain
from node.devnet.errors import StoryFailed
from node.devnet.network import Network
from node.devnet.report import (
    UNATTRIBUTED,
    Attester,
    ContributorView,
    Earned,
    InferenceView,
    ModelView,
    NodeState,
    PayoutView,
    ProviderView,
    Share,
)
from node.devnet.serving import Call
from node.ledger.results import TREASURY
from node.rpc import shapes

STATES_SECONDS_MAX = 30.0
_STEP = "Verify"
_ROLE_ORDER = ("contributor", "owner", "provider", "validator", "unattributed")


class Books:
    """Names, and the rows that need them."""

    def __init__(
        self, network: Network, contributors: Sequence[ContributorView], adapter: shapes.Adapter
    ) -> None:
        self._network = network
        self._adapter = adapter
        self._contributors = tuple(contributors)
        self._names = {TREASURY.hex(): UNATTRIBUTED}
        self._names |= {node.address.hex(): node.name for node in network.nodes}
        self._names |= {account.address.hex(): account.name for account in network.accounts}

    def name(self, address: str) -> str:
        """Name of an address (hex); a stranger's is its first digits."""
        return self._names.get(address, address[:12])

    def model(self, adapter: bytes) -> ModelView:
        """The adapter."""
        row = self._adapter
        return ModelView(
            base_hash=row["base_hash"],
            adapter=adapter.hex(),
            adapter_hash=row["adapter_hash"],
            index_root=row["index_root"],
            status=row["status"],
            held_by=tuple(sorted(self.name(address) for address in row["held"])),
            owner=self.name(row["owner"]),
        )

    async def provider(self, chain: Chain) -> ProviderView:
        """The provider and its bond."""
        account = self._network.account("provider")
        row = cast("shapes.Provider", await chain.call("provider", address=account.address.hex()))
        return ProviderView(row["name"], account.address.hex(), row["bond"])

    def inferences(self, calls: Sequence[Call]) -> tuple[InferenceView, ...]:
        """All calls in the order they were asked."""
        return tuple(self._inference(number, call) for number, call in enumerate(calls, 1))

    def _inference(self, number: int, call: Call) -> InferenceView:
        line, receipt = call.request.line, call.receipt
        if receipt is None:
            raise StoryFailed(_STEP, f"call {number} has no receipt")
        return InferenceView(
            number=number,
            id=call.id.hex(),
            kind=line.kind,
            about=line.about,
            prompt=line.prompt,
            output=call.output,
            expected=line.expected,
            fee=receipt["voucher"]["fee"],
            status=receipt["status"],
            audited=call.audited,
            result_hash=receipt["result_hash"],
            attesters=tuple(
                sorted(
                    (Attester(self.name(row["account"]), row["result_hash"]) for row in receipt["attesters"]),
                    key=lambda attester: attester.name,
                )
            ),
            shares=tuple(Share(self.name(row["address"]), row["share"]) for row in receipt["shares"]),
            payouts=tuple(
                PayoutView(self.name(row["address"]), row["role"], row["amount"])
                for row in receipt["payouts"]
            ),
            burned=receipt["burned"],
        )

    def earned(self, calls: Iterable[Call]) -> tuple[Earned, ...]:
        """What each account was paid, contributors first, then by amount."""
        sums: dict[tuple[str, str], tuple[int, int]] = {}
        for name in (view.name for view in self._contributors):
            sums[name, "contributor"] = (0, 0)
        for call in calls:
            for row in call.receipt["payouts"] if call.receipt else ():
                key, amount = (self.name(row["address"]), row["role"]), int(row["amount"])
                before, answers = sums.get(key, (0, 0))
                sums[key] = (before + amount, answers + (amount > 0))
        rows = [Earned(name, role, str(amount), answers) for (name, role), (amount, answers) in sums.items()]
        return tuple(sorted(rows, key=_earned_order))


def _earned_order(row: Earned) -> tuple[int, int, str]:
    place = _ROLE_ORDER.index(row.role) if row.role in _ROLE_ORDER else len(_ROLE_ORDER)
    return place, -int(row.amount), row.name


async def supply_now(chain: Chain) -> shapes.Supply:
    """Units in existence and where they are bound."""
    return cast("shapes.Supply", await chain.call("supply"))


async def collect_states(network: Network) -> tuple[int, tuple[NodeState, ...]]:
    """Return a height that every node has executed, and every node's state digest there.

    The height is the lowest of all nodes' now; nodes that are ahead look it up.
    """
    chains = [(node, Chain(node.rpc_url)) for node in network.nodes]
    height = min([(await chain.call("status"))["height"] for _, chain in chains])
    states = []
    for node, chain in chains:
        what = f"block {height} at {node.name}"
        block = await chain.wait_for(_STEP, what, partial(_block, chain, height), STATES_SECONDS_MAX)
        states.append(NodeState(node.name, node.validator, node.rpc_url, node.peer_id, block["state_digest"]))
    return height, tuple(states)


async def _block(chain: Chain, height: int) -> shapes.Block | None:
    try:
        return cast("shapes.Block", await chain.call("block", height=height))
    except RpcError as error:
        if error.code == NOT_FOUND:
            return None
        raise
