from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attribution import exact
from attribution.adapter import bind
from attribution.decoder import no_adapter
from attribution.errors import BadTokens, ContextTooLong
from attribution.generation import Session, generate, logits
from attribution.model import Base
from tests.unit.attribution.model_cases import CONFIG, records, tiny_adapter, tiny_base


@pytest.fixture(scope="module")
def base() -> Base:
    return tiny_base()


def same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.contiguous().view(torch.int32), b.contiguous().view(torch.int32))


@pytest.mark.parametrize("kv", [1, 2, 4])
def test_cached_decoding_equals_prefill_bit_for_bit(kv: int) -> None:
    base = tiny_base({**CONFIG, "num_key_value_heads": kv})
    adapter = tiny_adapter(base)
    ids = [0, *records()[0], *records()[1]]
    whole = logits(base, adapter, ids)
    bound = bind(adapter, base)
    for first in (1, 5, len(ids) - 1):
        session = Session(base, bound, 64)
        rows = [session.extend(ids[:first])]
        rows += [session.extend([t]) for t in ids[first:]]
        assert same(torch.stack(rows), whole[first - 1 :])
    chunks = Session(base, bound, 64)
    chunks.extend(ids[:3])
    assert same(chunks.extend(ids[3:9]), whole[8])


def test_greedy_tokens_are_the_argmax_of_the_whole_text(base: Base) -> None:
    adapter = tiny_adapter(base)
    prompt = records()[0]
    out = generate(base, adapter, prompt, 12)
    assert 0 < len(out) <= 12
    text = [0, *prompt, *out]
    rows = exact.argmax(logits(base, adapter, text))
    assert rows[len(prompt) : len(text) - 1].tolist() == out
    if len(out) < 12:
        assert int(rows[-1]) == 1
    assert generate(base, None, prompt, 12) != out


def test_generation_stops_at_eos_without_including_it(base: Base) -> None:
    prompt = records()[0]
    first = generate(base, None, prompt, 1)
    assert len(first) == 1
    tensors = dict(base.tensors)
    for part in ("q", "e"):
        head = tensors[f"lm_head.{part}"].clone()
        head[[1, first[0]]] = head[[first[0], 1]]
        tensors[f"lm_head.{part}"] = head
    assert generate(Base(base.config, tensors), None, prompt, 5) == []


def test_equal_logits_give_the_lowest_id(base: Base) -> None:
    tensors = dict(base.tensors)
    tensors["lm_head.q"] = torch.zeros_like(tensors["lm_head.q"])
    assert generate(Base(base.config, tensors), None, [2], 3) == [0, 0, 0]


def test_limits_are_typed_errors(base: Base) -> None:
    with pytest.raises(ContextTooLong):
        generate(base, None, [2] * 60, 10)
    assert len(generate(base, None, [2] * 60, 4)) <= 4
    with pytest.raises(BadTokens):
        generate(base, None, [99], 4)
    assert generate(base, None, [2], 0) == []
    session = Session(base, no_adapter(base), 3)
    session.extend([0, 2, 3])
    with pytest.raises(ContextTooLong):
        session.extend([4])
