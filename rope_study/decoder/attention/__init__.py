"""Causal attention: takes rotated queries, keys and values; gives what each head read.

`reference` can do everything on any device, `splash` and `cudnn` are fast kernels of TPUs and
NVIDIA's GPUs, and `backends` says which of them runs a layer. `context` is the reference where
devices share the length of a text.
"""

from rope_study.decoder.attention.backends import Choice, attend_by, choose, in_words, refusal
from rope_study.decoder.attention.context import weight_sums
from rope_study.decoder.attention.reference import (
    attend,
    causal_mask,
    key_heads,
    logits,
    mix,
    precision,
    probabilities,
)
