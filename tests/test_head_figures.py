"""Figures of heads, bands, domains and interventions: what they show is the data."""

import matplotlib.text
import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure
from test_figures import ENCODINGS, HEADS, KV_HEADS, LAYERS, images, make_usage

from rope_study import figures, probes, rotary

T, PAIRS = 6, 4
TOKENS = np.array(["<bos>", "$a$", "b", "'", "▁c", "d"], object)
PLACE = {"layer": 1, "head": 3, "model": "a model"}
RNG = np.random.default_rng(0)


def shown(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(matplotlib.text.Text))


def tokens() -> dict:
    return {f"{axis}_token": (axis, TOKENS) for axis in ("query", "key")}


@pytest.fixture
def attention() -> xr.DataArray:
    weights = np.tril(RNG.uniform(0.1, 1, (T, T)))
    weights /= weights.sum(-1, keepdims=True)
    return xr.DataArray(weights, dims=("query", "key"), coords=tokens(), attrs=PLACE)


@pytest.fixture
def contribution() -> xr.DataArray:
    added = RNG.standard_normal((T, T, PAIRS)) * 10
    added[~np.tri(T, dtype=bool)] = np.nan
    frequencies = ("pair", rotary.rope().inverse_frequencies(2 * PAIRS))
    coords = tokens() | {"inverse_frequency": frequencies}
    return xr.DataArray(added, dims=("query", "key", "pair"), coords=coords, attrs=PLACE)


# --- attention and logits ---------------------------------------------------------------------


def test_attention_patterns_show_the_weights_and_the_tokens(attention):
    figure = figures.attention_patterns({"one": attention, "two": attention / 2})
    weights, halved = (image.get_array() for image in images(figure)[:2])
    lower = np.tri(T, dtype=bool)
    np.testing.assert_array_equal(weights[lower], attention.values[lower])
    np.testing.assert_array_equal(halved[lower], attention.values[lower] / 2)
    # Keys after the query are no weights of 0: they are left out.
    assert np.isnan(np.ma.filled(weights, np.nan)[~lower]).all()
    labels = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    assert labels == ["<bos>", r"\$a\$", "b", "'", "▁c", "d"]
    for part in ("a model", "layer 1, head 3", "attention weight", "query [token]"):
        assert part in shown(figure)


def test_a_grid_has_no_empty_panels(attention):
    figure = figures.attention_patterns({str(i): attention for i in range(4)})
    assert len(figure.axes) == 4 + 1  # and the colour bar


def test_long_texts_have_places_and_no_labels():
    weights = np.eye(60)
    coords = {f"{axis}_token": (axis, np.array(["x"] * 60, object)) for axis in ("query", "key")}
    attention_map = xr.DataArray(weights, dims=("query", "key"), coords=coords, attrs=PLACE)
    figure = figures.attention_patterns({"long": attention_map})
    assert "x" not in [tick.get_text() for tick in figure.axes[0].get_yticklabels()]


def test_attention_by_band_sums_the_pairs_of_a_band(attention, contribution):
    bands = {"fast": [0], "slow": range(2, 4)}
    figure = figures.attention_by_band(attention, contribution, bands)
    _, fast, slow = (image for image in images(figure)[:3])
    lower = np.tri(T, dtype=bool)
    np.testing.assert_allclose(fast.get_array()[lower], contribution.values[..., 0][lower])
    want = contribution.values[..., 2:].sum(-1)[lower]
    np.testing.assert_allclose(slow.get_array()[lower], want)
    # One scale for both bands, the same to both sides of 0.
    low, high = slow.get_clim()
    assert low == -high and fast.get_clim() == slow.get_clim()
    assert "added to q·k [before scaling]" in shown(figure)


def test_first_token_by_pair_is_the_mean_over_queries(contribution):
    figure = figures.first_token_by_pair(contribution)
    on_first, on_later = (line.get_ydata() for line in figure.axes[0].lines[:2])
    values = contribution.values
    np.testing.assert_allclose(on_first, values[1:, 0].mean(0))
    by_query = [values[i, 1 : i + 1].mean(0) for i in range(1, T)]
    np.testing.assert_allclose(on_later, np.mean(by_query, axis=0))


