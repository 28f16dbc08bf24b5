"""The page of heads in a browser: links, clicks and keys choose a head, and it shows the data."""

import re

import chromium
import matplotlib.image
import numpy as np
import pytest
from page_examples import (
    HOSTILE,
    LONG,
    PAIRS,
    TOKENS,
    make_map,
    make_named,
    make_page,
    make_usage,
    read,
    stored_weights,
)

from rope_study.probes.head_patterns import KINDS

in_chromium = pytest.mark.skipif(
    not chromium.PROGRAM, reason=f"no browser found: none of {', '.join(chromium.NAMES)}"
)
READY = re.compile("<body[^>]* data-ready")


@in_chromium
def test_link_opens_its_head(tmp_path):
    path = make_page(tmp_path)
    dom = chromium.output(chromium.address(path, layer=1, head=2), "--dump-dom")
    assert READY.search(dom) and not re.search('id="failure"[^>]*>This', dom)
    assert re.search(r'<h2 id="head-title".*?Layer 1, head 2: <strong>sink \(0.95\)', dom)
    chosen = re.findall('<td[^>]*aria-selected="true"[^>]*>', dom)
    assert len(chosen) == 1 and 'data-layer="1" data-head="2"' in chosen[0]
    assert len(re.findall('<path class="mine" d="M[^"]+L', dom)) == 2
    assert "Keys of key-value head 1" in dom and ">not rotated<" in dom


@in_chromium
def test_failure_of_the_script_is_seen(tmp_path):
    path = make_page(tmp_path)
    path.write_text(path.read_text(encoding="utf-8").replace('{"kinds"', '{"lost"'), "utf-8")
    dom = chromium.output(chromium.address(path), "--dump-dom")
    assert not READY.search(dom) and re.search('id="failure" role="alert">This page failed', dom)


@in_chromium
def test_picture_is_not_blank(tmp_path):
    picture = tmp_path / "page.png"
    flags = f"--screenshot={picture}", "--window-size=1300,1600", "--hide-scrollbars"
    chromium.output(chromium.address(make_page(tmp_path)), *flags)
    pixels = matplotlib.image.imread(picture)[..., :3]
    assert pixels.shape[:2] == (1600, 1300)
    assert len(np.unique((pixels * 255).astype(int).reshape(-1, 3), axis=0)) > 100
    navy = np.abs(pixels * 255 - (0x00, 0x22, 0x4E)).max(-1) < 8  # attention near 0
    assert navy.mean() > 0.001


@pytest.fixture(scope="module")
def browser():
    if not (chromium.PROGRAM and chromium.DRIVER):
        pytest.skip("no browser to drive: needs chromium and chromedriver")
    with chromium.browser() as session:
        session.resize(1300, 1000)
        yield session


@pytest.fixture
def opened(browser, tmp_path):
    """The page in the browser, and the data it holds."""
    path = make_page(tmp_path)
    browser.open(chromium.address(path))
    yield browser, read(path)
    assert browser.run("document.body.dataset.ready") == ""
    assert browser.run("window.broken") is None  # what a hostile label would have set
    errors = [entry for entry in browser.logs("browser") if entry["level"] == "SEVERE"]
    assert not errors
    assert browser.requests() == [chromium.address(path)[:-1]]  # itself, and nothing else


def test_click_and_arrow_keys_choose_a_head(opened):
    browser, data = opened
    assert browser.text("#head-title").endswith("Layer 1, head 1: previous (0.90)")
    before = browser.run("document.querySelector('path.mine').getAttribute('d')")
    browser.click('#grid [data-layer="2"][data-head="3"]')
    assert f"Layer 2, head 3: {data['name'][2][3]}" in browser.text("#head-title")
    assert browser.url().endswith("#layer=2&head=3&text=0")
    assert browser.run("document.querySelector('path.mine').getAttribute('d')") != before
    browser.press("up", "left", "left", "left", "left")  # the last finds no head, and stays
    assert "Layer 1, head 0:" in browser.text("#head-title")
    assert browser.run("document.activeElement.dataset.head") == "0"
    assert browser.run("[layer.value, head.value]") == ["1", "0"]


def test_scores_are_those_of_the_head(opened):
    browser, data = opened
    lines = browser.text("#scores").split()
    expected = [
        (kind, f"{score:.2f}") for kind, score in zip(KINDS, data["scores"][1][1], strict=True)
    ]
    assert list(zip(lines[::2], lines[1::2], strict=True)) == expected
    widths = browser.run(
        "[...document.querySelectorAll('.bar')].map(b => parseFloat(b.style.width))"
    )
    np.testing.assert_allclose(widths, np.multiply(data["scores"][1][1], 100), rtol=1e-3)


