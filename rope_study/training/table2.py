"""The paper's Table 2: its seven encodings, and Gemma 2B trained from scratch as it was there."""

from rope_study.training import settings

# The rows of the table, in its order.
ENCODINGS = (
    "nope",
    "rope(theta=10_000)",
    "rope(theta=500_000)",
    "reversed_p_rope(p=0.75)",
    "partial_rope(p=0.75)",
    "p_rope(p=0.25)",
    "p_rope(p=0.75)",
)


def gemma_2b() -> settings.Config:
    """Gemma 2B, 10,000 steps of 512 x 8,192 tokens, 10 % of the documents held out.

    The paper gives no more: optimizer, learning rate and number of windows evaluated are ours.
    """
    config = settings.default()
    config.encodings = ENCODINGS
    config.data.tokenizer = "tokenizer.model"
    config.data.held_out = 0.1
    config.data.length = 8192
    config.data.batch_size = 512
    config.model.preset = "gemma_2b"
    config.train.steps = 10_000
    config.train.accumulate = 32  # a row at a time on each of 16 chips
    config.train.learning_rate = 5e-4
    config.train.warmup = 500
    config.train.checkpoint_every = 250
    config.evaluate.windows = 4096
    return config
