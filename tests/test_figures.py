"""Figures and report: what they show is the data, and what they say names model, text and units."""

import re

import matplotlib.text
import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure

from rope_study import figures, files, rotary, theory
from rope_study.errors import UserError
from rope_study.reports import study as study_report

LAYERS, HEADS, KV_HEADS, HEAD_DIM, CONTEXT = 3, 4, 2, 16, 128
ENCODINGS = {
    "rope": rotary.rope(),
    "p_rope": rotary.p_rope(0.75),
    "reversed": rotary.reversed_p_rope(0.75),
    "nope": rotary.nope(),
}


def make_usage(encoding: rotary.Encoding) -> xr.Dataset:
    rng = np.random.default_rng(0)
    frequencies = np.tile(encoding.inverse_frequencies(HEAD_DIM), (LAYERS, 1))
    units = {"units": "1"}

    def norms(head: str, count: int) -> tuple:
        dims = ("layer", head, "pair")
        return dims, rng.uniform(0.5, 3, (LAYERS, count, HEAD_DIM // 2)), units

    return xr.Dataset(
        {"q": norms("head", HEADS), "k": norms("kv_head", KV_HEADS), "v": norms("kv_head", 2)},
        coords={
            "inverse_frequency": (("layer", "pair"), frequencies),
            "cycles": (("layer", "pair"), frequencies * CONTEXT / (2 * np.pi)),
        },
        attrs={"model": f"small, {encoding.name}", "text": "a poem", "tokens": 1280}
        | {"context": CONTEXT},
    )


def texts(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(matplotlib.text.Text))


def images(figure: Figure) -> list:
    """The heat maps from left to right, top to bottom, without the colour bars."""
    return [axes.images[0] for axes in figure.axes if axes.images]


def marks(figure: Figure, panel: int = 0) -> list[tuple]:
    """(first pair, pairs, first row, rows) of the blocks marked as not rotated in one panel."""
    boxes = images(figure)[panel].axes.patches
    return [
        (b.get_x() + 0.5, b.get_width(), b.get_y() + 0.5, b.get_height())
        for b in boxes
        if b.get_linestyle() == "--"
    ]


def test_bands_over_steps_have_a_row_for_each_kind_of_layers():
    """Means over its heads and layers, and its own unrotated pairs."""
    usage = make_usage(ENCODINGS["p_rope"])
    usage["inverse_frequency"][1] = ENCODINGS["rope"].inverse_frequencies(HEAD_DIM)
    steps = [0, 10, 20, 50]
    factors = xr.DataArray([1.0, 2.0, 3.0, 4.0], dims="step", coords={"step": steps})
    by_step = xr.Dataset({name: (factors * usage[name]) for name in "qk"}, attrs=usage.attrs)
    for name in "qk":
        by_step[name].attrs["units"] = "1"
    by_step = by_step.assign_coords(layer=range(3), kind=("layer", [0, 1, 0]))
    figure = figures.bands_over_steps(by_step)
    shown = texts(figure)
    for part in ("queries, layers 0, 2", "queries, layer 1", "keys, layer 1", "step", "50"):
        assert part in shown
    assert shown.count("radians per token") == 4  # the kinds have frequencies of their own
    queries, _, queries_of_1, _ = images(figure)
    expected = np.outer(factors, usage.q.isel(layer=[0, 2]).mean(["layer", "head"]))
    np.testing.assert_allclose(queries.get_array(), expected)
    np.testing.assert_allclose(queries_of_1.get_array()[3], 4 * usage.q[1].mean("head"))
    assert marks(figure, 0) == [(6, 2, 0, 4)] and marks(figure, 2) == []


# --- heat maps --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "draw",
    [figures.norms_by_layer, lambda u: figures.norms_by_head(u, 1), figures.value_norms],
    ids=["norms_by_layer", "norms_by_head", "value_norms"],
)
def test_heat_maps_name_model_text_and_units(draw):
    shown = " ".join(texts(draw(make_usage(ENCODINGS["p_rope"]))).split())
    for part in ("small, p_rope(p=0.75, theta=10000)", "a poem", "1,280 tokens", "context 128"):
        assert part in shown
    assert "mean 2-norm [dimensionless]" in shown
    assert "rotary pair, fastest first radians per token" in shown


def test_heat_maps_show_the_mean_over_heads():
    usage = make_usage(ENCODINGS["rope"])
    queries, keys = images(figures.norms_by_layer(usage))
    (values,) = images(figures.value_norms(usage))
    for image, name in ((queries, "q"), (keys, "k"), (values, "v")):
        want = usage[name].values.mean(axis=1)
        np.testing.assert_allclose(image.get_array(), want)
        # Zero is dark and the largest norm is bright, so that brightness is comparable by eye.
        assert image.get_clim() == pytest.approx((0, want.max()))


def test_heat_maps_of_one_layer_show_its_heads():
    usage = make_usage(ENCODINGS["rope"])
    queries, keys = images(figures.norms_by_head(usage, layer=2))
    np.testing.assert_array_equal(queries.get_array(), usage["q"].values[2])
    np.testing.assert_array_equal(keys.get_array(), usage["k"].values[2])


def test_layers_go_by_label_where_only_some_were_probed():
    usage = make_usage(ENCODINGS["rope"]).assign_coords(layer=[0, 5, 27])
    queries, _ = images(figures.norms_by_head(usage, layer=27))
    np.testing.assert_array_equal(queries.get_array(), usage["q"].values[2])
    ticks = images(figures.norms_by_layer(usage))[0].axes.get_yticklabels()
    assert [tick.get_text() for tick in ticks] == ["0", "5", "27"]


def test_pair_ticks_carry_index_and_frequency():
    axes = images(figures.norms_by_layer(make_usage(ENCODINGS["rope"])))[0].axes
    labels = [tick.get_text() for tick in axes.get_xticklabels()]
    assert labels[0] == "0\n1"
    assert labels[-1] == "7\n0.00032"  # 10,000^(-14/16)


@pytest.mark.parametrize(
    "encoding, block", [("p_rope", (6, 2)), ("reversed", (0, 2)), ("nope", (0, 8))]
)
@pytest.mark.parametrize("by_head", [False, True])
def test_unrotated_pairs_are_marked(encoding, block, by_head):
    usage = make_usage(ENCODINGS[encoding])
    figure = figures.norms_by_head(usage, 0) if by_head else figures.norms_by_layer(usage)
    rows = (HEADS, KV_HEADS) if by_head else (LAYERS, LAYERS)
    assert marks(figure, 0) == [(*block, 0, rows[0])]
    assert marks(figure, 1) == [(*block, 0, rows[1])]
    assert texts(figure).count("not rotated") == 2


def test_nothing_is_marked_where_every_pair_is_rotated():
    figure = figures.norms_by_layer(make_usage(ENCODINGS["rope"]))
    assert marks(figure, 0) == marks(figure, 1) == []
    assert "not rotated" not in texts(figure)


def test_layers_without_rotation_are_marked_among_others():
    usage = make_usage(ENCODINGS["rope"])
    usage["inverse_frequency"][1] = 0
    figure = figures.norms_by_layer(usage)
    assert marks(figure) == [(0, 8, 1, 1)]
    assert "frequencies differ by layer" in texts(figure)


def test_unknown_frequencies_are_said_to_be_unknown():
    usage = make_usage(ENCODINGS["rope"])
    usage["inverse_frequency"][:] = np.nan
    figure = figures.norms_by_layer(usage)
    assert marks(figure) == []
    assert "frequencies not known" in texts(figure) and "nan" not in texts(figure)


def test_side_by_side_shares_one_scale_among_encodings():
    usages = {e.name: make_usage(e) for e in ENCODINGS.values()}
    usages["nope()"]["q"] *= 2
    figure = figures.usage_side_by_side(usages)
    panels = images(figure)
    assert len(panels) == 8
    for column, usage in enumerate(usages.values()):
        np.testing.assert_allclose(panels[column].get_array(), usage["q"].mean("head"))
        np.testing.assert_allclose(panels[4 + column].get_array(), usage["k"].mean("kv_head"))
    assert {p.get_clim()[1] for p in panels[:4]} == {
        float(usages["nope()"]["q"].mean("head").max())
    }
    assert len({p.get_clim() for p in panels[4:]}) == 1
    shown = " ".join(texts(figure).split())
    for name in usages:
        assert name in shown
    # The columns say what differs; what they share is said once.
    assert shown.count("small; a poem, 1,280 tokens") == 1


# --- decay ------------------------------------------------------------------------------------


def test_decay_all_ones_decays_and_gaussian_does_not():
    samples, distances = 400, range(0, 60_001, 300)
    figure = figures.decay(head_dim=64, distances=distances, samples=samples, seed=3)
    left, right = figure.axes
    equal = left.lines[0].get_ydata()
    assert equal[0] == pytest.approx(1)
    assert np.abs(equal[-50:]).max() < 0.35 and abs(equal[-50:].mean()) < 0.1
    (mean,) = (line for line in right.lines if line.get_label() == "mean")
    assert len(mean.get_ydata()) == len(distances)
    # In units of sqrt(head_dim) one draw has standard deviation 1. 4.5 standard errors, because
    # this is the largest of 201 distances.
    assert np.abs(mean.get_ydata()).max() < 4.5 / np.sqrt(samples)
    low, high = right.collections[0].get_datalim(right.transData).intervaly
    assert -1.3 < low < -0.9 and 0.9 < high < 1.3
    shown = texts(figure)
    for part in ("rope(theta=10000)", "head_dim=64", "400 draws", "seed 3", "distance [tokens]"):
        assert part in shown


# --- loss curves ------------------------------------------------------------------------------


def test_loss_curves_show_raw_smoothed_and_final_values():
    steps = np.arange(500)
    noise = np.random.default_rng(0).normal(0, 0.3, 500)
    curves = {"rope()": (steps, 2 + noise), "nope()": (steps, 3 + noise)}
    figure = figures.loss_curves(curves)
    (axes,) = figure.axes
    raw, smooth = axes.lines[0], axes.lines[1]
    np.testing.assert_array_equal(raw.get_ydata(), 2 + noise)
    assert smooth.get_ydata().std() < 0.5 * noise.std()
    assert smooth.get_ydata().mean() == pytest.approx(2, abs=0.05)
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == [
        f"{name}: {line.get_ydata()[-1]:.4f}"
        for name, line in zip(curves, axes.lines[1::2], strict=True)
    ]
    assert axes.lines[1].get_linestyle() != axes.lines[3].get_linestyle()
    assert axes.get_ylabel() == "training loss [nats/token]"


def test_loss_curves_survive_a_short_and_a_diverged_run():
    curves = {"short": ([0, 1], [5.0, 4.0]), "diverged": ([0, 1, 2], [5.0, np.nan, np.inf])}
    axes = figures.loss_curves(curves).axes[0]
    assert np.isfinite(axes.get_ylim()).all()


# --- report -----------------------------------------------------------------------------------


@pytest.fixture
def page(tmp_path) -> str:
    rope_row = {"perplexity": 4.4627, "loss": 1.4957, "difference": None, "difference_se": None}
    rope_row |= {"name": "rope()", "train_loss": 1.3579, "tokens_per_second": 71.2}
    hostile = {"perplexity": 4.4414, "loss": 1.4909, "difference": -0.0048, "difference_se": 0.0013}
    hostile |= {"name": "mine:<b>&", "train_loss": 1.2468, "tokens_per_second": 4082.9}
    results = {
        "title": "A <study>",
        "summary": "Two models & one text",
        "encodings": [rope_row, hostile],
        "facts": {"parameters": 1234567, "corpus": "<i>http://example.org/corpus"},
        "captions": {"usage": 'Look for "bright" <columns>'},
    }
    path = tmp_path / "new" / "report.html"
    drawn = {
        "usage": figures.norms_by_layer(make_usage(ENCODINGS["p_rope"])),
        "curves": figures.loss_curves({"rope()": ([0, 1], [2.0, 1.0])}),
    }
    study_report.write_report(path, results, drawn)
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]  # no part left behind
    return path.read_text(encoding="utf-8")


