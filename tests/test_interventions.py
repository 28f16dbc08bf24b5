"""Interventions: what each edit is exactly, on random decoders and on heads made by theory."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray
from random_parameters import random_parameters

from rope_study import interventions as iv
from rope_study import probes, rotary, sharding, theory
from rope_study.data import load_tokenizer
from rope_study.decoder import Decoder, LayerSpec, presets
from rope_study.errors import UserError
from rope_study.interventions import ablate, band, permute, rescale, unrotate
from rope_study.interventions.changes import apply_changes, changes
from rope_study.probes import frequency_usage
from rope_study.training.evaluate import Evaluation, mean_and_error

TINY = presets.tiny()  # 2 layers, 4 heads on 2 key heads, 8 pairs
TOKENS = jax.random.randint(jax.random.key(7), (2, 24), 0, 256)
ROPE = rotary.rope().inverse_frequencies(16)


@functools.cache
def program(config, method):
    """(params, changes, ...) -> one of the decoder's results; compiled once for all edits."""

    def run(params, changed, *arguments):
        edit = apply_changes(changed)
        return Decoder(config).apply({"params": params}, *arguments, edit=edit, method=method)

    return jax.jit(run)


def logits(config, params, *interventions):
    return program(config, None)(params, changes(config, interventions), TOKENS)[0]


def activations(config, params, name, *interventions, tokens=TOKENS):
    """One activation of every layer."""
    layers = program_of_activations(config)(params, changes(config, interventions), tokens)
    return [np.asarray(layer[name]) for layer in layers]


@functools.cache
def program_of_activations(config):
    """(params, changes, tokens) -> every layer's activations; compiled once for all edits."""
    names = ("q", "k", "q_rotated", "k_rotated")

    def measure(activations, weights):
        attention = activations["attention"](lambda attention, queries: attention)
        return {name: activations[name] for name in names} | {"attention": attention}

    def run(params, changed, tokens):
        probe = probes.Probe("read", (*names, "attention"), measure)
        edit = apply_changes(changed)
        features = functools.partial(Decoder(config).apply, method="features")
        return features({"params": params}, tokens, probes=[probe], edit=edit)[1]["read"]

    return jax.jit(run)


@dataclasses.dataclass(frozen=True)
class Given(rotary.Encoding):
    """Whatever frequencies a test wants."""

    kind = "given"
    frequencies: tuple[float, ...]

    def inverse_frequencies(self, head_dim):
        """float64[head_dim / 2]."""
        return np.array(self.frequencies)


def with_frequencies(config, frequencies):
    return config.with_rotary(Given(tuple(map(float, frequencies))))


def close(a, b, atol=2e-4):
    np.testing.assert_allclose(a, b, atol=atol)


PARAMS = random_parameters(TINY, scale=0.5)  # attention far from even
PLAIN = jax.jit(lambda p: Decoder(TINY).apply({"params": p}, TOKENS)[0])(PARAMS)
MIDDLE = band(indices=(1, 2, 5))
ABLATED = logits(TINY, PARAMS, ablate(MIDDLE))
PLAIN_ATTENTION = activations(TINY, PARAMS, "attention")


# --- bands ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "selection, expected",
    [
        (dict(fastest=0.25), [0, 1]),
        (dict(slowest=0.4), [5, 6, 7]),  # int(3.2)
        (dict(fastest=1.0), range(8)),
        (dict(indices=3), [3]),
        (dict(indices=(5, 2, 5)), [2, 5]),
        (dict(frequencies=(0.03, 0.4)), [1, 2, 3]),  # 10^(-k/2): 0.316, 0.1, 0.0316
        (dict(cycles=(0.1, 1), context=128), [3, 4]),  # 128 * 10^(-k/2) / 2 pi: 0.64, 0.2
    ],
)
def test_bands_choose_pairs(selection, expected):
    np.testing.assert_array_equal(band(**selection).choose(ROPE, 0, 0), expected)


