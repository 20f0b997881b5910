"""Content hash of a set of named tensors, independent of the file format and of its writer's version."""

from __future__ import annotations

from collections.abc import Mapping

import blake3
import msgpack
import torch
from torch import Tensor

DTYPE_NAMES: dict[torch.dtype, str] = {
    torch.int8: "int8",
    torch.int16: "int16",
    torch.float32: "float32",
}


def tensor_bytes(x: Tensor) -> bytes:
    """Row-major little-endian bytes; floats without negative zeros (the sign of a zero is not stable)."""
    x = x.detach().cpu().contiguous()
    if x.dtype.is_floating_point:
        x = x + 0.0
    array = x.numpy()
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def tensors_digest(kind: str, header: bytes, tensors: Mapping[str, Tensor]) -> bytes:
    """blake3(b"openledger/<kind>/v1" || 0x00 || msgpack [header, [[name, dtype, [shape], blake3(bytes)], ...]]).

    Entries are sorted by name; the encoding is msgpack arrays with shortest integers, bytes and strings.
    """
    rows = [
        [name, DTYPE_NAMES[x.dtype], list(x.shape), blake3.blake3(tensor_bytes(x)).digest()]
        for name, x in sorted(tensors.items())
    ]
    body: bytes = msgpack.packb([header, rows], use_bin_type=True)
    digest: bytes = blake3.blake3(b"openledger/" + kind.encode() + b"/v1\x00" + body).digest()
    return digest