def test_report_contains_every_number_and_fact(page):
    numbers = ("4.4627", "1.4957", "1.3579", "71", "4.4414", "1.4909", "-0.0048 ± 0.0013")
    for number in (*numbers, "1.2468", "4,083"):
        assert f"<td>{number}</td>" in page
    assert "<dt>parameters</dt><dd>1,234,567</dd>" in page
    assert "Two models &amp; one text" in page


def test_report_escapes_what_it_is_given(page):
    for raw in ("<b>", "<i>", "<study>", "<columns>"):
        assert raw not in page
    assert "<td>mine:&lt;b&gt;&amp;</td>" in page
    assert "Look for &quot;bright&quot; &lt;columns&gt;" in page


def test_report_embeds_its_figures_in_order_and_loads_nothing(page):
    sources = re.findall(r"""(?:src|href|action|data|poster)\s*=\s*["']?([^"'\s>]*)""", page)
    assert sources and all(source.startswith("data:") for source in sources)
    assert not re.search(r"<script|<iframe|@import|url\(", page)
    assert "default-src 'none'" in page
    assert re.findall(r'<figure id="(\w+)"', page) == ["usage", "curves"]
    assert page.count('src="data:image/png;base64,iVBOR') == 2
    alts = re.findall(r'alt="([^"]*)"', page)
    assert (
        "small, p_rope(p=0.75, theta=10000)" in alts[0] and alts[1] == "Training loss by encoding"
    )


