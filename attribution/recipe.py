"""The training recipe: integers and names only, so that it can be hashed, signed and put on a ledger."""

from __future__ import annotations

from dataclasses import dataclass, fields

from attribution.errors import BadRecipe
from attribution.model import PROJECTIONS

MICRO = 1_000_000
_BOUNDS = {
    "rank": (1, 256),
    "alpha": (1, 4096),
    "learning_rate_micro": (1, MICRO),
    "beta1_micro": (0, MICRO - 1),
    "beta2_micro": (0, MICRO - 1),
    "eps_exponent": (-40, -1),
    "weight_decay_micro": (0, MICRO),
    "grad_clip_micro": (0, 1000 * MICRO),
    "warmup_steps": (0, 1_000_000),
    "decay_floor_micro": (0, MICRO),
    "batch_size": (1, 1024),
    "epochs": (1, 10_000),
    "seed": (0, (1 << 63) - 1),
    "context_tokens_max": (2, 1 << 17),
}
SCHEDULES = ("linear", "constant")


@dataclass(frozen=True, slots=True)
class Recipe:
    """How an adapter is trained. `*_micro` fields are in units of 10^-6.

    AdamW's epsilon is 2^eps_exponent (2^-27 is about 7.5e-9). grad_clip_micro = 0 means no clipping. The schedule
    "linear" warms up over `warmup_steps`, then falls linearly to zero at the last step, but not below
    decay_floor_micro of the peak; "constant" only warms up. context_tokens_max counts BOS and EOS; a longer
    record is refused, never cut. The defaults are the development network's recipe.
    """

    rank: int = 16
    alpha: int = 32
    target_modules: tuple[str, ...] = PROJECTIONS
    learning_rate_micro: int = 8_000
    beta1_micro: int = 900_000
    beta2_micro: int = 990_000
    eps_exponent: int = -27
    weight_decay_micro: int = 0
    grad_clip_micro: int = 1_000_000
    warmup_steps: int = 10
    decay_floor_micro: int = 50_000
    batch_size: int = 4
    epochs: int = 20
    seed: int = 0
    context_tokens_max: int = 512
    schedule: str = "linear"

    def __post_init__(self) -> None:
        for name, (low, high) in _BOUNDS.items():
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high:
                raise BadRecipe(f"{name} = {value!r} is not an integer in {low}..{high}")
        if self.schedule not in SCHEDULES:
            raise BadRecipe(f"schedule {self.schedule!r} is not one of {', '.join(SCHEDULES)}")
        modules = self.target_modules
        if (
            type(modules) is not tuple
            or not modules
            or modules != tuple(p for p in PROJECTIONS if p in modules)
        ):
            raise BadRecipe(f"target_modules must be a non-empty tuple out of {PROJECTIONS}, in that order")

    def to_fields(self) -> tuple[int | str | tuple[str, ...], ...]:
        """The fields in declaration order, for canonical encoding by the caller."""
        return tuple(getattr(self, f.name) for f in fields(self))

    @classmethod
    def from_fields(cls, values: object) -> Recipe:
        """Inverse of `to_fields`; lists stand for tuples as after decoding. Raises BadRecipe."""
        if not isinstance(values, (list, tuple)) or len(values) != len(fields(cls)):
            raise BadRecipe(f"a recipe has {len(fields(cls))} fields")
        named = dict(zip((f.name for f in fields(cls)), values, strict=True))
        modules = named["target_modules"]
        if not isinstance(modules, (list, tuple)) or not all(isinstance(m, str) for m in modules):
            raise BadRecipe("target_modules is not a list of names")
        named["target_modules"] = tuple(modules)
        return cls(**named)
