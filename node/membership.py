"""Follows the validator set: whom this node keeps streams with and lets in, and what a new epoch changes here."""

import structlog

from node.directory import Directory
from node.driver import Driver
from node.epochs import Epochs
from node.ledger.stakes import get_candidates, get_next_validators, get_stake
from node.network.network import Network
from node.replicas import Replicas
from node.signer.remote import SignerLink
from node.storage.chain import ChainStore

log = structlog.get_logger(__name__)


class Membership:
    """Brings the other rooms up to the validators that the executed state names."""

    def __init__(
        self,
        network: Network,
        store: ChainStore,
        directory: Directory,
        epochs: Epochs,
        replicas: Replicas,
        driver: Driver,
        signer: SignerLink | None,
    ) -> None:
        self._network = network
        self._store = store
        self._directory = directory
        self._epochs = epochs
        self._replicas = replicas
        self._driver = driver
        self._signer = signer

    def change_epoch(self) -> None:
        """The epoch's last block has been executed: go on under the set that it hands over to.

        Raises StorageError where the state and the block disagree about that set.
        """
        if not self._epochs.begin_next():
            return
        epoch = self._epochs.current
        self._directory.install(epoch.validators)
        if self._signer is not None:
            # A new connection begins with the hand-overs that the signer has not heard of.
            self._signer.drop("an epoch began")
        self._driver.succeed(self._replicas.make())
        log.info(
            "epoch_began",
            epoch=epoch.number,
            height=epoch.start.height,
            validators=len(epoch.validators.validators),
            votes=self._replicas.votes,
        )

    def follow_validators(self) -> None:
        """Keep direct streams with the validators of this epoch and, once it is frozen, of the next; none as an observer.

        Candidates are let in: they have to come up with the chain before they can be chosen.
        """
        candidates = (get_stake(self._store, account) for account in get_candidates(self._store))
        self._network.admit(stake.peer_id for stake in candidates if stake is not None)
        entries = [*self._directory.validators.validators]
        following = get_next_validators(self._store)
        if following is not None:
            entries += following.validators
        peers = {entry.peer_id for entry in entries}
        self._network.set_mesh(peers if self._network.peer_id in peers else ())
