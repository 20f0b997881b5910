"""Small computations whose hashes are the same on every machine, and what those hashes are.

Each case runs a part of what is hashed, voted on or paid, on the base that ships with the project. The values are in
`GOLDEN_PATH` and change only on purpose, with docs/exact-arithmetic.md: `python -m tests.machines --write` writes them.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from blake3 import blake3
from torch import Tensor

from attribution import exact
from attribution.adapter import Adapter, LoraModule, bind
from attribution.checkpoint import load_base
from attribution.errors import ExactError
from attribution.exact.backends import function_cases, probe_cases
from attribution.exact.quantisation import Block
from attribution.exact.random import uniform_floats, uniform_integers
from attribution.generation import Session, generate, logits
from attribution.gradients import Example, factors
from attribution.index import Index, build_index
from attribution.linear import Frozen, Lora, NarrowBlock, contract, group_backward, group_forward
from attribution.model import PROJECTIONS, Base, module_name, projection_shape
from attribution.models import BASE_HASH, BASE_PATH
from attribution.recipe import Recipe
from attribution.rows import row_parts, row_query
from attribution.scores import score
from attribution.shares import Scores, attribute
from attribution.spans import SpanIndex
from attribution.tensor_hash import tensor_bytes
from attribution.training import train
from attribution.whitening import FactorShape

GOLDEN_PATH = BASE_PATH.with_name("golden.json")
RANK = 8
TEXTS = (
    "Exact sums do not care about order.",
    "a cat sat on the mat, and sat",
    "0.1 + 0.2 is not 0.3 in binary",
    "Return the bytes of the record.",
    "a cat sat on the mat, and sat",
)
PROMPT = "Return the number of "
ANSWER = "the cat"
FLOOR_PPM = 50_000
RECIPE = Recipe(
    rank=RANK,
    alpha=16,
    learning_rate_micro=20_000,
    weight_decay_micro=10_000,
    batch_size=2,
    epochs=3,
    warmup_steps=1,
    seed=11,
    context_tokens_max=64,
)
# (M, K, N): narrow, odd, and past the chunk of 4096 that binary32 limbs allow.
SHAPES = ((1, 1, 1), (17, 300, 9), (40, 700, 50), (3, 4099, 5))


class GoldenUnusable(ExactError):
    """The shipped base or the file of golden hashes is missing, damaged or of another version."""


@dataclass(frozen=True)
class Materials:
    """What the cases compute on: the shipped base and a fixed adapter on one device, and records as byte tokens."""

    device: str

    @cached_property
    def base(self) -> Base:
        """The shipped base. Raises GoldenUnusable, BadModel."""
        base = load_base(BASE_PATH, device=self.device)
        if base.hash != BASE_HASH:
            raise GoldenUnusable(f"{BASE_PATH.name} is base {base.hash.hex()}, not {BASE_HASH.hex()}")
        return base

    @cached_property
    def adapter(self) -> Adapter:
        """Every module adapted, both factors drawn from the stream, scaled by powers of two."""
        modules = []
        for layer in range(self.base.config.num_hidden_layers):
            for projection in PROJECTIONS:
                out, width = projection_shape(self.base.config, projection)
                name = module_name(layer, projection)
                a, b = drawn(f"{name} a", RANK, width), drawn(f"{name} b", out, RANK)
                modules.append(LoraModule(name, a * 2.0**-3, b * 2.0**-4))
        return Adapter(RANK, 16, tuple(modules)).to(self.device)

    @cached_property
    def index(self) -> Index:
        """The index of `TEXTS`, built in two shards."""
        return build_index(self.base, self.adapter, self.records, shards=2)

    @cached_property
    def answer(self) -> Scores:
        """Scores of `ANSWER` to `PROMPT` against the index."""
        return score(self.base, self.adapter, self.index, self.prompt, tuple(ANSWER.encode()))

    @property
    def records(self) -> list[tuple[int, ...]]:
        """`TEXTS` as tokens; the last is a copy of an earlier one."""
        return [tuple(text.encode()) for text in TEXTS]

    @property
    def prompt(self) -> tuple[int, ...]:
        """`PROMPT` as tokens."""
        return tuple(PROMPT.encode())


def drawn(label: str, *shape: int) -> Tensor:
    """Floats in (-1, 1) from the stream `golden <label>`, on the CPU."""
    size = 1
    for n in shape:
        size *= n
    return torch.from_numpy(uniform_floats(0, f"golden {label}", size)).view(shape)


def digest_of(*tensors: Tensor) -> str:
    """Hash over the tensors' bytes, little-endian and without negative zeros, as 64 hex digits."""
    hasher = blake3(b"openledger/golden/v1\0")
    for x in tensors:
        hasher.update(tensor_bytes(x))
    return hasher.hexdigest()


