"""The page under attack, from this machine: it goes on answering, frees what it took and shows no file of others."""

import contextlib
import http.client
import itertools
import json
import os
import secrets
import socket
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import visitor

from mrfomm.app.visitors import files_below

pytestmark = pytest.mark.long

CROWD = 200
KEPT = 60  # seconds: a crowd takes its time
GROWTH = 60_000  # kB that the server's memory may differ from what it was
PATIENCE = 900  # seconds for anything that should end by itself


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return visitor.write_files(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    pytest.importorskip("gradio")
    folder = tmp_path_factory.mktemp("server") / "tmp"
    with visitor.served(folder, "--keep", str(KEPT / 60)) as running:
        (folder / "secret.txt").write_text("SECRET")
        yield running


@pytest.fixture(scope="module")
def untouched(server):
    """What is there before anybody came."""
    return everything(server)


@pytest.fixture
def page(server, untouched):
    """A Page; afterwards nothing may lie beside the server's folder, and its log holds no traceback."""
    page = Page(server)
    yield page
    assert [path.name for path in server.folder.iterdir() if path.is_dir()] == [folder_of(server).name]
    log = server.log.read_text()
    assert "Traceback" not in log, log[-3000:]


class Page:
    """Speaks to the server as a browser does, or worse."""

    def __init__(self, server):
        self._host, self._port = server.address.rpartition("/")[2].split(":")
        self.server = server
        config = json.loads(self.ask("GET", "/config")[1])
        run = next(part["id"] for part in config["components"] if part["props"].get("elem_id") == "run")
        targets = ((part["id"], part["targets"]) for part in config["dependencies"])
        self._function = next(number for number, found in targets if [run, "click"] in found)

    def connect(self, seconds=PATIENCE):
        return http.client.HTTPConnection(self._host, int(self._port), timeout=seconds)

    def ask(self, method, path, body=None, headers=()):
        """Status and body of the answer; no connection is status 0."""
        connection = self.connect()
        try:
            connection.putrequest(method, path, skip_host="Host" in dict(headers), skip_accept_encoding=True)
            for name, value in dict({} if body is None else {"Content-Length": len(body)}, **dict(headers)).items():
                connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (ConnectionError, http.client.RemoteDisconnected):
            return 0, b""
        finally:
            connection.close()

    def upload(self, *files):
        """Send (name, content) as a browser does; status and the paths on the server."""
        status, body = self.ask("POST", "/gradio_api/upload", *multipart(files))
        return status, json.loads(body) if status == 200 else []

    def join(self, session, references, driving):
        """Ask for a job; the status."""
        pictures = [{"image": file_data(path), "caption": None} for path in references]
        data = [pictures, driving and file_data(driving), "relative", "patch", False, False]
        body = json.dumps({"data": data, "fn_index": self._function, "session_hash": session, "trigger_id": None})
        return self.ask("POST", "/gradio_api/queue/join", body.encode(), {"Content-Type": "application/json"})[0]

    @contextlib.contextmanager
    def listen(self, session):
        """Iterator of the messages to a session."""
        connection = self.connect()
        connection.request("GET", f"/gradio_api/queue/data?session_hash={session}")
        answer = connection.getresponse()
        try:
            yield (json.loads(line[5:]) for line in answer if line.startswith(b"data:"))
        finally:
            answer.close()
            connection.close()

    def result(self, references, driving):
        """Do a whole job; the last message's success and output."""
        session = secrets.token_hex(6)
        wait_until(lambda: self.join(session, references, driving) == 200)  # the queue may be full
        with self.listen(session) as messages:
            last = next(message for message in messages if message["msg"] == "process_completed")
        return last["success"], last["output"]

    def works(self, files):
        """Do a good job: what everybody may count on."""
        picture, clip = (self.upload((name, (files / name).read_bytes()))[1][0] for name in ("r0.png", "driving.mp4"))
        success, output = self.result([picture], clip)
        assert success
        found = output["data"][0]["path"]
        status, body = self.ask("GET", f"/gradio_api/file={found}")
        assert (status, body[4:8]) == (200, b"ftyp")


def file_data(path):
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


def multipart(files, field="files"):
    """Body and headers."""
    mark = secrets.token_hex(12)
    parts = []
    for name, content in files:
        head = f'--{mark}\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n\r\n'
        parts += [head.encode("utf-8", "surrogateescape"), content, b"\r\n"]
    return b"".join([*parts, f"--{mark}--\r\n".encode()]), {"Content-Type": f"multipart/form-data; boundary={mark}"}


def folder_of(server):
    return next(server.folder.glob("mrfomm-app-*"))


def everything(server):
    """All files and folders of visitors."""
    return {path for path, _ in files_below(folder_of(server))}


def memory(server):
    """Resident memory in kB."""
    text = Path(f"/proc/{server.pid}/status").read_text()
    return int(next(line for line in text.splitlines() if line.startswith("VmRSS")).split()[1])


def descriptors(server):
    return len(os.listdir(f"/proc/{server.pid}/fd"))


def children(server):
    """The names of the server's processes, such as ffmpeg."""
    pids = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    every = itertools.chain.from_iterable(
        path.read_text().split() for path in Path(f"/proc/{server.pid}/task").glob("*/children")
    )
    return [Path(f"/proc/{pid}/comm").read_text().strip() for pid in {*pids, *every} if Path(f"/proc/{pid}").exists()]


def wait_until(done):
    deadline = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def crowd(work, count=CROWD):
    """Do ``work(number)`` that many times at once; the results."""
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(work, range(count)))


