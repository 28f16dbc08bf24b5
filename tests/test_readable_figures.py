"""Every figure can be read: nothing is cut, no two labels lie on each other, names are as given."""

import itertools
import warnings

import matplotlib.text
import numpy as np
import pytest
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rope_study import figures, rotary
from rope_study.errors import UserError
from rope_study.figures import style
from rope_study.probes.head_patterns import KINDS

NAMES = ["$x^$", "_hidden", "a$b_$", "$$", r"back\slash$"]  # such as labels of a user's texts
LONG_NAME = "longrope(long=(1.5, 2.0, 2.5, 3.0), short=(1.0, 1.0, 1.1, 1.2), context=4096)"


def usage(layers=3, heads=4, kv_heads=2, pairs=8) -> xr.Dataset:
    rng, frequencies = np.random.default_rng(0), rotary.rope().inverse_frequencies(2 * pairs)

    def norms(axis: str, count: int) -> tuple:
        return ("layer", axis, "pair"), rng.uniform(0, 3, (layers, count, pairs)), {"units": "1"}

    return xr.Dataset(
        {"q": norms("head", heads), "k": norms("kv_head", kv_heads), "v": norms("kv_head", 2)},
        coords={
            "inverse_frequency": (("layer", "pair"), np.tile(frequencies, (layers, 1))),
            "layer": range(layers),
        },
        attrs={"model": "16 layers x 2048, " + LONG_NAME, "text": "a poem", "tokens": 1280}
        | {"context": 128},
    )


def local_and_global(layers=18) -> xr.Dataset:
    """As Gemma 3: every sixth layer has other frequencies."""
    found = usage(layers=layers)
    found["inverse_frequency"][5::6] = rotary.rope(1e6).inverse_frequencies(16)
    return found


def by_step(steps: int, pattern: list[int]) -> xr.Dataset:
    kinds = {"kind": ("layer", pattern)}
    return usage(len(pattern)).expand_dims(step=range(0, 25 * steps, 25)).assign_coords(kinds)


def named(layers: int, heads: int) -> xr.Dataset:
    kinds = np.resize(np.array([*KINDS, "mixed"], object), (layers, heads))
    by_head = ("layer", "head")
    return xr.Dataset(
        {"name": (by_head, kinds), "score": (by_head, np.full((layers, heads), 0.88))},
        coords={"layer": range(layers), "head": range(heads)},
        attrs=usage().attrs,
    )


def attention(size: int) -> xr.DataArray:
    tokens = np.resize(np.array(["<bos>", "$", "_", "▁something"], object), size)
    return xr.DataArray(
        np.tri(size) / np.arange(1, size + 1)[:, None],
        dims=("query", "key"),
        coords={"query_token": ("query", tokens), "key_token": ("key", tokens)},
        attrs={"layer": 11, "head": 3, "model": "a model"},
    )


def effects(names: list[str], layers: int, heads: int) -> xr.Dataset:
    count = len(names)
    losses = {n: ("intervention", np.ones(count)) for n in ("loss_difference",)}
    losses["loss_difference_se"] = ("intervention", np.full(count, 0.1))
    weights = np.ones((count, layers, heads))
    long_name = {"long_name": "mean attention on the token before"}
    return xr.Dataset(
        losses | {"previous": (("intervention", "layer", "head"), weights, long_name)},
        coords={"intervention": names, "layer": range(layers), "head": range(heads)},
        attrs={"model": "a model", "texts": 3, "tokens": 1234, "context": 64},
    )


def evaluation(names: list[str], lengths=(64, 256, 1024)) -> xr.Dataset:
    by_length, count = ("rotary", "length"), (len(names), len(lengths))
    at = np.unique(np.round(2.0 ** (np.arange(21) / 2)).astype(int))
    by_position = np.linspace(4, 2, at.size) + np.arange(len(names))[:, None, None] / 9
    columns = {name: np.full(count, 0.2) for name in LOSSES}
    columns |= {"loss": 2 + np.arange(count[0] * count[1]).reshape(count) / 9}
    wide = {"position_loss": by_position, "position_loss_interval": np.full(by_position.shape, 0.1)}
    return xr.Dataset(
        {name: (by_length, values) for name, values in columns.items()}
        | {n: (("rotary", "length", "position"), v.repeat(count[1], 1)) for n, v in wide.items()},
        coords={"rotary": np.array(names, object), "length": list(lengths), "position": at}
        | {"position_first": ("position", at)},
        attrs={"model": "16 layers x 2048", "text": "a poem", "documents": 9, "tokens": 1280}
        | {"context": 1024, "across": "masked", "trained_length": 256},
    )


