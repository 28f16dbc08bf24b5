"""Every setting of a run with its default; files in configs/ change some, the command line more."""

import dataclasses
import math

import ml_collections
from ml_collections import config_dict

from rope_study import rotary
from rope_study.decoder import DecoderConfig, presets, variants
from rope_study.errors import UserError

ROTARY = "rope"
VOCABULARY_MULTIPLE = 128  # model vocabularies are rounded up to it, so that they shard evenly


def default() -> ml_collections.ConfigDict:
    """All settings. The tree is locked: assigning a field that is not here raises."""
    config = ml_collections.ConfigDict()
    config.workdir = "runs/study"  # everything a run writes
    config.seed = 0  # initial weights and order of batches
    config.mesh = "fsdp=-1"  # devices along data, fsdp, tensor; -1: the rest
    # What `study` compares, each in all layers: an encoding, or "nope + alibi()" (variants.py);
    # every other command uses model.rotary.
    config.encodings = ("rope", "nope", "p_rope(p=0.75)")

    config.data = data = ml_collections.ConfigDict()
    data.path = "python"  # a file, folder, glob or JSONL; "python": text that ships with Python
    data.tokenizer = "bytes"  # or a path: *.model, tokenizer.json, llama2.c's *.bin, a folder
    data.held_out = 0.1  # fraction of documents kept for evaluation
    data.length = 256  # tokens a sequence
    data.batch_size = 16  # sequences a step, over all devices

    config.model = model = ml_collections.ConfigDict()
    model.preset = "small"  # see rope_study/presets.py; the fields below override it
    model.rotary = ROTARY  # an encoding, "p_rope(p=0.5)", or module:function
    model.pattern = variants.NONE  # of layers, with their encodings: "gemma3(window=64)"
    model.qk_norm = variants.NONE  # the next three in all layers: "qk_norm()"
    model.query_scale = variants.NONE  # "ss_max()"
    model.score_function = variants.NONE  # "alibi()"
    for field in ("d_model", "layers", "heads", "kv_heads", "head_dim", "mlp_hidden"):
        model[field] = config_dict.placeholder(int)
    for field in ("compute_dtype", "attention", "remat", "activation"):
        model[field] = config_dict.placeholder(str)
    for field in ("scan", "post_norms", "tied", "scale_embedding"):
        model[field] = config_dict.placeholder(bool)
    for field in ("norm_offset", "final_cap"):
        model[field] = config_dict.placeholder(float)

    config.train = train = ml_collections.ConfigDict()
    train.steps = 1000
    train.learning_rate = 1e-3  # peak, reached after warmup steps
    train.warmup = 50
    train.final_fraction = 0.1  # of the peak, where the cosine ends
    train.weight_decay = 0.1
    train.b1 = 0.9
    train.b2 = 0.95
    train.clip = 1.0  # largest global gradient norm
    train.checkpoint_every = 200  # steps
    train.log_every = 10  # steps

    config.evaluate = ml_collections.ConfigDict()
    config.evaluate.windows = 512  # held-out sequences, evenly spaced; 0: all
    config.probe = ml_collections.ConfigDict()
    config.probe.windows = 64  # held-out sequences that the probes read
    return config.lock()


def quickstart() -> ml_collections.ConfigDict:
    """The study of `make study`: for two cores, and large enough that the encodings separate."""
    config = default()
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


def check(config: ml_collections.ConfigDict) -> None:
    """Refuses values that no run can use.

    Raises:
      UserError: naming the value, what is allowed and the setting.
    """
    at_least = {
        "data.length": 2, "data.batch_size": 1, "train.steps": 1, "train.warmup": 0,
        "train.checkpoint_every": 1, "train.log_every": 1, "evaluate.windows": 0,
        "probe.windows": 1,
    }  # fmt: skip
    for field, low in at_least.items():
        value = _get(config, field)
        if value < low:
            raise UserError(f"{field}={value} must be at least {low}; set config.{field}")
    for field in ("train.learning_rate", "train.clip"):
        value = _get(config, field)
        if not (value > 0 and math.isfinite(value)):
            raise UserError(f"{field}={value} must be a positive number; set config.{field}")
    if not config.encodings:
        raise UserError("no encodings to compare; set config.encodings, such as ('rope', 'nope')")
    decoder = decoder_config(config, vocab_size=256)
    for encoding in config.encodings:
        variants.apply(decoder, encoding)


def decoder_config(config: ml_collections.ConfigDict, vocab_size: int) -> DecoderConfig:
    """The decoder that `config.model` describes, for a tokenizer of that many ids.

    Raises:
      UserError: unknown preset or encoding, or shapes that do not fit together.
    """
    preset = presets.get(config.model.preset)
    fields = {f.name for f in dataclasses.fields(DecoderConfig)}
    chosen = {
        name: value
        for name, value in config.model.items()
        if name in fields and name != "pattern" and value is not None
    }
    chosen["vocab_size"] = -(-vocab_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
    decoder = dataclasses.replace(preset, **chosen)
    return _with_attention(decoder, config.model)


def _with_attention(decoder: DecoderConfig, model: ml_collections.ConfigDict) -> DecoderConfig:
    """The decoder with the pattern, encoding and parts that the settings name."""
    pattern = variants.part("pattern", model.pattern)
    if pattern is None:
        decoder = decoder.with_rotary(rotary.parse(model.rotary))
    elif model.rotary == ROTARY:
        decoder = dataclasses.replace(decoder, pattern=pattern)
    else:
        raise UserError(
            f"model.rotary={model.rotary!r} and model.pattern={model.pattern!r} both choose the"
            " encoding: give it to the pattern, as in gemma3(global_rotary='p_rope()')"
        )
    parts = {field: variants.part(field, model[field]) for field in variants.PARTS}
    return decoder.with_layers(**{field: part for field, part in parts.items() if part is not None})


def _get(config: ml_collections.ConfigDict, field: str):
    group, name = field.split(".")
    return config[group][name]
