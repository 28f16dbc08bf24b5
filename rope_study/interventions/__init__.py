"""Interventions: edits of q and k in a band of rotary pairs, and what they do to a decoder.

from rope_study.interventions import band, measure, ablate
found = measure(decoder, params, [tokens], {"no fast pairs": ablate(band(fastest=0.25))})
"""

from rope_study.interventions.bands import Band, band, band_share, pair_products, random_band
from rope_study.interventions.changes import edit
from rope_study.interventions.edits import Intervention, ablate, permute, rescale, unrotate
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
    "unrotate",
]
