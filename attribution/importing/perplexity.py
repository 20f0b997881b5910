"""What quantising costs: the perplexity of a base on a text, beside that of the floats it was made from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from attribution.decoder import LOSS_BITS, check_ids, cross_entropy, forward, head, no_adapter
from attribution.importing.directory import Directory
from attribution.importing.errors import ImportRefused
from attribution.importing.float_model import float_nats
from attribution.model import Base

WINDOW_TOKENS = 256
_HEAD_ROWS = 64


@dataclass(frozen=True, slots=True)
class Comparison:
    """Summed losses over `tokens` tokens: of the base on the grid 2^-30 (exact), of the float model in nats."""

    tokens: int
    base_loss: int
    float_loss_nats: float

    @property
    def base_perplexity(self) -> float:
        """Of the quantised model; infinite where binary64 holds no such number."""
        return _perplexity(self.base_loss / 2**LOSS_BITS / self.tokens)

    @property
    def float_perplexity(self) -> float:
        """Of the model as it was found; NaN where its floats overflow."""
        return _perplexity(self.float_loss_nats / self.tokens)


def _perplexity(nats: float) -> float:
    try:
        return math.exp(nats)
    except OverflowError:
        return math.inf


def compare(
    directory: Directory, base: Base, ids: Sequence[int], window_tokens: int = WINDOW_TOKENS
) -> Comparison:
    """Both losses on `ids`, cut into windows of at most `window_tokens`, each after BOS and alone.

    Raises ImportRefused without ids, BadTokens, NotRepresentable.
    """
    if not ids:
        raise ImportRefused("there is no token to measure on")
    size = min(window_tokens, base.config.max_position_embeddings)
    windows = [[base.config.bos_token_id, *ids[i : i + size]] for i in range(0, len(ids), size)]
    total = sum(base_loss(base, window) for window in windows)
    return Comparison(len(ids), total, float_nats(directory, windows))


def base_loss(base: Base, tokens: Sequence[int]) -> int:
    """Summed loss, on the grid 2^-30, of all tokens but the first. Raises BadTokens, ContextTooLong."""
    check_ids(base, [tokens[:-1]])
    check_ids(base, [tokens[1:]])
    hidden, _ = forward(base, no_adapter(base), [tokens[:-1]], save=False)
    targets = torch.tensor(list(tokens[1:]), dtype=torch.int64, device=base.device)
    # A few rows at a time: logits over a large vocabulary are the widest thing there is.
    parts = zip(torch.split(hidden, _HEAD_ROWS), torch.split(targets, _HEAD_ROWS), strict=True)
    return sum(int(cross_entropy(head(base, rows), wanted, None).tokens.sum()) for rows, wanted in parts)
