"""What visitors see, in Gradio's components."""

import contextlib
import ctypes
import html
import os
import re
import secrets
import shutil
from pathlib import Path

import gradio

from mrfomm import bundled
from mrfomm.app.gate import StoppedError
from mrfomm.app.studio import MAX_REFERENCES, Order
from mrfomm.errors import UserError, as_reported
from mrfomm.reenactment.motion import Transfer

TITLE = "mrfomm"
ABOUT = """# mrfomm: animate a face
Give pictures of **one face** and a clip of **somebody moving**: the face makes the clip's movements. Several pictures,
turned differently, supply what one alone does not show."""
PICTURES = """### 1 · Pictures of one face
From the front and, if you have them, from the left and the right."""
CLIP = """### 2 · A clip of somebody moving
One person, the face about as large as in the pictures."""
RESULT = """### 3 · The result
Left: the clip. Right: the face you gave. The sound is the clip's."""
HINT = "**New here?** Click the first example, then *Animate*. It takes some seconds."
STRIP = """### Which picture supplied what
Each row shows what one picture gave to the results below; black is what others gave."""
FOOTER = """Use pictures and clips only of people who have agreed, and tell viewers that a result is synthetic; its file
says so in its metadata. Everything is computed on this server, without other services, and your files are removed
after {kept}."""
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
#driving {height: 290px}
#driving video {max-height: 225px}
#footer {opacity: .75; font-size: .9em}
"""


def theme():
    """Colours and fonts; none of them is loaded from elsewhere."""
    return gradio.themes.Soft(
        primary_hue="indigo", neutral_hue="slate", font=["system-ui", "sans-serif"], font_mono=["monospace"]
    )


def build_page(studio, folder, sessions, kept):
    """The page as gradio.Blocks.

    Args:
        studio: Workshop. folder: of all temporary files. sessions: Sessions. kept: text that says how long.
    """
    samples = [str(path) for path in bundled.SAMPLE_REFERENCES]
    clip = str(bundled.SAMPLE_DRIVING)
    with gradio.Blocks(title=TITLE, analytics_enabled=False) as page:
        gradio.Markdown(ABOUT)
        with gradio.Row():
            with gradio.Column(scale=6):
                with gradio.Row():
                    with gradio.Column(min_width=240):
                        gradio.Markdown(PICTURES)
                        references = _pictures()
                    with gradio.Column(min_width=240):
                        gradio.Markdown(CLIP)
                        driving = _clip(studio.limits.frames)
                gradio.Examples(
                    [[samples, clip], [samples[:1], clip]],
                    inputs=[references, driving],
                    label="Examples: click a row",
                    cache_examples=False,
                    elem_id="examples",
                )
            with gradio.Column(scale=5):
                gradio.Markdown(RESULT)
                beside = gradio.Video(
                    show_label=False,
                    interactive=False,
                    autoplay=True,
                    loop=True,
                    buttons=["download"],
                    height=330,
                    elem_id="beside",
                )
                with gradio.Row():
                    run = gradio.Button("Animate", variant="primary", scale=3, elem_id="run")
                    stop = gradio.Button("Stop", scale=1, elem_id="stop")
                options = _options(studio)
                hint = gradio.Markdown(HINT)
                download = gradio.DownloadButton("Download the result alone", visible=False, elem_id="download")
                notes = gradio.Textbox(label="What was done", visible=False, interactive=False, elem_id="notes")
        with gradio.Column(visible=False) as shares:
            gradio.Markdown(STRIP)
            strip = gradio.Image(
                show_label=False, interactive=False, buttons=["download", "fullscreen"], elem_id="strip"
            )
        gradio.Markdown(FOOTER.format(kept=kept), elem_id="footer")
        job = run.click(
            _job(studio, folder, sessions),
            inputs=[references, driving, *options],
            outputs=[beside, download, strip, notes, hint, shares],
            show_progress_on=beside,
            api_visibility="private",
        )
        stop.click(_stop(sessions), queue=False, cancels=[job], api_visibility="private")
    return page.queue(max_size=studio.limits.queue, default_concurrency_limit=1, api_open=False)


def _pictures():
    return gradio.Gallery(
        label=f"1 to {MAX_REFERENCES} pictures",
        sources=["upload", "webcam", "clipboard"],
        file_types=["image"],
        columns=2,
        height=290,
        object_fit="contain",
        buttons=[],
        interactive=True,
        elem_id="references",
    )


def _clip(frames):
    return gradio.Video(
        label=f"1 clip, up to {frames} frames",
        sources=["upload", "webcam"],
        buttons=[],
        webcam_options=gradio.WebcamOptions(mirror=False, constraints={"video": CAMERA}),
        elem_id="driving",
    )


def _options(studio):
    """motion, fusion, adapt_scale, crop."""
    modes = [(FUSIONS[mode], mode) for mode in studio.fusion_modes]
    trained, mode = modes[0]
    with gradio.Accordion("Options", open=False, elem_id="options"):
        with gradio.Row():
            motion = gradio.Radio(MOTIONS, value="relative", label="Motion")
            fusion = gradio.Dropdown(
                [(f"{trained}, as trained", mode), *modes[1:]], value=mode, label="How the pictures are joined"
            )
        crop = gradio.Checkbox(label="Find the face and crop to it, in pictures and clip")
        adapt_scale = gradio.Checkbox(label="Scale relative motion by the sizes of the faces")
    return motion, fusion, adapt_scale, crop


def _job(studio, folder, sessions):
    """The function behind the button Animate, of the components' values."""

    def animate(
        references,
        driving,
        motion,
        fusion,
        adapt_scale,
        crop,
        request: gradio.Request,
        bar=gradio.Progress(),  # noqa: B008 - how Gradio is told that there is progress
    ):
        def progress(items, total, what):
            for number, item in enumerate(items):
                check()
                keep(order)
                bar((number, total), desc=what, unit="frames")
                yield item

        paths = tuple(path for path, _ in references or ())
        order = Order(paths, driving, fusion, Transfer(motion, adapt_scale and motion == "relative"), crop)
        output = Path(folder, secrets.token_hex(16))  # who does not know the name can't ask for the files
        result = message = None
        with sessions.job(request.session_hash) as check:  # first, so that Stop finds the job as soon as it is seen
            output.mkdir()
            bar(0, desc="preparing")
            try:
                result = studio.animate(order, output, progress)
            except StoppedError:
                pass  # an error would show or not, as Gradio's own cancelling is slower or quicker
            except (UserError, OSError) as error:
                message = html.escape(without_folder(str(as_reported(error)), folder))
        _release_memory()
        if result is None:
            shutil.rmtree(output)
            if message is None:
                return [gradio.skip()] * 6
            raise gradio.Error(message, duration=None, title="", print_exception=False)
        text = "\n".join(without_folder(line, folder) for line in result.notes)
        return (
            str(result.beside),
            gradio.DownloadButton(value=str(result.alone), visible=True),
            str(result.strip),
            gradio.Textbox(value=text, lines=len(result.notes), visible=True),
            gradio.Markdown(visible=False),
            gradio.Column(visible=True),
        )

    return animate


def _release_memory():
    """Give back to the system what a job has freed; glibc would keep it, for each of the server's threads."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def keep(order):
    """Begin the time anew after which an order's files are removed.

    Raises:
        UserError: one has been removed already.
    """
    for path in (*order.references, order.driving):
        try:
            os.utime(path)
        except FileNotFoundError as error:
            raise UserError(f"{path}: was removed meanwhile; give it again") from error


def _stop(sessions):
    def stop(request: gradio.Request):
        sessions.stop(request.session_hash)

    return stop


def without_folder(text, folder):
    """One line without the places of temporary files: visitors know their files by name."""
    return re.sub(rf"{re.escape(str(folder))}/(?:[^/\s]+/)?", "", " ".join(text.split()))