def test_norms_are_drawn_to_scale(opened):
    browser, data = opened
    points = browser.run("document.querySelector('path.mine').getAttribute('d').match(/[\\d.]+/g)")
    mean = browser.run("document.querySelector('path.mean').getAttribute('d').match(/[\\d.]+/g)")
    heights = np.array([points[1::2], mean[1::2]], float)
    mine = data["q"][1][1]
    norms = [mine, np.mean(data["q"][1], axis=0)]
    slope, offset = np.polyfit(np.ravel(norms), np.ravel(heights), 1)
    assert slope < 0  # up is more
    np.testing.assert_allclose(heights, slope * np.array(norms) + offset, atol=0.1)
    bands = browser.run(
        "[...document.querySelector('#norms svg').querySelectorAll('.still')].map(band =>"
        " [band.x.baseVal.value, band.x.baseVal.value + band.width.baseVal.value])"
    )
    x = np.array(points[::2], float)
    assert [[left < at < right for at in x] for left, right in bands] == [
        [pair >= PAIRS - 2 for pair in range(PAIRS)]  # the last two do not turn
    ]


def test_map_shows_query_key_and_weight(opened):
    browser, data = opened
    weights = stored_weights(data, 0, 1, 1)
    size = browser.run("document.querySelector('#map canvas').clientWidth") / TOKENS
    browser.point("#map canvas", 3.5 * size, 7.5 * size)
    shown = f"query 7 {HOSTILE[7]} → key 3 {HOSTILE[3]}: {weights[7, 3]:.2f}"
    assert browser.text("#readout") == shown
    browser.run("document.getElementById('map').focus()")
    browser.press("up", "right", "right", "right")
    assert browser.text("#readout") == f"query 6 ↵ → key 6 ↵: {weights[6, 6]:.2f}"
    browser.press("right")
    assert browser.text("#readout").endswith("comes later")
    pixels = browser.run(
        "[...document.querySelector('#map canvas').getContext('2d')"
        f".getImageData(0, 0, {TOKENS}, {TOKENS}).data]"
    )
    rgba = np.array(pixels).reshape(TOKENS, TOKENS, 4)
    assert ((rgba[..., 3] > 0) == np.tri(TOKENS, dtype=bool)).all()
    readable = np.tril_indices(TOKENS)
    brightness = rgba[..., 0].astype(int)[readable]  # red grows all along the colours
    order = np.argsort(weights[readable], kind="stable")
    assert (np.diff(brightness[order]) >= 0).all() and np.ptp(brightness) > 200


def test_weak_weights_are_brought_out_on_demand(opened):
    browser, data = opened
    weights = stored_weights(data, 0, 1, 1)
    query, key = np.argwhere((weights > 0.03) & (weights < 0.2))[0]
    red = (
        "document.querySelector('#map canvas').getContext('2d')"
        f".getImageData({key}, {query}, 1, 1).data[0]"
    )
    before = browser.run(red)
    browser.click("#weak")
    assert browser.run(red) > before + 20


def test_text_is_chosen_by_the_hash(opened):
    browser, _ = opened
    browser.run("location.hash = 'layer=0&head=3&text=1'")
    title, labels = browser.run(
        "new Promise(done => setTimeout(() => done([document.getElementById('map-title').innerText,"
        "[...document.querySelectorAll('#map [data-axis=key]')].map(t => t.textContent)])))"
    )
    assert title == f"Attention over {LONG} tokens of “text 2”"
    assert labels == [f"t{i}" for i in range(LONG)]
    browser.run("location.hash = 'layer=99&head=-1&text=x'")  # names nothing, changes nothing
    assert "Layer 0, head 3:" in browser.text("#head-title")


@pytest.mark.parametrize("width", [420, 1300])
def test_page_is_no_wider_than_the_window(opened, width):
    browser, _ = opened
    browser.resize(width, 1000)
    browser.run("location.hash = 'text=1'")
    page, map_box = browser.run(
        "new Promise(done => setTimeout(() => done([document.documentElement,"
        " document.getElementById('map').parentElement].map(e => e.scrollWidth - e.clientWidth))))"
    )
    assert page == 0
    assert (map_box > 0) == (width < 600)  # the map scrolls by itself
    browser.resize(1300, 1000)


def test_chosen_cell_is_in_sight(browser, tmp_path):
    size = {"layers": 30, "heads": 24}
    given = {"usage": make_usage(**size), "named": make_named(**size)}
    path = make_page(tmp_path, **given, maps=[make_map(["a"], **size)])
    browser.resize(420, 1000)
    for layer, head in (29, 23), (0, 0), (14, 11):
        browser.open(chromium.address(path, layer=layer, head=head))
        assert browser.run("scrollY") == 0
        assert browser.run(
            "(cell => (r => document.elementFromPoint(r.x + 5, r.y + 5) === cell)"
            "(cell.getBoundingClientRect()))(document.querySelector('[aria-selected=true]'))"
        )
    browser.resize(1300, 1000)
