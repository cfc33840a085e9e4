"""The page as `make web` builds it, served by a plain static server, and what visitors bring to it."""

import contextlib
import fcntl
import functools
import http.server
import os
import shutil
import subprocess
import threading
from pathlib import Path

import av
import numpy as np
from chromium import give_up
from PIL import Image

from mrfomm import bundled
from mrfomm.media.reading import open_frames

ROOT = Path(__file__).parent.parent
PATIENCE = 120  # seconds for what should happen by itself, on a busy machine
RUNTIME = "vendor"  # onnxruntime's folder of the page

# Counts the pictures that were drawn: each is labelled. Playwright's own waiting needs eval(), which the page forbids.
COUNTING = """
window.drawn = 0;
const write = CanvasRenderingContext2D.prototype.fillText;
CanvasRenderingContext2D.prototype.fillText = function (...rest) {
  if (!window.drawn++) window.firstFrame = performance.timeOrigin + performance.now();
  return write.apply(this, rest);
};
"""


@contextlib.contextmanager
def alone():
    """No other process of pytest does this meanwhile."""
    with (ROOT / "web" / "package.json").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until it is closed
        yield


def install():
    """What npm fetches, once; where there is no npm, the test fails in CI and is skipped elsewhere."""
    if shutil.which("npm") is None:
        give_up("no npm, which fetches what the page is built of")
    with alone():
        run_make("web/node_modules/.package-lock.json")


def build(folder, model=bundled.MODEL):
    """The page in a folder, once for all processes of pytest."""
    install()
    with alone():
        if not (folder / "model" / "model.json").is_file():
            run_make("web", f"TRY={folder}", f"MODEL={model}")
    return folder


def run_make(*words):
    """Run make; the environment is there already."""
    command = ["make", "--old-file=venv", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        give_up(f"{' '.join(command)}: {done.stderr[-600:]}")


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@contextlib.contextmanager
def served(folder):
    """The address of a folder on a server that knows nothing of headers."""
    handler = functools.partial(_Quiet, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def wait(page, condition, what):
    """Wait until an expression holds in the page; fails with what its line says."""
    for _ in range(PATIENCE * 20):
        with contextlib.suppress(Exception):  # the page is being loaded again
            if page.evaluate(condition):
                return
        page.wait_for_timeout(50)
    raise AssertionError(f"{what}: {page.inner_text('#status')!r}")


@contextlib.contextmanager
def redrawn(page, count=1):
    """What happens within makes the page draw so many more pictures; waits for them.

    They are counted from before it happens: a page without motion draws one picture, at once.
    """
    before = page.evaluate("window.drawn")
    yield
    wait(page, f"window.drawn >= {before + count}", "pictures")


def wait_for_line(page, text):
    """Wait until the page says something."""
    wait(page, f"document.querySelector('#status').textContent.includes({text!r})", text)


def write_files(folder):
    """Good and bad files of a visitor."""
    Image.new("1", (10001, 10001)).save(folder / "huge.png")
    (folder / "text.png").write_text("no picture")
    (folder / "text.mp4").write_text("no clip")
    with av.open(folder / "sound.mp4", "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), "fltp", "mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    sides = np.zeros((40, 80, 3), np.uint8)  # upright, the left half is red and the right half is blue
    sides[:, :40, 0] = sides[:, 40:, 2] = 255
    orientation = Image.Exif()
    orientation[0x0112] = 6  # to be turned clockwise by a quarter
    turned = Image.fromarray(sides).transpose(Image.Transpose.ROTATE_90)
    turned.save(folder / "turned.jpg", exif=orientation, quality=95)
    with (folder / "camera.y4m").open("wb") as file:
        file.write(b"YUV4MPEG2 W128 H128 F25:1 Ip A1:1 C420\n")
        for image in open_frames(bundled.SAMPLE_DRIVING):
            file.write(b"FRAME\n" + av.VideoFrame.from_ndarray(image).reformat(format="yuv420p").to_ndarray().tobytes())
    return folder


def shots():
    """A folder for pictures of the page, for people to look at; None if nobody asked."""
    return os.environ.get("MRFOMM_SHOTS")