def test_report_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("the last one")
    row = {"name": "rope()", "perplexity": 1.0, "loss": 0.0, "difference": None}
    row |= {"difference_se": None, "train_loss": 0.0, "tokens_per_second": 71.2}
    results = {"encodings": [row], "facts": {}, "captions": {}}

    def fail(source, target):
        assert path.read_text() == "the last one"
        raise OSError("disk gone")

    with monkeypatch.context() as patch:
        patch.setattr(files.writing.os, "replace", fail)
        with pytest.raises(UserError, match="disk gone"):
            study_report.write_report(path, results, {})
    assert path.read_text() == "the last one"
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    study_report.write_report(path, results, {})
    assert "rope_study" in path.read_text()


def test_encoding_cycles_draws_every_pair_and_counts_those_that_complete_one():
    figure = figures.encoding_cycles(["rope", "p_rope(0.75)", "nope"], head_dim=64, context=512)
    shown = " ".join(texts(figure).split())
    for part in ("head_dim=64", "512 tokens", "cycles over the context", "one cycle"):
        assert part in shown
    assert "rope(theta=10000): 16 of 32 complete a cycle" in shown
    assert "nope(): 0 of 32 complete a cycle" in shown
    axes, still = figure.axes[:2]
    rope_cycles, p_rope_cycles, nope_cycles = (line.get_ydata() for line in axes.lines[:3])
    want = 512 / (2 * np.pi) * 10_000.0 ** (-np.arange(32) / 32)
    np.testing.assert_allclose(rope_cycles, want)
    np.testing.assert_allclose(p_rope_cycles, [*want[:24], *[np.nan] * 8])
    assert np.isnan(nope_cycles).all() and axes.get_yscale() == "log"
    marked = [points.get_offsets()[:, 0].tolist() for points in still.collections]
    assert marked == [[], list(range(24, 32)), list(range(32))]


