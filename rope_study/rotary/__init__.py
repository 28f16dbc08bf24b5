"""Rotary encodings: what the study varies.

Takes head_dim and positions; gives one frequency a pair and the rotation of queries and keys.
To add an encoding, write one class with @ENCODINGS.add in a file of this folder or of your own.
"""

from rope_study.rotary.basic import (
    Nope,
    PartialRope,
    PRope,
    ReversedPRope,
    Rope,
    nope,
    p_rope,
    partial_rope,
    reversed_p_rope,
    rope,
)
from rope_study.rotary.describe import Description, describe, p_star
from rope_study.rotary.encoding import ENCODINGS, Encoding, Rotary, geometric, turned_pairs
from rope_study.rotary.fourier import Fope, fope
from rope_study.rotary.learned import LearnedRope, PinnedRope, learned_rope
from rope_study.rotary.registry import check_named, check_traced, name_of, parse
from rope_study.rotary.rotation import (
    LAYOUTS,
    convert_layout,
    pair_count,
    pair_scale,
    pairs,
    phases,
    rotate,
    turn,
    unpairs,
)
from rope_study.rotary.scaled import (
    DynamicNtkRope,
    HalfTruncatedRope,
    Hope,
    LinearRope,
    Llama3Rope,
    LongRope,
    NtkRope,
    YarnRope,
    dynamic_ntk_rope,
    half_truncated_rope,
    hope,
    linear_rope,
    llama3_rope,
    longrope,
    ntk_rope,
    yarn_rope,
)
