"""The page: its options, and the whole of it in a headless Chromium."""

import errno
import os
import re
import sys
import urllib.request
from types import SimpleNamespace
from unittest.mock import Mock

import chromium
import imageio.v2 as imageio
import pytest
import visitor

from mrfomm import bundled
from mrfomm.app import __main__ as app
from mrfomm.app.gate import CONTENT_POLICY
from mrfomm.app.studio import Order
from mrfomm.app.visitors import Sessions
from mrfomm.errors import UserError
from mrfomm.media import provenance
from mrfomm.media.reading import open_frames
from mrfomm.reenactment.motion import Transfer

SHOTS = os.environ.get("MRFOMM_SHOTS")  # a folder for pictures of the page, for people to look at

PLAYED = (
    "(() => { const v = document.querySelector('#beside video');"
    " return v.played.length && v.played.end(0) > Math.min(0.3, v.duration / 2) })()"
)
PLACE = "(selector) => (e => [e.top, e.bottom])(document.querySelector(selector).getBoundingClientRect())"
SEEN = "(e => e.top >= 0 && e.bottom <= innerHeight)(document.querySelector('#beside').getBoundingClientRect())"
PATIENCE = 600_000  # milliseconds for anything that should happen by itself
PROGRESS = "#beside .progress-level-inner"


@pytest.mark.parametrize(
    ("options", "named"),
    [(["--max-frames", "0"], "--max-frames 0"), (["--keep", "nan"], "--keep nan"), (["--weights", "no"], "no")],
)
def test_bad_options(options, named):
    with pytest.raises(UserError, match=named):
        app.main(options)


def test_a_missing_gradio_is_told_before_the_model_is_looked_at(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UserError, match=r"the page needs Gradio; pip install"):
        app.main(["--weights", "no"])