def test_logit_by_pair_shows_contributions_within_bounds():
    contribution, bound = np.array([3.0, -1.0, 0.5]), np.array([4.0, 1.5, 0.5])
    contributions = xr.Dataset(
        {"contribution": ("pair", contribution), "bound": ("pair", bound)},
        coords={"inverse_frequency": ("pair", [1.0, 0.1, 0.01])},
        attrs=PLACE
        | {"query": 5, "key": 4, "query_token": "d", "key_token": "▁c"}
        | {"logit": 2.5, "logit_bound": 6.0},
    )
    figure = figures.logit_by_pair(contributions)
    heights = [bar.get_height() for bar in figure.axes[0].patches]
    assert heights == [*bound, *-bound, *contribution]
    for part in ("2.50 in all", "6.00 in all", "'d' on '▁c'", "layer 1, head 3"):
        assert part in shown(figure)


def test_head_kinds_writes_every_head_and_counts_kinds():
    names = np.array([["diagonal", "sink"], ["sink", "mixed"]], object)
    named = xr.Dataset(
        {
            "name": (("layer", "head"), names),
            "score": (("layer", "head"), [[0.9, 0.8], [0.7, 0.3]]),
        },
        coords={"layer": [4, 5], "head": [0, 1]},
        attrs={"model": "a model", "text": "a poem"},
    )
    figure = figures.head_kinds(named)
    cells = [text.get_text() for text in figure.axes[0].texts]
    assert cells == ["di\n0.90", "si\n0.80", "si\n0.70", "mi\n0.30"]
    for part in ("si: sink (2)", "di: diagonal (1)", "pr: previous (0)", "a model; a poem"):
        assert part in shown(figure)
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == ["4", "5"]


# --- pair norms -------------------------------------------------------------------------------


