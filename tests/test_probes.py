"""Probes: each against a direct statement in float64, on padding, blocks and devices; refusals."""

import dataclasses
import functools
import re

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
import xarray
from random_parameters import random_parameters
from test_llama2c import write as write_llama2c

from rope_study import checkpoints, probes, rotary, theory
from rope_study.data import load_tokenizer
from rope_study.decoder import Decoder, LayerSpec, attention, presets
from rope_study.decoder.attention_scores import Alibi
from rope_study.decoder.query_scaling import LogN
from rope_study.errors import UserError
from rope_study.interventions import losses, measurement
from rope_study.interventions.changes import changes
from rope_study.probes.frequency_usage import pair_norms
from rope_study.probes.head_patterns import distance_bins
from rope_study.probes.one_text import read_activations
from rope_study.probes.rotary_outliers import pair_angles, sign_over
from rope_study.probes.run import compiled
from rope_study.probes.sinks import _residual
from rope_study.probes.spectral import spectrum
from rope_study.reports.model import PROBES
from rope_study.rotary import parse
from rope_study.sharding import make_layout

# One layer of each sort: with an attention factor; local, without rotation; in chunks, with a bias.
MIXED = dataclasses.replace(
    presets.tiny(),
    layers=3,
    bos=1,
    pattern=(
        LayerSpec(parse("yarn_rope(factor=4, context=64)")),
        LayerSpec(rotary.nope(), window=9),
        LayerSpec(rotary.p_rope(0.5), chunk=5, score_function=Alibi(), query_scale=LogN()),
    ),
)
DELIMITERS = [5, 6, 7, 8, 9, 10, 11, 12]
ALL = [
    probes.frequency_usage,
    probes.head_patterns(delimiters=DELIMITERS, window=4, minimum=6),
    probes.sinks(thresholds=(0.1, 0.2), bins=5),
    probes.massive_values(factor=1.2),
    probes.rotary_outliers(factor=1.1),
    probes.spectral(length=8),
]


def texts(*lengths, seed=3):
    """Texts of a few ids, so that ids repeat, each with BOS."""
    random = np.random.default_rng(seed)
    return [np.array([1, *random.integers(2, 20, n - 1)], np.int32) for n in lengths]


def padded(rows):
    tokens = np.ones((len(rows), max(map(len, rows))), np.int32)
    weights = np.zeros(tokens.shape, np.float32)
    for i, row in enumerate(rows):
        tokens[i, : len(row)], weights[i, : len(row)] = row, 1
    return tokens, weights


@pytest.fixture(scope="module")
def mixed():
    """A random decoder whose weights are large enough for attention to be uneven."""
    return Decoder(MIXED), random_parameters(MIXED, scale=0.2)


EIGHT = texts(24, 17, 20, 9, 24, 12, 7, 23)


@pytest.fixture(scope="module")
def measured(mixed):
    return probes.run(*mixed, [padded(EIGHT)], ALL)


def activations(mixed, rows):
    """What every layer shows of at most eight texts, [8, ...]; one program for all tests."""
    tokens = np.ones((8, 24), np.int32)
    for place, row in enumerate(rows):
        tokens[place, : len(row)] = row
    return read_activations(*mixed, tokens, _everything)


def _everything(activations):
    weights = activations["attention"](lambda attention, _: attention)
    counts = jnp.broadcast_to(activations["key_counts"], activations["tokens"].shape)
    return {**activations, "attention": weights, "key_counts": counts}


def run_all(mixed, tokens, weights):
    """The datasets of ALL; rows of nothing but padding fill up the batch that was compiled."""
    fill = [(0, 8 - len(tokens)), (0, 24 - tokens.shape[1])]
    return probes.run(
        *mixed, [(np.pad(tokens, fill, constant_values=1), np.pad(weights, fill))], ALL
    )


def assert_same(got, expected, **tolerance):
    assert set(got) == set(expected)
    for name, dataset in expected.items():
        xarray.testing.assert_allclose(got[name], dataset, **tolerance)
        assert got[name].attrs.keys() == dataset.attrs.keys()


# --- all of them ------------------------------------------------------------------------------


def test_padding_does_not_count(mixed, measured):
    """Two batches that are wider, with rows of nothing but padding, add up to the one."""

    def wide(rows):
        tokens, weights = np.ones((5, 31), np.int32), np.zeros((5, 31), np.float32)
        for array, part in zip((tokens, weights), padded(rows), strict=True):
            array[: len(rows), : part.shape[1]] = part
        return tokens, weights

    got = probes.run(*mixed, [wide(EIGHT[:3]), wide(EIGHT[3:])], ALL)
    # What goes by the context, 31 tokens, differs with it.
    for name in ("frequency_usage", "massive_values", "rotary_outliers"):
        got[name] = got[name].assign_coords(cycles=measured[name].cycles)
    for name in ("q_outliers_within", "k_outliers_within", "pairs_within", "sign"):
        got["rotary_outliers"][name] = measured["rotary_outliers"][name]
    assert_same(got, measured, rtol=2e-4, atol=2e-5)


