"""The paper's statements as functions: each returns the numbers to plot or to assert.

Takes vectors, and encodings or their frequencies; gives NumPy numbers. A new statement is a
function named after its number in Barbero et al., "Round and Round We Go!" (ICLR 2025). float64
NumPy, except Prop. 5.2, which runs the decoder in f32. See docs/theory.md for what the paper
proves, what is proved in the docstrings here, and what is only measured.

Convention: R^i turns a query at i and R^j a key at j, as rope_study.rotary does, so that
(R^i q)^T (R^j k) = q^T R^-(i-j) k. A distance is i - j >= 0: how far the key lies back.
"""

from rope_study.theory.activation import (
    activations,
    fig_2a,
    prop_3_1,
    prop_3_1_key,
    prop_3_2,
    rotate_key,
)
from rope_study.theory.positional import (
    first_layer_attention,
    prop_5_2,
    thm_5_3_attention,
    thm_5_3_context,
    thm_5_3_floor,
    thm_5_3_gaps,
    thm_5_3_norm,
    thm_5_3_norm_bounds,
)
from rope_study.theory.semantic import (
    sec_6_1_channel,
    thm_6_1,
    thm_6_1_bound,
    thm_6_1_bound_any_dimension,
    thm_6_1_pairs,
    thm_6_1_reversal_bound,
    thm_6_1_search,
    thm_6_1_visits,
)

__all__ = [
    "activations",
    "fig_2a",
    "first_layer_attention",
    "prop_3_1",
    "prop_3_1_key",
    "prop_3_2",
    "prop_5_2",
    "rotate_key",
    "sec_6_1_channel",
    "thm_5_3_attention",
    "thm_5_3_context",
    "thm_5_3_floor",
    "thm_5_3_gaps",
    "thm_5_3_norm",
    "thm_5_3_norm_bounds",
    "thm_6_1",
    "thm_6_1_bound",
    "thm_6_1_bound_any_dimension",
    "thm_6_1_pairs",
    "thm_6_1_reversal_bound",
    "thm_6_1_search",
    "thm_6_1_visits",
]
