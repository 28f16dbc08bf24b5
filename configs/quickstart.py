"""RoPE, NoPE and 0.75-RoPE on text that ships with Python: minutes on two CPU cores.

python -m rope_study.study --config=configs/quickstart.py
"""

from rope_study import config as config_lib


def get_config():
    """Small enough for two cores, large enough that the encodings separate."""
    config = config_lib.default()
    config.workdir = "runs/quickstart"
    config.encodings = ("rope", "nope", "p_rope(p=0.75)")
    config.data.batch_size = 8
    config.train.steps = 250
    config.train.warmup = 25
    config.train.learning_rate = 3e-3
    config.train.checkpoint_every = 50
    config.train.log_every = 1
    config.evaluate.windows = 256
    config.probe.windows = 32
    return config
