"""What visitors see, in Gradio's components."""

import contextlib
import ctypes
import html
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import gradio

from mrfomm import bundled
from mrfomm.app.studio import MAX_REFERENCES, Delivery, Order, Workshop
from mrfomm.app.visitors import Sessions, StoppedError
from mrfomm.app.wording import COUNT, CROP, for_visitors
from mrfomm.config.knowledge import Knowledge
from mrfomm.errors import UserError, as_reported
from mrfomm.reenactment.backends import PUBLISHED
from mrfomm.reenactment.motion import MOST_STRENGTH, Transfer

TITLE = "mrfomm"
ABOUT = """# mrfomm: animate a face
Give pictures of **one face** and a clip of **somebody moving**: the face makes the clip's movements. Several pictures,
turned differently, supply what one alone does not show."""
PICTURES = """### 1 · Pictures of one face
From the front, the left and the right, or a clip of that face."""
CLIP = """### 2 · A clip of somebody moving
One person, the face about as large as in the pictures."""
RESULT = """### 3 · The result
Left: the clip. Right: the face you gave. The sound is the clip's."""
HINT = "**New here?** Click the first example, then *Animate*. It takes some seconds."
KNOWS = "This model was trained on {0}."
ELSE = " On other pictures: {0}. Whoever runs this page can get published weights for photographs: `{1}`"
STRIP = """### Which picture supplied what
Each row shows what one picture gave to the results below; black is what others gave."""
FOOTER = """Use pictures and clips only of people who have agreed, and tell viewers that a result is synthetic; its file
says so in its metadata. Everything is computed on this server, without other services, and your files are removed
after {kept}."""
STRENGTH = "Strength of relative motion"
PASTE = "Put the face back into the first picture (crops to it, too)"
MOTIONS = [("relative: move the picture's own pose", "relative"), ("absolute: take the clip's pose", "absolute")]
FUSIONS = {
    "patch": "patch-wise masks",
    "element": "element-wise masks",
    "mean": "plain mean",
    "occlusion": "by occlusion maps",
}
CAMERA = {"width": {"ideal": 640}, "height": {"ideal": 480}}  # more only takes time
STYLE = """
.gradio-container {max-width: 1360px !important; margin: auto}
.gradio-container code {white-space: normal}
#driving {height: 290px}
#driving video {max-height: 225px}
#examples thead {display: none}
#examples td {padding: 2px 8px}
#examples video {height: 48px; width: 48px}
#examples .container {height: auto; width: fit-content}
@media (max-width: 640px) {#hint, #examples {order: -1}} /* before the result */
#knows, #footer {opacity: .75; font-size: .9em}
"""
# On a phone the result begins below the screen's end.
TO_RESULT = "() => document.querySelector('#beside').scrollIntoView({behavior: 'smooth', block: 'nearest'})"


def looks() -> dict[str, Any]:
    """Colours and fonts, as options of launch(); none of them is loaded from elsewhere."""
    fonts, mono = ["system-ui", "sans-serif"], ["monospace"]
    theme = gradio.themes.Soft(primary_hue="indigo", neutral_hue="slate", font=fonts, font_mono=mono)
    return {"css": STYLE, "theme": theme}


def build_page(studio: Workshop, folder: str, sessions: Sessions, kept: str) -> gradio.Blocks:
    """The page. ``folder``: of all temporary files; ``kept``: text that says how long they stay."""
    with gradio.Blocks(title=TITLE, analytics_enabled=False) as page:
        gradio.Markdown(ABOUT)
        if studio.knowledge.trained_on:
            gradio.Markdown(_knows(studio.knowledge), elem_id="knows")
        with gradio.Row():
            with gradio.Column(scale=6, min_width=300):
                given = _given(studio.limits.frames)
                with gradio.Row():
                    run = gradio.Button("Animate", variant="primary", scale=3, min_width=120, elem_id="run")
                    stop = gradio.Button("Stop", scale=1, min_width=80, elem_id="stop")
                options = _options(studio)
            with gradio.Column(scale=5, min_width=300):
                gradio.Markdown(RESULT)
                beside = gradio.Video(
                    show_label=False, autoplay=True, loop=True, buttons=["download"], height=290, elem_id="beside"
                )
                hint = gradio.Markdown(HINT, elem_id="hint")
                download = gradio.DownloadButton("Download the result alone", visible=False, elem_id="download")
                notes = gradio.Textbox(label="What was done", visible=False, elem_id="notes")
                _examples(given)
        with gradio.Column(visible=False) as shares:
            gradio.Markdown(STRIP)
            strip = gradio.Image(show_label=False, buttons=["download", "fullscreen"], elem_id="strip")
        gradio.Markdown(FOOTER.format(kept=kept), elem_id="footer")
        work, shown = _job(studio, folder, sessions), [beside, download, strip, notes, hint, shares]
        run.click(js=TO_RESULT, api_visibility="private")
        job = run.click(work, [*given, *options], shown, show_progress_on=beside, api_visibility="private")
        stop.click(_stop(sessions), queue=False, cancels=[job], api_visibility="private")
    return page.queue(max_size=studio.limits.queue, default_concurrency_limit=1, api_open=False)


def _knows(knowledge: Knowledge) -> str:
    """What the model knows, and what to expect of other pictures."""
    trained_on, expect = map(html.escape, knowledge)
    return KNOWS.format(trained_on) + (ELSE.format(expect, PUBLISHED) if expect else "")