def test_a_crowd_is_served_and_memory_returns(page, files):
    """Visitors who load the page, upload, fetch what they uploaded and ask for a job: a few get one, all an answer."""
    clip = (files / "driving.mp4").read_bytes()
    picture = (files / "r0.png").read_bytes()

    def visit(_):
        session = secrets.token_hex(6)
        status, paths = page.upload(("r.png", picture + secrets.token_bytes(100_000)), ("d.mp4", clip))
        found = [page.ask("GET", "/")[0], status]
        if status != 200:
            return found
        found += [page.ask("GET", f"/gradio_api/file={path}")[0] for path in paths]
        joined = page.join(session, paths[:1], paths[1])
        if joined == 200:
            with page.listen(session) as messages:
                ends = [message for message in messages if message["msg"] == "process_completed"]
            found.append("done" if ends and ends[0]["success"] else "failed")
        return [*found, joined]

    page.works(files)
    seen, sizes = Counter(), []
    for _ in range(4):
        seen.update(itertools.chain.from_iterable(crowd(visit)))
        page.works(files)
        wait_until(lambda: not children(page.server))
        sizes.append(memory(page.server))
    print(f"{4 * CROWD} visitors: {dict(seen)}; kB after each crowd: {sizes}; descriptors {descriptors(page.server)}")
    assert set(seen) == {200, 503, "done"}
    assert sizes[-1] - sizes[0] < GROWTH
    assert descriptors(page.server) < 100


def test_jobs_whose_visitors_leave_end(page, files):
    """The connection is closed at the first frame of a long job."""
    page.works(files)
    picture = (files / "r0.png").read_bytes()
    clip = (visitor.ROOT / "mrfomm/assets/samples/driving.mp4").read_bytes()
    before, began = memory(page.server), time.monotonic()
    for _ in range(20):
        _, paths = page.upload(("r.png", picture), ("d.mp4", clip))
        session = secrets.token_hex(6)
        wait_until(lambda session=session, paths=paths: page.join(session, paths[:1], paths[1]) == 200)
        with page.listen(session) as messages:
            next(message for message in messages if message["msg"] == "progress" and message["progress_data"])
    page.works(files)  # waits for all that are before it
    wait_until(lambda: not children(page.server))
    grown = memory(page.server) - before
    print(f"20 jobs left at their first frames: {time.monotonic() - began:.0f} s, {grown:+} kB")
    assert grown < GROWTH
    assert not list(folder_of(page.server).glob("*/.mrfomm-*"))


def test_jobs_that_nobody_listens_to_end(page, files):
    """A queue filled without ever asking for the results."""
    _, paths = page.upload(("r.png", (files / "r0.png").read_bytes()), ("d.mp4", (files / "driving.mp4").read_bytes()))
    seen = Counter(crowd(lambda _: page.join(secrets.token_hex(6), paths[:1], paths[1])))
    print(f"{CROWD} jobs that nobody waits for: {dict(seen)}")
    assert set(seen) == {200, 503}
    wait_until(lambda: page.join(secrets.token_hex(6), paths[:1], paths[1]) == 200)
    wait_until(lambda: len(list(folder_of(page.server).glob("*"))) == 0 or not children(page.server))


