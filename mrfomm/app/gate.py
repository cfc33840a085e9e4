"""What stands between the network and Gradio.

Gradio 6 serves more than one page needs: a proxy, files of other servers, an interface for programs, recordings. The
gate lets through what the page itself asks for, within limits on size, and answers the rest. It also sees who still
waits for a result, so that no job goes on for somebody who has left.
"""

import contextlib
import json
import logging
import os
import re
import threading
import time
from collections import Counter
from pathlib import Path
from urllib.parse import parse_qs

from mrfomm.errors import UserError

log = logging.getLogger(__name__)

# The browser itself refuses whatever a version of Gradio might load from elsewhere.
CONTENT_POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'; form-action 'self'"
)
HEADERS = (
    (b"content-security-policy", CONTENT_POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)
API = "/gradio_api/"
FILES = f"{API}file="
READ = re.compile(
    r"/(config/?|theme\.css|favicon\.ico|manifest\.json|robots\.txt|(assets|static|svelte)/[\w./-]{1,200})?"
    rf"|{API}(info/?|app_id/?|startup-events|theme\.css|heartbeat/\w+|queue/data|upload_progress)"
)
UPLOAD = f"{API}upload"
WRITE = re.compile(rf"{API}(upload|queue/join|run/predict|cancel|reset)")  # predict: what does not queue
MULTIPART = re.compile(rb'multipart/form-data; *boundary="?([\w-]{1,70})"?')  # as browsers write it
PARTS = 32  # files of one upload
SMALL = 1_000_000  # bytes of a body that is no upload
OVERHEAD = 100_000  # bytes of an upload beside its files
BLOCK = 4096  # bytes that even an empty file counts for
PATIENCE = 20.0  # seconds that a job goes on without anybody listening: a page asks first, then listens


class StoppedError(UserError):
    """The job's visitor has stopped or replaced it, or left: nobody waits for its result or for an error."""


class Sessions:
    """Which visitors listen for results, and the job of each."""

    def __init__(self, patience=PATIENCE):
        self._patience = patience
        self._listening = Counter()
        self._current = {}

    @contextlib.contextmanager
    def listening(self, session):
        """While a connection for the session's results is open."""
        self._listening[session] += 1
        try:
            yield
        finally:
            self._listening[session] -= 1
            if not self._listening[session]:
                del self._listening[session]

    def stop(self, session):
        """End the session's job at its next frame."""
        self._current.pop(session, None)

    @contextlib.contextmanager
    def job(self, session):
        """Yield a function that raises StoppedError once the job was stopped or replaced, or nobody listens."""
        token = self._current[session] = object()
        heard = time.monotonic()

        def check():
            nonlocal heard
            if self._listening[session]:
                heard = time.monotonic()
            if self._current.get(session) is not token or time.monotonic() - heard > self._patience:
                raise StoppedError("stopped")

        try:
            yield check
        finally:
            if self._current.get(session) is token:
                self.stop(session)


class Gate:
    """ASGI middleware, see the module.

    Args:
        application: what it protects. folder: the only place that files come from and go to.
        sessions: Sessions. upload, stored: most bytes of one upload and of all files in the folder.
    """

    def __init__(self, application, folder, sessions, upload, stored):
        self._application = application
        self._folder = os.path.realpath(folder)
        self._sessions = sessions
        self._upload = upload
        self._stored = stored
        self._arriving = 0  # bytes of uploads that are under way

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            await self._application(scope, receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, _with_headers(send))

    async def _answer(self, scope, receive, send):
        method, path = scope["method"], scope["path"]
        if method in ("GET", "HEAD") and path.startswith(FILES):
            if not self._is_ours(path[len(FILES) :]):
                return await _refuse(send, 403, "no such file")
        elif method == "POST" and WRITE.fullmatch(path):
            return await self._write(scope, receive, send)
        elif method not in ("GET", "HEAD") or not READ.fullmatch(path):
            return await _refuse(send, 404, "not a part of this page")
        session = parse_qs(scope["query_string"].decode("latin-1")).get("session_hash", [""])[0]
        with self._sessions.listening(session) if path.endswith("/queue/data") else contextlib.nullcontext():
            return await self._application(scope, receive, send)

    async def _write(self, scope, receive, send):
        """Answer a POST: its length must be given, as all browsers do, and be within the limits."""
        path, length = scope["path"], _length(scope)
        most = self._upload + OVERHEAD if path == UPLOAD else SMALL
        if length is None:
            return await _refuse(send, 411, "a length is needed")
        if length > most:
            if length <= 10 * most:  # a browser that is not heard to the end shows no reason
                await _discard(receive)
            return await _refuse(send, 413, f"too large; give up to {most / 1e6:.1f} MB at once")
        if path == UPLOAD:
            return await self._store(length, scope, receive, send)
        body = await _read(receive)
        if not all(map(self._is_ours, _paths_in(body))):
            return await _refuse(send, 403, "no such file")
        return await self._application(scope, _replay(body, receive), send)

    async def _store(self, length, scope, receive, send):
        """Answer an upload, if there is room for it. Gradio has no answer to some that are malformed or cut off."""
        if stored_bytes(self._folder) + self._arriving + length > self._stored:
            return await _refuse(send, 503, "no room for more files; try again later")
        mark = MULTIPART.fullmatch(dict(scope["headers"]).get(b"content-type", b""))
        if not mark:
            await _discard(receive)
            return await _refuse(send, 400, "not an upload of a browser")
        begun = []

        async def send_and_note(message):
            begun.append(message["type"])
            await send(message)

        self._arriving += length
        try:
            return await self._application(scope, _counted(receive, b"--" + mark.group(1)), send_and_note)
        except Exception as error:
            if begun:
                raise
            log.warning("an upload failed: %r", error)
            return await _refuse(send, 400, "not a whole upload; try again")
        finally:
            self._arriving -= length

    def _is_ours(self, path):
        """Whether a path is that of a file in the folder, whatever links and dots are in it."""
        if not isinstance(path, str) or "\0" in path:
            return False
        real = os.path.realpath(path)
        return real.startswith(self._folder + os.sep) and os.path.isfile(real)


def _with_headers(send):
    async def send_with_headers(message):
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *HEADERS]}
        await send(message)

    return send_with_headers