def functions(m: Materials) -> str:
    """The elementary functions and sums, on the arguments of the start-up check and 4,096 more."""
    x = drawn("functions", 64, 64) * 20.0
    cases = [function(arguments.to(m.device)) for _, function, arguments, _ in function_cases()]
    x = x.to(m.device)
    more = [
        exact.exp(x),
        exact.sigmoid(x),
        exact.sqrt(x.abs()),
        exact.log(x.abs()),
        *exact.cos_sin(x.double()),
    ]
    return digest_of(*cases, *more, exact.fsum(x), exact.sum_of_squares(x))


def products(m: Materials) -> str:
    """`matmul` on the extremes of the start-up check and on full-range integers over `SHAPES`."""
    found = [exact.matmul(a.to(m.device), b.to(m.device)) for _, a, b in probe_cases()]
    for rows, inner, columns in SHAPES:
        a, b = (
            torch.from_numpy(
                uniform_integers(0, f"golden {label} {inner}", n, 1 << 14).astype("float32") - 8192.0
            )
            for label, n in (("left", rows * inner), ("right", inner * columns))
        )
        a = a.view(rows, inner) * drawn(f"rows {inner}", rows, 1)
        found.append(exact.matmul(a.to(m.device), b.view(inner, columns).to(m.device)))
    return digest_of(*found)


def layers(m: Materials) -> str:
    """One group of layers with 7-bit and with 14-bit weights, and an adapter on two of its three modules, both ways.

    Weights of full range, an odd width, rows of very different sizes, and a bias.
    """
    rows, width, outs, rank = 9, 301, (24, 8, 8), 4
    out, spans = sum(outs), [(0, 24), (32, 40)]
    found: list[Tensor] = []
    for bits, dtype in ((7, torch.int8), (14, torch.int16)):
        top = 1 << (bits - 1)
        drawn_q = uniform_integers(0, f"golden weights {bits}", out * width, 2 * top + 1) - top
        e = uniform_integers(0, f"golden exponents {bits}", out, 7) - 6
        q = torch.from_numpy(drawn_q).view(out, width).to(dtype)
        frozen = Frozen(
            q.to(m.device), torch.from_numpy(e).to(torch.int32).to(m.device), drawn("bias", out).to(m.device)
        )
        a, b = drawn("group a", 2 * rank, width), drawn("group b", rank, out - outs[1])
        lora = Lora(a.to(m.device), b.to(m.device), spans, 2.0, frozen)
        powers = torch.tensor([2.0**k for k in (0, 3, -9, 20, -40, 1, -1, 7, -126)])[:, None]
        x = Block.of((drawn("inputs", rows, width) * powers).to(m.device))
        y, u, h = group_forward(frozen, lora, x)
        g = group_backward(frozen, lora, (drawn("outputs", rows, out) * powers.flip(0)).to(m.device))
        parts = [frozen.forward(x), y, u, h, g.dx, g.dh, g.dh_scaled]
        if h is not None and g.dh_scaled is not None:
            parts.extend(contract(lora, NarrowBlock(x.q64, x.scale), h, g.dy, g.dh_scaled))
        found.extend(part for part in parts if part is not None)
    return digest_of(*found)


def model_logits(m: Materials) -> str:
    """Logits of the shipped base alone and with the adapter."""
    ids = [0, *m.records[0]]
    return digest_of(logits(m.base, None, ids), logits(m.base, m.adapter, ids))


def decoding(m: Materials) -> str:
    """Logits of decoding with a cache, fed in uneven parts, and a greedy continuation."""
    session = Session(m.base, bind(m.adapter, m.base), 40)
    rows = [session.extend(part) for part in ([0, *m.prompt[:7]], m.prompt[7:8], m.prompt[8:])]
    tokens = generate(m.base, m.adapter, m.prompt, 6)
    return digest_of(*rows, torch.tensor(tokens, dtype=torch.int64))


def gradients(m: Materials) -> str:
    """Per-example gradients in factored form, and losses, of three examples run together."""
    first, second, third = m.records[:3]
    batch = factors(
        m.base,
        m.adapter,
        [Example((), first), Example(second[:9], second[9:]), Example(third, (), ends=True)],
    )
    parts = [part for module in batch.modules for part in (module.x, module.u, module.dz, module.dh)]
    return digest_of(*parts, torch.tensor(batch.losses, dtype=torch.int64))


