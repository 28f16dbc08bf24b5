"""The figures: every one of the paper by what it shows, and by number in PAPER.

A function takes statistics (datasets of probes, or nothing where a figure needs no model) and
returns a matplotlib Figure, which names model, text and units and leaves no global state behind.
"""

from rope_study.figures.attention import (
    attention_by_band,
    attention_patterns,
    first_token_by_pair,
    head_kinds,
    logit_by_pair,
)
from rope_study.figures.cycles import encoding_cycles, turning
from rope_study.figures.decay import activation_by_distance, decay
from rope_study.figures.interventions import intervention_effects
from rope_study.figures.theory import prop_3_1, prop_3_2, thm_5_3, thm_6_1, thm_6_1_by_number
from rope_study.figures.training import loss_curves
from rope_study.figures.usage import (
    head_usage,
    norms_by_head,
    norms_by_layer,
    slow_bands,
    usage_by_domain,
    usage_side_by_side,
    value_norms,
)

# The paper's figures and tables. Of Figs. 1, 8, 9, 11, 12, 17 and 18 the captions were not at hand:
# 1, 8 and 9 stand here by the subject of their sections, the others not at all (docs/figures.md).
PAPER = {
    "Fig. 1": (turning,),
    "Fig. 2": (decay, prop_3_2),
    "Fig. 3": (norms_by_layer,),
    "Fig. 4": (norms_by_head,),
    "Fig. 5": (attention_patterns,),
    "Fig. 6": (head_usage,),
    "Fig. 7": (attention_by_band, first_token_by_pair),
    "Fig. 8": (thm_6_1, thm_6_1_by_number),
    "Fig. 9": (encoding_cycles,),
    "Fig. 10": (slow_bands,),
    "Fig. 13": (value_norms,),
    "Fig. 14": (attention_patterns, head_usage),
    "Fig. 15": (attention_patterns, head_usage),
    "Fig. 16": (attention_patterns, head_usage),
    "Fig. 19": (usage_by_domain,),
    "Table 2": (loss_curves, usage_side_by_side),
    "Tables 3 to 5": (logit_by_pair,),
}

__all__ = [
    "PAPER",
    "activation_by_distance",
    "attention_by_band",
    "attention_patterns",
    "decay",
    "encoding_cycles",
    "first_token_by_pair",
    "head_kinds",
    "head_usage",
    "intervention_effects",
    "logit_by_pair",
    "loss_curves",
    "norms_by_head",
    "norms_by_layer",
    "prop_3_1",
    "prop_3_2",
    "slow_bands",
    "thm_5_3",
    "thm_6_1",
    "thm_6_1_by_number",
    "turning",
    "usage_by_domain",
    "usage_side_by_side",
    "value_norms",
]
