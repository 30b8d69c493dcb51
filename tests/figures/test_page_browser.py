"""The page in a browser: what a reader sees, and that it asks no one for anything."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from small_llava_video import small_llava_video
from small_study import small_study
from test_page import EVIL

from adatp.figures.page import write_page
from adatp.small.untrained import load_untrained

pytest.importorskip("selenium", reason="selenium is not installed: pip install selenium")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
if not (CHROMIUM and DRIVER):
    pytest.skip("there is no chromium with a chromedriver on the PATH", allow_module_level=True)

from selenium import webdriver  # noqa: E402
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-quic", "--window-size=1440,900",
)  # fmt: skip

VEILED = """
const [canvas, rows, columns, across, margin] = arguments;
const pen = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", {willReadFrequently: true});
pen.drawImage(canvas, 0, 0);
const picture = canvas.width / (1 + (columns - across) * (1 / across + margin)), side = picture / across;
return Array.from({length: rows * columns}, (_, place) => {
  const row = Math.floor(place / columns), column = place % columns, apart = column < across ? 0 : margin * picture;
  const pixel = pen.getImageData((column + .5) * side + apart, (row + .5) / rows * canvas.height, 1, 1);
  return Math.min(...pixel.data) > 190;
});
"""  # a frame is dark, and white lies over what was dropped; newlines stand apart
MARGIN = 0.035  # of the picture's width

CONTRAST = """
function rgb(text) {
  const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number);
  return {c: [r, g, b], a};
}
const light = ({c}) => { const [r, g, b] = c.map(v => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
                         return .2126 * r + .7152 * g + .0722 * b; };
const found = [];
for (const element of document.querySelectorAll("body *")) {
  const texts = [...element.childNodes].filter(node => node.nodeType === 3 && node.data.trim());
  const style = getComputedStyle(element);
  if (!texts.length || !element.getClientRects().length || style.visibility !== "visible") continue;
  if (["SCRIPT", "NOSCRIPT"].includes(element.tagName)) continue;
  let behind = element;
  while (behind && rgb(getComputedStyle(behind).backgroundColor).a === 0) behind = behind.parentElement;
  const pair = [light(rgb(style.color)), light(rgb(getComputedStyle(behind ?? document.body).backgroundColor))];
  found.push([texts[0].data.trim(), (Math.max(...pair) + .05) / (Math.min(...pair) + .05)]);
}
return found;
"""


@pytest.fixture(scope="module", params=["llava_onevision", "llava_video"])
def shown(request, tmp_path_factory):
    """A browser, the page for it, and the page's study."""
    folder = tmp_path_factory.mktemp("browser")
    small = small_llava_video() if request.param == "llava_video" else load_untrained(image_size=84, layers=16)
    study = small_study(small, EVIL)
    write_page(folder / "page.html", study)
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={folder / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        yield SimpleNamespace(browser=browser, study=study, page=(folder / "page.html").as_uri())
    finally:
        browser.quit()


@pytest.fixture
def page(shown):
    """The page opened afresh, in light colours and wide; at the end, nothing was wrong and nothing asked for."""
    emulate(shown.browser, dark=False)
    shown.browser.get("about:blank")
    for kind in ("browser", "performance"):
        shown.browser.get_log(kind)  # what the browser's own first page has left
    open_page(shown)
    yield shown
    assert shown.browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in shown.browser.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert any(url == shown.page for url in asked)
    assert [url[:80] for url in asked if not url.startswith(("file:", "data:"))] == []


def emulate(browser, *, dark: bool, width: int = 1440, motion: str = "no-preference"):
    features = {"prefers-color-scheme": "dark" if dark else "light", "prefers-reduced-motion": motion}
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": n, "value": v} for n, v in features.items()]}
    )
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def open_page(page):
    page.browser.get(page.page)
    wait(page.browser, "return document.documentElement.dataset.ready")


def wait(browser, script: str):
    return WebDriverWait(browser, 20).until(lambda b: b.execute_script(script))


def find(page, selector: str):
    return page.browser.find_element(By.CSS_SELECTOR, selector)


def all_of(page, selector: str):
    return page.browser.find_elements(By.CSS_SELECTOR, selector)


def text(page, selector: str) -> str:
    return page.browser.execute_script("return document.querySelector(arguments[0]).textContent", selector)


def kept_on_canvas(page, canvas) -> np.ndarray:
    """`[c]` bool, by the pixels."""
    grid = page.study.attention.grid
    sides = grid.rows, grid.columns, grid.patch_columns
    return ~np.array(page.browser.execute_script(VEILED, canvas, *sides, MARGIN))


def move_to_layer(page, layer: int):
    slider = find(page, "#layer")
    for _ in range(40):
        at = int(slider.get_attribute("value"))
        if at == layer:
            return
        slider.send_keys(Keys.ARROW_RIGHT if at < layer else Keys.ARROW_LEFT)
    raise AssertionError(f"the slider does not reach layer {layer}")


def ratio(page) -> list:
    found = page.browser.execute_script(CONTRAST)
    assert len(found) > 40
    return [(words, round(value, 2)) for words, value in found if value < 4.5]


def test_the_head_says_what_is_shown_and_text_stays_text(page):
    assert text(page, "#question") == EVIL
    assert page.browser.title.startswith(EVIL[:20])
    facts = text(page, "#facts")
    for said in ("a model", "blocks.mp4, 2.5 s", "the unpruned answer"):
        assert said in facts
    assert text(page, "#notes") == "a note"
    assert page.browser.execute_script("return typeof hacked") == "undefined"


@pytest.mark.parametrize("layer", [0, 3, 15])
def test_the_slider_changes_counts_and_veils(page, layer):
    move_to_layer(page, layer)
    assert text(page, "#layer-number") == str(layer)
    for name, run in page.study.runs.items():
        card = f'[data-run="{name}"]'
        assert find(page, f"{card} .kept b").get_attribute("data-kept") == str(run.sample.kept[layer])
        assert f"{100 * run.sample.kept[layer] / run.sample.visual_tokens:.1f}" in text(page, f"{card} .kept")
        canvases = all_of(page, f"{card} .frames canvas")
        expected = run.sample.kept_mask(layer).numpy()
        assert np.array_equal(np.stack([kept_on_canvas(page, canvas) for canvas in canvases]), expected), name


def test_the_slider_changes_the_numbers_of_the_bias(page):
    from adatp.evaluation.bias import measure

    attention = page.study.attention
    found = measure(attention.scores, attention.grid)
    for layer in (0, 7):
        move_to_layer(page, layer)
        assert text(page, "#in-last").replace("\xa0", " ") == f"{100 * found.in_last[layer].item():.1f} %"
        assert text(page, "#peak") == f"{found.peak.factor[layer]:.2f}×"
        place = text(page, "#peak-says").replace("\xa0", " ")
        row, column = found.peak.row[layer].item(), found.peak.column[layer].item()
        newline = column == attention.grid.patch_columns
        assert (f"the newline of row {row}" if newline else f"row {row}, column {column}") in place
        assert find(page, f"#contact button:nth-child({layer + 1})").get_attribute("aria-pressed") == "true"


def test_a_layer_of_the_overview_moves_the_slider(page):
    find(page, "#contact button:nth-child(10)").click()
    assert text(page, "#layer-number") == "9"
    assert find(page, "#layer").get_attribute("value") == "9"


def test_a_click_on_a_frame_enlarges_it_and_escape_closes(page):
    move_to_layer(page, 4)
    find(page, '[data-run="adatp"] .frames button:nth-child(7)').click()
    assert find(page, "#dialog").get_attribute("open")
    mask = page.study.runs["adatp"].sample.kept_mask(4)[6].numpy()
    assert f"Frame 6 at 1.5 s; ADATP, layer 4: {mask.sum()} of {len(mask)} tokens kept" in text(page, "#enlarged-says")
    enlarged = find(page, "#enlarged canvas")
    assert enlarged.size["width"] > 3 * find(page, '[data-run="adatp"] .frames canvas').size["width"]
    assert np.array_equal(kept_on_canvas(page, enlarged), mask)
    ActionChains(page.browser).send_keys(Keys.ARROW_RIGHT).perform()
    assert "Frame 7 at" in text(page, "#enlarged-says")
    find(page, '[data-view="uniform"]').click()
    assert np.array_equal(kept_on_canvas(page, enlarged), page.study.runs["uniform"].sample.kept_mask(4)[7].numpy())
    ActionChains(page.browser).send_keys(Keys.ESCAPE).perform()
    wait(page.browser, "return !document.getElementById('dialog').open")


def test_by_keyboard_a_frame_opens_and_a_click_closes_it(page):
    button = find(page, '[data-run="fastv"] .frames button:nth-child(2)')
    assert "enlarge frame 1," in button.get_attribute("aria-label")
    button.send_keys(Keys.ENTER)
    assert find(page, "#dialog").get_attribute("open")
    find(page, "#enlarged").click()
    wait(page.browser, "return !document.getElementById('dialog').open")


def test_values_show_on_hover_and_by_arrow_keys(page):
    plot = find(page, "#per-frame")
    ActionChains(page.browser).move_to_element_with_offset(plot, 9, 0).perform()  # 9 pixels right of the middle
    value = page.study.attention.scores[int(text(page, "#layer-number"))].sum(1)
    assert "frame 5," in text(page, "#tip")
    assert f"{100 * value[5]:.3f}" in text(page, "#tip")
    find(page, "#per-position").send_keys(Keys.ARROW_DOWN)
    assert "row\xa01, column\xa00" in text(page, "#tip")
    assert "mean place" in text(page, "#tip")


def test_the_methods_side_by_side_are_chosen(page):
    assert [card.get_attribute("data-run") for card in all_of(page, "#methods > *")] == ["adatp", "fastv", "uniform"]
    find(page, '#chips input[value="fastv"]').click()
    assert [card.get_attribute("data-run") for card in all_of(page, "#methods > *")] == ["adatp", "uniform"]
    find(page, '#chips input[value="fastv"]').click()
    assert len(all_of(page, "#methods > *")) == 3


@pytest.mark.parametrize("dark", [False, True])
def test_text_is_read_in_the_systems_colours_and_in_the_others(page, dark):
    emulate(page.browser, dark=dark)
    open_page(page)
    page.browser.execute_script("document.getElementById('numbers').open = true")
    paper = "return getComputedStyle(document.body).backgroundColor"
    before = page.browser.execute_script(paper)
    assert (sum(map(int, before[4:-1].split(","))) < 300) == dark
    assert ratio(page) == []
    find(page, "#theme").click()
    assert page.browser.execute_script(paper) != before
    assert ratio(page) == []
    find(page, '[data-run="adatp"] .frames button').click()
    ActionChains(page.browser).move_to_element(find(page, "#enlarged")).perform()
    assert ratio(page) == []


def test_a_phone_shows_all_of_it(page):
    emulate(page.browser, dark=False, width=390)
    open_page(page)
    assert page.browser.execute_script("return document.documentElement.scrollWidth") <= 390
    mask = page.study.runs["adatp"].sample.kept_mask(15)[3].numpy()
    move_to_layer(page, 15)
    canvas = find(page, '[data-run="adatp"] .frames button:nth-child(4) canvas')
    assert np.array_equal(kept_on_canvas(page, canvas), mask)


def test_nothing_moves_for_those_who_want_no_motion(page):
    moving = "return getComputedStyle(document.querySelector('.stack span')).transitionDuration"
    assert page.browser.execute_script(moving) != "0s"
    emulate(page.browser, dark=False, motion="reduce")
    assert page.browser.execute_script(moving) == "0s"


def test_the_table_has_every_layers_numbers(page):
    find(page, "#numbers summary").click()
    rows = all_of(page, "#table tbody tr")
    assert len(rows) == 16
    assert [row.find_element(By.TAG_NAME, "th").text for row in rows] == [str(layer) for layer in range(16)]
