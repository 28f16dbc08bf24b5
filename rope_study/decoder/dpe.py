"""DPE at inference: other positions by frequency group for keys that are far away.

Lu et al., "Effective Length Extrapolation via Dimension-Wise Positional Embeddings Manipulation"
(2504.18857). The P = head_dim / 2 pairs, fastest first, fall into groups of equal size. Keys closer
than `window` are read at their true positions; for the others group g turns queries by
floor(i / s_g) + w - w / s_g and keys by floor(j / s_g), so that a pair never meets a distance it
was not trained on.

    decoder, params = checkpoints.load(path, rotary="dpe(scales=(1, 2, 8, 16), window=64)")
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from rope_study import rotary
from rope_study.decoder import attention
from rope_study.decoder.attention_scores import SCORE_FUNCTIONS, ScoreFunction, ScoreInputs
from rope_study.decoder.config import DecoderConfig
from rope_study.errors import UserError
from rope_study.rotary import Encoding, Rotary, name_of
from rope_study.sharding.parameter import Parameter

Array = jax.Array

PAIRS = "dpe_pairs"


@SCORE_FUNCTIONS.add
@dataclasses.dataclass(frozen=True)
class Dpe(ScoreFunction):
    """The logits of DPE, exactly: standard ones below `window`, grouped ones from there on.

    The authors run two attentions and merge them by their log-sum-exp, which is the same softmax.
    Of their two codes this is the prefill, with the real number w - w / s; their decoding rounds it
    down, which is the same where s divides w.

    Attributes:
      scales: s_g, whole numbers, one a group.
      window: w, in tokens.
      selected: True where the parameters say which pairs of which head move (`add_pairs`).
    """

    kind = "dpe"
    scales: tuple[int, ...]
    window: int = 1024
    selected: bool = False

    def __post_init__(self):
        super().__post_init__()
        if not self.scales or min(self.scales) < 1:
            raise UserError(f"dpe: scales={self.scales!r} must be whole numbers of at least 1")
        if self.window < 1:
            raise UserError(f"dpe: window={self.window!r} must be a whole number of at least 1")

    def check(self, encoding: Rotary) -> None:
        """Refuses encodings that are not one fixed vector of frequencies."""
        if not isinstance(encoding, Encoding) or not encoding.relative or encoding.trained:
            raise UserError(f"dpe needs frequencies, which {name_of(encoding)} does not name")

    @classmethod
    def example(cls, head_dim=64):
        """Two groups, beyond four tokens."""
        return cls(scales=(1, 2), window=4)

    def parameters(self, config) -> dict[str, Parameter]:
        """dpe_pairs [N, P], 1 where the pair moves; not trained."""
        shape = (config.heads, config.head_dim // 2)
        return (
            {PAIRS: Parameter(shape, ("heads", None), constant=1.0, decay=False)}
            if self.selected
            else {}
        )

    def keep(self, k, x, w):
        """Every key before rotation [B, T, K, H]."""
        return {"before_rotation": k}

    def __call__(self, logits, mask, inputs: ScoreInputs):
        """f32[B, N, T, S]."""
        q, k, encoding = inputs.q, inputs.keys["before_rotation"], inputs.rotary
        assert isinstance(encoding, Encoding), "see check"
        frequencies = encoding.inverse_frequencies(q.shape[-1])
        key_positions = inputs.keys["positions"]
        groups = frequencies, self.scales, self.window
        for_q = grouped_phases(inputs.positions, *groups, of_queries=True)[..., None, :]
        for_k = grouped_phases(key_positions, *groups, of_queries=False)[..., None, :]
        if self.selected:
            k = jnp.repeat(k, q.shape[2] // k.shape[2], axis=2)
            moves = inputs.w[PAIRS] > 0
            standard = lambda positions: rotary.phases(positions, frequencies)[..., None, :]  # noqa: E731
            for_q = jnp.where(moves, for_q, standard(inputs.positions))
            for_k = jnp.where(moves, for_k, standard(key_positions))
        far = attention.logits(_turn(q, for_q, encoding), _turn(k, for_k, encoding))
        return jnp.where(inputs.distance < self.window, logits, far)


def grouped_phases(
    positions: Array,
    frequencies: np.ndarray,
    scales: tuple[int, ...],
    window: int,
    of_queries: bool,
) -> Array:
    """Angles f32[B or 1, T, P] of queries or of keys for int[B or 1, T] and float64[P]."""
    if len(frequencies) % len(scales):
        raise UserError(
            f"dpe: {len(frequencies)} pairs do not divide into {len(scales)} groups; give"
            " another number of scales"
        )
    phases = []
    for scale, group in zip(scales, np.split(frequencies, len(scales)), strict=True):
        angles = rotary.phases(positions // scale, group)
        if of_queries:
            # On the host in float64: the offset w - w / s need not be a whole number.
            offset = np.mod((window - window / scale) * group, 2 * np.pi)
            angles = angles + offset.astype(np.float32)
        phases.append(angles)
    return jnp.concatenate(phases, axis=-1)


def key_pairs(q_norms: np.ndarray, k_norms: np.ndarray, count: int) -> np.ndarray:
    """bool[L, N, P], the `count` pairs of every layer and head with the largest |q| |k|.

    Args:
      q_norms: mean norms of query pairs [L, N, P], as the frequency_usage probe gives them: layers
        with fewer pairs or key heads than the largest end in NaN.
      k_norms: mean norms of key pairs [L, K, P].
      count: how many pairs move (48 of 64 in the paper).
    """
    heads = q_norms.shape[1]
    present = [keys[~np.isnan(keys).all(axis=-1)] for keys in k_norms]
    read = np.stack([keys[attention.key_heads(heads, len(keys))] for keys in present])
    scores = np.nan_to_num(q_norms * read, nan=-np.inf)
    order = np.argsort(-scores, axis=-1, kind="stable")
    largest = np.zeros(scores.shape, bool)
    np.put_along_axis(largest, order[..., :count], True, axis=-1)
    return largest


def add_pairs(params: dict, config: DecoderConfig, pairs: np.ndarray) -> dict:
    """The parameters with which pairs move, bool[L, N, P], for dpe(..., selected=True)."""
    pairs = np.asarray(pairs, np.float32)
    params = dict(params)
    for group, place, layers in config.layer_groups:
        size = config.of_layer(config.pattern[place]).head_dim // 2
        moved = pairs[layers.start : layers.stop : layers.step, :, :size]
        stacked = moved if group.startswith("pattern") else moved[0]
        params[group] = {**params[group], PAIRS: stacked}
    return params


def _turn(x: Array, angles: Array, encoding: Encoding) -> Array:
    """Turns every pair of x[B, T, N, H] by its angle, broadcastable to [B, T, N, P]."""
    scale = rotary.pair_scale(encoding.inverse_frequencies(x.shape[-1]), encoding.scaling)
    return rotary.turn(x, jnp.cos(angles) * scale, jnp.sin(angles) * scale)
