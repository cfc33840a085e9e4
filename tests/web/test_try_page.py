"""The page in a headless Chromium: what it computes, lets people do, and says when something is wrong."""

import base64
import io
import json
import os
import re
import shutil
import time

import av
import chromium
import numpy as np
import pytest
import tiny
import webpage
from PIL import Image
from webpage import redrawn, wait, wait_for_line

from mrfomm import bundled
from mrfomm.media.images import fit, read_image
from mrfomm.media.reading import open_frames
from mrfomm.reenactment import motion
from mrfomm.reenactment.reenactor import Reenactor

pytestmark = pytest.mark.slow

NO_PAGE = "style.css"  # a document from where modules can be imported, and nothing else happens
LARGEST_PAGE = 6_000_000  # bytes, without the runtime


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # whose own folder lies in that of the run
        shared = shared.parent
    return webpage.build(shared / "try")


@pytest.fixture(scope="module")
def address(folder):
    with webpage.served(folder) as address:
        yield address


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return webpage.write_files(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def browser():
    with chromium.open_browser() as running:
        yield running


@pytest.fixture
def visit(browser, address):
    """Opens the page, as ``browser.new_context`` takes options; fails afterwards if it asked another server."""
    contexts, asked, errors = [], [], []

    def open_page(browser=browser, address=address, **options):
        contexts.append(browser.new_context(**{"reduced_motion": "reduce", **options}))
        contexts[-1].add_init_script(webpage.COUNTING)
        page = contexts[-1].new_page()
        contexts[-1].on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda line: errors.append(line.text) if "Content Security" in line.text else None)
        page.goto(address)
        if not address.endswith((".css", ".html")):
            wait(page, "window.drawn", "the first picture")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert [url for url in asked if not url.startswith(("http://127.0.0.1:", "blob:http://127.0.0.1:"))] == []
    assert errors == []


def picture(page, panel=0):
    """A picture of the stage as uint8 [S,S,3]."""
    data = page.evaluate("document.querySelector('#stage').toDataURL()")
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(data.split(",")[1]))).convert("RGB"))
    side = image.shape[0]
    return image[:, side * panel : side * (panel + 1)].astype(int)


def shoot(page, name):
    if webpage.shots():
        page.screenshot(path=f"{webpage.shots()}/{name}.png", full_page=True)


def add(page, *paths, to="#files"):
    page.set_input_files(to, [str(path) for path in paths])


# what it computes


MOTION = """async ({ references, driving }) => {
  const { findStart, normalisedPoints, relativeMotion } = await import("./motion.js");
  const poses = ({ value, jacobian }) => value.map((each, i) => ({
    value: Float32Array.from(each.flat()), jacobian: Float32Array.from(jacobian[i].flat(2)) }));
  const [ours, theirs] = [poses(references), poses(driving)];
  const { frame, anchor } = findStart(ours, theirs);
  const moved = theirs.map((pose) => relativeMotion(ours[anchor], pose, theirs[frame]));
  return { frame, anchor, normalised: ours.map(({ value }) => normalisedPoints(value)),
    value: moved.map(({ value }) => [...value]), jacobian: moved.map(({ jacobian }) => [...jacobian]) };
}"""


def random_poses(rng, count, points=10):
    jacobian = np.eye(2) + rng.normal(0, 0.3, (count, points, 2, 2))
    return motion.KeypointArrays(*(np.float32(each) for each in (rng.uniform(-1, 1, (count, points, 2)), jacobian)))


def test_motion_transfer_is_pythons(visit, address):
    page = visit(address=f"{address}/{NO_PAGE}")
    errors = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        references, driving = random_poses(rng, 1 + seed % 4), random_poses(rng, 6)
        start = motion.find_start(references, driving)
        expected = motion.Transfer().begin(references, driving)(driving)
        given = [
            {"value": poses.value.tolist(), "jacobian": poses.jacobian.tolist()} for poses in (references, driving)
        ]
        found = page.evaluate(MOTION, dict(zip(("references", "driving"), given)))
        assert (found["frame"], found["anchor"]) == start
        for name, golden in (("value", expected.value), ("jacobian", expected.jacobian)):
            scale = max(1, np.abs(golden).max())
            errors.append(np.abs(np.reshape(found[name], golden.shape) - golden).max() / scale)
        golden = motion.normalised_points(references.value)
        errors.append(np.abs(np.reshape(found["normalised"], golden.shape) - golden).max())
    print(f"motion transfer: at most {max(errors):.1e}")
    assert max(errors) < 1e-4