def products(jaxpr):
    """Every matrix product of a jaxpr, those of inner ones too."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            yield equation
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from products(inner)


def assert_exact(function, *arguments):
    """All matrix products of a function are at the highest precision, so f32 is f32 on a TPU."""
    found = list(products(jax.make_jaxpr(function)(*arguments).jaxpr))
    highest = (jax.lax.Precision.HIGHEST,) * 2
    assert found and [str(p) for p in found if p.params["precision"] != highest] == []


@pytest.mark.parametrize("name", PROBES)
def test_no_probe_rounds_on_any_device(mixed, name):
    decoder, params = mixed
    probe, tokens = PROBES[name](load_tokenizer("bytes")), jnp.ones((2, 80), jnp.int32)
    assert_exact(lambda p: decoder.apply({"params": p}, tokens, probes=[probe])[1], params)


def test_no_intervention_rounds_on_any_device(mixed):
    decoder, params = mixed
    change, tokens = changes(decoder.config, ()), jnp.ones((2, 24), jnp.int32)
    layout, weights = make_layout(), jnp.ones((2, 24))
    assert_exact(losses._compiled(MIXED, layout, ()), params, change, tokens)
    assert_exact(measurement._compiled_patterns(MIXED, layout, ()), params, change, tokens, weights)


def test_sums_have_the_same_shapes_whatever_the_batch(mixed):
    """So that batches of other sizes add up."""
    decoder, params = mixed

    def measure(tokens):
        return decoder.apply({"params": params}, tokens, probes=ALL)[1]

    def shapes(B, T):
        sums = jax.eval_shape(measure, jax.ShapeDtypeStruct((B, T), jnp.int32))
        return jax.tree.map(lambda a: a.shape, sums)

    assert shapes(2, 24) == shapes(3, 700)


def test_attention_in_blocks_gives_the_same(mixed, measured, monkeypatch):
    monkeypatch.setattr(attention.reference, "LONG", 8)
    monkeypatch.setattr(attention.reference, "QUERY_BLOCK", 5)
    of_attention = [probe for probe in ALL if "attention" in probe.reads]
    got = probes.run(*mixed, [padded(EIGHT)], of_attention)
    assert len(of_attention) == 3
    assert_same(got, {name: measured[name] for name in got}, rtol=1e-4, atol=1e-5)


@pytest.mark.eight_devices
def test_devices_share_a_batch_and_exchange_nothing_but_sums(mixed, measured):
    """No probe gathers the texts of other devices: the compiled program only adds up."""
    decoder = Decoder(MIXED, make_layout("data=8"))
    layout, measure = compiled(decoder, mixed[1], ALL)
    batch = jax.device_put(mixed[1], layout.sharding()), *map(layout.place, padded(EIGHT))
    program = measure.lower(*batch).compile()
    exchanges = re.findall(r" (all-[a-z]+|collective-[a-z]+|reduce-scatter)\(", program.as_text())
    assert set(exchanges) == {"all-reduce"}
    sums = jax.tree.map(lambda a: np.asarray(a, np.float64), program(*batch))
    for probe in ALL:
        dataset = probe.finalize(sums[probe.name], 24, MIXED)
        xarray.testing.assert_allclose(dataset, measured[probe.name], rtol=1e-4, atol=1e-5)


def test_probed_forward_equals_plain_forward_bit_for_bit(mixed):
    """With probes that read every kind of activation: before the MLP, after it, and attention."""
    decoder, params = mixed
    tokens, weights = map(jnp.asarray, padded(EIGHT))
    late = probes.Probe(
        "late", ("residual", "v"), lambda a, w: jnp.sum(a["residual"] * a["v"][0, 0, 0, 0])
    )

    @functools.partial(jax.jit, static_argnums=2)
    def logits(params, tokens, probes):
        return decoder.apply({"params": params}, tokens, probes=probes, weights=weights)

    probed, sums = logits(params, tokens, (probes.frequency_usage, probes.sinks(), late))
    assert len(sums) == 3
    np.testing.assert_array_equal(probed, logits(params, tokens, ())[0])


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
def test_every_dataset_has_units_and_can_be_saved(measured, suffix, tmp_path):
    named = {"names": probes.name_heads(measured["head_patterns"])}
    for name, dataset in (measured | named).items():
        assert all("units" in v.attrs and "long_name" in v.attrs for v in dataset.values()), name
        probes.save(dataset, tmp_path / (name + suffix))
        reopened = xarray.open_dataset(tmp_path / (name + suffix))
        xarray.testing.assert_allclose(reopened, dataset)


def test_what_is_given_besides_activations(mixed):
    text = texts(24)[0]
    for layer, spec in zip(activations(mixed, [text]), MIXED.pattern, strict=True):
        mask = attention.causal_mask(24, window=spec.window, chunk=spec.chunk)
        np.testing.assert_array_equal(layer["key_counts"][0], mask.sum(axis=1))
        np.testing.assert_array_equal(layer["tokens"][0], text)


def test_norms_after_rotation_are_those_before_times_the_scaling(mixed):
    for layer, spec in zip(activations(mixed, texts(24)), MIXED.pattern, strict=True):
        before, after = (pair_norms(layer[name][0]) for name in ("q", "q_rotated"))
        frequencies = spec.rotary.inverse_frequencies(16)
        scale = rotary.pair_scale(frequencies, spec.rotary.scaling)
        np.testing.assert_allclose(after, before * scale, rtol=1e-4)
    assert MIXED.pattern[0].rotary.scaling > 1.1


# --- head patterns ----------------------------------------------------------------------------


def attention_of(mixed, *rows):
    """float64[L, N, T, T] of each text."""
    weights = np.stack([layer["attention"] for layer in activations(mixed, rows)], dtype=float)
    return [weights[:, i, :, : len(row), : len(row)] for i, row in enumerate(rows)]


def test_head_patterns_equal_their_statement(mixed):
    """On texts with tokens left out in their middle, query by query and key by key."""
    window, minimum, rows = 4, 6, texts(24, 18)
    tokens, weights = padded(rows)
    weights[0, [4, 11, 12]] = 0
    got = run_all(mixed, tokens, weights)["head_patterns"]
    maps = attention_of(mixed, *rows)
    for layer, spec in enumerate(MIXED.pattern):
        # In chunks of 5 no query has 6 keys: those count that read as many as they may.
        cells = []  # distance, id, the heads' y
        names = ("queries", "first", "delimiter", "delimiter_keys", "entropy", "selective")
        sums = dict.fromkeys(names, 0.0) | {"offset_mass": np.zeros((4, window))}
        for text, a, w in zip(rows, maps, weights, strict=True):
            for i in range(minimum - 1, len(text)):
                reads = min(i + 1, spec.window or i + 1, i % spec.chunk + 1 if spec.chunk else 99)
                if not w[i] or reads < min(minimum, spec.chunk or minimum):
                    continue
                row = a[layer, :, i] * w[: len(text)]  # [N, T]
                keys = [j for j in range(max(1, i - reads + 1), i + 1) if w[j]]
                delimiting = [j for j in keys if text[j] in DELIMITERS]
                y = row[:, keys] - row[:, keys].mean(axis=1, keepdims=True)
                positive = np.where(row > 0, row, 1)
                sums["queries"] += 1
                sums["offset_mass"] += row[:, i - np.arange(window)]
                sums["first"] += row[:, 0]
                sums["delimiter"] += row[:, delimiting].sum(axis=1)
                sums["delimiter_keys"] += len(delimiting) / reads
                sums["entropy"] -= (row * np.log(positive)).sum(axis=1)
                sums["selective"] += np.abs(y).sum(axis=1) / 2
                cells += [(i - j, text[j], y[:, n]) for n, j in enumerate(keys)]
        expected = {name: total / sums["queries"] for name, total in sums.items()}
        square = sum(y**2 for *_, y in cells)
        for name, place in (("by_distance", 0), ("by_token", 1)):
            groups = {}
            for cell in cells:
                groups.setdefault(int(cell[place]), []).append(cell[2])
            between = sum(len(g) * np.mean(g, axis=0) ** 2 for g in groups.values())
            expected[name] = between / square
        for name in got.data_vars:
            value = got[name].sel(layer=layer)
            np.testing.assert_allclose(value, expected[name], rtol=1e-3, atol=1e-5, err_msg=name)


def test_distances_share_a_bin_within_a_factor_of_two():
    bins = distance_bins(5000)
    np.testing.assert_array_equal(bins[:256], np.arange(256))
    assert list(bins[[256, 511, 512, 1023, 1024, 4999]]) == [256, 256, 257, 257, 258, 260]


CONSTRUCTED = {
    "diagonal": "diagonal", "previous": "previous", "sink": "sink", "local": "local",
    "by token": "semantic", "delimiter": "delimiter", "even": "mixed", "noise": "semantic",
}  # fmt: skip


@pytest.fixture(scope="module")
def constructed():
    """A layer whose heads are made by hand, by what goes in as q and k before rotation."""
    T, H, encoding = 96, 32, rotary.rope()
    random = np.random.default_rng(1)
    tokens = np.concatenate([np.ones((4, 1)), random.integers(2, 40, (4, T - 1))], axis=1)
    tokens = tokens.astype(np.int32)
    g = encoding.inverse_frequencies(H)
    # Thm. 5.3: psi in the 5 fastest pairs puts 0.9 of attention on its target.
    norm = theory.thm_5_3_norm(g[:5], T, epsilon=0.1, scale=H**-0.5)
    psi = np.zeros(H)
    psi[:5] = norm / 5**0.5
    near = np.zeros(H)  # falls off in some ten tokens
    near[2:5] = 4.0
    slowest = np.zeros(H)  # the slowest pair, which hardly rotates in 96 tokens
    slowest[15] = 1.0
    # Every fourth id is what the head looks for, wherever it stands.
    sought = np.where(tokens % 4 == 0, 1.0, -1.0)
    first = np.where(np.arange(T) == 0, 1.0, -1.0) * np.ones((4, 1))
    delimits = np.where(np.isin(tokens, DELIMITERS), 1.0, -1.0)
    everywhere = np.ones((4, T))
    heads = {
        "diagonal": (psi, everywhere, psi),
        "previous": (psi, everywhere, theory.rotate_key(psi, encoding, 1)),
        "sink": (40 * slowest, first, slowest),
        "local": (near, everywhere, near),
        "by token": (40 * slowest, np.where(np.arange(T) == 0, -1.0, sought), slowest),
        "delimiter": (40 * slowest, delimits, slowest),
        "even": (0 * slowest, everywhere, slowest),
        "noise": (40 * slowest, random.normal(size=(4, T)), slowest),
    }
    q = np.stack([np.broadcast_to(q, (4, T, H)) for q, _, _ in heads.values()], axis=2)
    k = np.stack([signs[..., None] * k for _, signs, k in heads.values()], axis=2)
    config = dataclasses.replace(presets.tiny(), layers=1, heads=8, kv_heads=8, head_dim=H)
    decoder, params = Decoder(config), random_parameters(config)
    put = {"q": jnp.asarray(q, jnp.float32), "k": jnp.asarray(k, jnp.float32)}
    probe = probes.head_patterns(delimiters=DELIMITERS)
    datasets = probes.run(
        decoder, params, [(tokens, np.ones(tokens.shape, np.float32))],
        [probe, probes.sinks(), probes.spectral(window="none")],
        edit=lambda name, layer, value: put.get(name, value),
    )  # fmt: skip
    return datasets, norm


def test_constructed_heads_are_named(constructed):
    patterns = constructed[0]["head_patterns"].sel(layer=0)
    names = probes.name_heads(constructed[0]["head_patterns"]).sel(layer=0)
    assert list(names.name.values) == list(CONSTRUCTED.values())
    scores = dict(zip(CONSTRUCTED, names.score.values, strict=True))
    for name in ("diagonal", "previous", "sink", "local", "delimiter"):
        assert scores[name] > 0.8, name
    assert scores["by token"] > 0.7 and scores["noise"] > 0.7
    semantic = dict(zip(CONSTRUCTED, names.scores.sel(kind="semantic").values, strict=True))
    assert max(semantic[n] for n in ("diagonal", "previous", "sink", "local", "even")) < 0.1
    # Even attention is on delimiters as often as they occur, and that is all there is to it.
    share = patterns.delimiter_keys.item()
    assert scores["even"] == pytest.approx(share, abs=0.03) and patterns.selective[6] < 0.01
    by_distance = dict(zip(CONSTRUCTED, patterns.by_distance.values, strict=True))
    by_token = dict(zip(CONSTRUCTED, patterns.by_token.values, strict=True))
    assert min(by_distance[name] for name in ("diagonal", "previous", "local")) > 0.9
    assert max(by_distance[name] for name in ("by token", "delimiter")) < 0.1
    # A weight is one over the number of tokens that are sought so far, which varies by query.
    assert min(by_token[name] for name in ("by token", "delimiter")) > 0.4
    assert max(by_token[name] for name in ("diagonal", "previous", "noise")) < 0.2
    assert patterns.entropy.values[6] == pytest.approx(np.log(np.arange(16, 97)).mean(), rel=1e-4)


def test_the_diagonal_heads_mass_is_that_of_theorem_5_3(constructed):
    datasets, norm = constructed
    got = datasets["head_patterns"].offset_mass.sel(layer=0, head=0, offset=0).item()
    g = rotary.rope().inverse_frequencies(32)[:5]
    expected = [
        theory.thm_5_3_attention(norm, g, n, scale=32**-0.5)[0] for n in range(16, 97)
    ]  # the query at place n - 1 reads n keys
    assert got == pytest.approx(np.mean(expected), rel=1e-3) and got > 0.9


def test_names_follow_the_threshold(constructed):
    strict = probes.name_heads(constructed[0]["head_patterns"], threshold=0.99)
    # The sink and the delimiter head put all of their attention there; others less.
    assert set(strict.name.values.ravel()) <= {"sink", "local", "delimiter", "mixed"}
    with pytest.raises(UserError, match=r"threshold=1\.5 must lie in \[0, 1\]"):
        probes.name_heads(constructed[0]["head_patterns"], threshold=1.5)


def test_delimiters_of_tokenizers(tmp_path):
    ids = probes.delimiter_ids(load_tokenizer("bytes"))
    assert bytes(ids) == b"\n!\"#%&'()*,-./:;?@[\\]_{}"


# --- one text ---------------------------------------------------------------------------------


@pytest.mark.parametrize("layer, head", [(0, 3), (1, 0), (2, 2)])
def test_contributions_sum_to_the_layers_own_logit(mixed, layer, head):
    """Grouped queries; with an attention factor, without rotation, with some pairs unrotated."""
    text = texts(24)[0]
    got = probes.contributions(*mixed, text, layer, head, 19, 17, pieces=[f"<{i}>" for i in text])
    shown = activations(mixed, [text])[layer]
    logits = np.asarray(attention.logits(shown["q_rotated"], shown["k_rotated"])) * 16**0.5
    assert got.contribution.sum().item() == pytest.approx(logits[0, head, 19, 17], rel=1e-5)
    assert got.attrs["logit"] / 4 == pytest.approx(got.attrs["scaled"])
    assert (np.abs(got.contribution) <= got.bound + 1e-9).all()
    assert got.attrs["query_token"] == f"<{text[19]}>" and got.attrs["key_token"] == f"<{text[17]}>"
    turns = MIXED.pattern[layer].rotary.inverse_frequencies(16)
    np.testing.assert_array_equal(got.inverse_frequency, turns)


def test_contributions_of_interleaved_weights_are_those_of_their_own_pairs(tmp_path):
    """The first layer of a llama2.c file, whose pairs are (0, 1), (2, 3)..., as complex numbers."""
    a = write_llama2c(tmp_path / "model.bin")
    decoder, params = checkpoints.load(tmp_path / "model.bin")
    text, head, i, j = np.array([1, 7, 3, 19, 0, 7]), 3, 5, 2
    got = probes.contributions(decoder, params, text, 0, head, i, j)
    x = a["token_embedding"][text].astype(np.float64)
    h = x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-5) * a["rms_att"][0]
    q = (h[i] @ a["wq"][0].T).reshape(4, 4)[head]
    k = (h[j] @ a["wk"][0].T).reshape(2, 4)[head // 2]
    q, k = (v[0::2] + 1j * v[1::2] for v in (q, k))
    g = 10_000.0 ** (-np.arange(2) / 2)
    expected = (q * np.conj(k) * np.exp(1j * g * (i - j))).real
    np.testing.assert_allclose(got.contribution, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(got.bound, np.abs(q) * np.abs(k), rtol=1e-4)


def test_attention_map_is_the_layers_attention(mixed, monkeypatch):
    text = texts(24)[0]
    (expected,) = attention_of(mixed, text)
    pieces = [str(i) for i in text]
    got = probes.attention_map(*mixed, text, 1, 2, pieces=pieces)
    np.testing.assert_allclose(got, expected[1, 2], atol=1e-6)
    np.testing.assert_allclose(got.sum("key"), 1, atol=1e-5)
    assert got.dims == ("query", "key") and list(got.key_token.values) == pieces
    monkeypatch.setattr(attention.reference, "LONG", 8)
    monkeypatch.setattr(attention.reference, "QUERY_BLOCK", 5)
    # Another length, as what was compiled has the old blocks.
    blocked = probes.attention_map(*mixed, text[:23], 1, 2)
    np.testing.assert_allclose(blocked, expected[1, 2, :23, :23], atol=1e-6)


def test_attention_maps_have_every_head(mixed):
    text = texts(24)[0]
    got = probes.attention_maps(*mixed, text, pieces=[str(i) for i in text])
    assert got.dims == ("layer", "head", "query", "key") and got.shape == (3, 4, 24, 24)
    np.testing.assert_allclose(got, attention_of(mixed, text)[0], rtol=5e-6, atol=1e-6)
    assert list(got.query_token.values) == [str(i) for i in text]


@pytest.mark.parametrize("layer, head", [(0, 3), (1, 0), (2, 2)])
def test_contribution_map_has_the_contributions_of_every_query_and_key(mixed, layer, head):
    text = texts(24)[0]
    got = probes.contribution_map(*mixed, text, layer, head)
    for query, key in ((19, 17), (7, 7), (23, 0)):
        contributions = probes.contributions(*mixed, text, layer, head, query, key)
        np.testing.assert_allclose(
            got[query, key], contributions.contribution, rtol=1e-5, atol=1e-6
        )
    assert np.isnan(got.values[3, 4]).all()
    np.testing.assert_array_equal(got.inverse_frequency, contributions.inverse_frequency)


# --- sinks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [0, 3])
def test_sinks_equal_their_statement(mixed, place):
    rows = texts(24, 18, 4, 2)
    if place == 0:
        got = run_all(mixed, *padded(rows))["sinks"]
    else:
        probe = probes.sinks(place, thresholds=(0.1, 0.2), bins=5)
        got = probes.run(*mixed, [padded(rows)], [probe])["sinks"]
    counted = [row for row in rows if len(row) > place + 1]
    maps = attention_of(mixed, *counted)
    alpha = np.stack([a[..., place:, place].mean(axis=-1) for a in maps])  # [text, L, N]
    assert got.attrs["texts"] == len(counted) == (4 if place == 0 else 2)
    np.testing.assert_allclose(got.alpha, alpha.mean(axis=0), rtol=1e-4)
    for threshold in (0.1, 0.2):
        above = got.above.sel(threshold=threshold)
        np.testing.assert_allclose(above, (alpha > threshold).mean(axis=0), rtol=1e-6)
        rate = (alpha > threshold).mean()
        assert got.sink_rate.sel(threshold=threshold).item() == pytest.approx(rate)
    bins = np.stack([(np.minimum(4, (alpha * 5).astype(int)) == b).mean(axis=0) for b in range(5)])
    np.testing.assert_allclose(got.histogram, np.moveaxis(bins, 0, -1), rtol=1e-6)


def test_only_the_sink_head_is_a_sink(constructed):
    got = constructed[0]["sinks"].sel(layer=0)
    is_sink = np.array([name == "sink" for name in CONSTRUCTED])
    for threshold in (0.3, 0.8):
        np.testing.assert_array_equal(got.above.sel(threshold=threshold), is_sink)
    assert got.sink_rate.values == pytest.approx([1 / 8, 1 / 8])


def test_a_changed_token_reaches_what_reads_it():
    text = texts(24)[0]
    config = dataclasses.replace(MIXED, layers=2, pattern=(LayerSpec(window=3),))
    local, params = Decoder(config), random_parameters(config)
    got = probes.perturbation_spread(local, params, text, 3, 25)
    for layer in range(2):
        reached = (got.change.sel(bos="with", layer=layer) > 0).values
        reach = 3 + 2 * (layer + 1)
        np.testing.assert_array_equal(reached, (np.arange(24) >= 3) & (np.arange(24) <= reach))
    changed = text.copy()
    changed[3] = 25
    for bos, start in (("with", 0), ("without", 1)):
        residuals = read_activations(
            local, params, np.stack([text, changed])[:, start:], _residual
        )[1]
        norm = np.linalg.norm(residuals[1] - residuals[0], axis=-1)
        change = got.change.sel(bos=bos, layer=1)[start:]
        np.testing.assert_allclose(change, norm, rtol=1e-4, atol=1e-6)
        relative = norm / np.linalg.norm(residuals[0], axis=-1)
        np.testing.assert_allclose(
            got.relative.sel(bos=bos, layer=1)[start:], relative, rtol=1e-4, atol=1e-6
        )
    assert np.isnan(got.change.sel(bos="without", position=0)).all()


# --- massive values and outliers --------------------------------------------------------------


def test_massive_values_equal_their_statement(mixed, measured):
    got = measured["massive_values"]
    _, weights = padded(EIGHT)
    layers = activations(mixed, EIGHT)
    for layer in range(3):
        for name in "qkv":
            x = layers[layer][name][weights > 0].astype(np.float64)  # [tokens, N, H]
            norms = np.linalg.norm(x, axis=0)
            np.testing.assert_allclose(got[name].sel(layer=layer), norms, rtol=1e-4)
            of_pairs = np.linalg.norm(x.reshape(len(x), -1, 2, 8), axis=(0, 2))
            np.testing.assert_allclose(got[f"{name}_pair"].sel(layer=layer), of_pairs, rtol=1e-4)
            by_head = norms > 1.2 * norms.mean(axis=1, keepdims=True)
            np.testing.assert_array_equal(got[f"{name}_massive_by_head"].sel(layer=layer), by_head)
            by_layer = norms > 1.2 * norms.mean()
            np.testing.assert_array_equal(
                got[f"{name}_massive_by_layer"].sel(layer=layer), by_layer
            )
    assert got.q_massive_by_head.any() and not got.q_massive_by_head.all()
    np.testing.assert_array_equal(got.pair_of_dimension.sel(layer=0), [*range(8), *range(8)])


def test_a_planted_outlier_is_found_with_its_angle(mixed):
    """Pair 5 of every head: large, and the query ahead of the key by 2 radians, or by 1.8."""

    def plant(name, layer, value):
        if name not in ("q", "k"):
            return value
        angle = jnp.array([0.5, 0.7]) if name == "k" else 2.5  # by key head
        value = value.at[..., 5].set(50 * jnp.cos(angle)).at[..., 13].set(50 * jnp.sin(angle))
        return value.at[:, 0, :, 5].set(-50.0)  # the first token, which does not count

    probe = probes.rotary_outliers(factor=3)
    got = probes.run(*mixed, [padded(EIGHT)], [probe], edit=plant)["rotary_outliers"]
    for name in "qk":
        outlier = got[f"{name}_outlier"]
        np.testing.assert_array_equal(outlier, np.broadcast_to(np.arange(8) == 5, outlier.shape))
    angles = np.broadcast_to([2.0, 2.0, 1.8, 1.8], (3, 4))  # heads 0 and 1 read key head 0
    np.testing.assert_allclose(got.phi.sel(pair=5), angles, atol=1e-5)
    np.testing.assert_allclose(got.resultant.sel(pair=5), 1.0, atol=1e-5)
    assert (got.resultant.sel(pair=4) < 0.95).any()
    # g_5 = 10^-2.5 turns 0.08 radians in 24 tokens, so its cosine stays negative; YaRN's less.
    assert (got.sign.sel(pair=5) == -1).all()
    assert got.q_outliers_within.item() == got.k_outliers_within.item() == 1
    cycles = np.stack([spec.rotary.inverse_frequencies(16) for spec in MIXED.pattern]) * 24 / 6.2832
    assert got.pairs_within.item() == pytest.approx((cycles < 1).mean())


def test_angles_and_signs_are_those_of_the_rotation(mixed):
    """What a pair adds at each distance, from the decoder's own rotation."""
    random = np.random.default_rng(0)
    q, k = random.normal(size=(2, 1, 1, 1, 16)).astype(np.float32)
    cos, sin = pair_angles(q, k)
    phi = np.arctan2(sin, cos)[0, 0, 0]
    encoding, distances = rotary.rope(100.0), np.arange(13)
    turned = encoding(jnp.broadcast_to(q, (1, 13, 1, 16)), distances[None])
    (q1, q2), (k1, k2) = rotary.pairs(np.asarray(turned)[0, :, 0]), rotary.pairs(k[0, 0])
    added = q1 * k1 + q2 * k2  # [distance, pair]
    g = encoding.inverse_frequencies(16)
    size = np.asarray(pair_norms(q) * pair_norms(k))[0, 0, 0]
    np.testing.assert_allclose(added, size * np.cos(phi + np.outer(distances, g)), atol=1e-5)

    angles, turns = np.meshgrid(
        np.linspace(-3.1, 3.1, 63), [0.0, 0.5, 2.0, 3.0, 3.5], indexing="ij"
    )
    sign = sign_over(xarray.DataArray(angles), xarray.DataArray(turns))
    cosines = np.cos(angles[..., None] + turns[..., None] * np.linspace(0, 1, 2001))
    expected = (cosines > 0).all(axis=-1) * 1.0 - (cosines < 0).all(axis=-1)
    np.testing.assert_array_equal(sign, expected)


