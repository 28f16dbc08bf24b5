"""The paper's statements in float64. Each check is a function that a wrong variant must fail."""

import doctest
import math
from pathlib import Path

import jax.numpy as jnp
import matplotlib.text
import numpy as np
import pytest
from random_parameters import random_parameters

from rope_study import theory
from rope_study.decoder import presets
from rope_study.errors import UserError
from rope_study.figures import theory as theory_figures
from rope_study.rotary import nope, p_rope, parse, reversed_p_rope, rope
from rope_study.theory.semantic import _first_failure

ROTATING = {e.name: e for e in (rope(), rope(500_000), p_rope(0.5), reversed_p_rope(0.5))}
SLOWEST = rope().inverse_frequencies(256)[-1]


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def fails(check, *args):
    """Whether a check refuses what it is given."""
    try:
        check(*args)
    except AssertionError:
        return True
    return False


# --- the convention ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ROTATING)
def test_activations_are_those_of_the_projects_own_rotation(name):
    query, key, i = normal(64), normal(64, seed=1), 400
    distances = np.array([0, 1, 7, 399])

    def place(x, positions):
        x = jnp.broadcast_to(jnp.asarray(x, jnp.float32), (1, len(positions), 1, 64))
        return np.asarray(ROTATING[name](x, jnp.asarray(positions)[None]), np.float64)[0, :, 0]

    want = place(key, i - distances) @ place(query, np.array([i]))[0]

    def check(signed):
        got = theory.activations(query, key, ROTATING[name], signed)
        np.testing.assert_allclose(got, want, atol=2e-5)

    check(distances)
    assert fails(check, -distances)  # R^+r: the key after the query


