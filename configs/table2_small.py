"""The seven encodings of the paper's Table 2 at 26M parameters, for one GPU or TPU host.

    python -m rope_study.study --config=configs/table2_small.py --config.data.path=wiki.jsonl

Bytes instead of SentencePiece, 1,024 tokens of context instead of 8,192. Minutes on one H200.
"""

from rope_study.training import settings, table2


def get_config():
    """The paper's rows, in its order."""
    config = settings.default()
    config.workdir = "runs/table2_small"
    config.encodings = table2.ENCODINGS
    config.data.length = 1024
    config.data.batch_size = 32
    config.model.d_model = 512
    config.model.layers = 8
    config.model.heads = 8
    config.model.kv_heads = 8
    config.model.mlp_hidden = 1536
    config.model.compute_dtype = "bfloat16"
    config.train.steps = 1500
    config.train.warmup = 100
    config.train.learning_rate = 1e-3
    config.train.checkpoint_every = 500
    config.evaluate.windows = 1024
    config.probe.windows = 64
    return config