def test_an_encoding_of_unknown_frequencies_has_no_cycles(mixed):
    config = MIXED.with_layers(rotary=lambda x, positions: x)
    got = probes.run(Decoder(config), mixed[1], [padded(texts(9))], [probes.rotary_outliers(1.1)])
    got = got["rotary_outliers"]
    assert np.isnan(got.cycles).all() and np.isnan(got.sign).all()
    assert np.isnan(got.q_outliers_within) and got.q_outlier.any()


# --- spectra ----------------------------------------------------------------------------------


def test_bands_of_known_rows():
    n = np.arange(64)
    rows = np.stack([np.ones(64), 1 + np.cos(np.pi * n / 2), 1 + np.cos(np.pi * n), n == 40])
    shares, selectivity, total = spectrum(jnp.asarray(rows))
    power = np.abs(np.fft.rfft(rows, 128)) ** 2
    np.testing.assert_allclose(total, power.sum(axis=-1), rtol=1e-5)
    at = np.arange(65) / 64
    for band, inside in enumerate([at < 0.25, (at >= 0.25) & (at < 0.75), at >= 0.75]):
        expected = power[:, inside].sum(axis=-1) / power.sum(axis=-1)
        np.testing.assert_allclose(shares[:, band], expected, atol=1e-5)
    largest = power.max(axis=-1)
    np.testing.assert_allclose(selectivity, largest / (power.sum(axis=-1) - largest), rtol=1e-4)
    assert shares[0, 0] > 0.99 and shares[1, 1] > 0.25 and shares[2, 2] > 0.45
    np.testing.assert_allclose(shares[3], [16 / 65, 32 / 65, 17 / 65], rtol=1e-5)  # an impulse


