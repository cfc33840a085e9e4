"""The gate before Gradio: what passes, what is refused, and when a job ends or a file is removed."""

import asyncio
import json
import os
import re
import time
from types import SimpleNamespace

import pytest

from mrfomm.app import gate, visitors
from mrfomm.errors import UserError


@pytest.fixture
def clock(monkeypatch):
    """The gate's clock, which stands still; ``clock.now`` is the test's to set."""
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(visitors, "time", clock)
    return clock


@pytest.fixture
def place(tmp_path, clock):
    """A gate before an application that answers with the body it was sent; the folder it guards, with one file."""
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "ours.png").write_bytes(b"ours")
    (tmp_path / "secret.txt").write_text("secret")
    (folder / "link.png").symlink_to(tmp_path / "secret.txt")
    sessions = visitors.Sessions(patience=20)
    guard = gate.Gate(echo, folder=str(folder), sessions=sessions, upload=1000, stored=50_000)
    return SimpleNamespace(gate=guard, folder=folder, sessions=sessions)


async def echo(scope, receive, send):
    message = await receive()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-of", b"application")]})
    await send({"type": "http.response.body", "body": message.get("body", b"")})


def ask(place, method, path, body=b"", length=None, kind=b"multipart/form-data; boundary=mark"):
    """Status, headers and body of the gate's answer."""
    length = len(body) if length is None else length
    told = [] if length == "untold" else [(b"content-length", str(length).encode())]
    told.append((b"content-type", kind))
    path, _, query = path.partition("?")
    scope = {"type": "http", "method": method, "path": path, "headers": told, "query_string": query.encode()}
    parts = [{"type": "http.request", "body": body[:7], "more_body": True}, {"type": "http.request", "body": body[7:]}]
    sent = []

    async def receive():
        return parts.pop(0)

    async def send(message):
        sent.append(message)

    asyncio.run(place.gate(scope, receive, send))
    return sent[0]["status"], dict(sent[0]["headers"]), sent[1]["body"]


PAGE = ["/", "/config", "/theme.css", "/assets/index-1.js", "/gradio_api/info", "/gradio_api/heartbeat/a1"]
REFUSED = [
    ("GET", "/gradio_api/proxy=http://127.0.0.1/"),
    ("GET", "/proxy=http://127.0.0.1/"),
    ("GET", "/gradio_api/file/etc/passwd"),
    ("GET", "/monitoring"),
    ("GET", "/static/x\0.png"),
    ("GET", f"/static/{'x' * 300}"),
    ("GET", "/gradio_api/openapi.json"),
    ("GET", "/gradio_api/heartbeat/a/b"),
    ("GET", "/login"),
    ("POST", "/gradio_api/process_recording"),
    ("POST", "/gradio_api/run/animate"),
    ("POST", "/gradio_api/call/animate"),
    ("POST", "/gradio_api/component_server"),
    ("POST", "/"),
    ("PUT", "/gradio_api/upload"),
    ("DELETE", "/"),
]


@pytest.mark.parametrize("path", PAGE)
def test_the_pages_own_parts_pass_with_a_policy(place, path):
    status, headers, _ = ask(place, "GET", path)
    assert (status, headers[b"x-of"]) == (200, b"application")
    assert headers[b"content-security-policy"] == gate.CONTENT_POLICY.encode()


@pytest.mark.parametrize(("method", "path"), REFUSED)
def test_everything_else_is_refused(place, method, path):
    status, headers, _ = ask(place, method, path)
    assert status == 404
    assert b"x-of" not in headers


def test_files_of_the_folder_alone(place):
    base = f"/gradio_api/file={place.folder}"
    assert ask(place, "GET", f"{base}/ours.png")[0] == 200
    assert ask(place, "GET", f"{base}/../files/ours.png")[0] == 200
    for path in ("/../secret.txt", "/link.png", "", "/", "/nothing.png", "2/x", "/ours.png\0.png"):
        assert ask(place, "GET", base + path)[0] == 403, path
    for path in ("/etc/passwd", "etc/passwd", "http://127.0.0.1:1/", "file:///etc/passwd", "//etc/passwd", ""):
        assert ask(place, "GET", f"/gradio_api/file={path}")[0] == 403, path


def test_jobs_may_name_files_of_the_folder_alone(place):
    def join(path):
        body = json.dumps({"data": [[{"image": {"path": path}}]], "session_hash": "a"}).encode()
        return ask(place, "POST", "/gradio_api/queue/join", body), body

    (status, _, received), body = join(str(place.folder / "ours.png"))
    assert (status, received) == (200, body)
    foreign = ["/etc/passwd", str(place.folder / "link.png"), "http://127.0.0.1:1/x.png", 3, None, ["a"]]
    assert [join(path)[0][0] for path in foreign] == [403] * len(foreign)
    assert ask(place, "POST", "/gradio_api/queue/join", b"{")[0] == 403
    assert ask(place, "POST", "/gradio_api/queue/join", b"[" * 100_000)[0] == 403


