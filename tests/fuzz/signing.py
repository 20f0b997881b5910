"""What a signer and its daemon say to each other, what a signer keeps, and the light client's file, as targets."""

from consensus.digest import DIGEST_BYTES, digest
from consensus.errors import CodecError
from node import light
from node.signer import epoch, protocol
from tests.fuzz.target import Target
from tests.unit.node_signer.desk import ROOT
from tests.unit.node_signer.test_light import PROOF
from tests.unit.node_signer.test_signer_protocol import ANSWERS, REQUESTS


def signing_targets() -> list[Target]:
    """Requests to a signer, its answers, its epoch; proof files, read alone and held against a genesis."""
    return [
        Target(
            "signer-request",
            protocol.decode_request,
            protocol.encode_request,
            tuple(protocol.encode_request(request) for request in REQUESTS),
            (CodecError,),
            protocol.REQUEST_BYTES_MAX,
            "node/signer/protocol.py",
            "daemon",
        ),
        Target(
            "signer-answer",
            protocol.decode_answer,
            protocol.encode_answer,
            tuple(protocol.encode_answer(answer) for answer in ANSWERS),
            (CodecError,),
            protocol.ANSWER_BYTES_MAX,
            "node/signer/protocol.py",
            "signer",
        ),
        Target(
            "light-proof",
            light.light_proof_from_bytes,
            light.LightProof.to_bytes,
            (PROOF.to_bytes(),),
            (light.LightProofInvalid,),
            light.FILE_BYTES_MAX,
            "node/light.py",
            "anyone (file)",
        ),
        Target(
            "light-verified", _verified, None, (PROOF.to_bytes(),), (light.LightProofInvalid,), sender="anyone (file)"
        ),
        Target(
            "signer-epoch", _epoch, lambda root: root.to_bytes()[DIGEST_BYTES:], (ROOT.to_bytes()[DIGEST_BYTES:],),
            (CodecError,), sender="disk",
        ),
    ]  # fmt: skip


def _verified(data: bytes) -> light.Verified:
    return light.verify_light_proof(ROOT, light.light_proof_from_bytes(data))


def _epoch(body: bytes) -> epoch.EpochRoot:
    """The signer's file behind a true checksum, which garbage would never have."""
    return epoch.root_from_bytes(digest("signer-epoch", body) + body)