def test_spectral_reads_rows_that_are_long_enough(mixed):
    rows = texts(24, 9, 5)
    got = run_all(mixed, *padded(rows))["spectral"]
    assert (got.rows.sel(layer=0) == (24 - 7) + (9 - 7)).all()
    power, counted = np.zeros((4, 3)), 0
    for row, weights in zip(rows[:2], attention_of(mixed, *rows[:2]), strict=True):
        a = weights[0]
        for i in range(7, len(row)):
            shares, *_ = spectrum(jnp.asarray(a[:, i, i - 7 : i + 1] * np.hanning(8)))
            power, counted = power + np.asarray(shares), counted + 1
    np.testing.assert_allclose(got.share.sel(layer=0), power / counted, rtol=1e-3)
    np.testing.assert_allclose(got.share.sum("band"), 1, rtol=1e-5)


def test_even_attention_is_low_and_a_single_token_flat(constructed):
    share = constructed[0]["spectral"].share.sel(layer=0)
    kinds = list(CONSTRUCTED)
    assert share.sel(head=kinds.index("even"), band="low").item() > 0.98
    diagonal_share = share.sel(head=kinds.index("diagonal"))
    np.testing.assert_allclose(diagonal_share, [0.25, 0.5, 0.25], atol=0.1)


# --- collapse ---------------------------------------------------------------------------------


