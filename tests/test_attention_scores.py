"""Score functions, query scales and QK-norm against direct float64 statements of their formulas."""

import dataclasses
import itertools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from random_parameters import random_parameters

from rope_study import rotary
from rope_study.decoder import (
    Decoder,
    attention,
    attention_scores,
    dpe,
    norms,
    presets,
    query_scaling,
    variants,
)
from rope_study.decoder.layer import layer_parameters, shared_parameters
from rope_study.errors import UserError
from rope_study.sharding.parameter import Parameter

B, T, N, K, H, D = 2, 12, 4, 2, 8, 10
SHAPES = dataclasses.replace(
    presets.tiny(), d_model=D, heads=N, kv_heads=K, head_dim=H, vocab_size=128
)


NOPE = rotary.nope()


@pytest.fixture(scope="module")
def arrays():
    """Random q, k, x in f32."""
    keys = jax.random.split(jax.random.key(3), 3)
    shapes = {"q": (B, T, N, H), "k": (B, T, K, H), "x": (B, T, D)}
    return {
        name: 1.5 * jax.random.normal(key, shape)
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def random_weights(part, seed=5):
    declared = part.parameters(SHAPES) | part.shared_parameters(SHAPES)
    keys = jax.random.split(jax.random.key(seed), max(len(declared), 1))
    return {
        name: jax.random.normal(key, p.shape)
        for key, (name, p) in zip(keys, declared.items(), strict=False)
    }


def make_inputs(part, arrays, w, rotary_=NOPE):
    """As a layer makes them without a cache."""
    positions, rows = jnp.arange(T)[None], jnp.arange(T)
    keys = {"positions": positions, **part.keep(arrays["k"], arrays["x"], w)}
    return attention_scores.ScoreInputs(positions, arrays["x"], arrays["q"], rows, keys, rotary_, w)


def got_weights(part, arrays, w, window=None, rotary_=NOPE):
    """What the project computes: f32[B, N, T, T]."""
    positions = jnp.arange(T)[None]
    q, k = rotary_(arrays["q"], positions), rotary_(arrays["k"], positions)
    inputs = make_inputs(part, arrays, w, rotary_)
    softmax = lambda values, mask, _: part.weights(values, mask, inputs)  # noqa: E731
    return attention.probabilities(q, k, window, softmax=softmax)


def got_logits(part, arrays, w):
    """The logits before the softmax, with NoPE: f32[B, N, T, T]."""
    inputs = make_inputs(part, arrays, w)
    plain = attention.logits(arrays["q"], arrays["k"])
    return part(plain, attention.causal_mask(T), inputs)


def float64(tree):
    return {name: np.asarray(value, np.float64) for name, value in tree.items()}


def stated_logits(changed_logit, arrays, window=None):
    """float64[B, N, T, T]: changed_logit(logit, b, h, i, j), -inf where i does not read j."""
    q, k = np.asarray(arrays["q"], np.float64), np.asarray(arrays["k"], np.float64)
    stated = np.full((B, N, T, T), -np.inf)
    for b, h, i in np.ndindex(B, N, T):
        for j in range(0 if window is None else max(0, i - window + 1), i + 1):
            logit = q[b, i, h] @ k[b, j, h // 2] / math.sqrt(H)
            stated[b, h, i, j] = changed_logit(logit, b, h, i, j)
    return stated


def softmax_of(changed_logit, arrays, window=None):
    """float64[B, N, T, T]: the softmax over j."""
    weights = np.exp(stated_logits(changed_logit, arrays, window))
    return weights / weights.sum(axis=-1, keepdims=True)


# --- float64 statements of the formulas -------------------------------------------------------


def sigmoid(z):
    return 1 / (1 + math.exp(-z))


def state_alibi(arrays, w):
    return lambda logit, b, h, i, j: logit - 2.0 ** (-8 * (h + 1) / N) * (i - j)


def state_t5_bias(arrays, w):
    def bucket(distance):  # buckets=8, max_distance=10
        if distance < 4:
            return distance
        return min(7, 4 + int(math.log(distance / 4) / math.log(10 / 4) * 4))

    return lambda logit, b, h, i, j: logit + w["t5_bias"][bucket(i - j), h]


def state_scale_invariant(arrays, w):
    def changed(logit, b, h, i, j):
        alpha = beta = math.exp(0.5)  # the paper's form before it is simplified
        log = math.log((i - j) / 10 + 1)
        a = math.sqrt(2 * (log - math.log(alpha) + beta / alpha))
        return a * logit + (-(a**2) + beta / alpha)

    return changed


def state_soft_cap(arrays, w):
    return lambda logit, b, h, i, j: 2 * math.tanh(logit / 2)


def gate(arrays, w, name, b, h, t):
    x = np.asarray(arrays["x"], np.float64)[b, t]
    return x @ w[f"{name}_weight"][:, h] + w[f"{name}_bias"][h]


def state_cable(arrays, w):
    def changed(logit, b, h, i, j):
        return logit + sum(
            -math.log1p(math.exp(gate(arrays, w, "cable", b, h, t))) for t in range(j + 1, i + 1)
        )

    return changed


def state_fox(arrays, w):
    def changed(logit, b, h, i, j):
        return logit + sum(
            math.log(sigmoid(gate(arrays, w, "fox", b, h, t))) for t in range(j + 1, i + 1)
        )

    return changed


def state_cope(arrays, w):
    q, k = np.asarray(arrays["q"], np.float64), np.asarray(arrays["k"], np.float64)

    def changed(logit, b, h, i, j):
        gates = [sigmoid(q[b, i, h] @ k[b, t, h // 2] / math.sqrt(H)) for t in range(j, i + 1)]
        position = min(sum(gates), 5 - 1)
        below, above = math.floor(position), math.ceil(position)
        e = w["cope_embedding"]
        part = position - below
        return logit + (1 - part) * (q[b, i, h] @ e[below]) + part * (q[b, i, h] @ e[above])

    return changed


FUNCTIONS = {
    "alibi": (attention_scores.Alibi(), state_alibi),
    "t5_bias": (attention_scores.T5Bias(buckets=8, max_distance=10), state_t5_bias),
    "scale_invariant": (attention_scores.ScaleInvariant(), state_scale_invariant),
    "soft_cap": (attention_scores.SoftCap(2.0), state_soft_cap),
    "cable": (attention_scores.Cable(), state_cable),
    "fox": (attention_scores.Fox(), state_fox),
    "cope": (attention_scores.Cope(positions=5), state_cope),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_logit_function_equals_its_float64_statement(name, arrays):
    """Both the logits and the weights that come of them."""
    part, state = FUNCTIONS[name]
    w = random_weights(part)
    changed = state(arrays, float64(w))
    logit, weights = got_logits(part, arrays, w), got_weights(part, arrays, w)
    stated = stated_logits(changed, arrays)
    reads = np.isfinite(stated)
    assert reads.sum() == B * N * T * (T + 1) / 2
    np.testing.assert_allclose(np.asarray(logit)[reads], stated[reads], rtol=0, atol=1e-5)
    np.testing.assert_allclose(weights, softmax_of(changed, arrays), rtol=0, atol=1e-5)


def test_cope_counts_no_gate_outside_the_window(arrays):
    part = attention_scores.Cope(positions=5)
    w = random_weights(part)
    expected = softmax_of(state_cope(arrays, float64(w)), arrays, window=4)
    np.testing.assert_allclose(got_weights(part, arrays, w, window=4), expected, atol=1e-5)


def test_every_logit_function_is_tested():
    assert {*FUNCTIONS, "tra", "dpe"} == set(attention_scores.SCORE_FUNCTIONS)


def test_tra_equals_its_float64_statement(arrays):
    """Normalised q and k, relu, dropped keys, and rows of zeros where no key is kept."""
    part = attention_scores.Tra()
    w = random_weights(part)
    got = got_weights(part, arrays, w)
    q, k, w = np.asarray(arrays["q"], np.float64), np.asarray(arrays["k"], np.float64), float64(w)
    q, k = (a / np.sqrt(np.mean(a**2, axis=-1, keepdims=True) + 1e-6) for a in (q, k))
    expected = np.zeros((B, N, T, T))
    for b, h, i in np.ndindex(B, N, T):
        s = [max(0.0, q[b, i, h] @ k[b, j, h // 2] / math.sqrt(H)) for j in range(i + 1)]
        delta = math.log(sigmoid(gate(arrays, w, "tra", b, h, i)))
        kept_keys = [j for j in range(i + 1) if s[j] > 0]
        if kept_keys:
            row = [s[j] + delta * sum(1 for t in kept_keys if t >= j) for j in kept_keys]
            expected[b, h, i, kept_keys] = np.exp(row) / np.sum(np.exp(row))
    assert (expected.sum(axis=-1) == 0).any(), "the case must have an empty row"
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)


def test_sums_of_steps_keep_their_digits_over_long_contexts():
    """Nearby differences of a total of thousands, under jit as in training."""
    steps = -jax.nn.softplus(jax.random.normal(jax.random.key(0), (1, 4096, 1)))
    total = np.cumsum(np.asarray(steps, np.float64)[..., 0], axis=-1)
    expected = total[:, None, :, None] - total[:, None, None, :]
    got = np.asarray(jax.jit(attention_scores.summed_bias)(steps, jnp.arange(4096)))
    i, j = np.indices((4096, 4096))
    near = (j <= i) & (i - j < 32)
    assert total.min() < -3000
    np.testing.assert_allclose(got[..., near], expected[..., near], rtol=0, atol=1e-5)
    np.testing.assert_allclose(got[..., j < i], expected[..., j < i], rtol=1e-6)


@pytest.mark.parametrize(
    "heads, above",
    [(8, []), (12, [0.5, 1.5, 2.5, 3.5]), (16, None), (20, [0.25, 0.75, 1.25, 1.75])],
)
def test_alibi_slopes_follow_press(heads, above):
    """Powers of two, and then the odd places of the next grid."""
    below = {8: 8, 12: 8, 16: 16, 20: 16}[heads]
    expected = [2 ** (-8 * h / below) for h in range(1, below + 1)]
    expected += [2**-exponent for exponent in above or []]
    np.testing.assert_allclose(attention_scores.alibi_slopes(heads), expected, rtol=1e-15)


def test_t5_buckets_are_those_of_transformers():
    """Bucket of distance 0..140 as transformers 5.23 gives it, by where each bucket begins."""
    begins = [*range(16), 16, 19, 21, 24, 27, 31, 35, 40, 46, 52, 59, 67, 77, 87, 99, 113]
    expected = [sum(d >= b for b in begins) - 1 for d in range(129)]
    np.testing.assert_array_equal(attention_scores.t5_buckets(32, 128), expected)


# --- query scales and QK-norm -----------------------------------------------------------------

POSITIONS = np.array([0, 1, 2, 4094, 8190, 8191, 8192, 16383, 100_000])


def state_scales(n_limit=None):
    n = POSITIONS + 1.0
    n = n if n_limit is None else np.minimum(n, n_limit)
    s = np.array([0.5, 1.0, 2.0, -1.0])
    return {
        "log_n": (query_scaling.LogN(), np.log(n)[:, None]),
        "qwen": (
            query_scaling.LogN(4096),
            np.array([[math.log(m, 4096) if m > 4096 else 1.0] for m in n]),
        ),
        "ss_max": (query_scaling.SSMax(), s * np.log(n)[:, None]),
        "llama4": (
            query_scaling.Llama4Temperature(),
            np.array([[1 + 0.1 * math.log(1 + (p + 1) // 8192)] for p in POSITIONS]),
        ),
        "logit_scale": (query_scaling.LogitScale(0.25), np.full((1, 1), 0.25 * math.sqrt(H))),
    }


@pytest.mark.parametrize("window", [None, 4096])
@pytest.mark.parametrize("name", state_scales())
def test_query_scale_equals_its_float64_statement(name, window):
    part, expected = state_scales(window)[name]
    q = jnp.ones((1, len(POSITIONS), 4, H))
    w = {"ss_max_scale": jnp.array([0.5, 1.0, 2.0, -1.0])}
    positions = jnp.asarray(POSITIONS)[None]
    got = part(q, positions, query_scaling.keys_read(positions, window, None), w)
    expected = np.broadcast_to(expected[None, ..., None], got.shape)
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-5)


def test_keys_read_counts_the_mask():
    """In full, local and chunked attention: the row sums of the causal mask."""
    for window, chunk in [(None, None), (5, None), (None, 4), (3, 4)]:
        expected = attention.causal_mask(15, None, window, chunk).sum(axis=1)
        got = query_scaling.keys_read(jnp.arange(15)[None], window, chunk)[0]
        np.testing.assert_array_equal(got, expected)


def test_chunks_read_their_own_chunk_only():
    expected = [[t // 3 == s // 3 and s <= t for s in range(8)] for t in range(8)]
    np.testing.assert_array_equal(attention.causal_mask(8, chunk=3), expected)


def test_query_scale_multiplies_logits(arrays):
    positions = jnp.arange(T)[None]
    part = query_scaling.LogN()
    q = part(arrays["q"], positions, query_scaling.keys_read(positions, None, None), {})
    expected = softmax_of(lambda logit, b, h, i, j: logit * math.log(i + 1), arrays)
    np.testing.assert_allclose(attention.probabilities(q, arrays["k"]), expected, atol=1e-5)


def test_qk_norm_equals_its_float64_statement(arrays):
    w = {"q_norm": jnp.linspace(-0.5, 0.5, H), "k_norm": jnp.linspace(1, 2, H)}
    for name, offset in itertools.product("qk", (0.0, 1.0)):
        config = dataclasses.replace(SHAPES, norm_offset=offset)
        x, scale = np.asarray(arrays[name], np.float64), np.asarray(w[f"{name}_norm"])
        expected = x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6) * (offset + scale)
        got = norms.QKNorm()(arrays[name], w, name, config)
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)


def test_fixed_qk_norm_is_the_same_before_and_after_rotation(arrays):
    positions = jnp.arange(T)[None]
    rope, fixed = rotary.rope(), norms.QKNormFixed()
    before = fixed(arrays["q"], {}, "q", SHAPES)
    after = fixed(rope(arrays["q"], positions), {}, "q", SHAPES)
    np.testing.assert_allclose(rope(before, positions), after, atol=1e-5)


# --- DPE --------------------------------------------------------------------------------------


def turned(x, position, frequencies):
    """float64: pair p of x turned by position[p] * frequencies[p]."""
    half = len(x) // 2
    z = (x[:half] + 1j * x[half:]) * np.exp(1j * position * frequencies)
    return np.concatenate([z.real, z.imag])


@pytest.mark.parametrize("selected", [False, True])
def test_dpe_equals_its_float64_statement(selected, arrays):
    """Scales that do not divide the window, two groups of two pairs."""
    scales, window, encoding = (3, 2), 4, rotary.rope(100.0)
    part = dpe.Dpe(scales, window, selected)
    moves = np.ones((N, H // 2), bool)
    w = {}
    if selected:
        moves = np.random.default_rng(0).random((N, H // 2)) < 0.5
        w = {dpe.PAIRS: jnp.asarray(moves, jnp.float32)}
    got = got_weights(part, arrays, w, rotary_=encoding)
    q, k = np.asarray(arrays["q"], np.float64), np.asarray(arrays["k"], np.float64)
    g = encoding.inverse_frequencies(H)
    s = np.repeat(scales, H // 2 // len(scales))

    def changed(_, b, h, i, j):
        at_i, at_j = np.full(H // 2, float(i)), np.full(H // 2, float(j))
        if i - j >= window:
            at_i = np.where(moves[h], i // s + window - window / s, at_i)
            at_j = np.where(moves[h], j // s, at_j)
        return turned(q[b, i, h], at_i, g) @ turned(k[b, j, h // 2], at_j, g) / math.sqrt(H)

    np.testing.assert_allclose(got, softmax_of(changed, arrays), rtol=0, atol=1e-5)


def test_dpe_runs_a_trained_decoder():
    """Scales of 1 change nothing, larger ones only what is beyond the window; pairs by layer."""
    config = dataclasses.replace(presets.tiny(), layers=3)
    tokens = jax.random.randint(jax.random.key(1), (1, 24), 0, 256)
    params = random_parameters(config)
    run = lambda config, p: jax.jit(Decoder(config).apply)({"params": p}, tokens)[0]  # noqa: E731
    plain = run(config, params)
    unit_scales = variants.apply(config, "dpe(scales=(1, 1), window=4)")[1]
    np.testing.assert_allclose(run(unit_scales, params), plain, atol=1e-5)
    far = run(variants.apply(config, "dpe(scales=(2, 4), window=4)")[1], params)
    np.testing.assert_allclose(far[:, :4], plain[:, :4], atol=1e-5)
    assert not np.allclose(far[:, 5:], plain[:, 5:], atol=1e-3)
    selected = variants.apply(config, "dpe(scales=(2, 4), window=4, selected=True)")[1]
    every_pair = dpe.add_pairs(params, config, np.ones((3, 4, 8), bool))
    np.testing.assert_allclose(run(selected, every_pair), far, atol=1e-5)
    no_pairs = dpe.add_pairs(params, config, np.zeros((3, 4, 8), bool))
    np.testing.assert_allclose(run(selected, no_pairs), plain, atol=1e-5)


def test_pairs_go_to_their_layers():
    """Layers 0, 2 | 1, 3 of a pattern of two, and layer 4 left over."""
    config = dataclasses.replace(presets.tiny(), layers=5, pattern=presets.tiny().pattern * 2)
    pairs = np.arange(5)[:, None, None] * np.ones((5, 4, 8))
    params = dpe.add_pairs({"pattern_0": {}, "pattern_1": {}, "remainder_0": {}}, config, pairs)
    pairs_by_part = {
        name: np.asarray(value[dpe.PAIRS])[..., 0, 0].tolist() for name, value in params.items()
    }
    assert pairs_by_part == {"pattern_0": [0, 2], "pattern_1": [1, 3], "remainder_0": 4}


def test_key_pairs_have_the_largest_products():
    q = np.array([[[1.0, 5.0, 2.0, 1.0], [1.0, 1.0, 1.0, 4.0]]])
    k = np.array([[[4.0, 1.0, 1.0, 1.0]]])
    expected = [[[True, True, False, False], [True, False, False, True]]]
    np.testing.assert_array_equal(dpe.key_pairs(q, k, 2), expected)


def test_key_pairs_of_layers_with_fewer_key_heads_and_pairs():
    """Layers end in NaN where they have fewer: each query head goes with the keys it reads."""
    q, nan = np.ones((2, 2, 4)), np.nan
    q[1, :, 2:] = nan
    k = np.array([[[4.0, 1, 1, 1], [1, 1, 1, 4]], [[1, 4, nan, nan], [nan] * 4]])
    first = [[True, False, False, False], [False, False, False, True]]
    second = [[False, True, False, False]] * 2
    np.testing.assert_array_equal(dpe.key_pairs(q, k, 1), [first, second])


def test_dpe_refuses_what_it_cannot_do():
    config = presets.tiny()
    with pytest.raises(UserError, match="whole numbers of at least 1"):
        dpe.Dpe((2, 0))
    with pytest.raises(UserError, match=r"scales\[1\]=2.5 must be a whole number"):
        dpe.Dpe((2, 2.5))
    for encoding in (lambda x, positions: x, rotary.fope(64), rotary.learned_rope()):
        with pytest.raises(UserError, match="does not name"):
            variants.apply(config.with_rotary(encoding), "dpe(scales=(2,))")
    with pytest.raises(UserError, match="do not divide into 3 groups"):
        config = variants.apply(config, "dpe(scales=(1, 2, 4))")[1]
        jax.eval_shape(Decoder(config).init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))


# --- in the decoder ---------------------------------------------------------------------------

TINY = dataclasses.replace(presets.tiny(), layers=2)
# What needs company or other arguments than its example to be trained in a few steps.
COMPANY = {
    "llama4_temperature": "rope + llama4_temperature(floor=8)",
    "logit_scale": "rope + qk_norm_fixed() + logit_scale()",
    "cope": "nope + cope(positions=8)",
    "scale_invariant": "p_rope + qk_norm_fixed() + scale_invariant()",
    "soft_cap": "rope + soft_cap()",
    "dpe": "rope + dpe(scales=(1, 2), window=4)",
}
ENCODINGS = [maker.example(16).name for maker in rotary.ENCODINGS.values()]
ADDED = [
    COMPANY.get(name, f"{'nope' if field == 'score_function' else 'rope'} + {name}()")
    for field in variants.COMPONENTS
    for name in variants.REGISTRIES[field]
]
VARIANTS = [*ENCODINGS, *ADDED, "irope(chunk=5, floor=8)"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_causal_trains_and_reaches_its_parameters(variant):
    """Causality by gradient; 20 steps with falling loss and gradients in every array.

    The readout is not the embedding, so that the gradient of a row says whether a token counts.
    """
    _, config = variants.apply(TINY, variant)
    config = dataclasses.replace(config, layers=len(config.pattern))
    params = random_parameters(config, scale=0.05)
    readout = jax.random.normal(jax.random.key(9), (config.d_model, 16))

    @jax.jit
    def objective(params, tokens, targets, weights):
        def loss(params):
            x, _ = Decoder(config).apply({"params": params}, tokens, method="features")
            logit = jnp.einsum("btd,dc->btc", x, readout)
            losses = optax.softmax_cross_entropy_with_integer_labels(logit, targets)
            return jnp.sum(losses * weights) / jnp.sum(weights)

        return jax.value_and_grad(loss)(params)

    tokens = jax.random.randint(jax.random.key(7), (2, 16), 0, 64)
    targets, all_positions = tokens % 16, jnp.ones((2, 16))
    losses = []
    for _ in range(20):
        value, gradients = objective(params, tokens, targets, all_positions)
        losses.append(float(value))
        params = jax.tree.map(lambda p, g: p - 3e-3 * jnp.sign(g), params, gradients)
    assert np.isfinite(losses).all() and losses[-1] < losses[0] - 0.5, losses
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        name = jax.tree_util.keystr(path)
        assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0, name
    # Now trained, so that what starts at 0 (cope) counts too. Row t is read at position t only.
    rows = jnp.broadcast_to(jnp.arange(16), (2, 16))
    position_9 = jnp.zeros((2, 16)).at[:, 9].set(1.0)
    gradient = objective(params, rows, targets, position_9)[1]["embedding"]
    influence = np.abs(gradient[:16]).sum(axis=-1)
    np.testing.assert_array_equal(influence[10:], 0.0)
    assert (influence[8:10] > 0).all(), influence


def init(config):
    """Initial parameters, without running the decoder."""
    key = jax.random.key(0)
    return nn.unbox(Decoder(config).init(key, method=lambda module: module.embedding))["params"]


def test_parts_leave_the_initial_weights_of_the_rest():
    """A study compares variants from the same weights, whatever arrays they add."""
    plain = init(TINY)
    with_parts = init(variants.apply(TINY, "nope + qk_norm() + ss_max() + t5_bias()")[1])
    with_cable = init(variants.apply(TINY, "nope + cable()")[1])
    for name, value in plain["pattern_0"].items():
        np.testing.assert_array_equal(value, with_parts["pattern_0"][name], err_msg=name)
        np.testing.assert_array_equal(value, with_cable["pattern_0"][name], err_msg=name)
    np.testing.assert_array_equal(plain["embedding"], with_parts["embedding"])
    assert set(with_parts["shared"]) == {"t5_bias"} and "shared" not in plain


@dataclasses.dataclass(frozen=True)
class LearnedTurn(rotary.Encoding):
    """A rotary encoding with an array of its own: adds it to queries and keys, times position."""

    kind = "turn"
    trained = True

    def inverse_frequencies(self, head_dim):
        """Not a vector of frequencies at all."""
        return np.zeros(head_dim // 2)

    def shared_parameters(self, config):
        """One array [H]."""
        return {"turn_speed": Parameter((config.head_dim,), (None,), constant=0.5)}

    def __call__(self, x, positions, w=None):
        """Like a rotation, x[B, T, N, H] -> the same."""
        shift = positions[..., None, None] * w["turn_speed"]
        return x + shift.astype(x.dtype)


@pytest.mark.parametrize("scan, remat", [(True, "full"), (False, "none")])
def test_an_encoding_with_shared_arrays_is_trained_by_all_layers(scan, remat):
    config = dataclasses.replace(TINY, layers=3, scan=scan, remat=remat).with_rotary(LearnedTurn())
    tokens = jax.random.randint(jax.random.key(7), (2, 9), 0, 64)
    params = init(config)
    np.testing.assert_array_equal(params["shared"]["turn_speed"], np.full(16, 0.5))

    def loss(params):
        return Decoder(config).apply({"params": params}, tokens, tokens, method="loss")

    gradient = jax.jit(jax.grad(loss))(params)["shared"]["turn_speed"]
    assert np.isfinite(gradient).all() and np.abs(gradient).min() > 0
    # The same as a function that knows the array.
    fixed = config.with_rotary(lambda x, positions: LearnedTurn()(x, positions, params["shared"]))
    expected = Decoder(fixed).apply({"params": params}, tokens)[0]
    got = Decoder(config).apply({"params": params}, tokens)[0]
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_shared_arrays_of_one_name_must_agree():
    specs = [
        dataclasses.replace(TINY.pattern[0], score_function=attention_scores.T5Bias(n))
        for n in (32, 16)
    ]
    config = dataclasses.replace(TINY, pattern=tuple(specs))
    with pytest.raises(UserError, match="different shared arrays 't5_bias'"):
        shared_parameters(config)
    assert set(layer_parameters(config, specs[0])) == set(layer_parameters(TINY, TINY.pattern[0]))
