"""The page of detections in a real browser, headless: it plays, follows, filters, and keeps to itself."""

import json
import os
import pathlib
import shutil
import time
from collections.abc import Iterator

import numpy as np
import pytest

from sptad_jax.cli import main
from sptad_jax.data.video import write_video
from sptad_jax.report.page import write_detection_report
from tests.conftest import ROOT
from tests.reference.contrast import COLOURS, contrast, luminance
from tests.reference.fake_run import moving_square

sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright, which drives the browser, is not installed")
NAMES = (os.environ.get("CHROME", ""), "chromium", "chromium-browser", "google-chrome", "chrome")
CHROME = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(CHROME is None, reason="no Chromium is installed, and CHROME names none")

HOSTILE = "<script>alert(1)</script>"
QUOTED = """it's "so" <b>&amp; 50%#1?"""
RESULTS = {
    "steps": [{"label": "jump", "score": 0.9, "segment": [3, 5]}, {"label": "jump", "score": 0.3, "segment": [1, 2]},
              {"label": HOSTILE, "score": 0.6, "segment": [6, 7.5]}],
    QUOTED: [{"label": "run", "score": 0.7, "segment": [2, 4]}, {"label": HOSTILE, "score": 0.2, "segment": [0, 1]}],
}  # fmt: skip
TRUTH = {"steps": [{"label": "run", "segment": [4.0, 6.0]}]}


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> pathlib.Path:
    """A report on two videos of 8 s, which lie in a folder beside its own."""
    folder = tmp_path_factory.mktemp("reports")
    (folder / "my videos").mkdir()
    frames = np.stack(moving_square("", np.arange(80) / 10))
    paths = {name: folder / "my videos" / f"{name}.mp4" for name in RESULTS}
    for path in paths.values():
        write_video(path, frames, 10)
    lengths = dict.fromkeys(RESULTS, 8.0)
    return write_detection_report(folder / "out", RESULTS, ["jump", "run"], moving_square, lengths, TRUTH, paths)


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with sync_api.sync_playwright() as playwright:
        chrome = playwright.chromium.launch(executable_path=CHROME)
        yield chrome
        chrome.close()


@pytest.fixture
def visit(browser) -> Iterator:
    """visit(path, **options of the context): an open page, which notes its requests, its complaints and its seeks."""
    contexts = []

    def visit(path: pathlib.Path, **options):
        contexts.append(browser.new_context(**{"viewport": {"width": 1100, "height": 1500}, **options}))
        page = contexts[-1].new_page()
        page.requests, page.complaints = [], []
        page.on("request", lambda request: page.requests.append(request.url))
        page.on("console", lambda message: page.complaints.append(message.text))
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.on("dialog", lambda dialog: (page.complaints.append(dialog.message), dialog.dismiss()))
        page.goto(path.resolve().as_uri())
        if options.get("java_script_enabled", True):
            page.evaluate("""() => { window.seeks = []; for (const video of document.querySelectorAll("video"))
                video.addEventListener("seeking", () => seeks.push(video.currentTime)) }""")
        return page

    yield visit
    for context in contexts:
        context.close()


def until(page, expression: str) -> None:
    """Waits for an expression over v, the videos of the page, to become true (the page forbids Playwright's eval)."""
    end = time.monotonic() + 20
    while not page.evaluate(f"() => {{ const v = document.querySelectorAll('video'); return {expression} }}"):
        assert time.monotonic() < end, f"never true: {expression}"
        page.wait_for_timeout(20)


def bar(page, label: str, start: float):
    return page.locator(f'.bar[data-start="{start:.3f}"]').and_(page.get_by_label(f"detection: {label}"))


def shown(page, what: str) -> list[tuple[str, str]]:
    """(label, score) of the bars ("rect.bar") or rows ("tr") that a reader sees, in the order of the page."""
    items = page.locator(f"{what}[data-score]:visible")
    found = items.evaluate_all("all => all.map(e => [e.dataset.label, e.dataset.score])")
    return [(label, f"{float(score):g}") for label, score in found]


