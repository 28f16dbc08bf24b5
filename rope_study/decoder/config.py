"""The shape of a decoder: its configuration, and what may differ from layer to layer."""

import dataclasses
from typing import Any

import numpy as np

from rope_study.checks import check_fields
from rope_study.decoder.attention_scores import ScoreFunction
from rope_study.decoder.norms import QKNorm, QKNormFixed
from rope_study.decoder.query_scaling import QueryScale
from rope_study.errors import UserError
from rope_study.registry import Component
from rope_study.rotary import Encoding, Rope, Rotary, check_traced

REMAT = ("none", "full", "dots")
DTYPES = ("float32", "bfloat16")
ACTIVATIONS = ("gelu", "silu")
LARGEST = 2**24  # of any size
AUTO, REFERENCE = "auto", "reference"
ATTENTION = (AUTO, "splash", "cudnn", REFERENCE)


@dataclasses.dataclass(frozen=True)
class LayerSpec:
    """What may differ from layer to layer; shapes that are None are the decoder's."""

    rotary: Rotary = dataclasses.field(default_factory=Rope)
    window: int | None = None  # local attention: how many keys, a query's own included; None: all
    chunk: int | None = None  # chunked attention: reads keys of its own chunk of so many positions
    qk_norm: QKNorm | QKNormFixed | None = None
    query_scale: QueryScale | None = None
    score_function: ScoreFunction | None = None
    head_dim: int | None = None
    kv_heads: int | None = None
    mlp_hidden: int | None = None
    value_norm: bool = False  # values are divided by their root mean square (Gemma 4)
    keys_as_values: bool = False  # no projection of its own for values (Gemma 4)
    keys_from: int | None = None  # reads keys and values of that place in the pattern (Gemma 4)

    @property
    def components(self) -> tuple[Component, ...]:
        """Everything but the encoding that may have arrays of its own."""
        optional = (self.qk_norm, self.query_scale, self.score_function)
        return tuple(component for component in optional if component is not None)


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Shapes and precision; `pattern` repeats over the layers (Gemma 1: one global layer)."""

    vocab_size: int
    d_model: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_hidden: int
    pattern: tuple[LayerSpec, ...] = (LayerSpec(),)
    norm_epsilon: float = 1e-6
    norm_offset: float = 1.0  # RMSNorm multiplies by offset + weight: 1 in Gemma 1 to 3, else 0
    post_norms: bool = False  # also normalise what attention and MLP add (from Gemma 2 on)
    activation: str = "gelu"  # of the gated MLP; "silu" in Llama, Mistral and Qwen
    scale_embedding: bool = True  # times sqrt(d_model), in all Gemmas
    tied: bool = True  # the embedding is also the output table
    final_cap: float | None = None  # cap tanh(logits / cap) (Gemma 2, Gemma 4)
    layer_scalar: bool = False  # one number that multiplies a layer's output (Gemma 4)
    per_layer_dim: int = 0  # of the embedding that every layer reads anew; 0: none (Gemma 4)
    per_layer_vocab_size: int = 0  # rows of that embedding
    trained_length: int | None = None  # the most tokens of a text in training, where that is known
    bos: int | None = None  # the token that every text must begin with (released Gemmas)
    document_start: int | None = None  # attention and positions begin anew at this token
    document_end: int | None = None  # or after this one, where no token begins documents
    source: str | None = None  # names the weights, and how they are quantised, in figures
    compute_dtype: str = "float32"
    attention: str = AUTO  # the best backend that runs a layer, or the name of one
    remat: str = "none"  # what the backward pass recomputes: nothing, a layer, or all but products
    scan: bool = True  # compile one repeat of the pattern, not every layer

    def __post_init__(self):
        _check(self)

    def with_rotary(self, encoding: Rotary) -> "DecoderConfig":
        """The same decoder with one encoding in all of its layers."""
        return self.with_layers(rotary=encoding)

    def with_layers(self, **fields: Any) -> "DecoderConfig":
        """The same decoder with these fields of LayerSpec in all of its layers."""
        pattern = tuple(dataclasses.replace(spec, **fields) for spec in self.pattern)
        return dataclasses.replace(self, pattern=pattern)

    def at_most_trained(self, length: int) -> int:
        """`length`, or the trained length where that is less."""
        return length if self.trained_length is None else min(length, self.trained_length)

    def reference_f32(self) -> "DecoderConfig":
        """The same decoder in f32 on the reference backend, which shows every activation."""
        return dataclasses.replace(self, compute_dtype="float32", attention=REFERENCE)

    def of_layer(self, spec: LayerSpec) -> "DecoderConfig":
        """The same decoder with the shapes that this layer has."""
        shapes = {name: getattr(spec, name) for name in ("head_dim", "kv_heads", "mlp_hidden")}
        shapes = {name: size for name, size in shapes.items() if size is not None}
        return dataclasses.replace(self, pattern=(), **shapes) if shapes else self

    @property
    def masks_documents(self) -> bool:
        """Whether documents that share a window do not read each other (decoder/documents.py)."""
        return self.document_start is not None or self.document_end is not None

    @property
    def layer_specs(self) -> tuple[LayerSpec, ...]:
        """One spec a layer, first to last."""
        return tuple(self.pattern[i % len(self.pattern)] for i in range(self.layers))

    @property
    def layer_groups(self) -> tuple[tuple[str, int, range], ...]:
        """(name in the parameters, place in the pattern, its layers) of each place of the pattern.

        Repeats of one place are stacked, in the order of the layers; what is left over is not.
        """
        period = len(self.pattern)
        whole = self.layers // period * period
        repeated = range(period if whole else 0)
        return (
            *((f"pattern_{i}", i, range(i, whole, period)) for i in repeated),
            *(
                (f"remainder_{i}", i, range(whole + i, whole + i + 1))
                for i in range(self.layers - whole)
            ),
        )


def _check(config: DecoderConfig) -> None:
    check_fields(config)
    for name in ("vocab_size", "d_model", "layers", "heads", "kv_heads", "head_dim", "mlp_hidden"):
        size = getattr(config, name)
        if not 1 <= size <= LARGEST:
            least = "least 1" if size < 1 else f"most {LARGEST}"
            raise UserError(f"{name}={size} must be at {least}", name)
    for name in ("norm_epsilon", "final_cap"):
        value = getattr(config, name)
        if value is not None and value < np.finfo(np.float32).tiny:
            raise UserError(f"{name}={value} must be above 0", name)
    if config.head_dim % 2:
        raise UserError(
            f"head_dim={config.head_dim} is odd: rotary pairs need an even head_dim", "head_dim"
        )
    if config.heads % config.kv_heads:
        raise UserError(
            f"heads={config.heads} is not a multiple of kv_heads={config.kv_heads}", "heads"
        )
    for name, allowed in (
        ("compute_dtype", DTYPES),
        ("remat", REMAT),
        ("attention", ATTENTION),
        ("activation", ACTIVATIONS),
    ):
        if getattr(config, name) not in allowed:
            raise UserError(
                f"{name}={getattr(config, name)!r} is not one of {', '.join(allowed)}", name
            )
    for name in ("document_start", "document_end"):
        token = getattr(config, name)
        if token is not None and token >= config.vocab_size:
            raise UserError(f"{name}={token} must be below vocab_size={config.vocab_size}", name)
    for place, spec in enumerate(config.pattern):
        config.of_layer(spec)  # checks the layer's own shapes
        _check_layer(spec, config)
        _check_source(place, config)


def _check_layer(spec: LayerSpec, config: DecoderConfig) -> None:
    check_fields(spec, "pattern")
    for name in ("window", "chunk"):
        value = getattr(spec, name)
        if value is not None and value < 1:
            raise UserError(f"{name}={value} must be at least 1", "pattern")
    if spec.chunk is not None and config.masks_documents:
        raise UserError(
            f"chunk={spec.chunk}: chunks are counted from the start of a window, not of a document,"
            " so documents='masked' has none; give windows, or documents='joined'",
            "documents",
        )
    shapes = config.of_layer(spec)
    arrays: tuple[tuple[str, tuple[int, ...]], ...] = ()
    if isinstance(spec.rotary, Encoding) and spec.rotary.trained:
        trained = spec.rotary.shared_parameters(shapes)
        arrays = tuple((name, parameter.shape) for name, parameter in trained.items())
    for heads in (shapes.heads, shapes.kv_heads):
        check_traced(spec.rotary, heads, shapes.head_dim, config.compute_dtype, arrays)
    if spec.score_function is not None:
        spec.score_function.check(spec.rotary)


def _check_source(place: int, config: DecoderConfig) -> None:
    """A layer reads keys of an earlier place that makes its own, of the same shape."""
    spec = config.pattern[place]
    if spec.keys_from is None:
        return
    earlier = range(place)
    source = config.pattern[spec.keys_from] if spec.keys_from in earlier else None
    shape = (spec.kv_heads, spec.head_dim)
    if (
        source is None
        or source.keys_from is not None
        or (source.kv_heads, source.head_dim) != shape
    ):
        raise UserError(
            f"keys_from={spec.keys_from} at place {place} of the pattern: it must be an earlier"
            " place with keys of its own and the same kv_heads and head_dim"
        )


def check_ids(config: DecoderConfig, ids: np.ndarray) -> None:
    """Refuses ids int[...] that have no row in the embedding."""
    rows = config.vocab_size
    if config.per_layer_dim:
        rows = min(rows, config.per_layer_vocab_size)
    if ids.size and (ids.min() < 0 or ids.max() >= rows):
        raise UserError(
            f"the text has ids from {ids.min()} to {ids.max()}, not 0..{rows - 1}, which the model"
            " has: is the tokenizer another model's, or padding an id of its own?",
            "tokens",
        )