def test_activations_equal_explicit_rotation_matrices():
    rng = np.random.default_rng(1)
    d, distances = 6, [0, 1, 7, 1000]
    frequencies = rng.uniform(0, 1, d // 2)
    q, k = rng.standard_normal((2, 5, d))
    want = np.zeros((5, len(distances)))
    for column, distance in enumerate(distances):
        for pair, frequency in enumerate(frequencies):
            cos, sin = np.cos(distance * frequency), np.sin(distance * frequency)
            back = np.array([[cos, sin], [-sin, cos]])  # R^-r
            dims = [pair, pair + d // 2]
            want[:, column] += np.einsum("bi,ij,bj->b", q[:, dims], back, k[:, dims])
    got = theory.activations(q, k, frequencies, distances)
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-10)


# --- Prop. 3.1 --------------------------------------------------------------------------------


def check_peak(query, key, encoding, distance, context=512):
    """Largest at that distance, nowhere else, and as large as Cauchy-Schwarz allows."""
    activation = theory.activations(query, key, encoding, np.arange(context))
    rivals = np.delete(activation, distance)
    assert activation[distance] == pytest.approx(query @ query, rel=1e-12)
    assert rivals.max() < activation[distance] - 1e-9 * (query @ query)


@pytest.mark.parametrize("name", ROTATING)
@pytest.mark.parametrize("distance", [0, 1, 77, 511])
def test_prop_3_1_any_query_has_a_key_for_any_distance(name, distance):
    query = normal(64, seed=distance)
    peak = theory.prop_3_1(query, distance, ROTATING[name], context=512)
    check_peak(query, peak.key, ROTATING[name], distance)
    assert peak.lead > 0 and peak.activation.argmax() == distance
    if distance:
        assert fails(check_peak, query, query, ROTATING[name], distance)  # not turned
        backwards = theory.rotate_key(query, ROTATING[name], -distance)
        assert fails(check_peak, query, backwards, ROTATING[name], distance)  # wrong sign
    assert fails(check_peak, query, 2 * peak.key, ROTATING[name], distance)  # wrong norm


def test_prop_3_1_holds_for_a_query_in_one_pair_of_rope():
    query = np.zeros(64)
    query[5] = 1.0
    check_peak(query, theory.prop_3_1_key(query, 9, rope()), rope(), 9)


def test_prop_3_1_is_not_unique_where_nothing_rotates_or_all_comes_back():
    query = normal(64)
    assert theory.prop_3_1(query, 3, nope(), 512).lead == 0
    assert fails(check_peak, query, theory.prop_3_1_key(query, 3, nope()), nope(), 3)
    unrotated = theory.sec_6_1_channel(p_rope(0.5), 64)
    assert theory.prop_3_1(unrotated, 3, p_rope(0.5), 512).lead == 0
    fifth = np.full(32, 2 * np.pi / 5)  # a rational part of a turn: back after five tokens
    key = theory.prop_3_1_key(query, 3, fifth)
    check_peak(query, key, fifth, 3, context=5)
    assert fails(check_peak, query, key, fifth, 3, 9)
    fifth[0] = 1.0  # one pair that never comes back is enough
    check_peak(query, theory.prop_3_1_key(query, 3, fifth), fifth, 3, 512)


# --- Prop. 3.2 and Fig. 2 ---------------------------------------------------------------------

DISTANCES = [0, 1, 2, 5, 10, 50, 100, 1000, 5000]


def check_gaussian(mean, variance, samples, head_dim):
    """Mean 0 and variance d at every distance, within 4.5 standard errors."""
    assert np.abs(mean).max() < 4.5 * math.sqrt(head_dim / samples)
    # Var[(q.k)^2] = 2 d^2 + 6 d for q, k ~ N(0, I).
    error = math.sqrt((2 * head_dim**2 + 6 * head_dim) / samples)
    assert np.abs(variance - head_dim).max() < 4.5 * error


def of_draws(draws):
    return draws.mean(0), draws.var(0)


@pytest.mark.parametrize("encoding", [*ROTATING.values(), nope()], ids=lambda e: e.name)
def test_prop_3_2_gaussian_activations_do_not_decay(encoding):
    moments = theory.prop_3_2(encoding, 64, DISTANCES, samples=4000, seed=1)
    check_gaussian(moments.mean, moments.variance, 4000, 64)
    np.testing.assert_allclose(moments.half_width, 1.96 * 8 / math.sqrt(4000), rtol=0.1)


def test_prop_3_2_needs_independent_centred_unscaled_draws():
    q, k = normal(2, 4000, 64)
    draws = theory.activations(q, k, rope(), DISTANCES)
    check_gaussian(*of_draws(draws), 4000, 64)
    self_products = theory.activations(q, q, rope(), DISTANCES)
    assert fails(check_gaussian, *of_draws(self_products), 4000, 64)
    shifted = theory.activations(q + 0.5, k + 0.5, rope(), DISTANCES)
    assert fails(check_gaussian, *of_draws(shifted), 4000, 64)
    scaled = draws / math.sqrt(64)
    assert fails(check_gaussian, *of_draws(scaled), 4000, 64)
    check_gaussian(*of_draws(scaled * math.sqrt(64)), 4000, 64)


def test_prop_3_2_intervals_cover_zero_as_often_as_they_say():
    runs = [theory.prop_3_2(rope(), 8, [3], 200, seed) for seed in range(400)]
    missed = np.mean([abs(run.mean[0]) > run.half_width[0] for run in runs])
    assert 0.02 < missed < 0.09
    rerun = theory.prop_3_2(rope(), 8, [3], 200, seed=7)
    np.testing.assert_array_equal(rerun.mean, runs[7].mean)


def check_decays(curve, head_dim):
    """d at distance 0; over long distances a mean near 0 and no return to half."""
    assert curve[0] == pytest.approx(head_dim)
    late = curve[-len(curve) // 4 :]
    assert abs(late.mean()) < 0.1 * head_dim and late.max() < 0.5 * head_dim


def test_fig_2a_all_ones_decay():
    far = np.arange(0, 60_000, 30)
    curve = theory.fig_2a(rope(), 256, far)
    np.testing.assert_allclose(
        curve, theory.activations(np.ones(256), np.ones(256), rope(), far), atol=1e-9
    )
    check_decays(curve, 256)
    assert fails(check_decays, theory.fig_2a(nope(), 256, far), 256)
    assert fails(check_decays, theory.prop_3_2(rope(), 256, far[::40], 100).mean, 256)
    # The unrotated pairs of p-RoPE do not decay: half of them leave half of the activation.
    assert fails(check_decays, theory.fig_2a(p_rope(0.5), 256, far), 256)
    turning = 2 * np.cos(np.outer(far, rope().inverse_frequencies(256)[:64])).sum(-1)
    np.testing.assert_allclose(theory.fig_2a(p_rope(0.5), 256, far), turning + 128, atol=1e-9)


def test_fig_2a_is_what_gaussian_queries_read_of_themselves():
    q = normal(20_000, 16)
    mean = theory.activations(q, q, rope(), DISTANCES).mean(0)
    want = theory.fig_2a(rope(), 16, DISTANCES)
    np.testing.assert_allclose(mean, want, atol=4.5 * math.sqrt(2 * 16 / 20_000))


# --- Prop. 5.2 --------------------------------------------------------------------------------


def check_not_positional(attention):
    """On [BOS, x, x] the last query reads both x alike, in every head."""
    np.testing.assert_allclose(attention.sum(-1), 1, atol=1e-6)
    np.testing.assert_allclose(attention[:, 2, 2], attention[:, 2, 1], atol=1e-6)
    assert (attention[:, 2, 2] <= 0.5).all()


@pytest.mark.parametrize("seed", range(3))
def test_prop_5_2_no_first_layer_of_nope_is_diagonal(seed):
    attention = theory.prop_5_2(nope(), seed)
    check_not_positional(attention)
    assert (attention[:, 2, 2] < 0.5).all() and (attention[:, 2, 0] > 0).all()
    check_not_positional(theory.prop_5_2(nope(), seed, weight_scale=5))
    assert fails(check_not_positional, theory.prop_5_2(rope(), seed))
    assert fails(check_not_positional, theory.prop_5_2(p_rope(0.5), seed))


# --- Thm. 5.3 ---------------------------------------------------------------------------------


def check_head(attention, offset, epsilon):
    assert attention.sum() == pytest.approx(1)
    assert attention[offset] >= 1 - epsilon


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("frequencies", [1.0, 0.3, 2.5, (1.0, 0.6, 0.4)])
def test_thm_5_3_norm_is_enough_and_no_less_is(frequencies, offset):
    norm = theory.thm_5_3_norm(frequencies, 40, 0.01, offset)
    check_head(theory.thm_5_3_attention(norm, frequencies, 40, offset), offset, 0.01)
    weaker_attention = theory.thm_5_3_attention(0.999 * norm, frequencies, 40, offset)
    assert fails(check_head, weaker_attention, offset, 0.01)
    other_offset = theory.thm_5_3_attention(norm, frequencies, 40, 1 - offset)
    assert fails(check_head, other_offset, offset, 0.01)
    needed, enough = theory.thm_5_3_norm_bounds(frequencies, 40, 0.01, offset)
    assert needed <= norm <= enough
    # A decoder divides logits by sqrt(head_dim), so the norm grows by its fourth root.
    scaled = theory.thm_5_3_norm(frequencies, 40, 0.01, offset, scale=1 / 16)
    assert scaled == pytest.approx(4 * norm)
    unscaled_norm = theory.thm_5_3_attention(norm, frequencies, 40, offset, scale=1 / 16)
    assert fails(check_head, unscaled_norm, offset, 0.01)


@pytest.mark.parametrize("offset", [0, 1])
def test_thm_5_3_attention_is_the_softmax_over_prop_3_1_keys(offset):
    psi = normal(16) * 3
    shares = (psi[:8] ** 2 + psi[8:] ** 2) / (psi @ psi)
    frequencies = rope().inverse_frequencies(16)
    key = theory.prop_3_1_key(psi, offset, rope())
    logits = theory.activations(psi, key, rope(), np.arange(50))
    want = np.exp(logits - logits.max())
    norm = np.linalg.norm(psi)
    got = theory.thm_5_3_attention(norm, frequencies, 50, offset, shares)
    np.testing.assert_allclose(got, want / want.sum(), rtol=1e-9)


def test_thm_5_3_high_frequencies_are_sharper_until_they_wrap_around():
    frequencies = np.geomspace(1e-3, 2 * np.pi / 32, 20)
    norms = [theory.thm_5_3_norm(g, 32, 0.1) for g in frequencies]
    assert (np.diff(norms) < 0).all()
    # For small g the gap is g^2 / 2, so halving the frequency doubles the norm.
    half = theory.thm_5_3_norm(5e-4, 32, 0.1) / theory.thm_5_3_norm(1e-3, 32, 0.1)
    assert half == pytest.approx(2, rel=1e-3)
    # Past the turn: 1 rad/token comes back after 44 tokens (7 turns) to within 0.018 rad.
    assert theory.thm_5_3_norm(1.0, 45, 0.1) > 6 * theory.thm_5_3_norm(1.0, 44, 0.1)


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("frequency", [0.9, 0.31, 0.07])
def test_thm_5_3_context_is_where_the_neighbour_stops_being_the_nearest_rival(frequency, offset):
    def check(context):
        rivals = np.delete(theory.thm_5_3_gaps(frequency, context, offset), offset)
        assert rivals.min() == pytest.approx(1 - math.cos(frequency))

    longest = theory.thm_5_3_context(frequency, offset)
    check(longest)
    assert fails(check, longest + 1)


def test_thm_5_3_fails_where_a_rival_equals_the_target():
    for frequency in (0.0, math.pi, 2 * math.pi / 5):
        assert math.isinf(theory.thm_5_3_norm(frequency, 40, 0.1))
        even = theory.thm_5_3_attention(1e3, frequency, 40)
        assert fails(check_head, even, 0, 0.1)
    assert theory.thm_5_3_norm(math.pi, 2, 0.1) < 2  # two positions are opposite: sharpest of all
    assert math.isfinite(theory.thm_5_3_norm((math.pi, 1.0), 40, 0.1))


def test_thm_5_3_floor_holds_for_one_frequency_and_several_go_below_it():
    for offset in (0, 1):
        floor = theory.thm_5_3_floor(200, 0.1, offset)
        norms = [
            theory.thm_5_3_norm(g, 200, 0.1, offset)
            for g in np.random.default_rng(0).uniform(0, 3.2, 60)
        ]
        assert min(norms) >= floor
        best = theory.thm_5_3_norm_bounds(2 * np.pi / (200 - offset), 200, 0.1, offset)[0]
        assert best == pytest.approx(floor)
    assert theory.thm_5_3_norm(rope().inverse_frequencies(256)[:16], 200, 0.1) < floor / 10


@pytest.mark.parametrize("offset", [0, 1])
def test_thm_5_3_head_works_in_the_real_decoder(offset):
    """psi in place of every query and R^offset psi of every key, through the decoder's edits."""
    config = presets.tiny().with_rotary(rope())
    frequencies, length = rope().inverse_frequencies(16)[:3], 24
    norm = theory.thm_5_3_norm(frequencies, length, 0.05, offset, scale=16**-0.5)
    psi = np.zeros(16)
    psi[:3] = norm / math.sqrt(3)
    vectors = {"q": psi, "k": theory.prop_3_1_key(psi, offset, rope())}

    def edit(name, layer, value):
        if name not in vectors:
            return value
        return jnp.broadcast_to(jnp.asarray(vectors[name], value.dtype), value.shape)

    tokens = list(range(length))
    params = random_parameters(config)
    last = theory.first_layer_attention(config, params, tokens, edit)[:, -1, ::-1]
    for head in last.astype(np.float64):
        check_head(head, offset, 0.0501)
        want = theory.thm_5_3_attention(norm, frequencies, length, offset, scale=16**-0.5)
        np.testing.assert_allclose(head, want, atol=1e-5)
    nope_config = config.with_rotary(nope())
    even = theory.first_layer_attention(nope_config, params, tokens, edit)[0, -1, ::-1]
    assert fails(check_head, even.astype(np.float64), offset, 0.0501)


# --- Thm. 6.1 ---------------------------------------------------------------------------------

# The head that lasts longest: the target a quarter turn ahead of the query, the other opposite.
AHEAD = ([0.0, 1.0], [-1.0, 0.0], [1.0, 0.0])


def keeps(length, query, target, other, encoding, margin=0.0):
    """By trying every placement: whether the target leads by more than margin in all of them."""
    distances = np.arange(length)
    on_target = theory.activations(query, target, encoding, distances)
    on_other = theory.activations(query, other, encoding, distances)
    lead = on_target[:, None] - on_other[None, :]
    return bool((lead[~np.eye(length, dtype=bool)] > margin).all())


def check_shortest(failure, *head, margin=0.0):
    assert failure is not None
    assert keeps(failure.length - 1, *head, margin)
    assert not keeps(failure.length, *head, margin)
    query, target, other, encoding = head
    places = (failure.target_distance, failure.other_distance)
    assert places[0] != places[1] and max(places) == failure.length - 1
    on_target = theory.activations(query, target, encoding, places[:1])
    assert on_target[0] - theory.activations(query, other, encoding, places[1:])[0] <= margin


@pytest.mark.parametrize("pairs", [1, 2, 5])
@pytest.mark.parametrize("margin", [0.0, 0.03, -0.1])
def test_thm_6_1_failing_length_is_the_shortest_over_all_placements(pairs, margin):
    for seed in range(8):
        query, target, other = normal(3, 2 * pairs, seed=seed)
        target = target + 2 * query  # so that it is preferred
        frequencies = np.random.default_rng(seed).uniform(0.02, 0.1, pairs)
        head = (query, target, other, frequencies)
        failure = theory.thm_6_1(*head, limit=2000, margin=margin)
        check_shortest(failure, *head, margin=margin)
        longer = failure._replace(length=failure.length + 1)
        assert fails(check_shortest, longer, *head)


def test_thm_6_1_two_tokens_are_never_at_one_place():
    # Only "both at distance 1" would fail, and that is no placement.
    assert _first_failure(np.array([2.0, 1.0]), np.array([0.0, 1.5]), 0.0) is None


@pytest.mark.parametrize("frequency", [1.4, 0.5, 0.1, 0.013])
def test_thm_6_1_closed_form_for_a_parallel_distractor(frequency):
    failure = theory.thm_6_1([1, 0], [1, 0], [0.5, 0], [frequency], limit=1000)
    assert failure.length == math.ceil(math.acos(0.5) / frequency) + 1
    assert failure.other_distance == 0


def check_bound(frequency, *head):
    assert not keeps(theory.thm_6_1_bound(frequency), *head, [frequency])


def test_thm_6_1_bound_holds_for_every_head_of_one_frequency_and_is_nearly_reached():
    rng = np.random.default_rng(0)
    for frequency in [*rng.uniform(0.02, math.pi, 60), *rng.uniform(math.pi, 20, 20), math.pi]:
        for _ in range(10):
            check_bound(frequency, *rng.standard_normal((3, 2)))
        check_bound(frequency, *AHEAD)
    for frequency in (0.5, 0.1, 0.01):
        length = theory.thm_6_1(*AHEAD, [frequency], limit=1000).length
        assert 0 <= theory.thm_6_1_bound(frequency) - length <= 2
        # Turned the wrong way, the same head fails at once.
        assert theory.thm_6_1(AHEAD[0], AHEAD[2], AHEAD[1], [frequency], 1000).length == 2


def test_thm_6_1_bound_is_for_one_frequency_only():
    # Fejer: 1 - F(x) has harmonics 1..8 and no mean, and is positive for most of the circle.
    harmonics, g = np.arange(1, 9), 0.01
    start = 2 * math.asin(1 / 3) + 1e-6
    weights = -2 * (1 - harmonics / 9)
    # Phases place the target's positive stretch at distance 0 and after.
    target = np.concatenate(
        [weights * np.cos(harmonics * start), -weights * np.sin(harmonics * start)]
    )
    query = np.concatenate([np.ones(8), np.zeros(8)])
    failure = theory.thm_6_1(query, target, -target, harmonics * g, limit=5000)
    check_shortest(failure, query, target, -target, harmonics * g)
    assert failure.length > 1.5 * theory.thm_6_1_bound(g)
    assert failure.length < 2 * math.pi / g


def largest_gap(frequency, count):
    points = np.sort(np.arange(count) * frequency % (2 * np.pi))
    return np.diff(points, append=points[0] + 2 * np.pi).max()


@pytest.mark.parametrize("frequency", [1.0, 0.3, 2.9, 0.01, 5.0, 10_000 ** (-3 / 8)])
@pytest.mark.parametrize("arc", [3.0, 0.5, 0.02])
def test_thm_6_1_visits_every_arc(frequency, arc):
    def check(count):
        assert largest_gap(frequency, count) <= arc + 1e-9

    count = theory.thm_6_1_visits(frequency, arc)
    check(count)
    assert fails(check, max(1, count // 5))  # it is no wild overestimate


def test_thm_6_1_rational_rotation_is_not_dense():
    for frequency in (2 * math.pi / 5, math.pi, math.pi / 4):
        with pytest.raises(UserError, match="rational part of a turn"):
            theory.thm_6_1_visits(frequency, 0.3)
    assert theory.thm_6_1_visits(2 * math.pi / 5, 2 * math.pi / 5 + 1e-9) == 5


def test_thm_6_1_reversal_bound_turns_every_preference_around():
    rng = np.random.default_rng(1)
    for frequency in (1.0, 0.37, 0.05):
        for reversal in (0.0, 0.5, 0.9, 0.99):
            bound = theory.thm_6_1_reversal_bound(frequency, reversal)
            query, target, other = rng.standard_normal((3, 2))
            norms = np.linalg.norm(target) + np.linalg.norm(other)
            margin = -reversal * np.linalg.norm(query) * norms
            assert theory.thm_6_1(query, target, other, [frequency], bound, margin) is not None
    # A fifth of a turn sees five directions only and never reverses by so much.
    head = ([1.0, 0.0], [1.0, 0.0], [0.5, 0.0], [2 * math.pi / 5])
    assert theory.thm_6_1(*head, limit=10_000, margin=-0.99 * 1.5) is None
    assert theory.thm_6_1(*head[:3], [1.0], limit=10_000, margin=-0.99 * 1.5) is not None


def test_thm_6_1_frequency_zero_never_fails():
    head = ([1.0, 0.0], [1.0, 0.0], [0.5, 0.0])
    assert theory.thm_6_1(*head, [0.0], limit=100_000) is None
    assert theory.thm_6_1(*head, [SLOWEST], limit=100_000) is not None
    with pytest.raises(UserError, match="never fails"):
        theory.thm_6_1_bound(0.0)


def check_any_dimension(bound, head, encoding, margin):
    assert theory.thm_6_1(*head, encoding, int(bound) + 1, margin) is not None


@pytest.mark.parametrize("pairs", [1, 3, 8])
def test_thm_6_1_bound_any_dimension(pairs):
    rng = np.random.default_rng(pairs)
    missed = 0
    for _ in range(20):
        frequencies = rng.uniform(0.01, 3, pairs)
        query, target, other = rng.standard_normal((3, 2 * pairs))
        head = (query, target + query, other)
        margin = 0.1 * abs(query @ (head[1] - other))
        bound = theory.thm_6_1_bound_any_dimension(*head, frequencies, margin)
        check_any_dimension(bound, head, frequencies, margin)
        # In the slowest channel alone, with 1 in place of 1 / sin(g / 2).
        slow = np.full(pairs, SLOWEST)
        wrong_bound = theory.thm_6_1_bound_any_dimension(*head, np.full(pairs, math.pi), margin)
        missed += fails(check_any_dimension, wrong_bound, head, slow, margin)
    assert missed > 0


def test_thm_6_1_bound_any_dimension_needs_every_used_pair_rotated():
    channel = theory.sec_6_1_channel(p_rope(0.5), 64)
    head = (channel, channel, -channel)
    assert math.isinf(theory.thm_6_1_bound_any_dimension(*head, p_rope(0.5), 0.1))
    assert theory.thm_6_1(*head, p_rope(0.5), limit=100_000, margin=0.1) is None
    bound = theory.thm_6_1_bound_any_dimension(*head, rope(), 0.1)
    check_any_dimension(bound, head, rope(), 0.1)


def test_thm_6_1_pairs_that_last_over_a_context():
    counts = [theory.thm_6_1_pairs(rope(), 256, L) for L in (8192, 32_768)]
    assert counts == [18, 0]
    assert theory.thm_6_1_pairs(rope(500_000), 256, 131_072) == 24
    assert theory.thm_6_1_pairs(p_rope(0.75), 256, 10**9) == 32
    frequencies = rope().inverse_frequencies(256)
    last = theory.thm_6_1(*AHEAD, [frequencies[-18]], limit=10_000).length
    assert last > 8192 > theory.thm_6_1_bound(frequencies[-19])


def test_thm_6_1_search_more_frequencies_delay_reversal_not_loss():
    margins = (0.0, -0.8)
    one_frequency, six_frequencies = (
        theory.thm_6_1_search(np.geomspace(0.01, 0.1, m + 1)[:m], margins, heads=24, limit=20_000)
        for m in (1, 6)
    )
    assert np.median(six_frequencies[0]) < 2 * np.median(one_frequency[0])
    assert np.median(six_frequencies[1]) > 4 * np.median(one_frequency[1])
    assert np.isfinite(one_frequency).all()
    unrotated = theory.thm_6_1_search([0.0, 0.0], margins, heads=8, limit=1000)
    assert np.isinf(unrotated).all()


# --- section 6.1 ------------------------------------------------------------------------------


def check_channel(channel, encoding):
    """The same activation at every distance."""
    activation = theory.activations(channel, channel, encoding, np.arange(0, 10**6, 997))
    np.testing.assert_allclose(activation, 1, rtol=1e-12)


def test_sec_6_1_channel_of_p_rope_does_not_know_distance():
    for encoding in (p_rope(0.75), p_rope(0.25, 500_000), reversed_p_rope(0.75), nope()):
        channel = theory.sec_6_1_channel(encoding, 64)
        check_channel(channel, encoding)
        assert fails(check_channel, channel, rope())
    assert fails(check_channel, np.ones(64) / 8, p_rope(0.75))
    with pytest.raises(UserError, match="every pair of this encoding is rotated"):
        theory.sec_6_1_channel(rope(), 64)


# --- wrong input ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: theory.prop_3_1(np.zeros(8), 1, rope(), 8), "query must be one finite vector"),
        (lambda: theory.prop_3_1(np.ones(8), 8, rope(), 8), "distance=8 must lie in"),
        (lambda: theory.prop_3_1(np.ones(7), 1, rope(), 8), "head_dim=7"),
        (lambda: theory.prop_3_1(np.ones(8), 1, [1.0], 8), "do not fit head_dim=8"),
        (lambda: theory.fig_2a(parse("fope(context=64)"), 16, [1]), "theory needs fixed freq"),
        (lambda: theory.fig_2a(parse("learned_rope"), 16, [1]), "theory needs fixed freq"),
        (lambda: theory.activations([1, 0], [1, 0, 0, 0], rope(), [1]), "differ in head_dim"),
        (lambda: theory.prop_3_2(rope(), 8, [1], samples=1), "samples=1"),
        (lambda: theory.thm_5_3_norm(1.0, 8, 0.5), "epsilon=0.5"),
        (lambda: theory.thm_5_3_norm(1.0, 1, 0.1), "context=1"),
        (lambda: theory.thm_5_3_norm(1.0, 8, 0.1, shares=[0.5, 0.5]), "shares must be 1"),
        (lambda: theory.thm_5_3_context(4.0), "must lie in"),
        (lambda: theory.thm_6_1_visits(1.0, 7.0), "arc=7.0"),
        (lambda: theory.thm_6_1_reversal_bound(1.0, 1.0), "reversal=1.0"),
        (
            lambda: theory.thm_6_1_bound_any_dimension([1, 0], [1, 0], [0, 1], [1.0], 0.0),
            "margin=0.0",
        ),
    ],
)
def test_wrong_input_is_one_clear_error(call, words):
    with pytest.raises(UserError, match=words):
        call()


# --- figures ----------------------------------------------------------------------------------


def words(figure):
    return " ".join(" ".join(t.get_text() for t in figure.findobj(matplotlib.text.Text)).split())


def test_figure_of_prop_3_1_peaks_where_it_says():
    figure = theory_figures.prop_3_1(distances=(3, 50), head_dim=64, context=80)
    (axes,) = figure.axes
    for line, distance in zip(axes.lines[::2], (3, 50), strict=False):
        assert line.get_ydata().argmax() == distance
        assert line.get_ydata()[distance] == pytest.approx(1)
    assert "key for distance 50" in words(figure) and "head_dim=64" in words(figure)


def test_figure_of_prop_3_2_shows_decay_beside_none():
    figure = theory_figures.prop_3_2(head_dim=64, context=1000, samples=500)
    ones, gaussian = (line.get_ydata() for line in figure.axes[0].lines[:2])
    assert ones[0] > 0.9 and abs(ones[-1]) < 0.5
    assert np.abs(gaussian).max() < 4.5 / math.sqrt(500 * 64)
    assert "95 % interval" in words(figure) and "500 draws" in words(figure)


def test_figure_of_thm_5_3_draws_the_norms():
    figure = theory_figures.thm_5_3(contexts=(16, 64), head_dim=64)
    left, right = figure.axes
    frequencies, norms = left.lines[0].get_data()
    assert norms[3] == pytest.approx(theory.thm_5_3_norm(frequencies[3], 16, 0.1))
    counts, norms = right.lines[1].get_data()
    fastest = rope().inverse_frequencies(64)[: counts[4]]
    assert norms[4] == pytest.approx(theory.thm_5_3_norm(fastest, 64, 0.1))
    assert "L = 64 tokens" in words(figure)


def test_figures_of_thm_6_1_draw_failing_lengths():
    figure = theory_figures.thm_6_1(frequencies=[0.01, 0.1])
    half, _, bound = (line.get_ydata() for line in figure.axes[0].lines[:3])
    want = [theory.thm_6_1([1, 0], [1, 0], [0.5, 0], [g], 1000).length for g in (0.01, 0.1)]
    assert list(half) == want and (np.array(bound) >= half).all()
    figure = theory_figures.thm_6_1_by_number((1, 2), 0.1, heads=6, limit=500)
    lost = figure.axes[0].lines[0].get_ydata()
    assert lost[0] == np.median(theory.thm_6_1_search([0.1], heads=6, limit=500))
    assert "no proof" in words(figure) and "6 random heads" in words(figure)


def test_every_number_of_the_page_comes_from_a_run():
    page = Path(__file__).parents[1] / "docs" / "theory.md"
    failed, tried = doctest.testfile(str(page), module_relative=False)
    assert failed == 0 and tried > 20