def test_collapse_equals_two_runs_apart(mixed):
    decoder, params = mixed
    text, lengths = texts(24)[0], [1, 5, 24, *range(6, 12)]
    got = probes.representational_collapse(decoder, params, text, lengths)
    features = jax.jit(functools.partial(decoder.apply, method="features"))

    def last_features(*ids):
        """Of a text alone; what fills it up on the right comes later."""
        tokens = np.pad(ids, (0, 25 - len(ids)))[None]
        return np.asarray(features({"params": params}, tokens)[0])[0, len(ids) - 1]

    for n in (5, 24):
        last = last_features(*text[:n]), last_features(*text[:n], text[n - 1])
        change = (last[0] - last[1]).astype(np.float64)
        collapse = got.sel(length=n)
        assert collapse.l1.item() == pytest.approx(np.abs(change).sum(), rel=1e-3, abs=1e-4)
        assert collapse.l2.item() == pytest.approx(np.linalg.norm(change), rel=1e-3, abs=1e-4)
        assert collapse.largest.item() == pytest.approx(np.abs(change).max(), rel=1e-3, abs=1e-4)
        relative = np.linalg.norm(change) / np.linalg.norm(last[0])
        assert collapse.relative.item() == pytest.approx(relative, rel=1e-3, abs=1e-4)
        equal_share = np.mean(
            *[[jnp.bfloat16(a) == jnp.bfloat16(b) for a, b in zip(*last, strict=True)]]
        )
        assert collapse.equal_in_bf16.item() == pytest.approx(equal_share, abs=0.04)


