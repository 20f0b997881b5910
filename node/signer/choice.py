"""Where a daemon's signatures come from: its configuration's signer, or nobody beside the daemon itself."""

from consensus.types import Handover
from consensus.validators import ValidatorSet
from node.config import Config
from node.directory import Identity
from node.epochs import Epochs
from node.home import Home
from node.signer.remote import SignerLink


def signer_link(
    home: Home, config: Config, identity: Identity, chain_id: bytes, epochs: Epochs
) -> SignerLink | None:
    """Return the way to the signer that ``[signer]`` names, not yet connected; None where the daemon holds the key."""
    section = config.signer
    if not identity.signer_key:
        return None

    def next_epoch(epoch: int) -> tuple[Handover, ValidatorSet] | None:
        row = epochs.row(epoch + 1)
        return None if row is None or row.handover is None else (row.handover, row.consensus_set)

    uids = (int(section.uid),) if section.uid else ()
    return SignerLink(home.root / section.socket, identity.signer_key, chain_id, next_epoch, uids)
