"""The figures: every one of the paper by what it shows, and by number in PAPER.

Takes statistics (datasets of probes, or nothing where a figure needs no model); gives a matplotlib
Figure, which names model, text and units and leaves no global state behind. A new figure is a
function that draws with style.py.
"""

from rope_study.figures.attention import (
    attention_by_band,
    attention_patterns,
    first_token_by_pair,
    head_kinds,
    logit_by_pair,
)
from rope_study.figures.construction import construction
from rope_study.figures.cycles import encoding_cycles, turning
from rope_study.figures.decay import decay
from rope_study.figures.differences import paired_differences
from rope_study.figures.evaluation import loss_by_position
from rope_study.figures.interventions import intervention_effects
from rope_study.figures.theory import prop_3_1, prop_3_2, thm_5_3, thm_6_1, thm_6_1_by_number
from rope_study.figures.training import loss_curves
from rope_study.figures.usage import (
    bands_over_steps,
    head_usage,
    norms_by_head,
    norms_by_layer,
    slow_bands,
    usage_by_domain,
    usage_side_by_side,
    value_norms,
)

# What the paper has, by its own name. The captions of Figs. 8, 9, 11, 12, 17 and 18 were not at
# hand, so nothing here claims to be one of them; their sections are covered (docs/figures.md).
PAPER = {
    "Fig. 1": (construction,),
    "Sec. 2": (turning,),
    "Fig. 2": (decay, prop_3_2),
    "Prop. 3.1": (prop_3_1,),
    "Prop. 3.2": (prop_3_2,),
    "Fig. 3": (norms_by_layer,),
    "Fig. 4": (norms_by_head,),
    "Fig. 5": (attention_patterns,),
    "Fig. 6": (head_usage,),
    "Tables 3 to 5": (logit_by_pair,),
    "Thm. 5.3": (thm_5_3,),
    "Fig. 7": (attention_by_band, first_token_by_pair),
    "Thm. 6.1": (thm_6_1, thm_6_1_by_number),
    "Fig. 10": (slow_bands,),
    "Sec. 6.1": (encoding_cycles,),
    "Fig. 13": (value_norms,),
    "Figs. 14 to 16": (attention_patterns, head_usage),
    "Fig. 19": (usage_by_domain,),
}

__all__ = [
    "PAPER",
    "attention_by_band",
    "attention_patterns",
    "bands_over_steps",
    "construction",
    "decay",
    "encoding_cycles",
    "first_token_by_pair",
    "head_kinds",
    "head_usage",
    "intervention_effects",
    "logit_by_pair",
    "loss_by_position",
    "loss_curves",
    "norms_by_head",
    "norms_by_layer",
    "paired_differences",
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