def test_nope_cannot_count_one_repeated_token():
    """Without positions and BOS all places of a repeat are the same, at every length."""
    config = dataclasses.replace(presets.tiny(), layers=2).with_rotary(rotary.nope())
    params = random_parameters(config)
    got = probes.representational_collapse(Decoder(config), params, [9] * 12, [1, 4, 12])
    np.testing.assert_allclose(got.l1, 0, atol=1e-4)
    assert (got.equal_in_bf16 > 0.9).all()


@pytest.mark.parametrize(
    "mesh, change",
    [
        pytest.param("fsdp=8", {}, marks=pytest.mark.eight_devices),
        (None, {"tied": False, "scale_embedding": False}),
    ],
)
def test_token_influence_is_the_norm_of_the_jacobian(mesh, change):
    """By the table's rows, where every token occurs once; on a mesh of eight and on one device."""
    config = dataclasses.replace(presets.tiny(), pattern=(LayerSpec(window=3),), **change)
    decoder = Decoder(config, mesh and make_layout(mesh))
    params = random_parameters(config)
    text = np.arange(10, 19)
    got = probes.token_influence(decoder, params, text, pieces=list("abcdefghi"))
    plain = Decoder(config)

    def last(rows):
        table = params["embedding"].at[text].set(rows)
        apply = plain.apply(
            {"params": params | {"embedding": table}}, text[None], method="features"
        )
        return apply[0][0, -1]

    jacobian = jax.jit(jax.jacrev(last))(params["embedding"][text])  # [D, T, D]
    scale = config.d_model**0.5 if config.scale_embedding else 1
    expected = np.linalg.norm(np.asarray(jacobian), axis=(0, 2)) / scale
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)
    reach = 2 * config.layers
    assert (got.values[: 8 - reach] == 0).all() and (got.values[8 - reach :] > 0).all()
    assert got.token.values[0] == "a"


