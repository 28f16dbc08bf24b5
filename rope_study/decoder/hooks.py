"""Hook points: what a layer shows while it runs, and the probes and edits that meet it there.

A layer passes each named activation through `hook(name, value) -> value`. A probe reads there and
returns sums; an edit returns another value. B batch, T tokens, S keys, D d_model, N query heads,
K key/value heads, H head_dim.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax

from rope_study.checks import check_fields
from rope_study.errors import UserError

Array = jax.Array

HOOK_POINTS = {
    "q": "queries before rotation, normalised and scaled where the layer does so [B, T, N, H]",
    "k": "keys before rotation, normalised where the layer does so [B, T, K, H]",
    "v": "values [B, T, K, H]",
    "q_rotated": "queries after rotation [B, T, N, H]",
    "k_rotated": "keys after rotation [B, T, K, H]",
    "attention": "attention weights, block by block: a function, see `SumOverWeights`",
    "attention_output": "what each head read, before the output projection [B, T, N, H]",
    "residual": "the residual stream after the layer [B, T, D]",
}

# What probes may read besides: it belongs to the text and the layer, and no edit changes it.
CONSTANTS = {
    "tokens": "the ids of the text int[B, T]",
    "key_counts": "how many keys a query may read, itself and those right before it int[T]; of a"
    " window of several documents that keep apart, as if it were one",
}

# sum_over_weights(reduce, *arrays) sums reduce(weights f32[B, N, t, S], queries int[t], *arrays)
# over blocks of the T queries: the weights that the layer itself uses, no more than a block held
# at a time. Pass arrays [B, S, ...] or [S] that reduce reads rather than close over them: where
# devices share the length, each then gets them whole once, and not again for every block.
SumOverWeights = Callable[..., Any]

Hook = Callable[[str, Any], Any]

# (name, layer index, value) -> value: replaces an activation, for interventions.
Edit = Callable[[str, Array, Array], Array]


@dataclasses.dataclass(frozen=True)
class Probe:
    """Reads activations by name and sums; a value that no probe reads costs nothing.

    Attributes:
      name: key of its results.
      reads: the activations it needs, of HOOK_POINTS and CONSTANTS. Without "residual" it is
        measured before the layer's MLP, so that q and k are not held through it.
      measure: ({name: activation}, weights f32[B, T]) -> a tree of sums and counts for one layer,
        which add up over batches and hosts; padding has weight 0.
      finalize: (the sums in float64, one tree a layer; context T; decoder configuration) -> an
        xarray.Dataset with named axes and units; None where the sums are all that is wanted.
    """

    name: str
    reads: tuple[str, ...]
    measure: Callable[[Mapping[str, Any], Array], Any] = dataclasses.field(repr=False)
    finalize: Callable[[list, int, Any], Any] | None = dataclasses.field(default=None, repr=False)

    def __post_init__(self):
        check_fields(self)
        for name in self.reads:
            if name not in HOOK_POINTS and name not in CONSTANTS:
                raise UserError(
                    f"probe {self.name!r} reads {name!r}, which no layer has:"
                    f" {', '.join([*HOOK_POINTS, *CONSTANTS])}"
                )