def test_a_head_between_recorded_poses(visit, folder, address):
    """At recorded angles it is the recorded pose, halfway the mean."""
    turn = json.loads((folder / "model" / "model.json").read_text())["turn"]
    code = "async ([turn, angles]) => [...(await import('./motion.js')).turned(turn, angles).value]"
    page = visit(address=f"{address}/{NO_PAGE}")
    for at in (0, 3, 12):
        found = page.evaluate(code, [turn, [turn["yaw"]["angles"][at], 0, 0]])
        assert np.abs(np.subtract(found, turn["yaw"]["value"][at])).max() < 1e-4
    found = page.evaluate(code, [turn, [turn["yaw"]["angles"][3] + 5, 0, 0]])
    assert np.abs(np.subtract(found, np.mean(turn["yaw"]["value"][3:5], axis=0))).max() < 1e-4


ANIMATE = """async ([references, frames, fusion]) => {
  const [{ startEngine }, { openPicture }, { fit }, motion] = await Promise.all(
    ["engine", "inputs", "pixels", "motion"].map((name) => import(`./${name}.js`)));
  const ask = startEngine();
  const model = await ask("open", new URL("model", document.baseURI).href);
  const read = async (path) => fit(await openPicture(new File([await (await fetch(path)).blob()], path)), model.size);
  const ours = await ask("encode", await Promise.all(references.map(read)));
  const theirs = [];
  for (const path of frames) theirs.push((await ask("poses", [await read(path)]))[0]);
  const { frame, anchor } = motion.findStart(ours, theirs);
  const shares = model.fusion.map((mode) => Number(mode === fusion));
  const drawn = [];
  for (const pose of theirs) {
    const moved = motion.relativeMotion(ours[anchor], pose, theirs[frame]);
    drawn.push([...(await ask("draw", { pose: moved, fusion: shares })).image.data]);
  }
  return { frame, anchor, drawn };
}"""


@pytest.mark.parametrize("fusion", ["patch", "mean"])
def test_frames_are_those_of_animate(visit, folder, fusion):
    """Within 2 grey levels, from the same pictures and the bundled clip's frames."""
    frames = list(open_frames(bundled.SAMPLE_DRIVING))[:: 1 if fusion == "patch" else 5]
    (folder / "frames").mkdir(exist_ok=True)
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / "frames" / f"{fusion}-{number}.png")
    references = [f"examples/{path.name}" for path in bundled.SAMPLE_REFERENCES]
    names = [f"frames/{fusion}-{number}.png" for number in range(len(frames))]
    found = visit().evaluate(ANIMATE, [references, names, fusion])
    expected = np.stack(list(Reenactor(fusion=fusion, backend="onnx").animate(frames))).astype(int)
    drawn = np.reshape(found["drawn"], (*expected.shape[:3], 4))[..., :3]
    difference = np.abs(drawn - expected)
    print(f"{fusion}: {len(frames)} frames, at most {difference.max()} grey levels, {difference.mean():.4f} on average")
    assert difference.max() <= 2


def test_pictures_are_fitted_as_in_python(visit, folder, address):
    """Smaller by a whole factor and by another, and larger."""
    code = """async ([path, size]) => {
      const [{ openPicture }, { fit }] = [await import("./inputs.js"), await import("./pixels.js")];
      return [...fit(await openPicture(new File([await (await fetch(path)).blob()], path)), size).data];
    }"""
    page, image = visit(address=f"{address}/{NO_PAGE}"), read_image(bundled.SAMPLE_REFERENCES[0])
    Image.fromarray(image[:200, :157]).save(folder / "examples" / "odd.png")
    for size in (32, 64, 50, 300):
        found = np.reshape(page.evaluate(code, ["examples/odd.png", size]), (size, size, 4))[..., :3]
        assert np.abs(found - fit(image[:200, :157], size).astype(int)).max() <= 1


# what it lets people do


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_first_visit(visit, width, scheme):
    page = visit(viewport={"width": width, "height": 844}, color_scheme=scheme)
    assert page.evaluate("crossOriginIsolated")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    threads = page.evaluate("Math.min(4, navigator.hardwareConcurrency)")
    assert page.inner_text("#threads") == f"64 × 64 pixels, threads: {threads}"
    assert page.locator("#pictures li").count() == 3
    assert picture(page).std() > 20
    shoot(page, f"{width}-{scheme}")


def test_everything_has_a_name_for_screen_readers(visit):
    page = visit()
    tree = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    roles = {"button", "radio", "checkbox", "slider", "combobox", "image", "status", "radiogroup", "region"}
    found = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in tree if not node["ignored"]]
    assert {role for role, _ in found} >= roles
    assert not [role for role, name in found if role in roles - {"status"} and not name]