# --- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: probes.head_patterns(window=16), r"window=16 must be at least 2 and below minim"),
        (lambda: probes.sinks(thresholds=(2,)), r"thresholds=\(2,\) in \[0, 1\)"),
        (lambda: probes.massive_values(0), r"factor=0 must be positive"),
        (lambda: probes.rotary_outliers(-1), r"factor=-1 must be positive"),
        (lambda: probes.spectral(length=2), r"length=2 must be at least 4"),
        (lambda: probes.spectral(window="box"), r"window='box' is not one of hann, none"),
    ],
)
def test_wrong_settings_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize(
    "probe_list, message",
    [
        ([probes.sinks], r"sinks is no probe; a function that makes one is to be called first"),
        ([probes.sinks(), probes.sinks(1)], r"two of the probes have one name: sinks, sinks"),
        ([probes.head_patterns()], r"no text has 16 tokens"),
        ([probes.sinks(5)], r"no text goes on after place=5"),
        ([probes.spectral()], r"no text has length=64 tokens"),
        ([probes.Probe("bare", ("q",), print)], r"bare: without finalize a probe has no dataset"),
    ],
)
def test_what_cannot_be_run_is_refused(probe_list, message):
    config = dataclasses.replace(presets.tiny(), layers=1)
    with pytest.raises(UserError, match=message):
        probes.run(Decoder(config), random_parameters(config), [padded(texts(4))], probe_list)


