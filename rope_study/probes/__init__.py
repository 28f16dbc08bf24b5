"""Probes: functions from one layer's activations to additive statistics, run over batches.

Takes a decoder, its parameters and texts; gives xarray datasets with named axes and units. A new
probe is a `Probe`, in a file of this folder or of your own.

`frequency_usage` is a probe as it stands; head_patterns, sinks, massive_values, rotary_outliers and
spectral are functions that make one. The others look at one text. See docs/probes.md.
"""

from rope_study.decoder import Probe
from rope_study.probes.attention_maps import attention_map, attention_maps
from rope_study.probes.collapse import representational_collapse, token_influence
from rope_study.probes.contributions import contribution_map, contributions
from rope_study.probes.frequency_usage import frequency_usage, slow_bands
from rope_study.probes.head_patterns import delimiter_ids, head_patterns, name_heads
from rope_study.probes.massive_values import massive_values
from rope_study.probes.rotary_outliers import rotary_outliers
from rope_study.probes.run import run, save
from rope_study.probes.sinks import perturbation_spread, sinks
from rope_study.probes.spectral import spectral

__all__ = [
    "Probe",
    "attention_map",
    "attention_maps",
    "contribution_map",
    "contributions",
    "delimiter_ids",
    "frequency_usage",
    "head_patterns",
    "massive_values",
    "name_heads",
    "perturbation_spread",
    "representational_collapse",
    "rotary_outliers",
    "run",
    "save",
    "sinks",
    "slow_bands",
    "spectral",
    "token_influence",
]