def test_keys_turn_the_head(visit):
    page = visit()
    before = picture(page)
    page.focus("#yaw")
    with redrawn(page):
        page.keyboard.press("End")
    assert np.abs(picture(page) - before).mean() > 5
    with redrawn(page):
        page.click("#straight")
    assert np.abs(picture(page) - before).mean() < 1


def test_dragging_turns_nods_and_tilts(visit):
    page = visit()
    box = page.locator("#stage").bounding_box()
    middle, rim = (box["height"] / 2, box["height"] / 2), (box["height"] * 0.95, box["height"] / 2)
    for (x, y), (dx, dy), axis, sign in (
        (middle, (60, 0), "yaw", 1),
        (middle, (0, 40), "pitch", -1),
        (rim, (0, 40), "roll", 1),
    ):
        page.click("#straight")
        page.mouse.move(box["x"] + x, box["y"] + y)
        page.mouse.down()
        page.mouse.move(box["x"] + x + dx, box["y"] + y + dy, steps=4)
        page.mouse.up()
        angles = page.evaluate("['yaw', 'pitch', 'roll'].map((id) => document.getElementById(id).valueAsNumber)")
        found = dict(zip(("yaw", "pitch", "roll"), angles))
        assert found.pop(axis) * sign > 5
        assert max(map(abs, found.values())) < 1e-9


def test_fusion_masks_and_side_by_side(visit):
    page = visit()
    assert picture(page, 1).std() > 20  # who supplies what
    before = picture(page)
    with redrawn(page):
        page.select_option("#fusion", "mean")
    assert np.abs(picture(page) - before).mean() > 0.2
    panels = "document.querySelector('#stage').width / document.querySelector('#stage').height"
    page.check("#beside")
    wait(page, f"{panels} === 3", "three panels")
    page.uncheck("#sources")
    page.uncheck("#beside")
    wait(page, f"{panels} === 1", "one panel")


def test_clip_drives_and_is_recorded(visit, tmp_path):
    page = visit()
    with redrawn(page, 8):
        page.click("label:has(#clip)")
    with redrawn(page, 8):
        page.click("#record")
    assert page.get_attribute("#record", "aria-pressed") == "true"
    with page.expect_download() as download:
        page.click("#record")
    assert download.value.suggested_filename == "synthetic.webm"
    download.value.save_as(tmp_path / "got.webm")
    with av.open(tmp_path / "got.webm") as got:
        shown = [frame.to_ndarray(format="rgb24") for frame in got.decode(video=0)]
    assert len(shown) > 2
    assert np.std(shown[-1]) > 20
    assert np.abs(shown[-1].astype(int) - shown[0]).max() > 20
    shoot(page, "clip")


def test_own_pictures_replace_the_examples_upright_and_are_cropped_by_keys(visit, files):
    page = visit()
    add(page, files / "turned.jpg")
    wait(page, "document.querySelectorAll('#pictures li').length === 1", "one picture")
    centre = "(() => { const c = document.querySelector('#pictures canvas'); return [...c.getContext('2d')"
    left, right = (page.evaluate(f"{centre}.getImageData({x}, 32, 1, 1).data] }})()") for x in (8, 56))
    assert left[0] > 200 > 50 > left[2]
    assert right[2] > 200 > 50 > right[0]
    page.click("#pictures .crop")
    page.focus("#crop-square")
    for _ in range(20):
        page.keyboard.press("ArrowLeft")
    shoot(page, "crop")
    page.click("#crop button[value=done]")
    wait(page, f"{centre}.getImageData(56, 32, 1, 1).data] }})()[0] > 200", "only red")
    page.click("#pictures .remove")
    wait_for_line(page, "Choose 1 to 8 pictures")
    with redrawn(page):
        page.click("#examples")
        wait(page, "document.querySelectorAll('#pictures li').length === 3", "the examples")


def test_pictures_removed_at_once_are_all_removed(visit):
    """Each removal waits for the one before, whose pictures it starts from."""
    page = visit()
    page.evaluate("[...document.querySelectorAll('#pictures .remove')].slice(1).forEach((each) => each.click())")
    wait(page, "document.querySelectorAll('#pictures li').length < 3", "fewer pictures")
    wait(page, "document.querySelectorAll('#pictures li').length === 1", "one picture")