def centre(locator) -> float:
    box = locator.bounding_box()
    return box["x"] + box["width"] / 2


def test_click_on_a_detection_plays_it(report, visit):
    """A seek to another time, or in another video, or none; two videos that play at once; a bar without its row."""
    page = visit(report)
    bar(page, "jump", 3).click()
    until(page, "!v[0].paused && v[0].videoWidth === 160 && seeks.length === 1")
    assert page.evaluate("seeks") == [3.0]
    assert page.locator(".now").first.inner_text() == "detection: jump, 3.0–5.0 s, score 0.900"
    assert page.locator("tr.chosen").inner_text().split() == ["jump", "0.900", "3.0", "5.0"]
    page.locator("article").nth(1).locator("tr", has_text="run").click()
    until(page, "v[0].paused && !v[0].ended && !v[1].paused && seeks.length === 2")
    assert page.evaluate("seeks")[1] == 2.0
    page.get_by_label("ground truth: run").click()
    until(page, "!v[0].paused && v[1].paused && !v[1].ended && seeks.length === 3")
    assert page.evaluate("seeks")[2] == 4.0 and not page.complaints


def test_cursor_and_axis_agree(report, visit):
    """A cursor that stays, or runs on another scale than the axis; a click on the strip that seeks elsewhere."""
    page = visit(report)
    drawing = page.locator("svg.timeline").first
    cursor = drawing.locator(".cursor")
    page.evaluate("document.querySelector('video').currentTime = 6")
    until(page, "seeks.length === 1 && !v[0].seeking")
    assert centre(cursor) == pytest.approx(centre(drawing.get_by_text("6", exact=True)), abs=1.5)
    strip = drawing.bounding_box()
    page.mouse.click(centre(drawing.get_by_text("2", exact=True)), strip["y"] + 20)
    until(page, "seeks.length === 2")
    assert page.evaluate("seeks")[1] == pytest.approx(2, abs=0.03)
    page.mouse.click(strip["x"] + 5, strip["y"] + 20)  # over the names, where there is no time
    page.evaluate("document.querySelector('video').play()")
    until(page, "v[0].currentTime > 2.3")
    assert centre(cursor) > centre(drawing.get_by_text("2", exact=True)) + 10 and len(page.evaluate("seeks")) == 2


def test_names_stay_text_and_nothing_leaves(report, visit):
    """A name that becomes markup, in the page or through its script; a file name taken for a query; a request."""
    page = visit(report)
    until(page, "[...v].every(one => one.videoWidth === 160)")
    assert page.locator("h3").all_inner_texts() == list(RESULTS)
    assert page.locator(".filter li").last.text_content() == f"{HOSTILE} 2"
    bar(page, HOSTILE, 6).click()
    assert page.locator(".now").first.inner_text() == f"detection: {HOSTILE}, 6.0–7.5 s, score 0.600"
    assert page.locator("script").count() == 1 and page.locator("h3 b").count() == 0
    assert page.complaints == []
    assert {url.split(":")[0] for url in page.requests} <= {"file", "data"}
    assert sum(url.endswith(".mp4") for url in page.requests) >= 2
    page.evaluate("""() => { const more = document.createElement("script"); more.textContent = "window.strange = 1";
        const image = Object.assign(new Image(), {src: "http://127.0.0.1:9/x.png"});
        document.body.append(more, image) }""")
    assert page.evaluate("window.strange") is None, "the page lets a script in that is not its own"
    assert all("Content Security Policy" in complaint for complaint in page.complaints) and len(page.complaints) >= 2


