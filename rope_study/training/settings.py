"""Every setting with its default, and the plain values that a configuration stands for.

Files in configs/ change some settings, the command line more. `resolve` reads them once; nothing
after it sees a name to be parsed or a ConfigDict.
"""

import dataclasses
import functools
import hashlib
import inspect
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ml_collections
from ml_collections import config_dict

from rope_study import checkpoints, rotary
from rope_study.checks import check, check_fields
from rope_study.data import DataSettings, Tokenizer, load_tokenizer
from rope_study.data.batches import JOINED
from rope_study.decoder import DecoderConfig, check_vocabulary, presets, variants
from rope_study.errors import UserError
from rope_study.files.paths import to_path
from rope_study.sharding import Rules

# An ml_collections.ConfigDict, whose fields no type checker knows.
Config = Any

NONE = "none"
RUNNING = ("compute_dtype", "attention", "remat", "scan")  # how a decoder is run, not what it is
VOCABULARY_MULTIPLE = 128  # model vocabularies are rounded up to it, so that they shard evenly


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """How a run is trained; see `default` for what each means."""

    steps: int
    learning_rate: float
    warmup: int
    final_fraction: float
    weight_decay: float
    b1: float
    b2: float
    clip: float
    checkpoint_every: int
    log_every: int
    accumulate: int = 1
    profile_steps: range = range(0)  # or as text, "10:13"
    init_from: str = NONE
    keep_last: int = 2
    keep_every: int = 0
    skip_nonfinite: bool = False
    skip_limit: int = 10
    probe_every: int = 0

    def __post_init__(self):
        check_fields(self)
        positive = "steps checkpoint_every log_every accumulate keep_last skip_limit"
        for name in positive.split():
            check_at_least(name, getattr(self, name), 1)
        for name in ("warmup", "keep_every", "probe_every", "weight_decay"):
            check_at_least(name, getattr(self, name), 0)
        for name in ("learning_rate", "clip"):
            value = getattr(self, name)
            if not value > 0:
                raise UserError(f"{name}={value} must be a positive number", name)
        for name, below in {"b1": 1.0, "b2": 1.0, "final_fraction": math.inf}.items():
            value = getattr(self, name)
            if not 0 <= value < below:
                raise UserError(f"{name}={value} must lie from 0 to below {below}", name)
        if self.keep_every % self.checkpoint_every:
            raise UserError(
                f"keep_every={self.keep_every} is no multiple of checkpoint_every="
                f"{self.checkpoint_every}: what is not saved cannot be kept",
                "keep_every",
            )
        object.__setattr__(self, "profile_steps", _step_range(self.profile_steps, self.steps))


@dataclasses.dataclass(frozen=True)
class Run:
    """One training run: all that its result depends on, and where it is written.

    Attributes:
      name: of the variant, canonical.
      folder: gets what docs/studies.md lists: settings, checkpoints, metrics, readings.
    """

    name: str
    folder: Path
    decoder: DecoderConfig
    data: DataSettings
    train: TrainSettings
    seed: int

    @property
    def microbatch(self) -> int:
        """Rows that are on the devices at a time."""
        return self.data.batch_size // self.train.accumulate


@dataclasses.dataclass(frozen=True)
class Study:
    """Runs to compare, encoding by encoding and seed by seed, and how they are read.

    Attributes:
      folder: holds every run's folder, and the results.
      runs: by encoding in the order of the configuration, the seeds of one side by side.
      mesh: devices along data, fsdp, context, tensor.
      rules: which of them split what.
      evaluate_windows: held-out windows whose loss is compared; 0: all.
      probe_windows: held-out windows that the probes read.
      config: all settings as they were written, for results.
    """

    folder: Path
    runs: tuple[Run, ...]
    mesh: str
    rules: Rules
    evaluate_windows: int
    probe_windows: int
    config: dict


