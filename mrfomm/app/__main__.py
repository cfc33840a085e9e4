"""A page for the browser that animates a face: `python -m mrfomm.app`, then open the address it prints.

All runs on this machine, one job at a time, and nothing is asked of others. What visitors upload and what is made of it
is removed after a while, and all of it when the server ends.
"""

import argparse
import importlib.util
import logging
import os
import signal
import sys
import tempfile
import threading
from types import ModuleType
from typing import Any

from mrfomm import bundled
from mrfomm.app.studio import Limits, Workshop
from mrfomm.app.visitors import Sessions, cleaning
from mrfomm.commands.options import add_computing, fusion_mode
from mrfomm.errors import UserError, command_parser, run_command

LOCAL = ("127.0.0.1", "localhost")
STORED = 50  # the largest uploads that all visitors together may leave here


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line as a namespace."""
    parser = command_parser(__doc__)
    add = parser.add_argument
    add(
        "--weights",
        metavar="CKPT",
        default=bundled.MODEL,
        help="checkpoint, run folder or exported model (bundled)",
    )
    add("--host", default=LOCAL[0], metavar="IP", help="address to listen at; 0.0.0.0: open to all (%(default)s)")
    add("--port", type=int, metavar="N", help="port to listen at (the first free one from 7860)")
    add("--max-megabytes", type=float, default=100, metavar="N", help="largest upload in megabytes (%(default)s)")
    add("--max-frames", type=int, default=1500, metavar="N", help="longest clip in frames (%(default)s)")
    add("--queue", type=int, default=8, metavar="N", help="jobs that may wait (%(default)s)")
    add("--keep", type=float, default=240, metavar="MIN", help="minutes until files are removed (%(default)s)")
    plugin = "offer a fusion mode of your own too; MODULE is imported (none)"
    add("--plugin", metavar="MODULE:FUNCTION", type=fusion_mode, help=plugin)
    add_computing(parser)
    return parser.parse_args(arguments)


def check(args: argparse.Namespace) -> Limits:
    """Refuse arguments that make no sense, before any work; returns Limits."""
    for name in ("max_megabytes", "max_frames", "queue", "keep"):
        value = getattr(args, name)
        if not value > 0:
            raise UserError(f"--{name.replace('_', '-')} {value}: give a number above 0")
    return Limits(args.max_frames, args.queue)


def main(arguments: list[str] | None = None) -> int:
    """Serve the page until it is interrupted (Ctrl-C, SIGTERM, or the end of its terminal)."""
    args = parse_arguments(arguments)
    if importlib.util.find_spec("gradio") is None:  # told before minutes are spent on the model
        raise UserError("the page needs Gradio; pip install -e .[app]")
    print(f"1/3 making the model ready, which takes longer the first time: {args.weights}", file=sys.stderr)
    studio = Workshop(args.weights, args.context, args.backend, check(args))
    for number in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):  # else nothing would clean up
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(number, signal.default_int_handler)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # nnabla makes the root logger print its requests
    sessions = Sessions()
    with tempfile.TemporaryDirectory(prefix="mrfomm-app-") as folder:
        # Gradio reads these when it is imported
        os.environ.update(GRADIO_TEMP_DIR=folder, GRADIO_ANALYTICS_ENABLED="False")
        print("2/3 loading Gradio, which takes some seconds", file=sys.stderr)
        page_module = _import_page()
        print("3/3 starting the server", file=sys.stderr)
        page = page_module.build_page(studio, folder, sessions, in_words(args.keep))
        try:
            address = serve(page, args, folder, sessions, page_module.looks())
            with cleaning(folder, 60 * args.keep):
                print(address, flush=True)
                threading.Event().wait()
        finally:
            page.close(verbose=False)
    return 0


def in_words(minutes: float) -> str:
    """Minutes for people: "4 hours", "90 minutes"."""
    number, unit = (minutes / 60, "hour") if minutes >= 60 and minutes % 60 == 0 else (minutes, "minute")
    return f"{number:g} {unit}{'' if number == 1 else 's'}"


def _import_page() -> ModuleType:
    """Late, as Gradio is an extra that takes seconds and reads its settings when it is imported."""
    try:
        from mrfomm.app import page
    except ImportError as error:
        raise UserError(f"the page needs Gradio ({error}); pip install -e .[app]") from error
    return page


def serve(page: Any, args: argparse.Namespace, folder: str, sessions: Sessions, looks: dict[str, Any]) -> str:
    """Start the server in threads; returns its address. ``looks``: options of Gradio's launch().

    Raises:
        UserError: the port is taken, or the host isn't one of this machine's addresses.
    """
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from mrfomm.app.gate import Gate

    upload = round(args.max_megabytes * 10**6)
    # else a page from elsewhere whose name leads to this machine could use it (DNS rebinding)
    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=[*LOCAL] if args.host in LOCAL else ["*"])
    gate = Middleware(Gate, folder=folder, sessions=sessions, upload=upload, stored=STORED * upload)
    options = {"quiet": True, "prevent_thread_lock": True, "max_file_size": upload, "footer_links": [], **looks}
    unused = ("share", "run_history", "enable_monitoring", "ssr_mode", "pwa", "mcp_server")
    options.update(dict.fromkeys(unused, False), app_kwargs={"middleware": [hosts, gate]})
    try:
        _, address, _ = page.launch(server_name=args.host, server_port=args.port, **options)
    except OSError as error:
        raise UserError(f"--host {args.host} --port {args.port}: can't listen there ({error})") from error
    return address


def command() -> None:
    """The console command."""
    run_command(main)


if __name__ == "__main__":
    command()
