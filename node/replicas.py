"""The consensus replica of each epoch, made out of this node's keys and of what it wrote down."""

import structlog

from consensus.beacon import BeaconChain
from consensus.replica import Replica
from consensus.types import Block
from node.clock import now_ms
from node.config import Config
from node.directory import Directory, Identity
from node.epochs import Epochs
from node.signer.remote import RemoteSigner, SignerLink
from node.startup import BEACON_REVEALS, consensus_config, recovered_state
from node.storage.chain import ChainStore

log = structlog.get_logger(__name__)

# How long a validator that comes back listens before it starts something: an idle chain is heard once in a heartbeat.
LISTEN_HEARTBEATS = 2
FRESH_CHAIN_MS = 60_000


class Replicas:
    """Makes replicas; the driver runs them, one at a time."""

    def __init__(
        self,
        config: Config,
        identity: Identity,
        store: ChainStore,
        directory: Directory,
        epochs: Epochs,
        signer: SignerLink | None,
    ) -> None:
        """`signer` is the way to the process that holds the consensus key, None where this one does."""
        self._config = config
        self._identity = identity
        self._store = store
        self._directory = directory
        self._epochs = epochs
        self._signer = signer
        self._beacon: BeaconChain | None = None

    @property
    def votes(self) -> bool:
        """Whether this node is one of the current epoch's validators."""
        return self._identity.consensus_key in self._directory.peer_of

    def make(self) -> Replica:
        """The current epoch's replica; an observer's where this node is not in the set.

        Raises StorageError, and SafetyRecordUnusable, where what was written down does not fit the epoch.
        """
        settings, epoch = consensus_config(self._config), self._epochs.current
        recovered = recovered_state(self._store, epoch, settings)
        signer = None
        if self._signer is not None and self.votes:
            signer = RemoteSigner(self._signer, epoch.number, recovered.record)
        return Replica(
            epoch.consensus_set,
            epoch.start,
            settings,
            seed=self._identity.consensus_seed if self.votes else None,
            signer=signer,
            beacon=self._beacon_chain() if self.votes else None,
            recovered=recovered,
        )

    def _beacon_chain(self) -> BeaconChain | None:
        """The chain that this validator's anchor ends, or None: without it a validator votes but never leads."""
        if self._identity.beacon_seed is None:
            return None
        if self._beacon is None:
            self._beacon = BeaconChain(self._identity.beacon_seed, BEACON_REVEALS)
        entry = self._directory.validators.by_account(self._identity.account)
        if entry is None or entry.beacon_anchor != self._beacon.anchor:
            log.error("beacon_not_anchored", remedy="openledger tx validator-anchor")
            return None
        return self._beacon

    def listen_ms(self, genesis: Block) -> int:
        """How long to listen before starting anything: not at all with a key that cannot have signed on this chain yet."""
        fresh = (
            now_ms() - genesis.header.timestamp_ms < FRESH_CHAIN_MS and self._store.safety_record() is None
        )
        validator = self._identity.consensus_key is not None
        return 0 if fresh or not validator else LISTEN_HEARTBEATS * self._config.consensus.heartbeat_ms
