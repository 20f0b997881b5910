"""Golden digests: a change of any is a change of the protocol and must be on purpose."""

from node.ledger.accumulator import Accumulator, accumulator_root, append
from node.ledger.batch import Batch, StorageClaim, batch_digest, storage_receipt_digest
from node.ledger.block import Receipt, encode_receipt, receipts_root
from node.ledger.bodies import (
    AdapterPublish,
    AttestCommit,
    AttestOpen,
    BaseRegister,
    Body,
    ContributionSubmit,
    DatanetCreate,
    EvidenceSubmit,
    Held,
    InferenceRecord,
    InferenceReveal,
    ProviderBond,
    RecordsErase,
    Transfer,
    ValidatorAnchor,
    ValidatorBond,
    ValidatorLeave,
    ValidatorRegister,
    ValidatorUnbond,
    ValidatorUnjail,
)
from node.ledger.entries import Payout, Role
from node.ledger.lthash import lthash_of, state_digest
from node.ledger.openings import Voucher, inference_id, output_commitment, prompt_commitment
from node.ledger.records import records_root
from node.ledger.results import attestation_commitment, audit_result_hash
from node.ledger.transaction import sign_transaction, signing_digest, transaction_hash

CHAIN, A, B, SALT = bytes([1]) * 32, bytes([2]) * 32, bytes([3]) * 32, bytes([4]) * 32
PEER = "12D3KooW9xCm2jWjNVrwh51SWCQBMYdMyeU3NpT85QhLVkF6PcNM"
SHARES = ((bytes(32), 250_000_000), (A, 750_000_000))
VOUCHER = Voucher(CHAIN, A, B, 7, A, B, 16, 10**9, 500)
BODIES: list[Body] = [
    Transfer(A, 5),
    DatanetCreate("docs", ("CC-BY-4.0", "MIT"), "text"),
    ContributionSubmit(A, B, 2, 9, A, 40, "MIT"),
    BaseRegister(A, "tiny"),
    AdapterPublish("a", A, (A, B), b"\x90", A, B, 9, A),
    Held(A, B),
    ProviderBond(5, "serves"),
    InferenceRecord(VOUCHER, bytes(64), A, 3, 4),
    InferenceReveal(A, B, 9),
    AttestCommit(A, 0, B),
    AttestOpen(A, 1, 0, B, SHARES, SALT),
    ValidatorRegister(A, bytes(64), PEER, B, 5),
    ValidatorBond(5),
    ValidatorUnbond(5),
    ValidatorLeave(),
    ValidatorUnjail(),
    ValidatorAnchor(A),
    EvidenceSubmit(b"proof"),
    RecordsErase(A, (0, 23, 9_999)),
]