def test_uploads_beyond_the_limits(page, files):
    """Too large, without a length, cut off, malformed, as a text field, and many."""
    large = bytes(1_200_000)
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    field = b'--x\r\nContent-Disposition: form-data; name="files"\r\n\r\n' + bytes(900_000) + b"\r\n--x--\r\n"
    tries = {
        "one too large": lambda: page.upload(("a.mp4", large))[0],
        "said to be a terabyte": lambda: page.ask("POST", "/gradio_api/upload", None, {"Content-Length": 10**12})[0],
        "without a length": lambda: page.ask("POST", "/gradio_api/upload", None, {"Transfer-Encoding": "chunked"})[0],
        "negative": lambda: page.ask("POST", "/gradio_api/upload", None, {"Content-Length": -1})[0],
        "a text field": lambda: page.ask("POST", "/gradio_api/upload", field, kind)[0],
        "no multipart": lambda: page.ask("POST", "/gradio_api/upload", bytes(99))[0],
        "no boundary": lambda: page.ask("POST", "/gradio_api/upload", b"x", {"Content-Type": "multipart/form-data"})[0],
        "garbage": lambda: page.ask("POST", "/gradio_api/upload", secrets.token_bytes(5000), kind)[0],
        "800 empty files": lambda: page.upload(*((f"{i}.png", b"") for i in range(800)))[0],
        "cut off": lambda: cut_off(page),
        "a job of 2 MB": lambda: page.ask("POST", "/gradio_api/queue/join", b'"' + bytes(2_000_000) + b'"')[0],
        "no JSON": lambda: page.ask("POST", "/gradio_api/queue/join", b"{")[0],
        "deep JSON": lambda: page.ask("POST", "/gradio_api/queue/join", b"[" * 500_000)[0],
    }
    page.works(files)
    before = memory(page.server)
    for name, attempt in tries.items():
        seen = Counter(crowd(lambda _, attempt=attempt: attempt(), 40))
        print(f"40 x {name}: {dict(seen)}; {memory(page.server) - before:+} kB")
        assert not [status for status in seen if status >= 500 and status != 503], name
    page.works(files)
    grown = memory(page.server) - before
    print(f"memory {grown:+} kB")
    assert grown < GROWTH


def cut_off(page):
    """An upload whose connection is closed in its middle."""
    body, headers = multipart([("a.mp4", bytes(500_000))])
    connection = page.connect()
    connection.putrequest("POST", "/gradio_api/upload")
    for name, value in {"Content-Length": len(body), **headers}.items():
        connection.putheader(name, value)
    connection.endheaders(body[:300_000])
    time.sleep(0.2)
    connection.close()
    return 0


NAMES = [
    "../../../../evil.png",
    "/evil.png",
    "..",
    ".",
    "",
    "evil\\..\\..\\x.png",
    "C:\\evil.png",
    "%2e%2e%2fevil.png",
    "evil\r\nX: y.png",
    "a" * 5000 + ".png",
    "ä中文🙂‮gnp.exe",
    "-rf.mp4",
    "concat:a|b.mp4",
    "evil.png\0.txt",
    "~/evil.png",
    "$(touch evil).png",
    ".bashrc",
    "con.png",
]


def test_names_of_uploads_stay_in_the_folder(page, files):
    content = (files / "r0.png").read_bytes()
    outside = set(page.server.folder.iterdir())
    seen = Counter()
    for name in NAMES:
        status, paths = page.upload((name, content))
        seen[status] += 1
        for path in paths:
            assert Path(os.path.realpath(path)).is_relative_to(folder_of(page.server)), name
    print(f"{len(NAMES)} names: {dict(seen)}")
    assert set(page.server.folder.iterdir()) == outside
    assert not [status for status in seen if status >= 500]
    page.works(files)