LOSSES = ("loss", "loss_interval", "difference", "difference_interval")


def rows(**more) -> list[dict]:
    of_name = {"difference": 0.66, "difference_se": 0.01}
    small = {"difference": -0.001, "difference_se": 0.0006}
    return [{"name": "rope"}, {"name": LONG_NAME} | of_name, {"name": "p"} | small]


SIX = {f"kind {i}, score 0.9{i}": (i % 3, i % 4) for i in range(6)}
CURVES = [[0, 1, 2], [3.0, 2.0, 1.5]]
DRAWN = {
    "norms_by_layer": lambda: figures.norms_by_layer(usage(32)),
    "norms_by_head": lambda: figures.norms_by_head(usage(3, 64), 0),
    "bands_over_steps": lambda: figures.bands_over_steps(by_step(11, [0] * 4)),
    "bands of many layers": lambda: figures.bands_over_steps(by_step(401, [0, 0, 0, 0, 0, 1] * 8)),
    "value_norms": lambda: figures.value_norms(usage()),
    "head_usage": lambda: figures.head_usage(usage(), SIX),
    "head_usage of twenty": lambda: figures.head_usage(
        usage(), {f"{LONG_NAME} {i}": (0, 1) for i in range(20)}
    ),
    "slow_bands": lambda: figures.slow_bands({"model": local_and_global(18)}),
    "slow_bands of many": lambda: figures.slow_bands(
        {f"a model of this size, {i}": local_and_global(48) for i in range(4)}
    ),
    "side by side": lambda: figures.usage_side_by_side({LONG_NAME: usage(), "rope": usage(2)}),
    "25 domains": lambda: figures.usage_by_domain(
        {f"domain number {i}": usage() for i in range(25)}
    ),
    "7 domains": lambda: figures.usage_by_domain({f"d{i}": usage(30) for i in range(7)}),
    "head_kinds": lambda: figures.head_kinds(named(2, 3)),
    "head_kinds of many": lambda: figures.head_kinds(named(24, 32)),
    "attention": lambda: figures.attention_patterns({name: attention(20) for name in SIX}),
    "attention of one": lambda: figures.attention_patterns({"one": attention(48)}),
    "differences": lambda: figures.paired_differences(rows()),
    "interventions": lambda: figures.intervention_effects(effects(list("abcdef"), 4, 4)),
    "evaluation": lambda: figures.loss_by_position(evaluation([LONG_NAME, "rope", "nope"])),
    "evaluation of many": lambda: figures.loss_by_position(
        evaluation([f"{LONG_NAME} {i}" for i in range(9)], (512, 600, 1024, 131_072))
    ),
    "interventions of many layers": lambda: figures.intervention_effects(effects(["a"], 32, 8)),
    "loss curves": lambda: figures.loss_curves({f"{LONG_NAME} {i}": CURVES for i in range(9)}),
    "cycles": lambda: figures.encoding_cycles(["rope", "nope", "p_rope(0.75)"]),
    "decay": lambda: figures.decay(32, distances=range(0, 256)),
    "turning": figures.turning,
    "construction": figures.construction,
    "prop_3_1": figures.prop_3_1,
    "prop_3_2": lambda: figures.prop_3_2(samples=200),
}