GOLDEN = {
    "sign transfer": "ff7974ad35f237c49927c6c4ddecf4e3484406d4dac6701e64336cbdc4af664f",
    "hash transfer": "5cd1bd14fb4cad57251af37d57d93a2dd18adaf1e8cfa7521380eda5175c131e",
    "sign datanet_create": "898a5d4fc529cec7e6291ca785c610a443b0a9fa56b0e856c5a0965c44b58e15",
    "hash datanet_create": "5f5247ce886186c4e69f8d3a80ca2e5faf2c8064b6f46907979f07f4267c4425",
    "sign contribution": "e1968ae2f1f24e8db22948cc85f39d34ac485f47681570928b5a9888c10abf8b",
    "hash contribution": "2d04c021ad39795226695f74098ba737cfe8dbb55e496a2fc43b1dfd7aa498ea",
    "sign base_register": "97685abdbfe8bc46a760ddd1723679403ed544cb1250f3c83fe012d33a2e6004",
    "hash base_register": "d1fb618adf7467d1ae4465d527defa69f74369c1c94dd1b055601644a9d15757",
    "sign adapter_publish": "b7df23475221103b3d8e474a543215edb8c4af730f4866ad0d8f1c3e189dc776",
    "hash adapter_publish": "48b35976508acb3dd5a29053162be2c1c409ce771eca9ab7c92c9f902bd5df7f",
    "sign held": "8d07f168b0ff6c841aaa6ecf67abaec3267c8a9a95c6e32f51841d38068463a3",
    "hash held": "c5c317a74b59fac7c1a07041ad99a34bb1b3342a67717f215eaae44c905593c9",
    "sign provider_bond": "76592f77d2b218bb7c838930ee8c5455537e277045a393521cb13710e65bfc24",
    "hash provider_bond": "4c4015d7ad92aa393df6195bc66cd7360703704daea80ca8df3c86a1c87aa436",
    "sign inference_record": "0c958693b23005c3cf1cf82e6497cd4d07ee69a56657ddd05ecb9d1b5a2e35bc",
    "hash inference_record": "96fa792c95bc53b11116f69644ff9111e3956fd090e2119c0fc2c306dd89eb5e",
    "sign inference_reveal": "98edcd12824e82d528eafbbc98db985704b386cc4dfeef48952d628fe28b2271",
    "hash inference_reveal": "ce4a959875112bb02abf24874caf264c54ee1e15a5878983aefe12e99b48875c",
    "sign attest_commit": "4d06a0d3fd1ffcee2c5f2af00f71eee621ac63e49572372efdeacaa7f005e615",
    "hash attest_commit": "ae8a5c9fd01203bfd9a68bec03a736d6395cf0e48b902dd7e1cd109e417f31d7",
    "sign attest_open": "d140521cff740c2e3549751e3c2af469d9cda7a5b0614fbc8b962334f6590faf",
    "hash attest_open": "90eee35d93e274b87ec3320fb92a144358d801d017651ab79e75e7bd5ca74584",
    "sign validator_register": "1f7d7ae13e4d8ee8eea4b9cbcbcdfefda4042ec7de53eaae1fdf6567cba56471",
    "hash validator_register": "bd42072cdf27fdde0d052e8a8dd9c0d52cd16bd05ce4af8cf43383bd0899ab49",
    "sign validator_bond": "2ef9d7971a4aeb411c7d6a026292bfb03f04b24769a16b095e59e971443c8f36",
    "hash validator_bond": "d04c4db00dcb72e2eceed0aad7130a598b7850004d4ff50e25d62ccec9711970",
    "sign validator_unbond": "e113b36fcf0d49eaefb84663b12260d0d58af395d8de8a2bcaab5f344cb274da",
    "hash validator_unbond": "9d2437683a64c0f1e0cbbb142698c7d6df967ad3321fe84b351426f2afa9668b",
    "sign validator_leave": "b243c56276747b738756c5915d3eb54bd70dbefc8f630f04ebaad539bce3ad0f",
    "hash validator_leave": "b89b2a9da39c5196921a4f045818d1b53edff573ef3c21bfa342b04bcd863693",
    "sign validator_unjail": "f6d7e4078231fc07651a15135c4ad6db0cc2e3851fcb95d65650cc1026a76f71",
    "hash validator_unjail": "f578091796d98178187e5447603f0a7a5fcdfcc48d3a00a591e118ec14ac5f01",
    "sign validator_anchor": "fdf332f8256d619478d356bfd0211980d3bcfcb63f7ded996c7957e95ecf3375",
    "hash validator_anchor": "67b8c8af66619836bb2156c40df3cccd9d2fb59920c931fed08ed76d65d049a1",
    "sign evidence": "9460e5602c1187cc2c325f7e59fe7ae7d7ba7342518ee8f74c3e73ce7b82972e",
    "hash evidence": "6ddb9703664354e5a6aa5fb10c14a0a82cc9b7e3f7342c70f7ffc5d594073145",
    "sign erase": "0e91bddae18c993f58d40add23a557e7d246a70632d762f6561ec0fde8b0012e",
    "hash erase": "916e84b88dc6bc3742189332b2a5ac831c6761aad162c974170a9558b4c804d6",
    "inference": "61aa8f73b10c44bccb1653e11ec399872382d5d54294a24894cb240ed9096f00",
    "prompt": "131189c294bfd356fc3572940e71f17026443fc80c3eb6bc1566467598f14aaa",
    "output": "68b275d16eb89531674aaa1a1d1ff4809b43afcecb8deeb1c695bd56681996c1",
    "records": "0e1140a5b674de92361ecb6070d5031cf761e93b177e6dba4c4627fe450ccefe",
    "result": "c3a59ac160ec522cc4b73b492c8bda759b4742c753d6a80ca78064fe70b7313c",
    "attestation": "b3243f6dcf32f60a654767f6c516d01b9c743450413ff65e799740d9101a586d",
    "batch": "829efbcf4b2ba756bd6ae78eb894c2a4b7ce93805ab669e6881bc8fbf95f66ef",
    "storage": "ae344e666ab90ca7e1d6344d66c535cc472261a37ef3a4309198de3e6e00243f",
    "receipts": "727034dbccbb9c527d1b454204c5f262cb9aa0d2974e0232261efae97891af13",
    "state": "bdb45d0e5b24f5e40c7028c82c345d006e5f35bccfce7cd766202ec0963991cb",
    "accumulator": "15654de1b83365ddf70df1bfc5e0fb9b356b59703a774b33189349ccc2eb0000",
}


def compute() -> dict[str, str]:
    values: dict[str, bytes] = {}
    for body in BODIES:
        transaction = sign_transaction(A, chain_id=CHAIN, nonce=3, fee=10, valid_until=90, body=body)
        values[f"sign {body.NAME}"] = signing_digest(transaction)
        values[f"hash {body.NAME}"] = transaction_hash(transaction)
    receipt = Receipt(A, 3, 0, "settled", 0, (Payout(Role.OWNER, B, 5),), 6)
    accumulator = append(append(append(Accumulator(), A), B), SALT)
    values |= {
        "inference": inference_id(VOUCHER),
        "prompt": prompt_commitment(SALT, [1, 300]),
        "output": output_commitment(SALT, [1, 300]),
        "records": records_root([[1, 2], [300, 70_000]]),
        "result": audit_result_hash(A, B, 0, [1], [2, 3], [-1, 0, 2**70], SHARES, 0),
        "attestation": attestation_commitment(A, 0, B, SHARES, A, SALT),
        "batch": batch_digest(Batch(A, 1, ((b"tx", ((B, bytes(64)),)),), bytes(64)), CHAIN),
        "storage": storage_receipt_digest(StorageClaim(A, 40, B, 2, 7), CHAIN),
        "receipts": receipts_root((receipt,)),
        "state": state_digest(lthash_of({b"a/" + A: encode_receipt(receipt), b"g/head": b"x"}), CHAIN),
        "accumulator": accumulator_root(accumulator),
    }
    return {name: value.hex() for name, value in values.items()}


def test_digests_are_what_the_protocol_says() -> None:
    assert compute() == GOLDEN