SECRETS = (b"SECRET", b"root:", b"PATH=", b"[core]", b"setuptools", b"build_page")
ROUTES = ["/gradio_api/file=", "/gradio_api/file/", "/file=", "/file/", "/static/", "/assets/", "/svelte/", "/"]
ROUTES += ["/gradio_api/proxy=", "/proxy=", "/custom_component/", "/gradio_api/custom_component/a/b/c/"]
ROUTES += ["/gradio_api/stream/", "/gradio_api/deep_link?session_hash="]
SHAPES = [
    lambda text: text,
    lambda text: "".join(f"%{byte:02x}" for byte in text.encode()),
    lambda text: "".join(f"%25{byte:02x}" for byte in text.encode()),
    lambda text: text.replace("../", "..%2f"),
    lambda text: text.replace("../", "..%5c"),
    lambda text: text.replace("../", "....//"),
    lambda text: text.replace("../", "%c0%ae%c0%ae/"),
    lambda text: text + "%00.png",
    lambda text: text + "?x=.png",
]


def test_no_file_of_others_is_shown(page, files):
    """Every trick in every route."""
    ours, up = folder_of(page.server), "../" * 12
    targets = [
        f"{ours}/../secret.txt",
        "/etc/passwd",
        f"{up}etc/passwd",
        f"{ours}/{up}etc/passwd",
        "file:///etc/passwd",
    ]
    targets += ["//etc/passwd", "/proc/self/environ", "/proc/self/fd/3", f"{ours}/", str(ours.parent / "secret.txt")]
    targets += [str(visitor.ROOT / name) for name in ("setup.py", ".git/config", "mrfomm/app/page.py")]
    paths = [route + shape(target) for route, shape, target in itertools.product(ROUTES, SHAPES, targets)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda path: page.ask("GET", path), paths))
    print(f"{len(paths)} paths: {dict(Counter(status for status, _ in answers))}")
    assert not [path for path, (_, body) in zip(paths, answers) if any(text in body for text in SECRETS)]
    assert not [path for path, (status, _) in zip(paths, answers) if status in (0, 200) or status >= 500]
    page.works(files)


def test_jobs_name_no_file_of_others_and_nothing_is_fetched(page, files):
    _, (picture, clip) = page.upload(*((name, (files / name).read_bytes()) for name in ("r0.png", "driving.mp4")))
    with socket.create_server(("127.0.0.1", 0)) as trap:
        trap.settimeout(0.5)
        address = f"http://127.0.0.1:{trap.getsockname()[1]}/x.png"
        hidden = str(folder_of(page.server).parent / "secret.txt")
        foreign = ["/etc/passwd", hidden, address, f"{picture}/../../../secret.txt"]
        statuses = [page.join(secrets.token_hex(6), [path], clip) for path in foreign]
        statuses += [page.join(secrets.token_hex(6), [picture], path) for path in foreign]
        statuses += [page.ask("GET", f"/gradio_api/{route}={address}")[0] for route in ("file", "proxy")]
        assert set(statuses) == {403, 404}
        with pytest.raises(TimeoutError):
            trap.accept()


@pytest.mark.parametrize("host", ["evil.example", "evil.example:7860", "127.0.0.1.evil.example"])
def test_pages_from_elsewhere_are_refused(page, host):
    """DNS rebinding: a name that leads to this machine."""
    assert page.ask("GET", "/config", headers={"Host": host})[0] == 400


def test_connections_that_say_nothing(page, files):
    """Held open without a request, or with half of one, while others are served."""
    with contextlib.ExitStack() as stack:
        for number in range(CROWD):
            connection = stack.enter_context(contextlib.closing(page.connect()))
            connection.connect()
            if number % 2:
                connection.sock.sendall(b"POST /gradio_api/upload HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Le")
        began = time.monotonic()
        page.works(files)
        print(f"{CROWD} silent connections: a job took {time.monotonic() - began:.1f} s")
    wait_until(lambda: descriptors(page.server) < 100)


def test_what_visitors_left_is_removed(page, server, untouched):
    """Last of all: the files of everybody above, then the folders that they were in."""
    deadline = time.monotonic() + KEPT + PATIENCE
    while everything(server) != untouched and time.monotonic() < deadline:
        time.sleep(1)
    assert sorted(everything(server) ^ untouched) == []
