"""Training: settings to runs, and a run to trained parameters and held-out losses.

Takes a Run (decoder, data, training, seed, folder); gives parameters, checkpoints and metrics.
"""
