"""The pages in a browser: links, clicks and keys choose a head, and what is shown is the data."""

import io
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from page_examples import (
    HOSTILE,
    LONG,
    PAIRS,
    TOKENS,
    WIDTHS,
    make_map,
    make_named,
    make_page,
    make_report,
    make_usage,
    read,
    stored_weights,
)
from PIL import Image
from playwright.sync_api import sync_playwright

from rope_study.probes.head_patterns import KINDS

NAMES = ("chromium", "chromium-browser", "google-chrome")
PROGRAM = next(filter(None, map(shutil.which, NAMES)), None)
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
WINDOW = {"width": 1300, "height": 1000}
TIMEOUT = 20_000  # ms
PAPER = {"light": (0xFF, 0xFF, 0xFF), "dark": (0x16, 0x18, 0x1C)}

pytestmark = pytest.mark.skipif(
    PROGRAM is None, reason=f"no browser found: none of {', '.join(NAMES)}"
)


@pytest.fixture(scope="module")
def browser():
    """One tab, the addresses it asked for, and the errors it logged."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=PROGRAM, args=FLAGS)
        page = chromium.new_page()
        page.set_default_timeout(TIMEOUT)
        requests, errors = [], []
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
        yield SimpleNamespace(page=page, requests=requests, errors=errors)
        chromium.close()


@pytest.fixture
def tab(browser):
    """The tab as if it were new."""
    browser.page.goto("about:blank")
    browser.page.set_viewport_size(WINDOW)
    browser.page.emulate_media(color_scheme="light")
    browser.requests.clear(), browser.errors.clear()
    return browser


def test_many_heads_are_all_in_sight_and_every_tick_is_whole(tab, tmp_path):
    usage = make_usage(3, 32, 8, 64)
    usage["inverse_frequency"][:] = 10_000.0 ** (-np.arange(64) / 64) * 0.9  # ends in 0.0001
    named, maps = make_named(3, 32), [make_map(layers=3, heads=32)]
    tab.page.goto(address(make_page(tmp_path, usage=usage, named=named, maps=maps)))
    for width in (700, 1000, 1300):
        tab.page.set_viewport_size({"width": width, "height": 900})
        cut = tab.page.evaluate(
            """[...document.querySelectorAll("#norms svg text")].filter((text) => {
              const box = text.getBoundingClientRect();
              const frame = text.closest("svg").getBoundingClientRect();
              return box.left < frame.left || box.right > frame.right;
            }).map((text) => text.textContent)"""
        )
        assert cut == []
    grid = "document.querySelector('#overview .wide')"
    assert tab.page.evaluate(f"{grid}.scrollWidth <= {grid}.clientWidth")


def test_the_page_says_what_kinds_scores_and_mixed_mean(heads):
    page, data = heads
    legend = page.locator("#legend").inner_text()
    for part in (*data["meanings"], "no score above 0.50", "on the nearest 8 tokens"):
        assert part in legend
    assert "Where the score" in page.locator("#kinds-help").inner_text()


@pytest.fixture
def heads(tab, tmp_path):
    """The page of heads in the tab, and the data it holds; afterwards, nothing went wrong."""
    path = make_page(tmp_path)
    tab.page.goto(address(path))
    yield tab.page, read(path)
    assert is_ready(tab.page) and tab.errors == []
    assert tab.page.evaluate("window.broken") is None  # what a hostile label would have set
    assert tab.requests == [address(path)]  # itself, and nothing else


def address(path: Path, **selection: int) -> str:
    """The URL of a page, with what its hash chooses."""
    values = "&".join(f"{name}={value}" for name, value in selection.items())
    return f"{path.as_uri()}#{values}" if selection else path.as_uri()


def is_ready(page) -> bool:
    return page.evaluate("document.body.dataset.ready") == ""


def set_hash(page, text: str) -> None:
    """Changes the hash, and waits until the page has followed it."""
    page.evaluate(
        "text => new Promise(done => {"
        " addEventListener('hashchange', () => setTimeout(done), { once: true });"
        " location.hash = text; })",
        text,
    )


def press(page, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(f"Arrow{key}")


def picture(page) -> Image.Image:
    """What the window shows."""
    return Image.open(io.BytesIO(page.screenshot())).convert("RGB")


def overflow(page, selector: str) -> int:
    """By how many pixels the content of an element is wider than the element."""
    return page.eval_on_selector(selector, "e => e.scrollWidth - e.clientWidth")


# --- the page of heads ------------------------------------------------------------------------


def test_link_opens_its_head(tab, tmp_path):
    page = tab.page
    page.goto(address(make_page(tmp_path), layer=1, head=2))
    assert is_ready(page) and page.is_hidden("#failure")
    assert "Layer 1, head 2: sink (0.95)" in page.inner_text("#head-title")
    assert page.inner_text("#head-title strong") == "sink (0.95)"
    selected = page.locator('td[aria-selected="true"]')
    cells = selected.evaluate_all("cells => cells.map(c => [c.dataset.layer, c.dataset.head])")
    assert cells == [["1", "2"]]
    paths = page.locator("path.mine").evaluate_all("paths => paths.map(p => p.getAttribute('d'))")
    assert len(paths) == 2 and all("L" in path for path in paths)
    assert "Keys of key-value head 1" in page.inner_text("main")
    assert "not rotated" in page.locator("#norms text").all_text_contents()
    assert tab.errors == []


def test_failure_of_the_script_is_seen(tab, tmp_path):
    path = make_page(tmp_path)
    path.write_text(path.read_text(encoding="utf-8").replace('{"kinds"', '{"lost"'), "utf-8")
    tab.page.goto(address(path))
    assert not is_ready(tab.page)
    assert tab.page.is_visible("#failure")
    assert tab.page.inner_text('#failure[role="alert"]').startswith("This page failed")
    assert tab.errors


def test_picture_is_not_blank(heads):
    page, _ = heads
    page.set_viewport_size({"width": 1300, "height": 1600})
    for scheme, paper in PAPER.items():
        page.emulate_media(color_scheme=scheme)
        image = picture(page)
        assert image.size == (1300, 1600)
        assert image.getpixel((1299, 1599)) == paper
        counts, colours = zip(*image.getcolors(1300 * 1600), strict=True)
        assert len(colours) > 100
        navy = np.abs(np.subtract(colours, (0x00, 0x22, 0x4E))).max(-1) < 8  # attention near 0
        assert np.sum(counts, where=navy) > 0.001 * 1300 * 1600


def test_click_and_arrow_keys_choose_a_head(heads):
    page, page_data = heads
    assert page.inner_text("#head-title").endswith("Layer 1, head 1: previous (0.90)")
    before = page.get_attribute("path.mine >> nth=0", "d")
    page.click('#grid [data-layer="2"][data-head="3"]')
    assert f"Layer 2, head 3: {page_data['name'][2][3]}" in page.inner_text("#head-title")
    assert page.url.endswith("#layer=2&head=3&text=0")
    assert page.get_attribute("path.mine >> nth=0", "d") != before
    press(page, "Up", "Left", "Left", "Left", "Left")  # the last finds no head, and stays
    assert "Layer 1, head 0:" in page.inner_text("#head-title")
    assert page.evaluate("document.activeElement.dataset.head") == "0"
    assert [page.input_value("#layer"), page.input_value("#head")] == ["1", "0"]


def test_scores_are_those_of_the_head(heads):
    page, page_data = heads
    words = page.inner_text("#scores").split()
    scores = page_data["scores"][1][1]
    assert words[::2] == list(KINDS)
    assert words[1::2] == [f"{score:.2f}" for score in scores]
    widths = page.locator(".bar").evaluate_all("bars => bars.map(b => parseFloat(b.style.width))")
    np.testing.assert_allclose(widths, np.multiply(scores, 100), rtol=1e-3)


def test_norms_are_drawn_to_scale(heads):
    page, page_data = heads
    points, mean = (
        page.eval_on_selector(f"path.{name}", "p => p.getAttribute('d').match(/[\\d.]+/g)")
        for name in ("mine", "mean")
    )
    heights = np.array([points[1::2], mean[1::2]], float)
    norms = [page_data["q"][1][1], np.mean(page_data["q"][1], axis=0)]
    slope, offset = np.polyfit(np.ravel(norms), np.ravel(heights), 1)
    assert slope < 0  # up is more
    np.testing.assert_allclose(heights, slope * np.array(norms) + offset, atol=0.1)
    bands = page.eval_on_selector(
        "#norms svg",
        "svg => [...svg.querySelectorAll('.still')].map(band =>"
        " [band.x.baseVal.value, band.x.baseVal.value + band.width.baseVal.value])",
    )
    x = np.array(points[::2], float)
    assert [[left < at < right for at in x] for left, right in bands] == [
        [pair >= PAIRS - 2 for pair in range(PAIRS)]  # the last two do not turn
    ]


def test_map_shows_query_key_and_weight(heads):
    page, page_data = heads
    weights = stored_weights(page_data, 0, 1, 1)
    canvas = page.locator("#map canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    size = box["width"] / TOKENS
    page.mouse.move(box["x"] + 3.5 * size, box["y"] + 7.5 * size)
    expected = f"query 7 {HOSTILE[7]} → key 3 {HOSTILE[3]}: {weights[7, 3]:.2f}"
    assert page.inner_text("#readout") == expected
    page.focus("#map")
    press(page, "Up", "Right", "Right", "Right")
    assert page.inner_text("#readout") == f"query 6 ↵ → key 6 ↵: {weights[6, 6]:.2f}"
    press(page, "Right")
    assert page.inner_text("#readout").endswith("comes later")
    pixels = canvas.evaluate(
        "(c, n) => [...c.getContext('2d').getImageData(0, 0, n, n).data]", TOKENS
    )
    rgba = np.array(pixels).reshape(TOKENS, TOKENS, 4)
    assert ((rgba[..., 3] > 0) == np.tri(TOKENS, dtype=bool)).all()
    readable = np.tril_indices(TOKENS)
    brightness = rgba[..., 0].astype(int)[readable]  # red grows all along the colours
    order = np.argsort(weights[readable], kind="stable")
    assert (np.diff(brightness[order]) >= 0).all() and np.ptp(brightness) > 200


def test_weak_weights_are_brought_out_on_demand(heads):
    page, page_data = heads
    weights = stored_weights(page_data, 0, 1, 1)
    query, key = np.argwhere((weights > 0.03) & (weights < 0.2))[0].tolist()

    def red() -> int:
        script = "(c, at) => c.getContext('2d').getImageData(...at, 1, 1).data[0]"
        return page.eval_on_selector("#map canvas", script, [key, query])

    before = red()
    page.check("#weak")
    assert red() > before + 20


def test_text_is_chosen_by_the_hash(heads):
    page, _ = heads
    set_hash(page, "layer=0&head=3&text=1")
    assert page.inner_text("#map-title") == f"Attention over {LONG} tokens of “text 2”"
    labels = page.locator("#map [data-axis=key]").all_text_contents()
    assert labels == [f"t{i}" for i in range(LONG)]
    set_hash(page, "layer=99&head=-1&text=x")  # names nothing, changes nothing
    assert "Layer 0, head 3:" in page.inner_text("#head-title")


def test_page_is_no_wider_than_the_window(heads):
    page, _ = heads
    for width in (420, 1300):
        page.set_viewport_size({"width": width, "height": 1000})
        set_hash(page, f"text=1&width={width}")
        assert overflow(page, "html") == 0
        # The map scrolls by itself.
        assert (overflow(page, "div:has(> #map)") > 0) == (width < 600)


def test_chosen_cell_is_in_sight(tab, tmp_path):
    page = tab.page
    size = {"layers": 30, "heads": 24}
    datasets = {"usage": make_usage(**size), "named": make_named(**size)}
    path = make_page(tmp_path, **datasets, maps=[make_map(["a"], **size)])
    page.set_viewport_size({"width": 420, "height": 1000})
    for layer, head in (29, 23), (0, 0), (14, 11):
        page.goto("about:blank")  # so that another hash is another visit
        page.goto(address(path, layer=layer, head=head))
        assert page.evaluate("scrollY") == 0
        assert page.eval_on_selector(
            "[aria-selected=true]",
            "cell => (r => document.elementFromPoint(r.x + 5, r.y + 5) === cell)"
            "(cell.getBoundingClientRect())",
        )


# --- the report of a study --------------------------------------------------------------------


def test_report_shows_figures_at_their_size_and_asks_for_nothing(tab, tmp_path):
    page, path = tab.page, make_report(tmp_path)
    page.goto(address(path))
    shown = "images => images.map(i => [i.complete && i.naturalWidth > 0, i.width])"
    assert page.locator("img").evaluate_all(shown) == [[True, width] for width in WIDTHS]
    for scheme, paper in PAPER.items():
        page.emulate_media(color_scheme=scheme)
        assert picture(page).getpixel((1299, 999)) == paper
    page.set_viewport_size({"width": 420, "height": 1000})
    assert overflow(page, "html") == 0
    room = 420 - 48  # the window without the page's edges
    widths = page.locator("img").evaluate_all("images => images.map(i => i.width)")
    assert widths == [min(room, WIDTHS[0]), round(0.7 * WIDTHS[1])]
    assert tab.errors == [] and tab.requests == [address(path)]


# --- every page -------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [make_page, make_report])
def test_what_breaks_in_does_not_run_and_reaches_no_network(tab, tmp_path, make):
    page, path, outside = tab.page, make(tmp_path), "http://127.0.0.1:9/"
    intruders = (
        "<script>window.broken = 1</script>"
        '<p id="intruder" style="color: red" onclick="window.broken = 2">text</p>'
        "<style>#intruder { font-size: 99px }</style>"
        f'<img src="{outside}a.png"><iframe src="{outside}"></iframe>'
    )
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("</h1>", f"</h1>{intruders}"), encoding="utf-8")
    with page.expect_event("requestfailed") as blocked:
        page.goto(address(path))
    page.click("#intruder")
    fetch = "url => fetch(url).then(() => 'answered', () => 'refused')"
    assert page.evaluate(fetch, outside) == "refused"
    assert page.evaluate("window.broken") is None
    colour, size = page.eval_on_selector(
        "#intruder", "e => [getComputedStyle(e).color, getComputedStyle(e).fontSize]"
    )
    assert size == "16px" and colour == page.evaluate("getComputedStyle(document.body).color")
    refusals = [error for error in tab.errors if "Content Security Policy" in error]
    for directive in ("script-src", "style-src", "img-src", "default-src"):
        assert any(directive in refusal for refusal in refusals), directive
    # What a page tries is seen, and the policy stops it before it leaves.
    assert tab.requests == [address(path), f"{outside}a.png"]
    assert (blocked.value.url, blocked.value.failure) == (f"{outside}a.png", "csp")