def test_time_in_words():
    assert [app.in_words(minutes) for minutes in (240, 60, 90, 1, 0.5)] == [
        "4 hours",
        "1 hour",
        "90 minutes",
        "1 minute",
        "0.5 minutes",
    ]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return visitor.write_files(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with visitor.served(tmp_path_factory.mktemp("server") / "tmp") as running:
        yield running


@pytest.fixture(scope="module")
def browser():
    with chromium.open_browser() as running:
        yield running


@pytest.fixture
def page(browser, server):
    """The page in a new tab; fails afterwards if anything was asked of another server, or a script failed."""
    asked, errors = [], []
    tab = browser.new_page(viewport={"width": 1360, "height": 900}, permissions=["camera", "microphone"])
    tab.set_default_timeout(PATIENCE)
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.on("console", lambda line: errors.append(line.text))
    open_page(tab, server)
    yield tab
    tab.close()
    assert [url for url in asked if not url.startswith((server.address, "data:", "blob:"))] == []
    assert [text for text in errors if "Content Security Policy" in text or "TypeError" in text] == []
    assert "Traceback" not in server.log.read_text()


def open_page(page, server):
    page.goto(server.address)
    page.wait_for_selector("#references input[type=file]", state="attached")
    page.wait_for_selector("#driving input[type=file]", state="attached")


def upload(page, references=(), driving=None):
    if references:
        page.set_input_files("#references input[type=file]", [str(path) for path in references])
        page.wait_for_selector("#references img")
    if driving:
        page.set_input_files("#driving input[type=file]", str(driving))
        page.wait_for_selector("#driving video")


def play(page):
    """Wait for the result and for the picture to move; the video's size and decoded bytes of sound."""
    page.click("#run")
    page.wait_for_selector("#beside video, .toast-body")
    assert page.locator(".toast-body").all_inner_texts() == []
    page.wait_for_function(PLAYED)
    return page.evaluate(
        "(() => { const v = document.querySelector('#beside video');"
        " return [v.videoWidth, v.videoHeight, v.webkitAudioDecodedByteCount] })()"
    )


def shoot(page, name):
    if SHOTS:
        page.screenshot(path=f"{SHOTS}/{name}.png", full_page=True)


@pytest.mark.slow
def test_example_runs_and_plays(page, tmp_path):
    """What a first visitor does, from a page where nothing is hidden below."""
    assert page.evaluate("document.documentElement.scrollHeight <= 900")
    shoot(page, "before")
    page.locator("tbody tr td").first.click()
    page.wait_for_selector("#driving video")
    page.click("#run")
    page.wait_for_selector(PROGRESS)
    shoot(page, "during")
    width, height, _ = play(page)
    assert width == 2 * height
    page.wait_for_selector("#strip img")
    assert page.locator("#references img").count() == 3
    assert re.match(r"75 frames at 25 per second", page.locator("#notes textarea").input_value())
    picture = tmp_path / "page.png"
    page.locator("#beside video").screenshot(path=picture)
    assert imageio.imread(picture)[..., :3].std() > 20
    shoot(page, "after")


@pytest.mark.slow
def test_phone(browser, server):
    """Nothing is wider than the screen, and the button comes right after what it needs."""
    phone = browser.new_page(viewport={"width": 390, "height": 844})
    phone.set_default_timeout(PATIENCE)
    open_page(phone, server)
    width = "document.documentElement.scrollWidth"
    assert phone.evaluate(width) <= 390
    (top, _), (_, clip) = (phone.evaluate(PLACE, element) for element in ("#run", "#driving"))
    assert 0 < top - clip < 40
    assert phone.evaluate(PLACE, "#examples")[1] < phone.evaluate(PLACE, "#beside")[0]
    assert "rendered heads" in phone.locator("#knows").inner_text()
    phone.locator("#options button").first.click()
    phone.wait_for_selector("#strength")
    assert phone.evaluate(width) <= 390
    shoot(phone, "phone-before")
    phone.locator("tbody tr td").last.click()
    phone.wait_for_selector("#driving video")
    phone.click("#run")
    phone.wait_for_function(SEEN)
    phone.wait_for_selector("#strip img")
    assert phone.evaluate(width) <= 390
    shoot(phone, "phone-after")
    phone.close()


@pytest.mark.slow
def test_a_clip_of_the_face_runs(page, files):
    page.set_input_files("#references input[type=file]", str(files / "driving.mp4"))
    page.wait_for_selector("#references video")
    upload(page, driving=files / "driving.mp4")
    play(page)
    assert "references are frames" in page.locator("#notes textarea").input_value()


@pytest.mark.slow
def test_upload_runs_and_downloads_with_sound(page, files, tmp_path):
    upload(page, [bundled.SAMPLE_REFERENCES[0]], files / "driving.mp4")
    assert play(page)[2] > 0
    with page.expect_download() as download:
        page.click("#download")
    download.value.save_as(tmp_path / "got.mp4")
    got = open_frames(tmp_path / "got.mp4")
    assert (len(list(got)), got.fps, got.has_audio) == (30, 25, True)
    assert provenance.read(tmp_path / "got.mp4")["synthetic"]


@pytest.mark.slow
def test_webcam_shoots_pictures_and_clip(page):
    page.locator("#references button[aria-label='Capture from camera']").click()
    page.get_by_text("Click to Access Webcam").click()
    page.wait_for_function("document.querySelector('#references video')?.currentTime > 0.1")
    page.locator("#references button[aria-label='capture photo']").click()
    page.wait_for_selector("#references button[aria-label='Thumbnail 1 of 1']")
    page.locator("#driving button[aria-label='Capture from camera']").click()
    page.get_by_text("Click to Access Webcam").click()
    record = page.locator("#driving button[aria-label='start recording']")
    record.wait_for()
    page.wait_for_function("document.querySelector('#driving video')?.currentTime > 0.1")
    record.click()
    page.wait_for_timeout(1500)
    record.click()
    page.wait_for_selector("#driving video[src]")
    play(page)


BAD_UPLOADS = [
    ([], None, "no pictures; give 1 to 8 of one face"),
    (["<b>bold&.png"], "driving.mp4", "bold.*png: not a readable image"),
    (["r0.png"] * 9, "half.mp4", "9 pictures"),
    (["r0.png"], "half.mp4", "half.mp4"),
    (["half.png"] * 3, None, "too large; give up to 1.1 MB at once"),
    (["r0.png"], "large.mp4", "exceed the maximum allowed size.*large.mp4"),
]


@pytest.mark.slow
def test_bad_uploads_get_one_line_and_the_page_goes_on(page, server, files):
    for references, driving, message in BAD_UPLOADS:
        open_page(page, server)
        if references:
            page.set_input_files("#references input[type=file]", [str(files / name) for name in references])
            page.wait_for_timeout(500)
        if driving:
            page.set_input_files("#driving input[type=file]", str(files / driving))
            page.wait_for_timeout(500)
        if "large" not in message and "exceed" not in message:
            page.click("#run")
        toast = page.locator(".toast-body").filter(has_text=re.compile(message))
        lines = toast.inner_text().splitlines()  # Gradio adds its own, such as "Video not playable"
        assert len([line for line in lines if re.search(message, line)]) == 1
        assert not [line for line in lines if "/" in line or "Traceback" in line]
    open_page(page, server)
    upload(page, [files / "r0.png"], files / "driving.mp4")
    play(page)


@pytest.mark.slow
def test_stop_ends_a_run_and_another_may_begin(page, server, files):
    upload(page, [files / "r0.png"], bundled.SAMPLE_DRIVING)
    before = server.files()
    page.click("#run")
    page.wait_for_selector(PROGRESS)
    page.click("#stop")
    page.wait_for_selector(PROGRESS, state="hidden")
    for _ in range(PATIENCE // 100):
        if server.files() == before:
            break
        page.wait_for_timeout(100)
    assert server.files() == before
    play(page)


def test_everything_is_refused_that_is_not_ours(server):
    with urllib.request.urlopen(server.address) as answer:
        assert answer.headers["content-security-policy"] == CONTENT_POLICY
        text = answer.read().decode()
    assert not re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=[\"']https?:", text)


def test_a_file_that_the_system_refuses_during_a_job_is_told(tmp_path):
    def refuse(job, output, progress, say):
        raise PermissionError(errno.EACCES, "Permission denied", f"{output}/strip.png")

    page = app._import_page()
    animate = page._job(SimpleNamespace(animate=refuse), str(tmp_path), Sessions())
    values = [("a.png", None)], "d.mp4", False, False, False, "relative", None, 1, 3
    with pytest.raises(page.gradio.Error, match="^'?strip.png: Permission denied; check its permissions"):
        animate(SimpleNamespace(session_hash="a"), Mock(), *values)


def test_options_become_an_order():
    page = app._import_page()
    order = page.order_of([("a.png", None)], "d.mp4", False, True, True, "relative", "my:own", 0.5, 4)
    transfer = Transfer("relative", True, None, 0, 0.5)
    assert order == Order(("a.png",), "d.mp4", "my:own", transfer, crop=True, paste=True, frames=4)
    order = page.order_of(None, "d.mp4", False, False, True, "absolute", None, 0.5, 3)
    assert (order.references, order.transfer, order.crop) == ((), Transfer("absolute"), False)


def test_a_fusion_mode_of_ones_own_goes_by_its_name():
    page = app._import_page()
    with page.gradio.Blocks():
        choices = page._options(SimpleNamespace(fusion_modes=["my:own", "mean"]))[4].choices
    assert choices == [("my:own, as trained", "my:own"), ("plain mean", "mean")]
