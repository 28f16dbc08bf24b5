"""Encodings of the literature against their formulas, in float64, and against recorded values.

The recorded values of data/rope_golden.json were made by Transformers 5.23 (float32); with it
installed, tests/parity compares with the library itself.
"""

import inspect
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rope_study import encodings, rotary
from rope_study.decoder import variants
from rope_study.errors import UserError
from rope_study.probes.frequency_usage import pair_norms
from rope_study.rotary import describe, fope, learned_rope, parse
from rope_study.rotary.learned import LOG_SCALE, traced_phases
from rope_study.training.settings import folder_name

HEAD_DIM = 64
GOLDEN = json.loads((Path(__file__).parent / "data/rope_golden.json").read_text())
RISING = tuple(1 + k / 8 for k in range(HEAD_DIM // 2))

# Every registered encoding by its own example, and arguments that are worth a case of their own.
EXAMPLES = [
    *(maker.example(HEAD_DIM).name for maker in rotary.ENCODINGS.values()),
    "rope(500_000)",
    "p_rope(0.25, theta=1e6, factor=8)",
    "linear_rope(8, theta=1e6)",
    "dynamic_ntk_rope(2, context=2048, length=8192)",
    "yarn_rope(4, 32_768, theta=1e6)",
    "yarn_rope(32, 4096, theta=150_000, truncate=False, partial=0.5)",
    f"longrope({(1,) * 32}, {RISING}, context=4096, length=8192, factor=32)",
    "fope(2048, heads=2, sigma=0.6, seed=3)",
    "fope(2048, released=True)",
]
VECTORS = [e for e in EXAMPLES if parse(e).relative]
ids = {"ids": lambda spelling: spelling[:40]}


def random(shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def turn_float64(x, cos, sin):
    """Explicit 2 x 2 matrices in float64 on dims (i, i + d/2); cos, sin [T, 1 or N, d/2]."""
    a, b = np.split(np.asarray(x, np.float64), 2, axis=-1)
    return np.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)


def odd_positions():
    near = np.arange(2049, 4097, 128)
    return np.concatenate([near, [60_001, 131_071, 524_287, 2**20 - 1]])


# --- frequencies ------------------------------------------------------------------------------


def from_golden(case):
    """The encoding of a recorded case."""
    values = dict(case["params"])
    theta, context = values.pop("rope_theta"), values.pop("original_max_position_embeddings", None)
    maximum = case["max_position_embeddings"]
    match case["kind"]:
        case "linear":
            return rotary.linear_rope(**values, theta=theta)
        case "dynamic":
            length = case["seq_len"]
            return rotary.dynamic_ntk_rope(**values, context=maximum, length=length, theta=theta)
        case "yarn":
            return rotary.yarn_rope(**values, context=context, theta=theta)
        case "longrope":
            lists = {key: tuple(values.pop(key)) for key in ("short_factor", "long_factor")}
            return rotary.longrope(
                **lists, context=context, length=case["seq_len"], factor=maximum / context,
                theta=theta,
            )  # fmt: skip
        case "llama3":
            return rotary.llama3_rope(**values, context=context, theta=theta)
        case "proportional":
            p = values.pop("partial_rotary_factor")
            return rotary.p_rope(p, theta, **values)


@pytest.mark.parametrize("name", GOLDEN)
def test_frequencies_equal_recorded_ones(name):
    case = GOLDEN[name]
    encoding = from_golden(case)
    got = encoding.inverse_frequencies(case["head_dim"])
    np.testing.assert_allclose(got, case["inv_freq"], rtol=1e-6, atol=0)
    assert encoding.scaling == pytest.approx(case["attention_factor"], rel=1e-12)


def test_half_truncated_rope_reaches_the_end_of_its_range():
    got = rotary.half_truncated_rope().inverse_frequencies(128)
    assert got[0] == 1 and got[31] == pytest.approx(1 / 1024, rel=1e-12)
    np.testing.assert_allclose(got[1:32] / got[:31], 1024 ** (-1 / 31), rtol=1e-12)
    assert (got[32:] == 0).all() and len(got) == 64


def test_hope_is_p_rope_with_p_star():
    for context, theta, head_dim in [(512, 1e4, 64), (8192, 1e4, 256), (4096, 5e5, 128)]:
        hope = rotary.hope(context, theta).inverse_frequencies(head_dim)
        p = rotary.p_star(context, theta)
        # Pair k = 0, 1, ... completes a cycle where 2k/d <= p*: one pair more than p* d/2.
        pairs = math.floor(p * head_dim / 2) + 1
        p_rope = rotary.p_rope(2 * pairs / head_dim, theta).inverse_frequencies(head_dim)
        np.testing.assert_array_equal(p_rope, hope)
        assert 0 < np.count_nonzero(hope) < head_dim / 2


def test_ntk_keeps_the_fastest_and_slows_the_slowest_by_the_factor():
    plain = rotary.rope().inverse_frequencies(HEAD_DIM)
    got = rotary.ntk_rope(4).inverse_frequencies(HEAD_DIM)
    assert got[0] == 1 and got[-1] == pytest.approx(plain[-1] / 4, rel=1e-12)
    assert (np.diff(got / plain) < 0).all()


def test_dynamic_ntk_is_rope_up_to_the_trained_length():
    plain = rotary.rope().inverse_frequencies(HEAD_DIM)

    def at(length):
        return rotary.dynamic_ntk_rope(2, 2048, length).inverse_frequencies(HEAD_DIM)

    for length in (1, 2048):
        np.testing.assert_array_equal(at(length), plain)
    assert (at(2049)[1:] < plain[1:]).all()
    # At twice the length the base grows by 2 * 2 - 1 = 3.
    np.testing.assert_allclose(at(4096), rotary.ntk_rope(3).inverse_frequencies(HEAD_DIM))


def test_yarn_changes_frequencies_between_its_betas_only():
    context, theta, d = 4096, 10_000.0, 128
    plain = rotary.rope(theta).inverse_frequencies(d)
    got = rotary.yarn_rope(8, context, theta, truncate=False).inverse_frequencies(d)
    cycles = plain * context / (2 * np.pi)
    np.testing.assert_array_equal(got[cycles > 32], plain[cycles > 32])
    np.testing.assert_allclose(got[cycles < 1], plain[cycles < 1] / 8, rtol=1e-15)
    between = (cycles < 32) & (cycles > 1)
    assert (got[between] < plain[between]).all() and (got[between] > plain[between] / 8).all()


def test_longrope_changes_list_just_past_the_trained_length():
    def at(length):
        e = rotary.longrope((1.0,) * 32, RISING, context=4096, length=length, factor=32)
        return e.inverse_frequencies(HEAD_DIM)

    plain = rotary.rope().inverse_frequencies(HEAD_DIM)
    np.testing.assert_array_equal(at(4096), plain)
    np.testing.assert_allclose(at(4097), plain / np.array(RISING), rtol=1e-15)
    with pytest.raises(UserError, match="32 factors for 64 pairs"):
        rotary.longrope((1.0,) * 32, RISING, 4096, 4096, 32).inverse_frequencies(128)


@pytest.mark.parametrize(
    "spelling",
    [
        "linear_rope(4, ",
        "dynamic_ntk_rope(2, 2048, 8192, ",
        "yarn_rope(4, 2048, ",
        "llama3_rope(",
        f"longrope({(1,) * 8}, {(2,) * 8}, 2048, 4096, 2, ",
    ],
    **ids,
)
def test_partial_is_the_same_vector_of_a_narrower_head(spelling):
    narrow = parse(spelling.rstrip(", ") + ")").inverse_frequencies(16)
    got = parse(spelling + "partial=0.25)").inverse_frequencies(64)
    np.testing.assert_array_equal(got, [*narrow, *np.zeros(24)])


# --- rotation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("spelling", VECTORS, **ids)
def test_rotation_equals_float64_up_to_a_million(spelling):
    encoding, positions = parse(spelling), odd_positions()
    x = random((1, len(positions), 2, HEAD_DIM))
    got = jax.jit(lambda x, p: encoding(x, p))(x, jnp.asarray(positions)[None])
    angles = positions[:, None, None] * encoding.inverse_frequencies(HEAD_DIM)
    factor = np.where(encoding.inverse_frequencies(HEAD_DIM) > 0, encoding.scaling, 1)
    expected = turn_float64(x, factor * np.cos(angles), factor * np.sin(angles))
    np.testing.assert_allclose(got, expected, atol=6e-6, rtol=0)


@pytest.mark.parametrize("spelling", VECTORS, **ids)
def test_cos_and_sin_equal_float64_at_every_position(spelling):
    """All positions to 2^20 for the frequencies, in blocks; the slow ones cover the rest."""
    inverse = parse(spelling).inverse_frequencies(16 if "longrope" not in spelling else HEAD_DIM)
    run, worst = jax.jit(lambda p: rotary.phases(p, inverse)), 0.0
    for start in range(0, 2**20, 2**17):
        positions = np.arange(start, start + 2**17, 1 if "longrope" not in spelling else 31)
        angles = np.asarray(run(jnp.asarray(positions)), np.float64)
        exact = positions[:, None] * inverse
        worst = max(worst, np.abs(np.exp(1j * angles) - np.exp(1j * exact)).max())
    assert worst < 1e-6  # asked for: 1e-3


def logit(encoding, q, k, i, j):
    return float(jnp.vdot(encoding(q, jnp.array([[i]])), encoding(k, jnp.array([[j]]))))


def largest_change_by_shift(encoding):
    """Of a logit at distance 0, 1, 17, 1001, when both positions move."""
    q, k = random((1, 1, 1, HEAD_DIM), 1), random((1, 1, 1, HEAD_DIM), 2)
    return max(
        abs(logit(encoding, q, k, d + shift, shift) - logit(encoding, q, k, d, 0))
        for d in (0, 1, 17, 1001)
        for shift in (1, 333, 40_001)
    )


@pytest.mark.parametrize("spelling", [e for e in EXAMPLES if parse(e).relative], **ids)
def test_logits_of_relative_encodings_depend_on_distance_only(spelling):
    assert largest_change_by_shift(parse(spelling)) < 4e-5


def test_what_is_marked_not_relative_is_not():
    marked = [e for e in EXAMPLES if not parse(e).relative]
    assert marked
    for spelling in ("fope(2048)", "fope(2048, released=True)"):
        assert largest_change_by_shift(parse(spelling)) > 0.1


# --- FoPE -------------------------------------------------------------------------------------


def fope_float64(x, positions, context, theta, mixtures, pad):
    """FoPE from its definition, term by term: x[T, N, d] with one basis for every head."""
    d = x.shape[-1]
    frequencies = [theta ** (-2 * k / d) for k in range(d // 2)]
    frequencies = np.array([g for g in frequencies if g >= 2 * np.pi / context])
    waves = np.cos(positions[:, None] * frequencies), np.sin(positions[:, None] * frequencies)
    cos, sin = np.ones((2, len(positions), 1, d // 2))
    sin = sin * pad
    for m in range(mixtures.shape[-1]):
        cos[:, 0, m], sin[:, 0, m] = (w @ c[0, :, m] for w, c in zip(waves, mixtures, strict=True))
    return turn_float64(x, cos, sin)


@pytest.mark.parametrize("released", [False, True])
def test_fope_equals_its_definition_in_float64(released):
    encoding, positions = fope(2048, sigma=0.5, released=released), odd_positions()
    x = random((1, len(positions), 3, HEAD_DIM))
    got = jax.jit(lambda x, p: encoding(x, p))(x, jnp.asarray(positions)[None])
    mixtures = encoding.mixtures(HEAD_DIM)
    assert mixtures.shape == (2, 1, 21, 16 if released else 21)
    expected = fope_float64(x[0], positions, 2048, 1e4, mixtures, float(released))
    np.testing.assert_allclose(got[0], expected, atol=1e-5, rtol=0)


def test_fope_leaves_untrained_pairs_alone_where_its_released_code_doubles_them():
    """The released code pads sin with 1: 45 degrees and sqrt(2), so 2 q.k. We pad with 0."""
    q, k = random((1, 1, 1, HEAD_DIM), 1), random((1, 1, 1, HEAD_DIM), 2)
    positions = jnp.array([[777]])
    for released, times, turning in ((False, 1, 21), (True, 2, 16)):
        encoding = fope(2048, released=released)
        still = np.tile(np.arange(HEAD_DIM // 2) >= turning, 2)
        assert still.sum() == HEAD_DIM - 2 * turning
        q_still, k_still = q * still, k * still
        got = float(jnp.vdot(encoding(q_still, positions), encoding(k_still, positions)))
        assert got == pytest.approx(times * float(jnp.vdot(q_still, k_still)), rel=1e-5)
    np.testing.assert_array_equal(fope(2048)(q, positions)[..., 21:32], q[..., 21:32])


def test_fope_without_mixture_is_hope():
    x, positions = random((2, 33, 4, HEAD_DIM)), jnp.arange(5000, 5033)[None]
    clip = rotary.hope(2048)(x, positions)
    np.testing.assert_allclose(fope(2048, sigma=0.0)(x, positions), clip, atol=2e-6)
    assert np.abs(fope(2048)(x, positions) - clip).max() > 0.1


def test_fope_coefficients_come_from_the_seed_and_never_change():
    """No checkpoint holds them, so these numbers have to stay what they are."""
    got = fope(2048, sigma=1.0).mixtures(HEAD_DIM)
    expected = np.sqrt(2 / 42) * np.array([1.764052345967664, 0.4001572083672233])
    np.testing.assert_allclose(got[0, 0, 0, :2] - [1, 0], expected, rtol=1e-12)
    assert not np.array_equal(got, fope(2048, sigma=1.0, seed=1).mixtures(HEAD_DIM))
    assert not np.array_equal(got[0], got[1])
    for heads, shape in ((1, (21, 21)), (4, (4, 21, 21))):
        noise = fope(2048, sigma=1.0, heads=heads).mixtures(HEAD_DIM) - np.eye(21)
        fan_in = math.prod(shape[1:])  # as torch.nn.init counts them
        fan_out = shape[0] * math.prod(shape[2:])
        assert noise.std() == pytest.approx(math.sqrt(2 / (fan_in + fan_out)), rel=0.05)


def test_released_fope_leads_every_other_frequency_where_it_has_too_few_pairs():
    got = fope(2048, sigma=0.0, released=True).mixtures(HEAD_DIM)[0, 0]
    assert got.shape == (21, 16)
    np.testing.assert_array_equal(np.argwhere(got), [[2 * m, m] for m in range(11)])


def test_fope_heads_of_a_group_share_the_basis_of_their_key_head():
    encoding, positions = fope(2048, heads=2), jnp.array([[901]])
    vector = random((1, 1, 1, HEAD_DIM))
    q = encoding(jnp.tile(vector, (1, 1, 6, 1)), positions)[0, 0]
    k = encoding(jnp.tile(vector, (1, 1, 2, 1)), positions)[0, 0]
    np.testing.assert_array_equal(q, np.repeat(k, 3, axis=0))
    assert np.abs(k[0] - k[1]).max() > 0.1
    with pytest.raises(UserError, match="3 heads do not divide into 2 bases"):
        encoding(random((1, 1, 3, HEAD_DIM)), positions)


@pytest.mark.parametrize(
    "name, p",
    [("p_rope", 0.58), ("reversed_p_rope", 0.58), ("partial_rope", 0.58), ("p_rope", 0.29)],
)
def test_the_fraction_of_pairs_is_not_rounded_away(name, p):
    """0.58 * 100 is 57.99999999999999 in floats."""
    frequencies = parse(f"{name}({p})").inverse_frequencies(100)
    assert np.count_nonzero(frequencies) == int(p * 50 + 1e-9) == {0.58: 29, 0.29: 14}[p]


# --- learned frequencies ----------------------------------------------------------------------


def test_learned_frequencies_start_as_rope_bit_for_bit():
    encoding = learned_rope()
    (name, parameter), *rest = encoding.shared_parameters(SimpleNamespace(head_dim=64)).items()
    assert (name, parameter.shape, rest) == (LOG_SCALE, (32,), []) and name == "rotary_log_scale"
    scale = parameter.initializer()(jax.random.key(0), parameter.shape).unbox()
    np.testing.assert_array_equal(scale, np.zeros(32))
    x, positions = random((2, 9, 2, 64)), jnp.arange(70_000, 70_009)[None]
    expected = rotary.rope()(x, positions)
    np.testing.assert_array_equal(encoding(x, positions, {name: scale}), expected)
    np.testing.assert_array_equal(encoding(x, positions), expected)
    start = encoding.inverse_frequencies(64)
    np.testing.assert_array_equal(encoding.learned_frequencies({name: scale}), start)


@pytest.mark.parametrize("spread", [0.01, 0.3])
def test_learned_rotation_equals_float64_up_to_a_million(spread):
    """The frequency is what its float32 says; a float32 has no more of g exp(s) than that."""
    scale = spread * random((HEAD_DIM // 2,), 5)
    encoding, positions = learned_rope(), odd_positions()
    x = jnp.broadcast_to(jnp.repeat(jnp.array([1.0, 0.0]), 32), (1, len(positions), 1, 64))
    rotated = jax.jit(encoding)(x, jnp.asarray(positions)[None], {LOG_SCALE: scale})
    start = encoding.inverse_frequencies(HEAD_DIM)
    added = jax.jit(lambda s: jnp.asarray(start, jnp.float32) * jnp.expm1(s))(scale)
    exact = positions[:, None] * (start + np.asarray(added, np.float64))
    got = np.asarray(rotated, np.float64)[0, :, 0]
    assert np.abs(got[:, :32] + 1j * got[:, 32:] - np.exp(1j * exact)).max() < 1e-3
    np.testing.assert_allclose(added, start * np.expm1(np.asarray(scale, np.float64)), rtol=5e-7)


def test_traced_phases_at_every_position_up_to_a_million():
    added = jnp.asarray(rotary.rope().inverse_frequencies(16) * 0.37, jnp.float32)
    positions = np.arange(0, 2**20, 7)
    angles = np.asarray(jax.jit(traced_phases)(jnp.asarray(positions), added), np.float64)
    exact = positions[:, None] * np.asarray(added, np.float64)
    assert np.abs(np.exp(1j * angles) - np.exp(1j * exact)).max() < 1e-3


def test_learned_frequencies_have_the_right_gradient():
    """d angle / d s = position g exp(s), also where whole turns were dropped."""
    encoding, position = learned_rope(), 100_001
    scale = 0.1 * random((4,), 3)

    def angle_like(s):  # the sine of pair 2, turned from (1, 0)
        x = jnp.zeros((1, 1, 1, 8)).at[..., 2].set(1.0)
        return encoding(x, jnp.array([[position]]), {LOG_SCALE: s})[0, 0, 0, 6]

    got = jax.grad(angle_like)(scale)
    g = float(encoding.inverse_frequencies(8)[2]) * math.exp(float(scale[2]))
    expected = math.cos(position * g) * position * g
    np.testing.assert_allclose(got, [0, 0, expected, 0], rtol=1e-3)


# --- layout -----------------------------------------------------------------------------------


def rotate_interleaved_float64(x, positions, inverse_frequencies):
    """Meta's rotation: dims 2i and 2i + 1 as one complex number."""
    x = np.asarray(x, np.float64)
    z = x[..., 0::2] + 1j * x[..., 1::2]
    z = z * np.exp(1j * np.asarray(positions)[..., None] * inverse_frequencies)[:, :, None]
    return np.stack([z.real, z.imag], -1).reshape(x.shape)


def test_layouts_convert_both_ways():
    x = np.arange(8)
    interleaved = rotary.convert_layout(x, "half_split", "interleaved")
    np.testing.assert_array_equal(interleaved, [0, 4, 1, 5, 2, 6, 3, 7])
    back = rotary.convert_layout(interleaved, "interleaved", "half_split")
    np.testing.assert_array_equal(back, x)
    for layout in rotary.LAYOUTS:
        assert rotary.convert_layout(x, layout, layout) is x
    with pytest.raises(UserError, match="'halfsplit' is not one of half_split, interleaved"):
        rotary.convert_layout(x, "halfsplit", "interleaved")


def test_converted_weights_give_the_logits_of_the_interleaved_model():
    """As a checkpoint of Meta's: q and k weights [D, N, H] in interleaved layout."""
    x, positions = np.asarray(random((2, 7, 16))), np.arange(3000, 3007)[None]
    w_q, w_k = np.asarray(random((2, 16, 3, HEAD_DIM), 4))
    encoding = parse("llama3_rope")
    inverse = encoding.inverse_frequencies(HEAD_DIM)
    q, k = (
        rotate_interleaved_float64(np.einsum("btd,dnh->btnh", x, w), positions, inverse)
        for w in (w_q, w_k)
    )
    expected = np.einsum("btnh,bsnh->bnts", q, k)
    ours = (rotary.convert_layout(w, "interleaved", "half_split") for w in (w_q, w_k))
    q, k = (encoding(jnp.einsum("btd,dnh->btnh", x, w), jnp.asarray(positions)) for w in ours)
    got = np.einsum("btnh,bsnh->bnts", q, k)
    np.testing.assert_allclose(got, expected, atol=2e-5 * np.abs(expected).max())
    unconverted = np.einsum("btd,dnh->btnh", x, w_q)
    assert np.abs(np.asarray(encoding(unconverted, positions)) - np.asarray(q)).max() > 1


def test_probes_read_frequencies_in_order_for_both_layouts():
    """Pair k has norm k + 1 in either layout."""
    interleaved = np.repeat(np.arange(1.0, 33), 2) / math.sqrt(2)
    half_split = np.tile(np.arange(1.0, 33), 2) / math.sqrt(2)
    converted = rotary.convert_layout(interleaved, "interleaved", "half_split")
    for x in (half_split, converted):
        np.testing.assert_allclose(pair_norms(jnp.asarray(x)), np.arange(1, 33), rtol=1e-6)


# --- vision encodings on text: scope ----------------------------------------------------------


def text_rotation_of_vision(x, positions, temporal_pairs_turn):
    """VideoRoPE and HoPE-VLM at t = x = y = position, head_dim 128, mrope_section (16, 24, 24).

    The 48 fastest of the 64 pairs alternate between x and y, the 16 slowest carry t; HoPE-VLM does
    not turn those.
    """
    coordinates = {"t": positions, "x": positions, "y": positions}
    axes = ["x", "y"] * 24 + ["t"] * 16
    cos, sin = np.empty((2, len(positions), 1, 64))
    for k, axis in enumerate(axes):
        angle = coordinates[axis] * 10_000.0 ** (-2 * k / 128)
        if axis == "t" and not temporal_pairs_turn:
            angle = 0 * angle
        cos[:, 0, k], sin[:, 0, k] = np.cos(angle), np.sin(angle)
    return turn_float64(x, cos, sin)


@pytest.mark.parametrize(
    "temporal_pairs_turn, ours", [(True, rotary.rope()), (False, rotary.p_rope(0.75))]
)
def test_on_text_videorope_is_rope_and_hope_vlm_is_p_rope(temporal_pairs_turn, ours):
    positions = odd_positions()
    x = random((len(positions), 2, 128))
    expected = text_rotation_of_vision(x, positions, temporal_pairs_turn)
    got = ours(x[None], jnp.asarray(positions)[None])[0]
    np.testing.assert_allclose(got, expected, atol=6e-6, rtol=0)


# --- cycles over the context ------------------------------------------------------------------


@pytest.mark.parametrize(
    "theta, context, p", [(1e4, 8192, 0.779), (5e5, 4096, 0.494), (1e6, 131_072, 0.720)]
)
def test_describe_counts_cycles_over_the_context(theta, context, p):
    description = describe(rotary.rope(theta), 256, context)
    assert description.p_star == pytest.approx(p, abs=5e-4)
    assert abs(description.fraction - description.p_star) <= 1 / 128  # one pair is 1/128 of them
    np.testing.assert_allclose(
        description.cycles, context / (2 * np.pi) * theta ** (-np.arange(128) / 128), rtol=1e-12
    )


def test_description_prints_a_row_a_pair():
    text = str(describe("p_rope(0.5, theta=100)", 8, 100))
    assert "2 of 4 pairs turn, 2 complete a cycle: fraction 0.500" in text
    assert "p* = ln(L/2 pi)/ln(theta) = 0.601" in text
    rows = text.splitlines()[-4:]
    assert rows[1].split() == ["1", "0.3162", "19.87", "5.033"]
    assert rows[2:] == ["   2 not rotated", "   3 not rotated"]
    assert math.isnan(describe("nope", 8, 100).p_star)
    assert describe("yarn_rope(4, 2048)", 64, 8192).scaling > 1
    with pytest.raises(UserError, match="not known"):
        describe(lambda x, positions: x, 64, 100)


# --- names and the list -----------------------------------------------------------------------


@pytest.mark.parametrize("spelling", EXAMPLES, **ids)
def test_names_are_read_back_to_the_same_encoding(spelling):
    encoding = parse(spelling)
    parsed = parse(encoding.name)
    assert parsed == encoding and parsed.name == encoding.name and hash(parsed) == hash(encoding)
    assert len(folder_name(encoding.name).encode()) <= 255
    np.testing.assert_array_equal(parsed.inverse_frequencies(64), encoding.inverse_frequencies(64))


def test_a_list_of_one_number_is_read_back():
    encoding = rotary.longrope((1.0,), (2.5,), 4096, 8192, 32)
    parsed = parse(encoding.name)
    assert parsed == encoding and parsed.inverse_frequencies(2) == [1 / 2.5]


def test_long_names_stay_apart_as_folders():
    numbers = [(1.0,) * 32, (*(1.0,) * 31, 1.5)]
    names = [rotary.longrope(n, n, 4096, 4096, 32).name for n in numbers]
    assert len({folder_name(name) for name in names}) == 2


def test_spellings_are_strict():
    for spelling, message in {
        "yarn": r"unknown encoding 'yarn'.*'yarn_rope'",
        "yarn_rope(4, contxt=2048)": r"no parameter 'contxt'.*'context'",
        "hope": "missing a required argument: 'context'.*hope",
        "hope('long')": "context='long' must be a finite number",
        "linear_rope(0.5)": "factor=0.5 must be at least 1",
        "yarn_rope(4, 2048, truncate=1)": "truncate=1 must be True or False",
        "yarn_rope(4, 2048, beta_fast=1)": "beta_fast=1 must be above beta_slow",
        "yarn_rope(4, 2048, mscale='a')": "mscale='a' must be a finite number",
        "longrope([1], (1,), 2048, 4096, 2)": r"short_factor=\[1\] must be a tuple",
        "longrope((1, 'a'), (1,), 2048, 4096, 2)": r"short_factor\[1\]='a' must be a finite number",
        "longrope((0,), (1,), 2048, 4096, 2)": "every number of short_factor must be above 0",
        "llama3_rope(low_freq_factor=4)": "high_freq_factor=4.0 must be above low_freq_factor=4",
        "fope(2048, heads=1.5)": "heads=1.5 must be a whole number",
        "fope(2048, released=1)": "released=1 must be True or False",
        "learned_rope(partial=2)": "no parameter 'partial'",
        "llama3_rope(partial=2)": r"partial=2 must lie in \[0, 1\]",
        "hope(float('inf'))": "not understood",
        "hope(1e999)": "context=inf must be a finite number",
    }.items():
        with pytest.raises(UserError, match=message):
            parse(spelling)


@pytest.mark.parametrize("name", rotary.ENCODINGS)
def test_every_encoding_says_its_formula_its_source_and_its_arguments(name):
    maker = rotary.ENCODINGS[name]
    text = encodings.entry("rotary", name, maker)
    for part in ("Formula: g_k" if name != "fope" else "Formula: cos_k", "Source: "):
        assert part in text
    for argument in inspect.signature(maker).parameters:
        assert re.search(rf"^ +(.*, )?{argument}(, .*)?: ", text, re.MULTILINE), argument
    assert f"relative: {'yes' if maker.relative else 'no'}" in text
    example = maker.example(16)
    assert parse(example.name) == example and len(example.inverse_frequencies(16)) == 8


def test_the_module_lists_all_encodings():
    listing = subprocess.run(
        [sys.executable, "-m", "rope_study.encodings"], capture_output=True, text=True, check=True
    )
    assert listing.stderr == ""
    for table in variants.REGISTRIES.values():
        for name in table:
            assert re.search(rf"^{name}\(", listing.stdout, re.MULTILINE)
    for name, backends in {
        "irope": "splash, reference",
        "gemma2": "splash, reference",
        "gemma3": "splash, cudnn, reference",
        "soft_cap": "splash, reference",
        "alibi": "reference",
    }.items():
        pattern = rf"^{name}\(.*?attention: (.*?)$"
        entry = re.search(pattern, listing.stdout, re.MULTILINE | re.DOTALL)
        assert entry and entry[1] == backends
    assert "p_rope(p=0.75, theta=10000.0, factor=None)" in listing.stdout
