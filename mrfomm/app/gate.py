"""What stands between the network and Gradio.

Gradio 6 serves more than one page needs: a proxy, files of other servers, an interface for programs, recordings. The
gate lets through what the page itself asks for, within limits on size, and answers the rest. It also tells Sessions
who listens.
"""

import contextlib
import json
import logging
import os
import re
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mrfomm.app.visitors import Sessions, stored_bytes

log = logging.getLogger(__name__)

# The browser itself refuses whatever a version of Gradio might load from elsewhere.
CONTENT_POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'; form-action 'self'"
)
HEADERS = {
    "content-security-policy": CONTENT_POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
API = "/gradio_api/"
FILES = f"{API}file="
READ = re.compile(
    r"/(config/?|theme\.css|favicon\.ico|manifest\.json|robots\.txt|(assets|static|svelte)/[\w./-]{1,200})?"
    rf"|{API}(info/?|app_id/?|startup-events|theme\.css|heartbeat/\w+|queue/data|upload_progress)"
)
UPLOAD = f"{API}upload"
WRITE = re.compile(rf"{API}(upload|queue/join|run/predict|cancel|reset)")  # predict: what does not queue
MULTIPART = re.compile(r'multipart/form-data; *boundary="?([\w-]{1,70})"?')  # as browsers write it
PARTS = 32  # files of one upload
SMALL = 1_000_000  # bytes of a body that is no upload
OVERHEAD = 100_000  # bytes of an upload beside its files


class Gate:
    """ASGI middleware, see the module.

    Args:
        application: what it protects. folder: the only place that files come from and go to.
        sessions: Sessions. upload, stored: most bytes of one upload and of all files in the folder.
    """

    def __init__(self, application: ASGIApp, folder: str, sessions: Sessions, upload: int, stored: int) -> None:
        self._application = application
        self._folder = os.path.realpath(folder)
        self._sessions = sessions
        self._upload = upload
        self._stored = stored
        self._arriving = 0  # bytes of uploads that are under way

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or let it through; what is neither HTTP nor the server's own start and end is dropped."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        if scope["type"] == "lifespan":
            await self._application(scope, receive, send)
        elif scope["type"] == "http":
            try:
                await self._answer(Request(scope, receive), receive, send_with_headers)
            except HTTPException as refusal:
                answer = PlainTextResponse(refusal.detail, refusal.status_code, {"connection": "close"})
                await answer(scope, receive, send_with_headers)

    async def _answer(self, request: Request, receive: Receive, send: Send) -> None:
        method, path = request.method, request.scope["path"]
        if method == "POST" and WRITE.fullmatch(path):
            return await self._write(request, receive, send)
        if method not in ("GET", "HEAD") or not (path.startswith(FILES) or READ.fullmatch(path)):
            raise HTTPException(404, "not a part of this page")
        if path.startswith(FILES):
            self._check_ours(path[len(FILES) :])
        session = request.query_params.get("session_hash", "")
        with self._sessions.listening(session) if path.endswith("/queue/data") else contextlib.nullcontext():
            return await self._application(request.scope, receive, send)

    async def _write(self, request: Request, receive: Receive, send: Send) -> None:
        """Answer a POST: its length must be given, as all browsers do, and be within the limits."""
        is_upload, told = request.scope["path"] == UPLOAD, request.headers.get("content-length", "")
        most = self._upload + OVERHEAD if is_upload else SMALL
        if not re.fullmatch("[0-9]{1,15}", told):
            raise HTTPException(411, "a length is needed")
        if int(told) > most:
            if int(told) <= 10 * most:  # a browser that is not heard to the end shows no reason
                await _discard(receive)
            raise HTTPException(413, f"too large; give up to {most / 1e6:.1f} MB at once")
        if is_upload:
            return await self._store(int(told), request, receive, send)
        waiting: list[Message] = [{"type": "http.request", "body": await _read(receive), "more_body": False}]
        for file in _paths_in(waiting[0]["body"]):
            self._check_ours(file)

        async def replay() -> Message:
            return waiting.pop() if waiting else await receive()

        return await self._application(request.scope, replay, send)

    async def _store(self, length: int, request: Request, receive: Receive, send: Send) -> None:
        """Answer an upload, if there is room for it. Gradio has no answer to some that are malformed or cut off."""
        if stored_bytes(self._folder) + self._arriving + length > self._stored:
            raise HTTPException(503, "no room for more files; try again later")
        mark = MULTIPART.fullmatch(request.headers.get("content-type", ""))
        if not mark:
            await _discard(receive)
            raise HTTPException(400, "not an upload of a browser")
        begun = []

        async def send_and_note(message: Message) -> None:
            begun.append(message["type"])
            await send(message)

        self._arriving += length
        try:
            await self._application(request.scope, _counted(receive, b"--" + mark[1].encode()), send_and_note)
        except Exception as error:
            if begun:
                raise
            log.warning("an upload failed: %r", error)
            raise HTTPException(400, "not a whole upload; try again") from error
        finally:
            self._arriving -= length

    def _check_ours(self, path: Any) -> None:
        """Refuse what isn't the path of a file in the folder, whatever links and dots are in it."""
        if isinstance(path, str) and "\0" not in path:
            real = os.path.realpath(path)
            if real.startswith(self._folder + os.sep) and os.path.isfile(real):
                return
        raise HTTPException(403, "no such file")


async def _read(receive: Receive) -> bytes:
    """The whole body, which the server has bounded by the length that was told."""
    parts, more = [], True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(parts)


async def _discard(receive: Receive) -> None:
    while (await receive()).get("more_body", False):
        pass


def _counted(receive: Receive, mark: bytes) -> Receive:
    """A ``receive`` that raises ValueError when there are more parts than PARTS: each is an open file."""
    found, rest = 0, b""

    async def receive_and_count() -> Message:
        nonlocal found, rest
        message = await receive()
        seen = rest + message.get("body", b"")
        found += seen.count(mark)
        rest = seen[len(seen) - len(mark) + 1 :]  # the beginning of one that goes on in the next message
        if found > PARTS + 1:  # there is one at the end
            raise ValueError(f"more than {PARTS} files at once")
        return message

    return receive_and_count


def _paths_in(body: bytes) -> list[Any]:
    """The paths of all files that a JSON text names; one that is not ours if it is no JSON."""
    paths: list[Any] = []
    try:
        json.loads(body, object_pairs_hook=lambda pairs: paths.extend(value for key, value in pairs if key == "path"))
    except (ValueError, RecursionError):
        return [""]
    return paths