def test_bodies_have_limits(place):
    assert ask(place, "POST", "/gradio_api/upload", b"x" * 900)[0] == 200
    assert ask(place, "POST", "/gradio_api/upload", length=1000 + gate.OVERHEAD + 1)[0] == 413
    assert ask(place, "POST", "/gradio_api/queue/join", length=gate.SMALL + 1)[0] == 413
    assert ask(place, "POST", "/gradio_api/queue/join", length=10**12)[0] == 413
    for length in ("untold", "-1", "1e3", ""):
        assert ask(place, "POST", "/gradio_api/upload", length=length)[0] == 411


def test_upload_that_gradio_cannot_read_is_refused(place, caplog):
    async def failing(scope, receive, send):
        raise TypeError("no file")

    async def late(scope, receive, send):
        await echo(scope, receive, send)
        raise OSError("after the answer")

    place.gate = gate.Gate(failing, str(place.folder), place.sessions, 1000, 50_000)
    assert ask(place, "POST", "/gradio_api/upload", b"x" * 900)[0] == 400
    assert "no file" in caplog.text
    place.gate = gate.Gate(late, str(place.folder), place.sessions, 1000, 50_000)
    with pytest.raises(OSError, match="after"):
        ask(place, "POST", "/gradio_api/upload", b"x")


def test_uploads_hold_a_limited_number_of_files(place):
    async def reading(scope, receive, send):
        while (await receive()).get("more_body"):
            pass
        await echo(scope, receive_nothing, send)

    async def receive_nothing():
        return {}

    place.gate = gate.Gate(reading, str(place.folder), place.sessions, 10_000, 50_000)
    for count, status in ((gate.PARTS, 200), (gate.PARTS + 1, 400)):
        for shift in range(6):  # the first message ends after 7 bytes
            body = b"x" * shift + b"--mark\r\nabc\r\n" * count + b"--mark--"
            assert ask(place, "POST", "/gradio_api/upload", body)[0] == status
    for kind in (b"", b"text/plain", b"multipart/form-data", b'multipart/form-data; boundary="a b"'):
        assert ask(place, "POST", "/gradio_api/upload", b"x", kind=kind)[0] == 400


def test_uploads_stop_where_there_is_no_room(place):
    (place.folder / "old.bin").write_bytes(bytes(40_000))  # beside two entries that count for a block each
    assert ask(place, "POST", "/gradio_api/upload", b"x" * 900)[0] == 200
    assert ask(place, "POST", "/gradio_api/upload", b"x" * 2000)[0] == 503


# Jobs


def test_job_goes_on_while_somebody_listens(place, clock):
    with place.sessions.listening("a"), place.sessions.job("a") as check:
        clock.now += 21
        check()
    with place.sessions.job("a") as check:
        clock.now += 19
        check()  # the page begins to listen after it has asked
        clock.now += 2
        with pytest.raises(UserError, match="stopped"):
            check()


def test_job_ends_when_stopped_or_replaced(place):
    with place.sessions.listening("a"), place.sessions.job("a") as first:
        with place.sessions.job("b") as other:
            place.sessions.stop("a")
            other()
        with pytest.raises(UserError):
            first()
        with place.sessions.job("a") as second:
            with place.sessions.job("a") as third:
                third()
            with pytest.raises(UserError):
                second()


def test_listening_is_seen_by_the_gate(place, clock):
    seen = []

    async def application(scope, receive, send):
        with place.sessions.job("a1") as check:
            clock.now += 21
            check()
        seen.append(scope["path"])
        await echo(scope, receive, send)

    place.gate = gate.Gate(application, str(place.folder), place.sessions, 1, 1)
    assert ask(place, "GET", "/gradio_api/queue/data?session_hash=a1")[0] == 200
    assert seen == ["/gradio_api/queue/data"]
    with pytest.raises(UserError):
        ask(place, "GET", "/gradio_api/queue/data?session_hash=other")


# Files


def test_old_files_go_and_kept_ones_stay(tmp_path):
    for name in ("kept/a", "old/b", "new/c", "mixed/d", "mixed/e"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    for path in [*tmp_path.rglob("*")]:
        if not re.search("new|mixed$|e$", str(path.relative_to(tmp_path))):
            os.utime(path, (0, 0))
    visitors.remove_old(tmp_path, 60, {tmp_path / "kept", tmp_path / "kept" / "a"})
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert left == {"kept", "kept/a", "new", "new/c", "mixed", "mixed/e"}


def test_cleaning_leaves_what_was_there(tmp_path):
    (tmp_path / "before").write_text("x")
    with visitors.cleaning(tmp_path, 0.2):
        (tmp_path / "visitor").mkdir()
        (tmp_path / "visitor" / "file").write_text("x")
        deadline = time.monotonic() + 600
        while (tmp_path / "visitor").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
    assert [path.name for path in tmp_path.iterdir()] == ["before"]
