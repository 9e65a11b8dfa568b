"""The report as a browser shows it: offline, in both colour schemes, wide and narrow, on paper."""

import shutil

import pytest
import torch

from multipde import Level, NetworkConfig, Schedule, TrainSettings, render_shapes, report, train

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no browser is installed; type apt-get install chromium")

BOXES = """() => [...document.querySelectorAll('svg, main img')].map(e => {
    const box = e.getBoundingClientRect();
    return [box.left, box.right, box.width, box.height];
})"""
TEXTS = """() => [...document.querySelectorAll('svg')].map(svg => [...svg.querySelectorAll('text')]
    .filter(t => t.textContent.trim()).map(t => {
        const box = t.getBoundingClientRect();
        return [t.textContent, box.left, box.top, box.right, box.bottom];
    }))"""
INK = (
    "() => [getComputedStyle(document.querySelector('svg text')).fill, getComputedStyle(document.body).backgroundColor]"
)


@pytest.fixture(scope="module")
def page_file(tmp_path_factory, laid_out):
    run = tmp_path_factory.mktemp("page") / "run"
    data = render_shapes(300, 16, 0), render_shapes(200, 16, 1)
    config = NetworkConfig("hamiltonian", (20, 6), 8, steps=2, size=16)
    settings = TrainSettings(calibration_images=50, device="cpu")
    train(config, Schedule([Level(8, 1), Level(16, 1)]), data, run, settings=settings, quiet=True)
    return report(run, data=data)


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


def luminance(colour):
    channels = [int(c) / 255 for c in colour.removeprefix("rgb(").removesuffix(")").split(",")]
    linear = torch.tensor([c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels])
    return float(linear @ torch.tensor([0.2126, 0.7152, 0.0722]))


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (400, "dark")])
def test_the_page_shows_all_figures_and_asks_for_nothing(browser, page_file, width, scheme):
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
    page, heard, asked = context.new_page(), [], []
    page.on("console", lambda message: heard.append(message.text))
    page.on("pageerror", lambda error: heard.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(page_file.as_uri())
    assert heard == []
    assert [url for url in asked if not url.startswith("data:")] == [page_file.as_uri()]
    boxes = page.evaluate(BOXES)
    assert len(boxes) > 11 + 10
    for left, right, wide, high in boxes:
        assert left >= 0
        assert right <= width
        assert min(wide, high) > 20
    assert page.evaluate("document.documentElement.scrollWidth") == width
    ink, paper = (luminance(colour) for colour in page.evaluate(INK))
    assert (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05) > 10
    assert (ink > paper) == (scheme == "dark")
    context.close()


def test_no_two_words_of_a_figure_overlap(browser, page_file):
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(page_file.as_uri())
    for words in page.evaluate(TEXTS):
        for i, (text, left, top, right, bottom) in enumerate(words):
            for other, left2, top2, right2, bottom2 in words[:i]:
                across, down = min(right, right2) - max(left, left2), min(bottom, bottom2) - max(top, top2)
                assert not (across > 2 and down > 4), (text, other)
    page.close()


def test_it_prints(browser, page_file):
    page = browser.new_page(color_scheme="dark")
    page.goto(page_file.as_uri())
    pdf = page.pdf(format="A4")
    assert pdf.startswith(b"%PDF")
    assert 2 <= pdf.count(b"/Type /Page\n") <= 8
    page.emulate_media(media="print")
    ink, paper = (luminance(colour) for colour in page.evaluate(INK))
    assert ink < 0.05  # dark on white, whatever the screen
    assert paper == pytest.approx(1)
    assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == "light"
    page.close()