async def _refuse(send, status, reason):
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": reason.encode()})


def _length(scope):
    text = dict(scope["headers"]).get(b"content-length", b"")
    return int(text) if text.isdigit() else None


async def _read(receive):
    """The whole body, which the server has bounded by the length that was told."""
    parts, more = [], True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(parts)


async def _discard(receive):
    while (await receive()).get("more_body", False):
        pass


def _counted(receive, mark):
    """A ``receive`` that raises ValueError when there are more parts than PARTS: each is an open file."""
    found, rest = 0, b""

    async def receive_and_count():
        nonlocal found, rest
        message = await receive()
        seen = rest + message.get("body", b"")
        found += seen.count(mark)
        rest = seen[len(seen) - len(mark) + 1 :]  # the beginning of one that goes on in the next message
        if found > PARTS + 1:  # there is one at the end
            raise ValueError(f"more than {PARTS} files at once")
        return message

    return receive_and_count


def _replay(body, receive):
    """A ``receive`` that gives the body, then what follows it."""
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay():
        return waiting.pop() if waiting else await receive()

    return replay


def _paths_in(body):
    """The paths of all files that a JSON text names; one that is not ours if it is no JSON."""
    try:
        todo = [json.loads(body)]
    except (ValueError, RecursionError):
        return [""]
    paths = []
    while todo:
        item = todo.pop()
        if isinstance(item, dict):
            paths += [item["path"]] if "path" in item else []
            todo += item.values()
        elif isinstance(item, list):
            todo += item
    return paths


# Files


def files_below(folder):
    """Path and status of everything in a folder; what is removed meanwhile is left out."""
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(place, name)
            with contextlib.suppress(FileNotFoundError):
                yield path, path.lstat()


def stored_bytes(folder):
    """Bytes that the files in a folder take; folders and empty files count for a block."""
    return sum(max(status.st_size, BLOCK) for _, status in files_below(folder))


def remove_old(folder, seconds, kept):
    """Remove what was last changed that long ago or longer, but not the paths ``kept``; then folders left empty."""
    latest = time.time() - seconds
    old = [path for path, status in files_below(folder) if status.st_mtime <= latest and path not in kept]
    for path in sorted(old, key=lambda path: len(path.parts), reverse=True):
        with contextlib.suppress(OSError):  # a folder that still holds something, or gone already
            remove = path.rmdir if path.is_dir() else path.unlink
            remove()


@contextlib.contextmanager
def cleaning(folder, seconds):
    """Inside the block, a thread removes what is older than that, but not what is there already."""
    kept = {path for path, _ in files_below(folder)}
    ended = threading.Event()

    def clean():
        while not ended.wait(seconds / 10):
            remove_old(folder, seconds, kept)

    thread = threading.Thread(target=clean, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