def test_filters(report, visit):
    """A filter that acts on bars or rows alone, or on one video alone, or counts wrongly; a search without effect."""
    page = visit(report)
    everything = [("jump", "0.9"), (HOSTILE, "0.6"), ("jump", "0.3"), ("run", "0.7"), (HOSTILE, "0.2")]
    status = page.locator("p[role=status]")
    assert shown(page, "tr") == everything and sorted(shown(page, "rect.bar")) == sorted(everything)
    page.get_by_label("Least score").fill("0.6")
    assert shown(page, "tr") == [everything[0], everything[1], everything[3]]
    assert sorted(shown(page, "rect.bar")) == sorted(shown(page, "tr"))
    assert status.inner_text() == "3 of 5 detections shown, in 2 of 2 videos."
    page.locator(".filter summary").click()
    page.get_by_placeholder("Find a class").fill("SCRIPT")
    assert page.locator(".filter li:visible").count() == 1
    page.get_by_role("button", name="Uncheck these").click()
    assert shown(page, "tr") == [everything[0], everything[3]]
    page.get_by_placeholder("Find a class").fill("")
    page.get_by_role("checkbox", name="run").uncheck()
    assert shown(page, "tr") == shown(page, "rect.bar") == [everything[0]]
    assert page.locator("rect.bar:visible").count() == 1, "ground truth of a class that is not wanted"
    assert page.locator("h3:visible").all_inner_texts() == ["steps"]
    assert status.inner_text() == "1 of 5 detections shown, in 1 of 2 videos."
    page.get_by_role("button", name="Check these", exact=True).click()
    page.get_by_label("Least score").fill("0")
    assert shown(page, "tr") == everything and not page.complaints


def test_keys(report, visit):
    """A key of the help line that does nothing, acts in a text field, or takes two steps; a bar Tab never reaches."""
    page = visit(report)
    video = page.locator("video").first
    now = page.locator(".now")
    for key, place, start in (("n", 0, 1), ("n", 0, 3), ("n", 0, 6), ("n", 1, 0), ("p", 0, 6), ("p", 0, 3)):
        seeks = page.evaluate("seeks.length")
        page.keyboard.press(key)
        until(page, f"seeks.length > {seeks} && !v[{place}].paused && v[{1 - place}].paused")
        assert page.evaluate("seeks.at(-1)") == start and f" {start}.0–" in now.nth(place).inner_text()
    page.keyboard.press(" ")
    until(page, "v[0].paused")
    at = video.evaluate("v => v.currentTime")
    for key, by in (("ArrowRight", 1), ("ArrowLeft", 0)):
        page.keyboard.press(key)
        until(page, "!v[0].seeking")
        assert video.evaluate("v => v.currentTime") == pytest.approx(at + by, abs=0.01)
    slider = page.get_by_label("Least score")
    for key, value in (("+", "0.05"), ("+", "0.1"), ("-", "0.05")):
        page.keyboard.press(key)
        assert slider.input_value() == value
    assert page.locator("output").inner_text() == "0.05"
    page.locator(".filter summary").click()
    count = page.evaluate("seeks.length")
    page.get_by_placeholder("Find a class").press_sequentially("n +")
    assert page.get_by_placeholder("Find a class").input_value() == "n +" and page.evaluate("seeks.length") == count
    page.evaluate("document.querySelector('video').focus()")
    reached = []
    for _ in range(12):  # through the controls of the player, too
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.dataset.start"))
        if reached[-1]:
            break
    assert reached[-1] == "3.000", "Tab leads to the chosen bar"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    until(page, f"!v[0].paused && seeks.length === {count + 1}")
    page.keyboard.press(" ")
    until(page, "v[0].paused")
    page.locator("tr[data-item='2']").first.press("Enter")
    until(page, f"!v[0].paused && seeks.length === {count + 2}")
    assert page.evaluate("seeks.at(-1)") == 1.0 and not page.complaints


def test_video_that_does_not_play(tmp_path, visit):
    """An empty black box, or a script that stops, where a file is gone or of a kind that no browser knows."""
    (tmp_path / "noise.avi").write_bytes(bytes(1000))
    found = [{"label": "jump", "score": 0.9, "segment": [1.0, 2.0]}]
    paths = {"noise": tmp_path / "noise.avi", "gone": tmp_path / "gone.mp4"}
    page = visit(write_detection_report(tmp_path / "out", dict.fromkeys((*paths, "unnamed"), found), (), paths=paths))
    until(page, "[...v].every(one => one.hidden)")
    sentences = page.locator(".empty:visible").all_inner_texts()
    assert len(sentences) == 2 and sentences[0].startswith("noise.avi ") and sentences[1].startswith("gone.mp4 ")
    for place in range(3):
        drawing = page.locator("svg.timeline").nth(place)
        drawing.locator(".bar").click()
        assert drawing.locator(".cursor").bounding_box()["x"] == pytest.approx(
            drawing.locator(".bar").bounding_box()["x"], abs=2)
    page.keyboard.press(" ")
    assert all("ERR_FILE_NOT_FOUND" in complaint for complaint in page.complaints)