def trained_adapter(m: Materials) -> str:
    """`Adapter.hash` of an adapter trained for six steps, with clipping, warm-up and weight decay."""
    return train(m.base, m.records[:4], RECIPE).hash.hex()


def index_root(m: Materials) -> str:
    """Root of the index of `TEXTS`, built in two shards."""
    return m.index.root.hex()


def sketched_rows(m: Materials) -> str:
    """A row and a query of more coordinates than have a bit each: of a usual gradient, of one with ties and nothing else, of nothing."""
    shapes = (FactorShape("wide", 1 << 9, 1 << 8), FactorShape("narrow", 5, 3))
    usual = [drawn(f"sketched {s.name}", 1, s.wide, s.rank) for s in shapes]
    found: list[Tensor] = []
    for some in (usual, [x.sign() for x in usual], [x * 0.0 for x in usual]):
        whitened = [x.to(m.device) for x in some]
        query, norm = row_query(whitened, shapes)
        parts = (*row_parts(whitened, shapes), query, np.array([norm]))
        found += [torch.from_numpy(part.astype(np.int64)) for part in parts]
    return digest_of(*found)


def scores(m: Materials) -> str:
    """Integer scores and norms of an answer against that index."""
    found = m.answer
    numbers = (*found.values, *found.rows.norms, found.query_norm, *found.rows.leaders)
    return digest_of(torch.tensor(numbers, dtype=torch.int64))


def shares(m: Materials) -> str:
    """What those scores pay three contributors and nobody."""
    found = attribute(m.answer, [b"a", b"b", b"b", b"c", b"a"], FLOOR_PPM)
    numbers = [number for owner, share in found.by_owner for number in (owner[0], share)]
    return digest_of(torch.tensor([*numbers, found.unattributed], dtype=torch.int64))


def spans(m: Materials) -> str:
    """Verbatim spans of a text in the records, before and after one is erased."""
    output, numbers = b"the cat sat on the mat, and sat down. Return the bytes of", list[int]()
    with tempfile.TemporaryDirectory(prefix="openledger-spans-") as folder:
        index = SpanIndex.create(Path(folder))
        index.add(m.records)
        for erased in ((), (1,)):
            index.erase(erased)
            for span in index.spans(output, 4):
                places = [number for place in span.places for number in (place.record, place.offset)]
                numbers += [
                    span.start,
                    span.length,
                    span.occurrences,
                    span.records or 0,
                    span.surprise,
                    *places,
                ]
    return digest_of(torch.tensor(numbers, dtype=torch.int64))


@dataclass(frozen=True, slots=True)
class Case:
    """One computation: its name in the golden file, how its hash is made, and how many tokens it runs (0: none).

    `by_backend` says that it multiplies matrices, so that each backend is tried on it.
    """

    name: str
    compute: Callable[[Materials], str]
    tokens: int
    quick: bool
    by_backend: bool = True


def _tokens(*texts: str) -> int:
    return sum(len(text) + 1 for text in texts)


CASES = (
    Case("functions", functions, 0, True),
    Case("products", products, 0, True),
    Case("layers", layers, 0, True),
    Case("logits", model_logits, 2 * _tokens(TEXTS[0]), True),
    Case("decoding", decoding, 2 * _tokens(PROMPT) + 6, True),
    Case("gradients", gradients, _tokens(*TEXTS[:3]), True),
    Case("adapter", trained_adapter, 3 * _tokens(*TEXTS[:4]), False),
    Case("index root", index_root, _tokens(*TEXTS), False),
    Case("sketched rows", sketched_rows, 0, True, by_backend=False),
    Case("scores", scores, _tokens(PROMPT) + len(ANSWER), False),
    Case("shares", shares, 0, False),
    Case("spans", spans, 0, True, by_backend=False),
)
"""In the order of the path from a product to a payment; `quick` ones need no training and no index."""


def golden_hashes() -> dict[str, str]:
    """The golden hashes by the cases' names. Raises GoldenUnusable unless the file has exactly one for each case."""
    try:
        document = json.loads(GOLDEN_PATH.read_text())
    except (OSError, ValueError) as error:
        raise GoldenUnusable(f"{GOLDEN_PATH.name} cannot be read: {error}") from error
    hashes = document.get("hashes") if isinstance(document, dict) else None
    if not isinstance(hashes, dict) or set(hashes) != {case.name for case in CASES}:
        raise GoldenUnusable(f"{GOLDEN_PATH.name} does not hold one hash for each case")
    return {str(name): str(value) for name, value in hashes.items()}