def default() -> Config:
    """All settings. The tree is locked: assigning a field that is not here raises."""
    config: Config = ml_collections.ConfigDict()
    config.workdir = "runs/study"  # everything that is written
    config.seeds = (0,)  # initial weights and order of batches; a run each
    config.mesh = "fsdp=-1"  # devices along data, fsdp, context, tensor; -1: the rest
    config.rules = ml_collections.ConfigDict()  # the axes of the mesh that split each logical axis
    for field in dataclasses.fields(Rules):
        config.rules[field.name] = ",".join(getattr(Rules(), field.name))  # embed: "data,fsdp"
    config.encodings = ("rope", "nope", "p_rope(p=0.75)")  # what `study` compares

    config.data = ml_collections.ConfigDict()
    data: Config = config.data
    data.path = "python"  # a file, folder, glob or JSONL; "python": text that ships with Python
    data.tokenizer = "bytes"  # or a path: *.model, tokenizer.json, llama2.c's *.bin, a folder
    data.held_out = 0.1  # fraction of documents kept for evaluation
    data.length = 256  # tokens a sequence
    data.batch_size = 16  # sequences a step, over all devices
    data.documents = "joined"  # a sequence is one text; "masked": documents in it keep apart

    config.model = ml_collections.ConfigDict()
    model: Config = config.model
    model.preset = "small"  # of decoder/presets.py; fields that are given override it
    model.rotary = NONE  # in all layers: "p_rope(p=0.5)", or module:function; rope in presets
    model.pattern = NONE  # of layers, with their encodings: "gemma3(window=64)"
    model.qk_norm = NONE  # in all layers: "qk_norm()"
    model.query_scale = NONE  # in all layers: "ss_max()"
    model.score_function = NONE  # in all layers: "alibi()"
    for field in ("d_model", "layers", "heads", "kv_heads", "head_dim", "mlp_hidden"):
        model[field] = config_dict.placeholder(int)
    for field in ("compute_dtype", "attention", "remat", "activation"):
        model[field] = config_dict.placeholder(str)
    for field in ("scan", "post_norms", "tied", "scale_embedding"):
        model[field] = config_dict.placeholder(bool)
    for field in ("norm_offset", "final_cap"):
        model[field] = config_dict.placeholder(float)

    config.train = ml_collections.ConfigDict()
    train: Config = config.train
    train.steps = 1000
    train.learning_rate = 1e-3  # peak, reached after warmup steps
    train.warmup = 50
    train.final_fraction = 0.1  # of the peak, where the cosine ends
    train.weight_decay = 0.1
    train.b1 = 0.9
    train.b2 = 0.95
    train.clip = 1.0  # largest global gradient norm
    train.checkpoint_every = 200  # steps
    train.keep_last = 2  # checkpoints, the newest
    train.keep_every = 0  # steps, of which the checkpoint is kept for ever; 0: none
    train.log_every = 10  # steps
    train.probe_every = 0  # steps between looks at the use of rotary pairs; 0: none
    train.skip_nonfinite = False  # leave out updates that are NaN or Inf; else they stop the run
    train.skip_limit = 10  # such updates in a row, after which the run stops all the same
    train.init_from = NONE  # a checkpoint whose decoder and weights a run begins with
    train.accumulate = 1  # parts of a batch that run one after the other, where memory is short
    train.profile_steps = NONE  # steps to trace into profile/ of the run: "10:13" is 10, 11, 12

    config.evaluate = ml_collections.ConfigDict()
    config.evaluate.windows = 512  # held-out sequences, evenly spaced; 0: all
    config.probe = ml_collections.ConfigDict()
    config.probe.windows = 64  # held-out sequences that the probes read
    return config.lock()


def meanings() -> dict[str, str]:
    """What the comments of `default` say of each field, by its path."""
    line = re.compile(r"^    (?:config\.)?([\w.]+) = .*?  # (.*)$", re.MULTILINE)
    return dict(line.findall(inspect.getsource(default)))


def resolve(config: Config, encodings: Sequence | None = None) -> Study:
    """The plain values of a configuration: a run for every encoding and seed.

    Args:
      config: as `default` makes it.
      encodings: what to train instead of config.encodings.

    Raises:
      UserError: naming the value, what is allowed and the argument. Nothing was written.
    """
    make_run, base = _run_maker(config), _base_decoder(config)
    encodings = config.encodings if encodings is None else encodings
    if not encodings:
        raise UserError("no encodings to compare: give some, as ('rope', 'nope')", "encodings")
    runs: dict[str, Run] = {}
    for encoding in encodings:
        name, decoder = variants.apply(base, encoding, "encodings")
        for seed in config.seeds:
            folder = f"{folder_name(name)}_seed{seed}"
            if folder in runs:
                raise UserError(
                    f"{runs[folder].name} and {name} would share the folder {folder}:"
                    " name each encoding once",
                    "encodings",
                )
            runs[folder] = make_run(name, folder, decoder, seed, "encodings")
    return _study(config, tuple(runs.values()))