def test_camera_from_a_file(visit, files, browser):
    flags = (*chromium.CAMERA, f"--use-file-for-fake-video-capture={files / 'camera.y4m'}")
    with chromium.launch(browser.browser_type, flags) as other:
        page = visit(other, permissions=["camera"])
        page.check("#beside")
        with redrawn(page, 10):
            page.click("label:has(#camera)")
        seen = picture(page)  # the camera's picture, first of three
        shown = (np.asarray(Image.fromarray(frame).resize((384, 384))) for frame in open_frames(bundled.SAMPLE_DRIVING))
        assert min(np.abs(seen - frame).mean() for frame in shown) < 12
        shoot(page, "camera")
        page.click("label:has(#mouse)")
        with redrawn(page):
            page.locator("#yaw").press("ArrowRight")


def test_other_sizes(visit, folder, tmp_path):
    """Nothing of the page knows a model's size or its number of keypoints."""
    weights = tiny.checkpoint(tmp_path / "weights", model={"image_size": 48, "num_keypoints": 5})
    other = webpage.build(tmp_path / "try", weights)
    with webpage.served(other) as address:
        page = visit(address=address)
        assert page.inner_text("#threads").startswith("48 × 48 pixels")
        page.context.close()


def test_offline_and_without_threads(visit):
    page = visit()
    page.context.set_offline(True)
    page.reload()
    wait(page, "window.drawn", "the first picture without a network")
    page.context.close()
    page = visit(service_workers="block")
    assert page.inner_text("#threads") == "64 × 64 pixels, threads: 1"


def test_page_is_light(folder):
    ours = [path for path in folder.rglob("*") if path.is_file() and webpage.RUNTIME not in path.parts]
    ours = [path for path in ours if "frames" not in path.parts and path.name != "odd.png"]
    assert 1e6 < sum(path.stat().st_size for path in ours) < LARGEST_PAGE


# what it says when something is wrong


BAD = [
    ("#files", "text.png", "text.png: not a picture that this browser can read"),
    ("#files", "huge.png", "huge.png: 100 megapixels; make it 50 or less"),
    ("#clip-file", "sound.mp4", "sound.mp4: a clip without pictures"),
    ("#clip-file", "text.mp4", "text.mp4: not a clip that this browser can play"),
]


def test_wrong_files_get_a_clear_line_and_the_page_goes_on(visit, files):
    page = visit()
    for to, name, line in BAD:
        add(page, files / name, to=to)
        wait_for_line(page, line)
        assert page.locator("#status.bad").count() == 1
        assert page.locator("#pictures li").count() == 3
        with redrawn(page):
            page.locator("#yaw").press("ArrowRight")
    add(page, *[bundled.SAMPLE_REFERENCES[0]] * 9)
    wait_for_line(page, "9 pictures are too many: choose 1 to 8")


def test_no_camera_or_none_that_may_be_used(visit, browser):
    with chromium.launch(browser.browser_type, ["--deny-permission-prompts"]) as other:
        page = visit(other)
        page.click("label:has(#camera)")
        wait(page, "document.querySelector('#status.bad')", "a line")
        assert re.search("The camera isn't allowed: |No camera that", page.inner_text("#status"))
        assert page.is_checked("#mouse")
        with redrawn(page):
            page.locator("#yaw").press("ArrowRight")


def test_no_permission(visit):
    page = visit()
    forbid = "navigator.mediaDevices.getUserMedia = async () => { throw new DOMException('', 'NotAllowedError') }"
    page.evaluate(f"() => {{ {forbid} }}")
    page.click("label:has(#camera)")
    wait_for_line(page, "The camera isn't allowed: ")


def test_a_slow_machine_is_told_and_nothing_hangs(visit, folder):
    """A worker that takes a second for each picture."""
    slow = shutil.copytree(folder, folder.parent / f"slow-{time.time_ns()}")
    code = (slow / "worker.js").read_text()
    wait_a_second = "for (const end = Date.now() + 1000; Date.now() < end; );"
    (slow / "worker.js").write_text(
        code.replace(
            "async draw(",
            "async draw(argument) { " + wait_a_second + " return this.drawn(argument); },\n  async drawn(",
        )
    )
    with webpage.served(slow) as address:
        page = visit(address=address, reduced_motion="no-preference")
        page.get_by_text("This machine takes its time").wait_for(timeout=1000 * webpage.PATIENCE)
        assert (
            page.evaluate(
                "new Promise((done) => { const from = Date.now(); setTimeout(() => done(Date.now() - from), 50) })"
            )
            < 900
        )
        page.context.close()
    shutil.rmtree(slow)


def test_a_model_that_is_missing_is_told(visit, folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "try", ignore=shutil.ignore_patterns("*.onnx", "frames"))
    with webpage.served(other) as address:
        page = visit(address=f"{address}/index.html")
        wait(page, "document.querySelector('#status.bad')", "a line")
        page.context.close()
