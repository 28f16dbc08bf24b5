"""The page of heads as a file: its data is what it was given, and labels stay text."""

import base64
import hashlib
import re

import numpy as np
import pytest
from page_examples import (
    HEADS,
    HOSTILE,
    KV_HEADS,
    LAYERS,
    PAIRS,
    make_map,
    make_named,
    make_page,
    make_usage,
    parse,
    read,
    stored_weights,
)

from rope_study.errors import UserError
from rope_study.probes.head_patterns import KINDS


def test_page_holds_what_it_was_given(tmp_path):
    usage, named, maps = make_usage(), make_named(), [make_map(), make_map(text="one")]
    usage["inverse_frequency"][0] = np.nan  # not known
    page_data = read(make_page(tmp_path, usage=usage, named=named, maps=maps))
    np.testing.assert_allclose(page_data["q"], usage.q, rtol=1e-5)
    np.testing.assert_allclose(page_data["k"], usage.k, rtol=1e-5)
    np.testing.assert_allclose(page_data["frequencies"][1:], usage.inverse_frequency[1:], rtol=1e-5)
    assert page_data["frequencies"][0] == [None] * PAIRS
    assert page_data["name"] == named.name.values.tolist() and page_data["kinds"] == list(KINDS)
    np.testing.assert_allclose(page_data["score"], named.score, rtol=1e-5)
    np.testing.assert_allclose(page_data["scores"], named.scores, rtol=1e-5)
    assert page_data["texts"][0]["queries"] == page_data["texts"][0]["keys"] == HOSTILE
    assert [text["label"] for text in page_data["texts"]] == ["text 1", "one"]


def test_axes_may_come_in_any_order(tmp_path):
    usage, named, maps = make_usage(), make_named(), [make_map()]
    expected = read(make_page(tmp_path, usage=usage, named=named, maps=maps))
    turned = [maps[0].transpose("key", "query", "head", "layer")]
    usage, named = usage.transpose("pair", ...), named.transpose("kind", "head", "layer")
    assert read(make_page(tmp_path, usage=usage, named=named, maps=turned)) == expected


def test_weights_are_within_half_a_level(tmp_path):
    weights = make_map()
    page_data = read(make_page(tmp_path, maps=[weights]))
    for layer, head in np.ndindex(LAYERS, HEADS):
        stored = stored_weights(page_data, 0, layer, head)
        np.testing.assert_allclose(stored, weights[layer, head], rtol=0, atol=1 / 510 + 1e-7)


def test_layers_with_fewer_heads_and_pairs_end_early(tmp_path):
    usage, named, weights = make_usage(), make_named(), make_map()
    usage["q"][2, 2:], usage["k"][2, 1:] = np.nan, np.nan
    usage["q"][2, :, 4:], usage["k"][2, :, 4:] = np.nan, np.nan
    weights[2, 2:] = np.nan
    page_data = read(make_page(tmp_path, usage=usage, named=named, maps=[weights]))
    for name, count in (("q", 2), ("k", 1), ("name", 2), ("score", 2), ("scores", 2)):
        assert len(page_data[name][2]) == count, name
        assert len(page_data[name][1]) == (KV_HEADS if name == "k" else HEADS), name
    assert len(page_data["texts"][0]["weights"][2]) == 2
    assert (
        len(page_data["q"][2][0])
        == len(page_data["k"][2][0])
        == len(page_data["frequencies"][2])
        == 4
    )


def test_first_look_is_at_the_most_positional_head(tmp_path):
    named = make_named()  # a sink scores more, and is not positional
    assert read(make_page(tmp_path, named=named))["first"] == {"layer": 1, "head": 1}
    named["name"][:] = "local"
    assert read(make_page(tmp_path, named=named))["first"] == {"layer": 0, "head": 0}


def test_hostile_labels_do_not_break_out(tmp_path):
    page = make_page(tmp_path).read_text(encoding="utf-8")
    assert page.count("<script") == page.count("</script") == 2
    assert page.count("<title>") == page.count("</title>") == 1
    for raw in ("<!--", "<b>", "<i>", "</option>"):
        assert raw not in page
    assert "Heads &amp; &lt;i&gt;more&lt;/i&gt;" in page
    assert "<dt>parameters</dt><dd>1,234,567</dd>" in page


def test_policy_allows_this_script_and_style_alone(tmp_path):
    page = make_page(tmp_path).read_text(encoding="utf-8")
    tags, scripts = parse(page)
    policy = next(a["content"] for _, a in tags if a.get("http-equiv"))
    assert "default-src 'none'" in policy and "unsafe" not in policy
    style = page.split("<style>")[1].split("</style>")[0]
    for kind, text in (("script", scripts[1]), ("style", style)):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    addresses = [a[name] for _, a in tags for name in ("src", "href", "action") if name in a]
    assert addresses == ["data:,"]
    assert not re.search(r"\son\w+=|@import|url\(|fetch\(", page)


def test_large_model_stays_below_ten_megabytes(tmp_path):
    size = {"layers": 28, "heads": 16}
    weights = make_map([f"▁token{i}" for i in range(64)], **size)
    path = make_page(
        tmp_path,
        usage=make_usage(**size, kv_heads=8, pairs=128),
        named=make_named(**size),
        maps=[weights] * 3,
    )
    assert path.stat().st_size < 10e6


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"maps": []}, "maps is empty"),
        ({"maps": [make_map(), make_map(layers=2)]}, r"maps\[1\] has 2 layers x 4 heads.*3 x 4"),
        ({"maps": [make_map(heads=8)]}, r"maps\[0\] has 3 layers x 8 heads"),
        ({"maps": [make_map()[0, 0]]}, r"maps\[0\] has the axes \[query, key\], expected"),
        ({"maps": [make_map().drop_vars("key_token")]}, r"maps\[0\] has no coordinate key_token"),
        ({"maps": [make_map() * 2]}, r"maps\[0\] has weights outside \[0, 1\]"),
        ({"maps": [make_map() * np.nan]}, "weights outside"),
        ({"named": make_named(layers=2)}, "named.name has 2 layers x 4 heads"),
        ({"named": make_named().drop_vars("score")}, "named has no score"),
        ({"usage": make_usage(kv_heads=3)}, "layer 0 has 4 heads and 3 key-value heads"),
        ({"usage": make_usage().drop_vars("q")}, "usage has no q"),
        (
            {"usage": make_usage(layers=4).assign_coords(layer=range(4))[{"layer": [1, 2, 3]}]},
            "0, 1",
        ),
    ],
)
def test_what_does_not_fit_is_an_error_and_leaves_nothing(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        make_page(tmp_path, **changes)
    assert not list(tmp_path.iterdir())