def resolve_one(config: Config, vocab_size: int | None = None) -> Study:
    """The one run of config.model, in config.workdir itself.

    Args:
      config: as `default` makes it.
      vocab_size: instead of the tokenizer's, which need not be there then.

    Raises:
      UserError: as `resolve`, or several seeds.
    """
    if len(config.seeds) != 1:
        raise UserError(
            f"seeds={config.seeds}: one run has one seed, such as (0,); a study takes several",
            "seeds",
        )
    make_run, decoder = _run_maker(config), _base_decoder(config, vocab_size)
    names = dict.fromkeys(variants.name_of(spec) for spec in decoder.pattern)
    return _study(config, (make_run(" / ".join(names), "", decoder, config.seeds[0], "rotary"),))


def _run_maker(config: Config) -> Callable[[str, str, DecoderConfig, int, str], Run]:
    """(name, folder in workdir, decoder, seed, what named its encoding) -> a run."""
    data = DataSettings(**config.data.to_dict())
    train = TrainSettings(**config.train.to_dict())
    _check_seeds(config.seeds)

    def make_run(name: str, folder: str, decoder: DecoderConfig, seed: int, argument: str) -> Run:
        for spec in decoder.pattern:
            rotary.check_named(spec.rotary, argument)
        return Run(name, _workdir(config) / folder, decoder, data, train, seed)

    return make_run


def _study(config: Config, runs: tuple[Run, ...]) -> Study:
    check("evaluate.windows", config.evaluate.windows, int)
    check("probe.windows", config.probe.windows, int)
    check_at_least("probe.windows", config.probe.windows, 1)
    settings = config.copy_and_resolve_references().to_dict()
    return Study(
        _workdir(config), runs, config.mesh, Rules(**config.rules), config.evaluate.windows,
        config.probe.windows, settings,
    )  # fmt: skip


def _workdir(config: Config) -> Path:
    return to_path(config.workdir, "workdir")


def folder_name(name: str) -> str:
    """An encoding's name as a folder: p_rope(p=0.75, theta=10000) -> p_rope_p0.75_theta10000.

    File systems take 255 bytes: a longer name (LongRoPE's factors) ends in a digest instead.
    """
    folder = re.sub(r"[^A-Za-z0-9.]+", "_", name.replace("=", "")).strip("_")
    if len(folder) <= 200:
        return folder
    return f"{folder[:100]}_{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def _base_decoder(config: Config, vocab_size: int | None = None) -> DecoderConfig:
    """The decoder before a variant changes it, which knows the length that it is trained on."""
    length, load = config.data.length, functools.partial(load_tokenizer, config.data.tokenizer)
    if config.train.init_from != NONE:
        decoder = _checkpoint_decoder(config, tokenizer := load())
        length = max(length, decoder.trained_length or 0)
        decoder = _with_components(decoder, config.model)
    elif vocab_size is None:
        decoder = decoder_config(config.model, (tokenizer := load()).vocab_size)
    else:
        tokenizer, decoder = None, decoder_config(config.model, vocab_size)
    separators = _separators(config.data.documents, tokenizer)
    return dataclasses.replace(decoder, trained_length=length, **separators)


def _separators(documents: str, tokenizer: Tokenizer | None) -> dict[str, int | None]:
    """The tokens that part documents in a window, where these do not read each other."""
    if documents == JOINED:
        return {"document_start": None, "document_end": None}
    if tokenizer is None:  # of a program that is only compiled, whichever
        return {"document_start": 0, "document_end": None}
    start, separator = tokenizer.bos, tokenizer.separator
    return {"document_start": start, "document_end": separator if start is None else None}