@pytest.mark.parametrize("name", DRAWN)
def test_nothing_is_cut_and_no_labels_overlap(name):
    figure = DRAWN[name]()
    FigureCanvasAgg(figure).draw()
    width, height = figure.bbox.size
    assert max(width, height) < 6500, (width, height)  # pixels at 100 dpi
    for text in shown(figure):
        box = text.get_window_extent()
        inside = -1 <= box.x0 and box.x1 <= width + 1 and -1 <= box.y0 and box.y1 <= height + 1
        assert inside, f"cut: {text.get_text()!r}"
    for one, other in itertools.combinations(blocks(figure), 2):
        assert not overlap(one, other), f"{words(one)!r} lies on {words(other)!r}"
    for axes in figure.axes:
        for ticks in (axes.get_xticklabels(), axes.get_yticklabels()):
            labels = [tick for tick in ticks if tick.get_visible() and tick.get_text()]
            for one, other in itertools.pairwise(labels):
                assert not overlap(one, other), f"{words(one)!r} lies on {words(other)!r}"


def shown(figure: Figure) -> list[matplotlib.text.Text]:
    found = figure.findobj(lambda a: isinstance(a, matplotlib.text.Text) and a.get_visible())
    ticks = {label for axes in figure.axes for label in every_tick(axes)}
    return [text for text in found if text.get_text().strip() and text not in ticks]


def every_tick(axes: Axes) -> list:
    """Labels of ticks, of which some lie beyond the axes and are not drawn."""
    axis_ticks = [axes.xaxis.get_major_ticks(), axes.xaxis.get_minor_ticks()]
    axis_ticks += [axes.yaxis.get_major_ticks(), axes.yaxis.get_minor_ticks()]
    return [label for ticks in axis_ticks for t in ticks for label in (t.label1, t.label2)]


def blocks(figure: Figure) -> list:
    """What must not lie on each other: titles, labels of axes, and legends outside them."""
    found = [figure._suptitle, *figure.legends] if figure._suptitle else [*figure.legends]
    for axes in figure.axes:
        found += [axes.title, axes.xaxis.label, axes.yaxis.label]
    return [artist for artist in found if artist.get_visible() and words(artist).strip()]


def words(artist) -> str:
    return artist.get_text() if hasattr(artist, "get_text") else "the legend"


def overlap(one, other) -> bool:
    a, b = (artist.get_window_extent() for artist in (one, other))
    return min(a.x1, b.x1) - max(a.x0, b.x0) > 1 and min(a.y1, b.y1) - max(a.y0, b.y0) > 1


# --- names are text ---------------------------------------------------------------------------

NAMED = {
    "usage_by_domain": lambda names: figures.usage_by_domain({n: usage() for n in names}),
    "usage_side_by_side": lambda names: figures.usage_side_by_side({n: usage() for n in names}),
    "slow_bands": lambda names: figures.slow_bands({n: usage() for n in names}),
    "head_usage": lambda names: figures.head_usage(usage(), {n: (0, 1) for n in names}),
    "loss_curves": lambda names: figures.loss_curves(dict.fromkeys(names, CURVES)),
    "attention": lambda names: figures.attention_patterns({n: attention(4) for n in names}),
    "evaluation": lambda names: figures.loss_by_position(evaluation(names)),
    "interventions": lambda names: figures.intervention_effects(effects(names, 2, 2)),
    "differences": lambda names: figures.paired_differences(
        [{"name": "rope"}, *({"name": n, "difference": 0.1, "difference_se": 0.01} for n in names)]
    ),
}


@pytest.mark.parametrize("draw", NAMED.values(), ids=NAMED)
def test_dollars_and_underscores_are_text(draw):
    figure = draw(NAMES)
    FigureCanvasAgg(figure).draw()  # raises where dollars are read as mathematics
    every = figure.findobj(matplotlib.text.Text)
    everything = "\n".join(drawn_as(text) for text in every)
    assert [name for name in NAMES if name not in everything] == []


def drawn_as(text: matplotlib.text.Text) -> str:
    return text._preprocess_math(text.get_text())[0]


def test_missing_glyphs_are_one_warning():
    style._Figure.warned.clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            figure = figures.usage_by_domain({"中文文本": usage(), "日本語": usage()})
            FigureCanvasAgg(figure).draw()
    assert len(caught) <= 1  # none where a font has them
    assert all("中" in str(warning.message) for warning in caught)


def test_more_domains_than_fit_are_refused():
    with pytest.raises(UserError, match=r"31 domains, and at most 30 fit"):
        figures.usage_by_domain({str(i): usage(1) for i in range(31)})