def _given(frames: int) -> list[gradio.components.Component]:
    """What the visitor gives: pictures, or a clip in their place, and a clip; clips have at most ``frames``."""
    camera = gradio.WebcamOptions(mirror=False, constraints={"video": CAMERA})
    with gradio.Row():
        with gradio.Column(min_width=240):
            gradio.Markdown(PICTURES)
            references = gradio.Gallery(
                label=f"1 to {MAX_REFERENCES} pictures or a clip",
                sources=["upload", "webcam", "clipboard"],
                file_types=["image", "video"],
                height=290,
                object_fit="contain",
                buttons=[],
                elem_id="references",
            )
        with gradio.Column(min_width=240):
            gradio.Markdown(CLIP)
            name = f"1 clip, up to {frames} frames"
            driving = gradio.Video(
                label=name, sources=["upload", "webcam"], buttons=[], webcam_options=camera, elem_id="driving"
            )
    return [references, driving]


def _examples(given: list[gradio.components.Component]) -> None:
    samples, clip = [str(path) for path in bundled.SAMPLE_REFERENCES], str(bundled.SAMPLE_DRIVING)
    rows = [[samples, clip], [samples[:1], clip]]
    gradio.Examples(rows, given, label="Examples: click a row", cache_examples=False, elem_id="examples")


def _options(studio: Workshop) -> list[gradio.components.Component]:
    """What ``order_of`` takes after the clip."""
    (trained, mode), *others = [(FUSIONS.get(mode, mode), mode) for mode in studio.fusion_modes]
    modes = [(f"{trained}, as trained", mode), *others]
    with gradio.Accordion("Options", open=False, elem_id="options"):
        crop = gradio.Checkbox(label=CROP)
        paste = gradio.Checkbox(label=PASTE)
        adapt_scale = gradio.Checkbox(label="Scale relative motion by the sizes of the faces")
        with gradio.Row():
            motion = gradio.Radio(MOTIONS, value="relative", label="Motion", min_width=240)
            fusion = gradio.Dropdown(modes, value=mode, label="How the pictures are joined", min_width=240)
        with gradio.Row():
            strength = gradio.Slider(0, MOST_STRENGTH, 1, step=0.1, label=STRENGTH, min_width=240, elem_id="strength")
            frames = gradio.Slider(1, MAX_REFERENCES, 3, step=1, label=COUNT, min_width=240)
    return [crop, paste, adapt_scale, motion, fusion, strength, frames]


def order_of(references: list[tuple[str, Any]] | None, driving: str, *options: Any) -> Order:
    """An Order from the components' values; those for relative motion don't count with absolute motion."""
    crop, paste, adapt_scale, motion, fusion, strength, frames = options
    paths = tuple(path for path, _ in references or ())
    transfer = Transfer(motion)
    if motion == "relative":  # put back, the face must begin as the picture around it is
        transfer = Transfer(motion, adapt_scale, anchor=0 if paste else None, strength=strength)
    return Order(paths, driving, fusion, transfer, crop or paste, paste, frames)


def _job(studio: Workshop, folder: str, sessions: Sessions) -> Callable[..., list[Any]]:
    """The function behind the button Animate, of the components' values."""

    def animate(
        request: gradio.Request,
        bar: gradio.Progress = gradio.Progress(),  # noqa: B008 - how Gradio is told that there is progress
        *values: Any,
    ) -> list[Any]:
        def progress(items: Iterable[Any], total: int | None, what: str) -> Iterator[Any]:
            for number, item in enumerate(items):
                check()
                keep(order)
                bar((number, total), desc=what, unit="frames")
                yield item

        order = order_of(*values)
        output = Path(folder, secrets.token_hex(16))  # who does not know the name can't ask for the files
        result = message = None
        with sessions.job(request.session_hash or "") as check:  # first, so that Stop finds the job once it is seen
            output.mkdir()
            try:
                result = studio.animate(order, output, progress, lambda what: bar(0, desc=what))
            except StoppedError:
                pass  # an error would show or not, as Gradio's own cancelling is slower or quicker
            except (UserError, OSError) as error:
                message = html.escape(for_visitors(str(as_reported(error)), folder))
        _release_memory()
        if result:
            return _shown(result, folder)
        shutil.rmtree(output)
        if message:
            raise gradio.Error(message, duration=None, title="", print_exception=False)
        return [gradio.skip()] * 6

    return animate


def _shown(result: Delivery, folder: str) -> list[Any]:
    """What becomes of beside, download, strip, notes, hint and shares."""
    text = "\n".join(for_visitors(line, folder) for line in result.notes)
    return [
        str(result.beside),
        gradio.DownloadButton(value=str(result.alone), visible=True),
        str(result.strip),
        gradio.Textbox(value=text, lines=len(result.notes), visible=True),
        gradio.Markdown(visible=False),
        gradio.Column(visible=True),
    ]


def _release_memory() -> None:
    """Give back to the system what a job has freed; glibc would keep it, for each of the server's threads."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def keep(order: Order) -> None:
    """Begin the time anew after which an order's files are removed.

    Raises:
        UserError: one has been removed already.
    """
    for path in (*order.references, order.driving):
        try:
            os.utime(path)
        except FileNotFoundError as error:
            raise UserError(f"{path}: was removed meanwhile; give it again") from error


def _stop(sessions: Sessions) -> Callable[[gradio.Request], None]:
    def stop(request: gradio.Request) -> None:
        sessions.stop(request.session_hash or "")

    return stop