def test_single_heads_are_drawn_with_the_keys_they_read():
    usage = make_usage(ENCODINGS["rope"])
    figure = figures.head_usage(usage, {"mine": (2, 3), "other": (0, 0)})
    queries, keys = figure.axes[:2]
    np.testing.assert_allclose(queries.lines[0].get_ydata(), usage.q.mean(["layer", "head"]))
    np.testing.assert_array_equal(queries.lines[1].get_ydata(), usage.q.values[2, 3])
    np.testing.assert_array_equal(
        keys.lines[1].get_ydata(), usage.k.values[2, 3 * KV_HEADS // HEADS]
    )
    np.testing.assert_array_equal(keys.lines[2].get_ydata(), usage.k.values[0, 0])
    assert "mine (layer 2, head 3)" in shown(figure)


def test_heads_of_layers_with_fewer_key_heads_are_drawn_with_their_own():
    """As in Gemma 4: a query head reads another key head where its layer has fewer."""
    usage = make_usage(ENCODINGS["rope"])
    usage["k"][1, 1] = np.nan  # one key head serves all four query heads of that layer
    keys = figures.head_usage(usage, {"one": (1, 3), "two": (2, 3)}).axes[1]
    np.testing.assert_array_equal(keys.lines[1].get_ydata(), usage.k.values[1, 0])
    np.testing.assert_array_equal(keys.lines[2].get_ydata(), usage.k.values[2, 1])


def with_norms(encoding: rotary.Encoding, norms: list[float]) -> xr.Dataset:
    usage = make_usage(encoding)
    usage["k"][:] = norms
    return usage


def test_slow_band_begins_where_norms_stay_above_the_mean():
    turns = ENCODINGS["rope"].inverse_frequencies(16)
    (band,) = probes.slow_bands(with_norms(ENCODINGS["rope"], [9, 1, 1, 1, 1, 5, 6, 8]))
    np.testing.assert_allclose(band.relative_norm, np.array([9, 1, 1, 1, 1, 5, 6, 8]) / 4)
    assert float(band.begins) == turns[5]  # the fast pair is beyond a gap, and no part of it
    assert band.layers == list(range(LAYERS))
    (no_band,) = probes.slow_bands(with_norms(ENCODINGS["rope"], [9, 8, 1, 1, 1, 1, 1, 1]))
    assert np.isnan(no_band.begins)


def test_layers_with_frequencies_of_their_own_have_bands_of_their_own():
    usage = with_norms(ENCODINGS["rope"], [1, 1, 1, 1, 1, 1, 5, 6])
    usage["inverse_frequency"][1] = rotary.rope(500_000).inverse_frequencies(16)
    rope_band, slower_band = probes.slow_bands(usage)
    assert rope_band.layers == [0, 2] and slower_band.layers == [1]
    assert float(slower_band.begins) < float(rope_band.begins)


def test_slow_bands_names_where_they_begin_and_puts_unrotated_pairs_to_the_left():
    p_rope = with_norms(ENCODINGS["p_rope"], [1, 1, 1, 1, 1, 1, 5, 6])  # the last two: not rotated
    rope = with_norms(ENCODINGS["rope"], [1, 1, 1, 1, 1, 5, 5, 6])
    figure = figures.slow_bands({"p_rope": p_rope, "rope": rope})
    keys = figure.axes[1]
    lines = {line.get_label(): line.get_xdata() for line in keys.lines}
    begins = ENCODINGS["rope"].inverse_frequencies(16)[5]
    assert f"rope: band from {begins:.2g}" in lines
    assert "p_rope: band from" not in " ".join(lines)  # its band is not rotated at all
    marks = [line for line in keys.lines if line.get_marker() == "|"]
    assert (
        len(marks) == 1
        and (marks[0].get_xdata() < lines["p_rope: band of unrotated pairs"].min()).all()
    )


def test_slow_bands_without_any_rotation_are_marks_only():
    norms = [1, 1, 1, 1, 1, 1, 5, 6]
    figure = figures.slow_bands({"nope": with_norms(rotary.nope(), norms)})
    figure.canvas.draw()
    (marks,) = [line for line in figure.axes[1].lines if line.get_marker() == "|"]
    np.testing.assert_allclose(marks.get_ydata(), np.array(norms) / np.mean(norms), rtol=1e-6)


def test_local_and_global_layers_are_told_apart():
    usage = with_norms(ENCODINGS["rope"], [1, 1, 1, 1, 1, 1, 5, 6])
    usage["inverse_frequency"][1] = rotary.rope(500_000).inverse_frequencies(16)
    keys = figures.slow_bands({"gemma": usage}).axes[1]
    first, second = (line for line in keys.lines if "gemma" in line.get_label())
    assert first.get_label().startswith("gemma, layers 0, 2: band from")
    assert second.get_label().startswith("gemma, layer 1: band from")
    assert first.get_color() != second.get_color()
    assert first.get_linestyle() != second.get_linestyle()


def test_domains_share_one_scale():
    usages = {name: make_usage(ENCODINGS["rope"]) for name in ("prose", "code")}
    usages["code"]["q"] *= 3
    figure = figures.usage_by_domain(usages)
    panels = images(figure)
    assert panels[0].get_clim() == panels[1].get_clim()
    np.testing.assert_allclose(panels[1].get_array(), usages["code"].q.mean("head"))
    for part in ("prose", "code", "tokens: prose 1,280, code 1,280", "small, rope(theta=10000)"):
        assert part in " ".join(shown(figure).split())


# --- interventions, and the list --------------------------------------------------------------


def test_intervention_effects_show_loss_and_every_head():
    dims = ("intervention", "layer", "head")
    previous = RNG.uniform(size=(3, 2, 4))
    effects = xr.Dataset(
        {
            "loss_difference": ("intervention", [0.0, 0.5, -0.1]),
            "loss_difference_se": ("intervention", [0.0, 0.02, 0.03]),
            "previous": (dims, previous, {"long_name": "mean attention on the token before"}),
        },
        coords={"intervention": ["plain", "a", "b"], "layer": [0, 1], "head": range(4)},
        attrs={"model": "a model", "texts": 3, "tokens": 1234, "context": 64},
    )
    figure = figures.intervention_effects(effects)
    widths = [bar.get_width() for bar in figure.axes[0].patches]
    assert widths == [0.0, 0.5, -0.1]
    (image,) = images(figure)
    np.testing.assert_array_equal(image.get_array(), previous.reshape(3, 8))
    for part in ("a model", "1,234 tokens", "mean attention on the token before", "nats/token"):
        assert part in " ".join(shown(figure).split())


def test_turning_shows_each_pair_at_its_own_speed():
    figure = figures.turning(head_dim=8, tokens=5)
    fast = figure.axes[0].collections[0].get_offsets()
    np.testing.assert_allclose(fast, np.stack([np.cos(np.arange(5)), np.sin(np.arange(5))], 1))
    slow = figure.axes[2].collections[0].get_offsets()
    np.testing.assert_allclose(slow[:, 1], np.sin(np.arange(5) * 10_000**-0.75))


@pytest.mark.parametrize("name", figures.PAPER)
def test_what_the_paper_has_says_so(name):
    for function in figures.PAPER[name]:
        assert name in function.__doc__
        assert getattr(figures, function.__name__) is function