def test_without_script(report, visit):
    """Detections that only the script shows; a filter that stands there without effect."""
    page = visit(report, java_script_enabled=False)
    assert len(shown(page, "rect.bar")) == len(shown(page, "tr")) == 5
    assert page.locator(".filter").is_hidden() and page.locator("video:visible").count() == 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_and_narrow_screens(tmp_path, report, visit, scheme):
    """Text that is too faint on its ground in one of the schemes; a page that is wider than a phone."""
    page = visit(report, color_scheme=scheme)
    page.locator(".filter summary").click()
    bar(page, "jump", 3).click()
    texts = page.evaluate(COLOURS)
    assert len(texts) > 60
    for text, ink, ground in texts:
        assert contrast(ink, ground) >= 4.5, (text, ink, ground)
    assert (luminance(page.evaluate("getComputedStyle(document.body).backgroundColor")) < 0.1) == (scheme == "dark")
    long = {"v" * 90: [{"label": "w" * 70 + " " + "x" * 30, "score": 0.5, "segment": [1, 2]}], **RESULTS}
    paths = {name: report.parent.parent / "my videos" / f"{name}.mp4" for name in long}
    phone = {"color_scheme": scheme, "viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True}
    page = visit(write_detection_report(tmp_path, long, [], paths=paths), **phone)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    page.locator(".filter summary").tap()
    page.locator("tr[data-item]").first.tap()
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert page.locator("h3:visible, video:visible, .empty:visible, .filter li:visible").count() == 3 + 3 + 4


def test_screenshots_differ_by_scheme(report, visit):
    """A time line that looks the same to a reader who asked for dark pages."""
    light, dark = (visit(report, color_scheme=scheme).locator("svg.timeline").first.screenshot()
                   for scheme in ("light", "dark"))  # fmt: skip
    assert light != dark


def test_screenshots_for_the_readme(request, tmp_path, visit):
    """Writes the README's pictures, of what the demo's detector finds in videos that it was not trained on."""
    folder, run = request.config.getoption("screenshots"), ROOT / "runs" / "demo"
    if not folder:
        pytest.skip("only with --screenshots FOLDER, after `make demo`")
    database = json.loads((run / "dataset" / "ground_truth.json").read_text())["database"]
    names = sorted(name for name, entry in database.items() if entry["subset"] == "test")[:3]
    videos = [str(run / "dataset_videos" / "videos" / f"{name}.mp4") for name in names]
    assert main(["detect", *videos, "--checkpoint", str(run), "--report", str(tmp_path)]) == 0
    desktop = {"viewport": {"width": 1100, "height": 1030}, "color_scheme": "light"}
    phone = {"viewport": {"width": 360, "height": 780}, "color_scheme": "dark", "device_scale_factor": 1.5}
    for name, options in (("detections", desktop), ("detections_phone", phone)):
        page = visit(tmp_path / "index.html", **options)
        for _ in range(4):
            page.keyboard.press("+")
        page.locator("tr[data-item]").first.click()
        until(page, "seeks.length === 1 && v[0].currentTime > seeks[0] + 0.4")
        page.keyboard.press(" ")
        until(page, "v[0].paused")
        page.mouse.move(0, 0)
        page.evaluate("document.activeElement.blur(); document.querySelector('#videos h2').scrollIntoView()")
        page.screenshot(path=pathlib.Path(folder) / f"{name}.png")
        assert (pathlib.Path(folder) / f"{name}.png").stat().st_size < 300_000
