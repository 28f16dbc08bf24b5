"""A study that compiles and trains in seconds, for the tests of whole commands."""

from rope_study.training import settings


def get_config():
    config = settings.default()
    config.encodings = ("rope", "nope")
    config.data.length = 32
    config.data.batch_size = 8
    config.model.preset = "tiny"
    config.train.steps = 6
    config.train.warmup = 1
    config.train.learning_rate = 1e-2
    config.train.checkpoint_every = 2
    config.train.log_every = 1
    config.evaluate.windows = 16
    config.probe.windows = 8
    return config
