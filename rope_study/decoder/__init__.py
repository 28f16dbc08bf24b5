"""The Gemma-like decoder: arrays in, arrays out.

Takes tokens, parameters and a DecoderConfig; gives logits, losses, text, and what probes measured.
inputs.py checks what they are given. Norms, query scales, score functions and layer patterns are
added to their registries.
"""

from rope_study.decoder.config import DecoderConfig, LayerSpec, check_ids
from rope_study.decoder.decoder import (
    Decoder,
    parameter_count,
    parameter_tree,
)
from rope_study.decoder.hooks import CONSTANTS, HOOK_POINTS, Edit, Probe
from rope_study.decoder.inputs import (
    check_bos,
    check_length,
    check_params,
    check_text,
    check_tokens,
    check_vocabulary,
    each_batch,
    each_pair,
)
from rope_study.decoder.layout import fit_layout, layout_of