TEXT = texts(9)[0]


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda m: probes.contributions(*m, TEXT, 3, 0, 5, 5), r"layer=3 must be one of 0\.\.2"),
        (lambda m: probes.contributions(*m, TEXT, 0, 4, 5, 5), r"head=4 must be one of 0\.\.3"),
        (lambda m: probes.contributions(*m, TEXT, 0, 0, 9, 5), r"query=9 must be one of 0\.\.8"),
        (lambda m: probes.contributions(*m, TEXT, 0, 0, 5, 6), r"key=6 comes after query=5"),
        (lambda m: probes.attention_map(*m, TEXT[None], 0, 0), r"not one text: pass its ids"),
        (lambda m: probes.attention_map(*m, TEXT[1:], 0, 0), r"this model needs BOS, 1"),
        (lambda m: probes.attention_map(*m, [1, 384], 0, 0), r"ids from 1 to 384, not 0\.\.383"),
        (lambda m: probes.attention_map(*m, TEXT, 0, 0, pieces=["a"]), r"1 pieces do not label 9"),
        (lambda m: probes.perturbation_spread(*m, TEXT, 0, 3), r"place=0 is BOS"),
        (lambda m: probes.perturbation_spread(*m, TEXT, 2, TEXT[2]), r"place=2 is \d+ already"),
        (lambda m: probes.perturbation_spread(*m, [1], 0, 3), r"has 1 token\(s\), and 2 are"),
        (lambda m: probes.representational_collapse(*m, TEXT, [10]), r"numbers from 1 to 9"),
        (lambda m: probes.representational_collapse(*m, TEXT, []), r"numbers from 1 to 9"),
    ],
)
def test_wrong_texts_and_places_are_refused(mixed, call, message):
    with pytest.raises(UserError, match=message):
        call(mixed)


def test_token_influence_needs_a_decoder_that_reads_tokens_once():
    config = dataclasses.replace(presets.tiny(), per_layer_dim=4, per_layer_vocab_size=256)
    with pytest.raises(UserError, match="every layer of this decoder reads the tokens anew"):
        probes.token_influence(Decoder(config), {}, [1, 2])
