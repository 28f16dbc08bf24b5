"""Interventions: edits of q and k in a band of rotary pairs, and what they do to a decoder.

Takes a decoder, its parameters and batches of text; gives an edit for any forward pass, and by
`measure` losses, attention and copying beside the plain decoder's. A new kind of edit is a function
in edits.py; a new choice of pairs is a `Band`. See docs/interventions.md.
"""

from rope_study.interventions.bands import Band, band, band_share, pair_products, random_band
from rope_study.interventions.changes import edit
from rope_study.interventions.edits import Intervention, ablate, permute, rescale, unrotate
from rope_study.interventions.losses import token_losses
from rope_study.interventions.measurement import measure, repeated_sequences

__all__ = [
    "Band",
    "Intervention",
    "ablate",
    "band",
    "band_share",
    "edit",
    "measure",
    "pair_products",
    "permute",
    "random_band",
    "repeated_sequences",
    "rescale",
    "token_losses",
    "unrotate",
]
