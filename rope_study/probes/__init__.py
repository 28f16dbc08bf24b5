"""Probes: functions from one layer's activations to additive statistics, run over batches.

decoder, params = checkpoints.load("runs/quickstart/rope_theta_10000")
tokens = checkpoints.load_tokenizer("runs/quickstart/rope_theta_10000").encode_batch(texts)
usage = probes.run(decoder, params, [tokens], [probes.frequency_usage])["frequency_usage"]
"""

from rope_study.probes.frequency_usage import frequency_usage
from rope_study.probes.run import Probe, run, save

__all__ = ["Probe", "frequency_usage", "run", "save"]