def test_encoding_cycles_shortens_the_names_that_list_every_pair():
    ones = (1,) * 32
    figure = figures.encoding_cycles([f"longrope({ones}, {ones}, 4096, 4096, 32)"], 64, 4096)
    assert "longrope(short_factor=" in texts(figure) and len(texts(figure)) < 600


@pytest.mark.parametrize("offset", [0, 1, 3])
def test_construction_points_and_attends_where_theorem_5_3_says(offset):
    figure = figures.construction(0.7, offset, tokens=7, epsilon=0.05)
    before, after, attention = figure.axes[:3]
    (query,), keys = (np.arctan2(quiver.V, quiver.U) for quiver in after.collections)
    np.testing.assert_allclose(np.exp(1j * query), np.exp(1j * keys[6 - offset]), atol=1e-12)
    rival_keys = np.delete(keys, 6 - offset)
    assert np.cos(rival_keys - query).max() < np.cos(0.6)
    k, q = (np.arctan2(quiver.V, quiver.U)[0] for quiver in before.collections)
    assert k - q == pytest.approx(0.7 * offset)
    weights = attention.images[0].get_array()
    norm = theory.thm_5_3_norm([0.7], 7, 0.05, offset)
    expected = theory.thm_5_3_attention(norm, [0.7], 7, offset)[::-1]
    np.testing.assert_allclose(weights[6], expected, atol=1e-12)
    assert weights[6, 6 - offset] == pytest.approx(0.95, abs=1e-6)
    np.testing.assert_array_equal(weights.mask, ~np.tri(7, dtype=bool))
    assert "g = 0.7 rad/token" in texts(figure) and "[tokens]" in texts(figure)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(tokens=40), r"tokens=40 must lie in 2\.\.12"),
        (dict(frequency=0.0), r"at frequency=0\.0 another token looks like the target"),
        (dict(offset=6), r"offset=6 must lie in 0"),
    ],
)
def test_a_construction_that_cannot_be_is_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        figures.construction(**arguments)