def test_bands_go_by_frequency_where_places_do_not():
    frequencies = np.array([0, 0, 1.0, -2.0])
    np.testing.assert_array_equal(band(fastest=0.5).choose(frequencies, 0, 0), [2, 3])
    np.testing.assert_array_equal(band(fastest=0.25).choose(frequencies, 0, 0), [3])
    np.testing.assert_array_equal(band(slowest=0.5).choose(frequencies, 0, 0), [0, 1])


def usage_of(config, params):
    tokens = np.asarray(TOKENS), np.ones(TOKENS.shape, np.float32)
    return probes.run(Decoder(config), params, [tokens], [frequency_usage])["frequency_usage"]


def test_products_of_norms_are_means_over_all_queries_and_keys():
    q, k = (activations(TINY, PARAMS, name) for name in ("q", "k"))
    got = iv.pair_products(usage_of(TINY, PARAMS))
    for layer, head in np.ndindex(2, 4):
        q_norms = np.hypot(*rotary.pairs(q[layer][:, :, head])).reshape(-1, 8)
        k_norms = np.hypot(*rotary.pairs(k[layer][:, :, head // 2])).reshape(-1, 8)
        expected = np.mean(q_norms[:, None] * k_norms[None], axis=(0, 1))
        close(got[layer, head], expected, 1e-3 * expected.max())
    share = iv.band_share(usage_of(TINY, PARAMS), band(indices=(0, 3)))
    np.testing.assert_allclose(share, got[..., [0, 3]].sum(-1) / got.sum(-1), rtol=1e-6)


def usage(products):
    """A usage dataset of one layer with these |q||k| by head and pair."""
    q = np.asarray(products, np.float64)[None]
    frequencies = np.geomspace(1, 1e-4, q.shape[2])[None]
    return xarray.Dataset(
        {
            "q": (("layer", "head", "pair"), q),
            "k": (("layer", "kv_head", "pair"), np.ones_like(q)),
            "v": (("layer", "kv_head", "pair"), np.ones_like(q)),
        },
        coords={"inverse_frequency": (("layer", "pair"), frequencies)},
    )


def test_random_bands_have_the_size_and_norm_and_none_of_the_pairs():
    drawn = usage(np.random.default_rng(0).lognormal(size=(6, 32)))
    fast, sets = band(fastest=0.25), set()
    share = iv.band_share(drawn, fast)
    for seed in range(5):
        control = iv.random_band(drawn, fast, seed)
        np.testing.assert_allclose(iv.band_share(drawn, control), share, rtol=0.011)
        for head in range(6):
            pairs = control.choose(np.geomspace(1, 1e-4, 32), 0, head)
            assert len(set(pairs)) == 8 and min(pairs) >= 8
            sets.add(tuple(pairs))
    assert len(sets) == 30  # every head and seed draws anew


def test_a_random_band_comes_as_near_as_exchanges_can():
    """Nothing matches a pair of 100: the largest others are the nearest."""
    control = iv.random_band(usage([[100, 1, 2, 3, 4, 5, 6, 7]]), band(indices=(0, 1)))
    np.testing.assert_array_equal(control.choose(np.ones(8), 0, 0), [6, 7])


def test_a_random_band_by_key_head_is_one_for_all_heads_that_share_keys():
    used = usage_of(TINY, PARAMS)  # 4 heads on 2 key heads
    control = iv.random_band(used, band(indices=(0, 1)), by_key_head=True)
    drawn = [control.choose(ROPE, 0, head).tolist() for head in range(4)]
    assert drawn[0] == drawn[1] and drawn[2] == drawn[3]
    assert all(len(pairs) == 2 and min(pairs) > 1 for pairs in drawn)
    changes(TINY, unrotate(control))  # an edit of keys, refused where heads of a group differ


def test_a_band_in_some_heads_edits_no_other():
    edited = ablate(MIDDLE.in_heads("two heads", [(0, 1), (1, 3)]))
    chain = [ablate(MIDDLE, layers=0, heads=1), ablate(MIDDLE, layers=1, heads=3)]
    np.testing.assert_array_equal(logits(TINY, PARAMS, edited), logits(TINY, PARAMS, *chain))
    assert np.abs(logits(TINY, PARAMS, edited) - PLAIN).max() > 0.1


# --- edits ------------------------------------------------------------------------------------


@pytest.mark.parametrize("on", ["q_rotated", "k", "k_rotated", ("q", "k")])
def test_ablating_is_the_same_wherever_it_is_done(on):
    assert np.abs(ABLATED - PLAIN).max() > 1
    close(logits(TINY, PARAMS, ablate(MIDDLE, on=on)), ABLATED)


def test_ablating_removes_exactly_what_the_band_adds_to_logits():
    edit = ablate(MIDDLE, layers=0)
    q, k = (activations(TINY, PARAMS, f"{x}_rotated")[0].astype(np.float64) for x in "qk")
    dims = np.setdiff1d(np.arange(16), [1, 2, 5, 9, 10, 13])
    logits_left = np.einsum("btnh,bsnh->bnts", q[..., dims], np.repeat(k, 2, axis=2)[..., dims]) / 4
    weights = np.exp(np.where(np.tri(24, dtype=bool), logits_left - logits_left.max(), -np.inf))
    expected = weights / weights.sum(axis=-1, keepdims=True)
    close(activations(TINY, PARAMS, "attention", edit)[0], expected, 1e-4)


def test_an_edit_of_one_head_of_one_layer_leaves_the_others_bit_for_bit():
    plain = PLAIN_ATTENTION
    got = activations(TINY, PARAMS, "attention", ablate(MIDDLE, layers=1, heads=2))
    np.testing.assert_array_equal(got[0], plain[0])
    np.testing.assert_array_equal(got[1][:, [0, 1, 3]], plain[1][:, [0, 1, 3]])
    assert np.abs(got[1][:, 2] - plain[1][:, 2]).max() > 0.1


@pytest.mark.parametrize("heads", [(2, 3), (0, 1)])
def test_an_edit_of_keys_changes_the_whole_group(heads):
    plain = PLAIN_ATTENTION
    got = activations(TINY, PARAMS, "attention", unrotate(MIDDLE, heads=heads, layers=0))
    for head in range(4):
        assert (np.abs(got[0][:, head] - plain[0][:, head]).max() > 0.1) == (head in heads)


def test_rescale_multiplies_what_the_band_adds():
    close(logits(TINY, PARAMS, rescale(MIDDLE, 1.0)), PLAIN)
    close(logits(TINY, PARAMS, rescale(MIDDLE, 0)), ABLATED)
    rescaled = logits(TINY, PARAMS, rescale(MIDDLE, 0.5, on=("q", "k")))
    close(rescaled, logits(TINY, PARAMS, rescale(MIDDLE, 0.25)))
    assert np.abs(rescaled - PLAIN).max() > 0.5


def test_unrotate_is_frequency_0():
    expected = logits(
        with_frequencies(TINY, np.where(np.isin(range(8), [1, 2, 5]), 0, ROPE)), PARAMS
    )
    assert np.abs(expected - PLAIN).max() > 1
    close(logits(TINY, PARAMS, unrotate(MIDDLE)), expected)
    close(
        logits(TINY, PARAMS, unrotate(band(fastest=1.0))),
        logits(TINY.with_rotary(rotary.nope()), PARAMS),
    )


@pytest.mark.parametrize("order, places", [(None, [5, 2, 1]), ((1, 2, 0), [2, 5, 1])])
def test_permute_exchanges_frequencies(order, places):
    """What was in b_order[i] is rotated by the frequency of b_i."""
    frequencies = ROPE.copy()
    frequencies[places] = ROPE[[1, 2, 5]]
    expected = logits(with_frequencies(TINY, frequencies), PARAMS)
    assert np.abs(expected - PLAIN).max() > 1
    close(logits(TINY, PARAMS, permute(MIDDLE, order=order)), expected)


def test_permute_without_rotation_changes_nothing():
    config = TINY.with_rotary(rotary.nope())
    plain = logits(config, PARAMS)
    close(logits(config, PARAMS, permute(band(fastest=1.0))), plain)
    close(logits(config, PARAMS, permute(band(fastest=1.0), layers=1, heads=(2, 3))), plain)


def test_several_act_in_order():
    """Unrotated pairs come from what earlier edits left; permuting twice in reverse is nothing."""
    close(logits(TINY, PARAMS, permute(MIDDLE), permute(MIDDLE)), PLAIN)
    close(logits(TINY, PARAMS, ablate(MIDDLE), unrotate(MIDDLE)), ABLATED)
    close(logits(TINY, PARAMS, unrotate(MIDDLE), ablate(MIDDLE, on="q_rotated")), ABLATED)
    close(logits(TINY, PARAMS, ablate(band(indices=1)), ablate(band(indices=(2, 5)))), ABLATED)
    rescaled_first = logits(TINY, PARAMS, rescale(MIDDLE, 2), permute(band(fastest=1.0)))
    swapped = logits(TINY, PARAMS, permute(band(fastest=1.0)), rescale(band(indices=(6, 5, 2)), 2))
    close(rescaled_first, swapped)
    assert (
        np.abs(
            rescaled_first - logits(TINY, PARAMS, permute(band(fastest=1.0)), rescale(MIDDLE, 2))
        ).max()
        > 1
    )


MIXED = (
    LayerSpec(rotary.rope(), 4),
    LayerSpec(rotary.p_rope(0.5), head_dim=32, kv_heads=4),
)


def test_edits_are_the_same_scanned_or_unrolled_and_rematerialised():
    """Three layers of two kinds: a remainder of one, and tables filled up to the largest."""
    config = dataclasses.replace(TINY, layers=3, pattern=MIXED)
    params = random_parameters(config, scale=0.5)
    chain = [
        unrotate(band(fastest=0.5), layers=1),
        permute(band(indices=(0, 3)), layers=2),
        ablate(band(slowest=0.5), layers=(0, 1), heads=3),
    ]
    expected = logits(config, params, *chain)
    assert np.abs(expected - logits(config, params)).max() > 0.1
    changed = dataclasses.replace(config, scan=False, remat="full")
    close(logits(changed, params, *chain), expected)


def test_every_layer_has_the_band_of_its_own_encoding():
    """Pairs between 0.4 and 0.6 rad/token are in layer 1 only: 10^(-1/4) = 0.56."""
    config = dataclasses.replace(TINY, pattern=MIXED)
    params = random_parameters(config, scale=0.5)
    plain = activations(config, params, "q_rotated")
    got = activations(config, params, "q_rotated", ablate(band(frequencies=(0.4, 0.6))))
    np.testing.assert_array_equal(got[0], plain[0])
    assert not got[1][..., [1, 17]].any()
    assert (got[1] == 0).sum() == got[1].size // 16


def test_a_kept_activation_does_not_leak_out_of_a_trace():
    with jax.checking_leaks():
        edit = iv.edit(TINY, unrotate(MIDDLE))
        jax.jit(lambda p: Decoder(TINY).apply({"params": p}, TOKENS, edit=edit)[0])(PARAMS)


# --- measuring --------------------------------------------------------------------------------

TEXTS = ["abcdefgh" * 3, "The quick brown fox", "hello", "to be or not to be", *"wxyz"]
BATCH = load_tokenizer("bytes").encode_batch(TEXTS)
ALL = {
    "ablate": ablate(MIDDLE),
    "unrotate": [unrotate(MIDDLE, layers=1), rescale(MIDDLE, 2, layers=0)],
}


def measured(batches=(BATCH,), decoder=None, interventions=ALL, **kwargs):
    # Copies of the shape of the texts, which compiles once.
    kwargs = {"copies": 8, "copy_length": 12} | kwargs
    return iv.measure(decoder or Decoder(TINY), PARAMS, batches, interventions, **kwargs)


@pytest.fixture(scope="module")
def effects():
    return measured()


def test_token_losses_add_up_to_those_of_texts(effects):
    tokens, weights = BATCH
    by_name = iv.token_losses(Decoder(TINY), PARAMS, [tokens[:3], tokens[3:]], {"plain": ()} | ALL)
    for name, token_losses in by_name.items():
        mean = (token_losses * weights[:, 1:]).sum() / weights[:, 1:].sum()
        np.testing.assert_allclose(mean, effects.loss.sel(intervention=name), rtol=1e-6)


def losses(tokens, *interventions):
    run, tokens = program(TINY, "token_losses"), jnp.asarray(tokens)
    token_losses = run(PARAMS, changes(TINY, interventions), tokens[:, :-1], tokens[:, 1:])
    return np.asarray(token_losses, np.float64)


def test_losses_are_those_of_each_decoder_alone(effects):
    tokens, weights = BATCH
    counted = weights[:, 1:]
    chains = {"plain": [], "ablate": [ALL["ablate"]], "unrotate": ALL["unrotate"]}
    sums = {name: (losses(tokens, *c) * counted).sum(axis=1) for name, c in chains.items()}
    for name, by_text in sums.items():
        row = effects.sel(intervention=name)
        assert float(row.loss) == pytest.approx(by_text.sum() / counted.sum(), abs=1e-5)
        difference = (by_text - sums["plain"]).sum() / counted.sum()
        assert float(row.loss_difference) == pytest.approx(difference, abs=1e-5)
    assert float(effects.loss_difference_se.sel(intervention="ablate")) > 0.01


def test_standard_error_is_evaluates_for_texts_of_one_length():
    a, b = np.random.default_rng(0).normal(size=(2, 9, 5))
    got = mean_and_error((a - b).sum(axis=1), np.full(9, 5.0))
    assert got == pytest.approx(Evaluation(a).difference(Evaluation(b)))


def test_standard_error_of_texts_of_any_length_is_right_on_average():
    """Drawn texts of 1 to 20 tokens: the spread of the mean is what single draws say it is."""
    random = np.random.default_rng(0)
    counts = random.integers(1, 21, (2000, 40)).astype(float)
    sums = counts * random.normal(1.0, 0.5, counts.shape) + random.normal(0, 1, counts.shape)
    means, errors = np.array([mean_and_error(s, c) for s, c in zip(sums, counts, strict=True)]).T
    assert errors.mean() == pytest.approx(means.std(), rel=0.05)


def test_patterns_are_direct_means_over_counted_queries(effects):
    tokens, weights = BATCH
    counted = weights.copy()
    counted[:, 0] = 0
    attention = {
        name: np.stack(activations(TINY, PARAMS, "attention", *chain, tokens=tokens))
        for name, chain in {"plain": [], "ablate": [ALL["ablate"]]}.items()
    }
    T = tokens.shape[1]
    for name, a in attention.items():
        by_query = {
            "diagonal": np.einsum("lbntt->lbnt", a),
            "previous": np.pad(np.einsum("lbntt->lbnt", a[..., 1:, :-1]), [(0, 0)] * 3 + [(1, 0)]),
            "first": a[..., 0],
            "entropy": -np.where(a > 0, a * np.log(np.maximum(a, 1e-30)), 0).sum(axis=-1),
            "total_variation": np.abs(a - attention["plain"]).sum(axis=-1) / 2,
        }
        for key, values in by_query.items():
            assert values.shape[-1] == T
            expected = np.einsum("lbnt,bt->ln", values, counted) / counted.sum()
            close(effects[key].sel(intervention=name), expected, 1e-5)


def check_effects(got, effects, atol=1e-4):
    for name in got.data_vars:
        expected = effects[name].sel(intervention=got.intervention)
        np.testing.assert_allclose(got[name], expected, atol=atol, err_msg=name)


def test_padding_counts_for_nothing(effects):
    tokens, weights = BATCH
    padded = np.pad(tokens, [(0, 0), (0, 7)], constant_values=5), np.pad(weights, [(0, 0), (0, 7)])
    got = measured([padded], interventions={"ablate": ALL["ablate"]}, copies=0)
    assert "copy_gain" not in got
    check_effects(got, effects)


@pytest.mark.eight_devices
def test_batches_and_devices_add_up(effects):
    halves = [tuple(a[i : i + 4] for a in BATCH) for i in (0, 4)]
    layout = sharding.make_layout("data=4,tensor=2")
    edits = {"unrotate": ALL["unrotate"]}
    got = measured(halves, decoder=Decoder(TINY, layout), interventions=edits, copies=3)
    assert got.attrs["copies"] == 3  # rows that fill the devices do not count
    check_effects(got.drop_vars([name for name in got if name.startswith("copy")]), effects)


def test_copying_is_the_loss_of_the_same_tokens_twice(effects):
    tokens, weights = iv.repeated_sequences([BATCH], 8, 12, seed=0)
    assert (
        tokens.shape == BATCH[0].shape == (8, 25) and (tokens[:, 0] == 256).all() and weights.all()
    )
    np.testing.assert_array_equal(tokens[:, 1:13], tokens[:, 13:])
    assert np.isin(tokens[:, 1:], BATCH[0][BATCH[1] > 0]).all() and not (tokens[:, 1:] == 256).any()
    by_token = losses(tokens)  # target 0 is the first token after BOS
    row = effects.sel(intervention="plain")
    assert float(row.copy_first) == pytest.approx(by_token[:, 1:12].mean(), abs=1e-5)
    assert float(row.copy_second) == pytest.approx(by_token[:, 13:].mean(), abs=1e-5)
    assert float(row.copy_gain) == pytest.approx(float(row.copy_first - row.copy_second))
    edited = losses(tokens, ALL["ablate"])
    gains = [x[:, 1:12].mean(axis=1) - x[:, 13:].mean(axis=1) for x in (by_token, edited)]
    row, change = effects.sel(intervention="ablate"), gains[1] - gains[0]
    assert float(row.copy_gain_difference) == pytest.approx(change.mean(), abs=1e-5)
    assert float(row.copy_gain_difference_se) == pytest.approx(
        change.std(ddof=1) / 8**0.5, abs=1e-5
    )


def test_copying_without_bos():
    bare = [(BATCH[0][:, 1:], BATCH[1][:, 1:])]
    tokens, _ = iv.repeated_sequences(bare, 8, 12)
    assert tokens.shape == (8, 24)
    row = measured(bare, interventions={"ablate": ALL["ablate"]}).sel(intervention="plain")
    by_token = losses(tokens)  # target 0 is the second token
    assert float(row.copy_first) == pytest.approx(by_token[:, :11].mean(), abs=1e-5)
    assert float(row.copy_second) == pytest.approx(by_token[:, 12:].mean(), abs=1e-5)


# --- the causal test, on heads made by theory -------------------------------------------------

LENGTH, FAST, SLOW, DECOY = 24, [0, 1], [6, 7], [4, 5]
TARGET = 7  # the id that the semantic head looks for


def made_by_theory():
    """One layer: head 0 reads the previous token (Thm. 5.3), head 1 the tokens of id TARGET.

    An embedding is (1, is target, is other, 0, ...): of one norm, so that the normed input is
    sqrt(D / 2) times it. Both heads have decoys: pairs of the same norm as those that do the work,
    with the same key at every token, slow enough that they add about the same at every distance.
    """
    config = dataclasses.replace(
        TINY, layers=1, heads=2, kv_heads=2, scale_embedding=False, norm_epsilon=1e-12
    )
    params = jax.tree.map(jnp.zeros_like, random_parameters(config))
    ids = np.arange(config.vocab_size)
    table = np.zeros((config.vocab_size, config.d_model))
    table[:, 0], table[:, 1], table[:, 2] = 1, ids == TARGET, ids != TARGET
    w = {name: np.zeros(params["pattern_0"][name].shape[1:]) for name in "qk"}
    norm = theory.thm_5_3_norm(ROPE[FAST], LENGTH, 0.05, offset=1, scale=16**-0.5)
    fast, slow, decoy = (spread(pairs, norm) for pairs in (FAST, SLOW, DECOY))
    w["q"][0, 0] = fast + decoy
    w["k"][0, 0] = theory.prop_3_1_key(fast, 1, rotary.rope()) + decoy
    w["q"][0, 1] = slow + decoy
    w["k"][1, 1], w["k"][2, 1], w["k"][0, 1] = slow, -slow, decoy
    of_input = (config.d_model / 2) ** -0.5
    changed = {name: jnp.asarray(value * of_input, jnp.float32)[None] for name, value in w.items()}
    params["pattern_0"] = params["pattern_0"] | changed
    return Decoder(config), params | {"embedding": jnp.asarray(table, jnp.float32)}


def spread(pairs, norm):
    psi = np.zeros(16)
    psi[pairs] = norm / len(pairs) ** 0.5
    return psi


def test_fast_pairs_carry_position_and_slow_pairs_meaning_in_heads_made_by_theory():
    decoder, params = made_by_theory()
    tokens = np.random.default_rng(0).integers(0, 256, (8, LENGTH)).astype(np.int32)
    tokens[:, 2] = TARGET
    batch = tokens, (np.arange(LENGTH) >= 4) * np.ones((8, 1), np.float32)
    pair_usage = probes.run(decoder, params, [batch], [frequency_usage])["frequency_usage"]
    fast, slow = band(fastest=0.25), band(slowest=0.25)
    kinds = {
        "no fast": ablate(fast),
        "no slow": ablate(slow),
        "random": [
            ablate(iv.random_band(pair_usage, fast), heads=0),
            ablate(iv.random_band(pair_usage, slow), heads=1),
        ],
        "fast unrotated": unrotate(fast),
        "slow unrotated": unrotate(slow),
        "reversed": permute(band(indices=(*FAST, *SLOW))),
        "weak fast": rescale(fast, 0.1),
    }
    effects = iv.measure(decoder, params, [batch], kinds, copies=0).isel(layer=0)
    position = effects.previous.sel(head=0).to_series()
    moved = effects.total_variation.sel(head=1).to_series()  # away from the semantic pattern
    meaning = effects.entropy.sel(head=1).to_series()  # one target: low
    assert position["plain"] > 0.9 and meaning["plain"] < 0.8
    # Without the fast band position is gone and meaning untouched; without the slow the reverse.
    assert position["no fast"] < 0.15 and moved["no fast"] < 1e-5
    assert position["no slow"] == pytest.approx(position["plain"], abs=1e-5)
    assert moved["no slow"] > 0.7 and meaning["no slow"] > 2
    # As many pairs of the same norm do neither.
    for head, working_band in enumerate((fast, slow)):
        share, control = (
            float(iv.band_share(pair_usage, measured_band)[0, head])
            for measured_band in (working_band, iv.random_band(pair_usage, working_band))
        )
        assert share == pytest.approx(0.5) and control == pytest.approx(share)
    assert position["random"] > 0.9
    assert moved["random"] < 0.05
    # Unrotated it loses position, not meaning; what was slow loses meaning at a high frequency.
    assert position["fast unrotated"] < 0.15 and moved["fast unrotated"] < 1e-5
    assert position["slow unrotated"] > 0.9 and moved["slow unrotated"] < 0.05
    assert position["reversed"] < 0.15 and moved["reversed"] > 0.3
    assert position["no fast"] + 0.05 < position["weak fast"] < position["plain"] - 0.05


# --- wrong input ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: band(), r"nothing given; choose by one of fastest"),
        (lambda: band(fastest=0.5, slowest=0.5), r"fastest, slowest given; choose by one"),
        (lambda: band(fastest=0.5, context=8), r"cycles with context"),
        (lambda: band(cycles=(0, 1)), r"cycles with context"),
        (lambda: band(fastest=1.5), r"fastest=1\.5 must lie in \(0, 1\]"),
        (lambda: band(indices=-1), r"indices=-1 must be a whole number from 0"),
        (lambda: band(indices=0.5), r"indices=0\.5 must be a whole number"),
        (lambda: band(frequencies=(1, 0.1)), r"\(1, 0\.1\) must be two numbers, the lower first"),
        (lambda: ablate(0.25), r"band=0\.25 must be a Band"),
        (lambda: ablate(MIDDLE, on="v"), r"on='v' is not one of q, k, q_rotated, k_rotated"),
        (lambda: ablate(MIDDLE, layers="all"), r"layers='all' must be a whole number .*or a list"),
        (lambda: rescale(MIDDLE, float("nan")), r"factor=nan must be a finite number"),
        (lambda: permute(MIDDLE, order=(0, 0, 1)), r"must have each of 0\.\.2 once"),
        (lambda: iv.edit(TINY, permute(MIDDLE, order=(1, 0))), r"2 places, and pairs .* is 3"),
        (lambda: iv.edit(TINY, ablate(MIDDLE, layers=2)), r"layers=\(2,\): 2 is not one .* 0\.\.1"),
        (lambda: iv.edit(TINY, ablate(MIDDLE, heads=4)), r"4 is not one of the decoder's 0\.\.3"),
        (lambda: iv.edit(TINY, ablate(band(indices=8))), r"index 8 is too large: .* 0\.\.7"),
        (lambda: iv.edit(TINY, ablate(band(fastest=0.1))), r"no pair of these layers and heads"),
        (lambda: iv.edit(TINY, [MIDDLE]), r"is no intervention; make one"),
        (
            lambda: iv.edit(TINY, unrotate(MIDDLE, heads=(0, 1, 3))),
            r"query heads 2, 3 of layer 0 share their keys.*on='q', which changes a head alone",
        ),
        (
            lambda: iv.edit(TINY.with_rotary(lambda x, positions: x), ablate(band(fastest=0.5))),
            r"encoding of layer 0 has no fixed frequencies; choose pairs by indices",
        ),
        (
            lambda: iv.edit(
                dataclasses.replace(TINY, pattern=(LayerSpec(), LayerSpec(keys_from=0))),
                unrotate(MIDDLE),
            ),
            r"layers that read the keys of others",
        ),
        (
            lambda: iv.random_band(usage(np.ones((1, 8))), band(fastest=0.75)).choose(ROPE, 0, 0),
            r"takes 6 of 8 pairs, which leaves too few",
        ),
        (lambda: measured(interventions={}), r"at least one and none named 'plain'"),
        (lambda: measured(interventions={"plain": ablate(MIDDLE)}), r"none named 'plain'"),
        (lambda: measured([]), r"no batches were given"),
        (lambda: measured([tuple(a[:, :1] for a in BATCH)]), r"no text of two tokens"),
        (lambda: measured(copy_length=1), r"copy_length=1 must be at least 2"),
        (
            lambda: measured(decoder=Decoder(dataclasses.replace(TINY, bos=2))),
            r"needs BOS, 2",
        ),
    ],
)
def test_wrong_input_is_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()
