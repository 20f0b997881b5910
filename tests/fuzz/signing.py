"""What a signer and its daemon say to each other, and the light client's file, as targets."""

from consensus.errors import CodecError
from node import light
from node.signer import protocol
from tests.fuzz.target import Target
from tests.unit.node_signer.test_light import PROOF
from tests.unit.node_signer.test_signer_protocol import ANSWERS, REQUESTS


def signing_targets() -> list[Target]:
    """Requests to a signer, its answers, proof files."""
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
    ]
