"""Score functions: biases and other changes between q.k / sqrt(H) and the softmax.

They need all logits at once, so they run on the reference backend only, but for the one that a
kernel has too. B batch, T length, N query heads, K key/value heads, H head_dim, D d_model; i is a
query, j <= i a key, i - j their distance.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from rope_study.errors import UserError
from rope_study.registry import Component, Registry
from rope_study.rotary import Rotary
from rope_study.sharding.parameter import Parameter

Array = jax.Array

SCORE_FUNCTIONS = Registry("score function")


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["positions", "x", "q", "rows", "keys", "w"],
    meta_fields=["rotary"],
)
@dataclasses.dataclass(frozen=True)
class ScoreInputs:
    """What a score function may read besides the logits; S keys, T queries at the end of them.

    Attributes:
      positions: of the queries, int[B or 1, T].
      x: the normed layer input of the queries [B, T, D].
      q: queries before rotation [B, T, N, H], normalised and scaled where the layer does so.
      rows: the places of the queries among the keys, int[T].
      keys: of every key its "positions" int[B or 1, S] and what the function's `keep` gave.
      rotary: the layer's encoding.
      w: the layer's arrays.
    """

    positions: Array
    x: Array
    q: Array
    rows: Array
    keys: Mapping[str, Array]
    rotary: Rotary
    w: Mapping[str, Array]

    def of(self, queries: Array) -> "ScoreInputs":
        """The same for some of the queries, int[t]."""
        take = lambda a: jnp.take(a, queries, axis=1)  # noqa: E731
        return dataclasses.replace(
            self,
            positions=take(self.positions),
            x=take(self.x),
            q=take(self.q),
            rows=self.rows[queries],
        )

    @property
    def distance(self) -> Array:
        """i - j, int[B or 1, 1, T, S]; 0 for keys after the query, so that every log is finite.

        A NaN under the mask would still reach the gradients.
        """
        apart = self.positions[:, :, None] - self.keys["positions"][:, None, :]
        return jnp.maximum(apart, 0)[:, None]


class ScoreFunction(Component):
    """Base class: a subclass changes the logits, or (TRA) takes the whole softmax over."""

    backends = ("reference",)  # of attention, that have it

    def check(self, encoding: Rotary) -> None:
        """Refuses an encoding that it cannot work with."""

    def keep(self, k: Array, x: Array, w: Mapping[str, Array]) -> dict[str, Array]:
        """What it must know of every key, [B, T, ...]; a cache keeps it with the key.

        Args:
          k: keys before rotation [B, T, K, H].
          x: the normed layer input [B, T, D].
          w: the layer's arrays.
        """
        return {}

    def __call__(self, logits: Array, mask: Array, inputs: ScoreInputs) -> Array:
        """What goes into the softmax: logits f32[B, N, T, S], mask bool[T, S] or [B, 1, T, S]."""
        return logits

    def weights(self, logits: Array, mask: Array, inputs: ScoreInputs) -> Array:
        """Attention weights f32[B, N, T, S], 0 where the mask is False."""
        return jax.nn.softmax(jnp.where(mask, self(logits, mask, inputs), -jnp.inf), axis=-1)


# --- functions of the distance ----------------------------------------------------------------


def alibi_slopes(heads: int) -> np.ndarray:
    """float64[N]: 2^(-8h/N) for h = 1..N where N is a power of two.

    Otherwise the slopes of the power of two below N, then the 1st, 3rd, 5th... of the power above
    (Press's code; MPT slices another set, so its models need other slopes).
    """
    below = 2 ** int(math.log2(heads))

    def grid(n: int) -> np.ndarray:
        return 2.0 ** (-8 * np.arange(1, n + 1) / n)

    return np.concatenate([grid(below), grid(2 * below)[::2][: heads - below]])


@SCORE_FUNCTIONS.add
@dataclasses.dataclass(frozen=True)
class Alibi(ScoreFunction):
    """ALiBi (Press et al., ICLR 2022): logits_ij - m_h (i - j), fixed slopes m_h, with NoPE."""

    kind = "alibi"

    def __call__(self, logits, mask, inputs):
        """f32[B, N, T, S]."""
        slopes = alibi_slopes(logits.shape[1]).astype(np.float32)
        return logits - slopes[:, None, None] * inputs.distance


def t5_buckets(count: int, max_distance: int) -> np.ndarray:
    """int[max_distance + 1], the bucket of each distance of a causal decoder.

    The first count / 2 distances have one each; up to max_distance the rest are logarithmic, and
    all beyond share the last.
    """
    exact = count // 2
    distance = np.arange(max_distance + 1)
    ratio = np.log(np.maximum(distance, 1) / exact) / np.log(max_distance / exact)
    # 1e-9: a distance that opens a bucket must not fall into the one before by rounding.
    log = exact + np.floor(ratio * (count - exact) + 1e-9).astype(int)
    return np.where(distance < exact, distance, np.minimum(log, count - 1))


@SCORE_FUNCTIONS.add
@dataclasses.dataclass(frozen=True)
class T5Bias(ScoreFunction):
    """T5's relative bias (Raffel et al. 2020): logits_ij + table[bucket(i - j), h].

    One table for all layers, as T5 shares it from its first. T5 itself has no 1 / sqrt(H) in its
    logits; here they keep it.
    """

    kind = "t5_bias"
    buckets: int = 32
    max_distance: int = 128

    def __post_init__(self):
        super().__post_init__()
        if self.buckets < 2 or self.max_distance <= self.buckets // 2:
            raise UserError(
                f"t5_bias: buckets={self.buckets} must be at least 2 and"
                f" max_distance={self.max_distance} above half of them"
            )

    def shared_parameters(self, config) -> dict[str, Parameter]:
        """t5_bias [buckets, N]."""
        shape = (self.buckets, config.heads)
        return {"t5_bias": Parameter(shape, (None, "heads"), config.d_model, decay=False)}

    def __call__(self, logits, mask, inputs):
        """f32[B, N, T, S]."""
        buckets = jnp.asarray(t5_buckets(self.buckets, self.max_distance))
        bucket = buckets[jnp.minimum(inputs.distance[:, 0], self.max_distance)]
        return logits + jnp.moveaxis(inputs.w["t5_bias"][bucket], -1, 1)


@SCORE_FUNCTIONS.add
@dataclasses.dataclass(frozen=True)
class ScaleInvariant(ScoreFunction):
    """Scale-invariant attention (2505.17083): a_t logits_ij + m_t at distance t = i - j.

    a_t = sqrt(1 + 2 log(1 + t / tau)), m_t = -2 log(1 + t / tau): the paper's form with a_0 = 1 and
    m_0 = 0. It assumes logits of variance 1, which the paper gets from QK-norm, and p-RoPE: with
    plain RoPE it does not extrapolate.
    """

    kind = "scale_invariant"
    tau: float = 10.0

    def __post_init__(self):
        super().__post_init__()
        if not self.tau > 0:
            raise UserError(f"scale_invariant: tau={self.tau} must be positive")

    def __call__(self, logits, mask, inputs):
        """f32[B, N, T, S]."""
        log = jnp.log1p(inputs.distance.astype(jnp.float32) / self.tau)
        return jnp.sqrt(1 + 2 * log) * logits - 2 * log


@SCORE_FUNCTIONS.add
@dataclasses.dataclass(frozen=True)
class SoftCap(ScoreFunction):
    """Gemma 2's soft-capping: cap tanh(logits_ij / cap)."""

    kind = "soft_cap"
    backends = ("splash", "reference")
    cap: float = 50.0

    def __post_init__(self):
        super().__post_init__()
        if not self.cap > 0:
            raise UserError(f"soft_cap: cap={self.cap} must be positive")

    def __call__(self, logits, mask, inputs):
        """f32[B, N, T, S]."""
        return self.cap * jnp.tanh(logits / self.cap)


# --- functions of the text --------------------------------------------------------------------


def _gates(x: Array, weight: Array, bias: Array) -> Array:
    """x W + b in f32: x[B, T, D], weight [D, N], bias [N] -> [B, T, N]."""
    product = jnp.einsum(
        "btd,dn->btn", x.astype(jnp.float32), weight, precision=jax.lax.Precision.HIGHEST
    )
    return product + bias


def _gate_parameters(name: str, config, bias: float = 0.0) -> dict[str, Parameter]:
    return {
        f"{name}_weight": Parameter(
            (config.d_model, config.heads), ("embed", "heads"), config.d_model
        ),
        f"{name}_bias": Parameter((config.heads,), ("heads",), constant=bias, decay=False),
    }


def summed_bias(steps: Array, rows: Array) -> Array:
    """sum_(l = j+1..i) steps_l for steps f32[B, S, N], queries i = rows int[T]: [B, N, T, S].

    Differences of one cumulative sum, which after thousands of tokens is large where its nearby
    differences are not: each total carries the rounding error that plain f32 would lose. Measured
    with steps of CABLE's size at T = 4096, keys closer than 32: 2e-6 off, and 4e-4 without.
    """

    def add(left, right):
        total = left[0] + right[0]
        part = total - left[0]
        lost = (left[0] - (total - part)) + (right[0] - part)  # exactly (Knuth's two-sum)
        return total, left[1] + right[1] + lost

    steps = steps.transpose(0, 2, 1)
    scanned = jax.lax.associative_scan(add, (steps, jnp.zeros_like(steps)), axis=-1)
    total, lost = (part[..., rows, None] - part[..., None, :] for part in scanned)
    return total + lost


@SCORE_FUNCTIONS.add
@dataclasses.dataclass(frozen=True)
class Cable(ScoreFunction):
    """CABLE (2503.08067): logits_ij + c_i - c_j, c = cumsum(-softplus(x W + b)).

    ALiBi whose steps the text decides. The released code divides logits by 1 instead of sqrt(H);
    here they keep the scale.
    """

    kind = "cable"

    def parameters(self, config) -> dict[str, Parameter]:
        """cable_weight [D, N] and cable_bias [N]."""
        return _gate_parameters("cable", config)

    def keep(self, k, x, w):
        """Its step of every token, f32[B, T, N]."""
        return {"steps": -jax.nn.softplus(_gates(x, w["cable_weight"], w["cable_bias"]))}

    def __call__(self, logits, mask, inputs):
        """f32[B, N, T, S]."""
        return logits + summed_bias(inputs.keys["steps"], inputs.rows)


@SCORE_FUNCTIONS.add
@dataclasses.dataclass(frozen=True)
class Fox(ScoreFunction):
    """Forgetting transformer (FoX, Lin et al. 2025, 2503.02130): c = cumsum(log sigmoid(x W + b)).

    logits_ij + c_i - c_j, the same place as CABLE. b starts at 5, so that little is forgotten at
    first (x-transformers).
    """

    kind = "fox"
    bias: float = 5.0

    def parameters(self, config) -> dict[str, Parameter]:
        """fox_weight [D, N] and fox_bias [N]."""
        return _gate_parameters("fox", config, self.bias)

    def keep(self, k, x, w):
        """Its step of every token, f32[B, T, N]."""
        return {"steps": jax.nn.log_sigmoid(_gates(x, w["fox_weight"], w["fox_bias"]))}

    def __call__(self, logits, mask, inputs):
        """f32[B, N, T, S]."""
        return logits + summed_bias(inputs.keys["steps"], inputs.rows)


@SCORE_FUNCTIONS.add
@dataclasses.dataclass(frozen=True)
class Cope(ScoreFunction):
    """Contextual positions (CoPE, Golovneva et al. 2024): positions counted by gates.

    g_ij = sigmoid(logits_ij), p_ij = min(sum_(l = j..i) g_il, positions - 1), and logits_ij +
    q_i.e[p_ij], with e interpolated between whole positions and q_i.e not divided by sqrt(H), as in
    the authors' listing. e starts at 0 and is shared by the heads. q is the query before rotation:
    a rotated one would bring its absolute position in.
    """

    kind = "cope"
    positions: int = 64

    def __post_init__(self):
        super().__post_init__()
        if self.positions < 2:
            raise UserError(f"cope: positions={self.positions} must be at least 2")

    def parameters(self, config) -> dict[str, Parameter]:
        """cope_embedding [positions, H]."""
        return {"cope_embedding": Parameter((self.positions, config.head_dim), (None, None))}

    def __call__(self, logits, mask, inputs):
        """f32[B, N, T, S]."""
        gates = jnp.where(mask, jax.nn.sigmoid(logits), 0.0)  # mask first: no gate is in the future
        position = jnp.cumsum(gates[..., ::-1], axis=-1)[..., ::-1]
        position = jnp.minimum(position, self.positions - 1)
        whole = jnp.einsum(
            "bthd,pd->bhtp", inputs.q.astype(jnp.float32), inputs.w["cope_embedding"],
            precision=jax.lax.Precision.HIGHEST,
        )  # fmt: skip
        below = jnp.floor(position)
        part = position - below
        at = lambda index: jnp.take_along_axis(whole, index.astype(jnp.int32), axis=-1)  # noqa: E731
        return logits + at(below) * (1 - part) + at(jnp.ceil(position)) * part


@SCORE_FUNCTIONS.add
@dataclasses.dataclass(frozen=True)
class Tra(ScoreFunction):
    """Threshold relative attention (TRA, 2503.23174), with NoPE; takes the softmax over.

    s_ij = relu(q_i.k_j / sqrt(H)) with q and k divided by their root mean square. Keys with s = 0
    are dropped. D_ij = log sigmoid(x_i W + b) times the number of kept keys l in j..i, and the
    weights are the softmax of s + D over the kept keys: all 0 where none is kept.
    """

    kind = "tra"

    def parameters(self, config) -> dict[str, Parameter]:
        """tra_weight [D, N] and tra_bias [N]."""
        return _gate_parameters("tra", config)

    def keep(self, k, x, w):
        """1 / rms of every key, f32[B, T, K]."""
        return {"inverse_rms": _inverse_rms(k)}

    def weights(self, logits, mask, inputs):
        """f32[B, N, T, S]."""
        of_q, of_k = _inverse_rms(inputs.q), inputs.keys["inverse_rms"]
        of_k = jnp.repeat(of_k, of_q.shape[-1] // of_k.shape[-1], axis=-1)
        of_q, of_k = of_q.transpose(0, 2, 1), of_k.transpose(0, 2, 1)
        s = jax.nn.relu(logits * of_q[..., :, None] * of_k[..., None, :])
        reads = mask & (s > 0)
        count = jnp.cumsum(reads[..., ::-1], axis=-1)[..., ::-1]
        gate = _gates(inputs.x, inputs.w["tra_weight"], inputs.w["tra_bias"]).transpose(0, 2, 1)
        changed = s + jax.nn.log_sigmoid(gate)[..., None] * count
        # Finite, not -inf: a row with nothing kept would be NaN, and its gradients too.
        weights = jax.nn.softmax(jnp.where(reads, changed, -1e30), axis=-1)
        return jnp.where(reads, weights, 0.0)


def _inverse_rms(x: Array) -> Array:
    """1 / rms of x[B, T, N, H], f32[B, T, N]; rotation does not change it."""
    return jax.lax.rsqrt(jnp.mean(jnp.square(x.astype(jnp.float32)), axis=-1) + 1e-6)