def _checkpoint_decoder(config: Config, tokenizer: Tokenizer) -> DecoderConfig:
    """The decoder of train.init_from; UserError where other settings say that it is another."""
    path, model = config.train.init_from, config.model
    decoder = checkpoints.load_config(path)
    _check_shapes(config, decoder, tokenizer)
    trained = checkpoints.load_tokenizer(path)
    if trained.fingerprint != tokenizer.fingerprint:
        raise UserError(
            f"tokenizer={tokenizer.name!r} is not the one that {path} was trained with: give its"
            " own, a file or the folder it lies in",
            "tokenizer",
        )
    check_vocabulary(decoder, tokenizer)
    running = {name: model[name] for name in RUNNING if model[name] is not None}
    origin = ", ".join(filter(None, (f"continued from {path}", decoder.source)))
    return dataclasses.replace(decoder, source=origin, **running)


def _check_shapes(config: Config, decoder: DecoderConfig, tokenizer: Tokenizer) -> None:
    """Refuses shapes of config.model, where it gives any, that are not the checkpoint's."""
    asked, defaults = config.model, default().model
    free = {*RUNNING, *variants.REGISTRIES}
    given = [name for name in defaults if name not in free and asked[name] != defaults[name]]
    if not given:
        return
    described = decoder_config(asked, tokenizer.vocab_size)
    fields = [name for name in defaults if name not in free] if "preset" in given else given
    for name in filter("preset".__ne__, fields):
        there, here = getattr(decoder, name), getattr(described, name)
        if there != here:
            raise UserError(
                f"{name}={here} by config.model, and {there} in {config.train.init_from}, whose"
                " shapes the run has: leave it out",
                name if name in given else "preset",
            )


def decoder_config(model: Config, vocab_size: int) -> DecoderConfig:
    """The decoder that `config.model` describes, for a tokenizer of that many ids.

    Raises:
      UserError: unknown preset or encoding, or shapes that do not fit together.
    """
    shapes = {f.name for f in dataclasses.fields(DecoderConfig)} - {"pattern"}
    changes = {k: v for k, v in model.items() if k in shapes and v is not None}
    changes["vocab_size"] = -(-vocab_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
    decoder = dataclasses.replace(presets.PRESETS.make(model.preset, "preset"), **changes)
    return _with_components(decoder, model)


def _with_components(decoder: DecoderConfig, model: Config) -> DecoderConfig:
    """The decoder with the pattern, encoding and components that `config.model` names."""
    given = {field: model[field] for field in variants.REGISTRIES if model[field] != NONE}
    if given.keys() >= {"pattern", "rotary"}:
        raise UserError(
            f"rotary={model.rotary!r} and pattern={model.pattern!r} both choose the encoding: give"
            " it to the pattern, as in gemma3(global_rotary='p_rope()')",
            "pattern",
        )
    read = {"rotary": rotary.parse}  # which also knows module:function
    return variants.change(
        decoder,
        {
            field: read.get(field, variants.REGISTRIES[field].make)(text, field)
            for field, text in given.items()
        },
    )


def check_at_least(name: str, value: float, least: float) -> None:
    """Refuses a number below `least`."""
    if value < least:
        raise UserError(f"{name}={value} must be at least {least}", name)


def _step_range(steps: str | range, total: int) -> range:
    """The steps that "first:stop" means, of 0..total-1; "none" are none."""
    if isinstance(steps, range) or steps == NONE:
        return steps if isinstance(steps, range) else range(0)
    numbers = re.fullmatch(r"(\d+):(\d+)", steps)
    parsed = range(*map(int, numbers.groups())) if numbers else range(0)
    if not parsed or parsed.stop > total:
        raise UserError(
            f"profile_steps={steps!r} must be first:stop within the steps 0:{total}, such as"
            f" '{max(total - 3, 0)}:{total}', or {NONE!r}",
            "profile_steps",
        )
    return parsed


def _check_seeds(seeds: Sequence[int]) -> None:
    check("seeds", seeds, Sequence[int])
    if not seeds or len(set(seeds)) < len(seeds):
        raise UserError(
            f"seeds={seeds} must be different whole numbers from 0 on, such as (0, 1, 2)", "seeds"
        )
