"""`python -m mrfomm.convert --download`, against a server on this machine: the published files were never fetched."""

import hashlib
import http.server
import re
import signal
import socket
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest
import tiny
import yaml
from test_conversion import sony_file

from mrfomm.convert import __main__ as convert
from mrfomm.convert.download import PUBLISHED, published
from mrfomm.errors import UserError
from mrfomm.model.checkpoint import load_checkpoint
from mrfomm.reenactment.backends import load_weights

ROOT = Path(__file__).parent.parent.parent


class Site(http.server.BaseHTTPRequestHandler):
    """/whole.h5, /cut.h5 (the connection ends half-way), /slow.h5 (never ends), /moved.h5; 404 for others."""

    content = b""

    def do_GET(self):
        if self.path == "/moved.h5":
            self.send_response(302)
            self.send_header("Location", "/whole.h5")
            self.end_headers()
            return
        if self.path not in ("/whole.h5", "/cut.h5", "/slow.h5"):
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()
        self.wfile.write(self.content if self.path == "/whole.h5" else self.content[: len(self.content) // 2])
        self.wfile.flush()
        if self.path == "/slow.h5":
            self.server.ended.wait(60)

    def log_message(self, *_):
        pass


@pytest.fixture
def site(tmp_path):
    """The address of a Site that offers tiny weights in Sony's layout, and of its folder."""
    sony_file(tmp_path / "theirs.h5", tiny.config().model)
    Site.content = (tmp_path / "theirs.h5").read_bytes()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        server.ended = threading.Event()
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.ended.set()
        server.shutdown()


def sources(folder, url, checksum=""):
    path = folder / "sources.yaml"
    path.write_text(yaml.safe_dump({"vox": {"url": url, "checksum": checksum}}))
    return path


def arguments(folder, url, checksum=""):
    config = folder / "ours.yaml"
    config.write_text(yaml.safe_dump({"model": {**tiny.VALUES["model"], "fusion": {"mode": "mean"}}}))
    named = ["--sources", str(sources(folder, url, checksum)), "--config", str(config)]
    return ["--download", "vox", *named, "-o", str(folder / "weights" / "vox")]


def digests():
    return {kind: hashlib.new(kind, Site.content).hexdigest() for kind in ("md5", "sha256")}


def left(folder):
    return sorted(path.name for path in (folder / "weights").iterdir())


@pytest.mark.parametrize("kind", ["md5", "sha256"])
@pytest.mark.parametrize("name", ["whole", "moved"])
def test_the_right_file_becomes_a_checkpoint(site, tmp_path, kind, name, capsys):
    assert convert.main(arguments(tmp_path, f"{site}/{name}.h5", f"{kind}:{digests()[kind].upper()}")) == 0
    assert left(tmp_path) == sorted([f"{name}.h5", "vox"])
    assert (tmp_path / "weights" / f"{name}.h5").read_bytes() == Site.content
    assert load_checkpoint(tmp_path / "weights" / "vox").state["source"] == f"{name}.h5"
    assert "VoxCeleb" in load_weights(tmp_path / "weights" / "vox").knowledge.trained_on
    assert "no checksum" not in capsys.readouterr().err


def test_weights_of_another_name_know_no_talking_heads(site, tmp_path):
    given = arguments(tmp_path, f"{site}/whole.h5")
    file = tmp_path / "sources.yaml"
    file.write_text(file.read_text().replace("vox:", "dances:"))
    convert.main(["--download", "dances", *given[2:]])
    assert load_weights(tmp_path / "weights" / "vox").knowledge.trained_on == "what whole.h5 was trained on"


def test_without_a_checksum_the_digest_is_told_and_that_it_was_not_compared(site, tmp_path, capsys):
    convert.main(arguments(tmp_path, f"{site}/whole.h5"))
    told = capsys.readouterr().err
    assert f"sha256 {digests()['sha256']}; its publishers name no checksum to compare it with" in told


def test_the_users_checksum_counts(site, tmp_path):
    given = arguments(tmp_path, f"{site}/whole.h5", f"md5:{digests()['md5']}")
    with pytest.raises(UserError, match="sha256 is .*, not 0000"):
        convert.main([*given, "--checksum", f"sha256:{'0' * 64}"])
    assert left(tmp_path) == []


def test_a_file_that_is_there_is_compared_not_fetched(site, tmp_path, capsys):
    given = arguments(tmp_path, f"{site}/whole.h5", f"md5:{digests()['md5']}")
    (tmp_path / "weights").mkdir()
    file = tmp_path / "weights" / "whole.h5"
    file.write_bytes(b"of another time")
    with pytest.raises(UserError, match="another file than was published; delete it and try again"):
        convert.main(given)
    assert file.read_bytes() == b"of another time"
    file.write_bytes(Site.content)
    given[3] = str(sources(tmp_path, "http://127.0.0.1:1/whole.h5", f"md5:{digests()['md5']}"))
    assert convert.main(given) == 0
    assert "is there already" in capsys.readouterr().err


def test_a_wrong_file_is_refused_and_nothing_left(site, tmp_path):
    with pytest.raises(UserError, match=f"md5 is {digests()['md5']}, not {'0' * 32}"):
        convert.main(arguments(tmp_path, f"{site}/whole.h5", f"md5:{'0' * 32}"))
    assert left(tmp_path) == []


@pytest.mark.parametrize("checksum", ["", "known"])
def test_a_connection_that_ends_early(site, tmp_path, checksum):
    known = f"md5:{digests()['md5']}" if checksum else ""
    with pytest.raises(UserError, match=r"cut\.h5: can't be fetched \(\d+ of \d+ bytes came\); try again"):
        convert.main(arguments(tmp_path, f"{site}/cut.h5", known))
    assert left(tmp_path) == []


def test_not_found(site, tmp_path):
    with pytest.raises(UserError, match=r"none\.h5: can't be fetched \(HTTP Error 404: Not Found\)"):
        convert.main(arguments(tmp_path, f"{site}/none.h5"))
    assert left(tmp_path) == []


def test_connection_refused(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/x.h5"
    with pytest.raises(UserError, match="can't be fetched .*Connection refused.* fetch it by hand"):
        convert.main(arguments(tmp_path, url))
    assert left(tmp_path) == []


def test_an_interrupted_fetch_leaves_nothing(site, tmp_path):
    command = [sys.executable, "-m", "mrfomm.convert", *arguments(tmp_path, f"{site}/slow.h5")]
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs don't hear Ctrl-C
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, preexec_fn=heard) as process:
        while b"fetching" not in process.stderr.read1():
            pass
        process.send_signal(signal.SIGINT)
        assert process.stderr.read().splitlines()[-1] == b"interrupted"
    assert process.returncode == 130
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    ("entries", "named"),
    [
        ({"other": {"url": "https://x/y"}}, "--download vox: .* has other; give one of these"),
        ({"vox": {"url": "file:///etc/passwd"}}, "vox: url 'file:///etc/passwd' is no address of a file"),
        ({"vox": {"url": "https://x/"}}, "is no address of a file"),
        ({"vox": "https://x/y"}, "vox: url '' is no address"),
        ({"vox": {"url": "https://x/y", "checksum": "sha256:12"}}, "checksum sha256:12: write md5: or sha256:"),
        ({"vox": {"url": "https://x/y", "checksum": "0" * 64}}, "checksum 000"),
    ],
)
def test_bad_sources_are_named(tmp_path, entries, named):
    path = tmp_path / "sources.yaml"
    path.write_text(yaml.safe_dump(entries))
    with pytest.raises(UserError, match=named):
        published("vox", path)


@pytest.mark.parametrize(
    "words", [[], ["x.pth"], ["x.pth", "--download", "vox"], ["x", "-o", "y", "--checksum", "md5:0"]]
)
def test_what_is_to_be_converted_is_asked_for(words, capsys):
    with pytest.raises(SystemExit):
        convert.main(words)
    assert re.search("give SRC|--checksum: is for", capsys.readouterr().err)


def test_the_bundled_addresses():
    """What they lead to is not known here: there is no network. The MD5 is the one that avatarify names."""
    vox, adversarial = published("vox"), published("vox-adv")
    assert (vox.file_name, vox.checksum) == ("vox-cpk.pth.tar", "")
    assert adversarial.checksum == "md5:8a45a24037871c045fbb8a6a8aa95ebc"
    assert all(entry["url"].startswith("https://") for entry in yaml.safe_load(PUBLISHED.read_text()).values())
    assert convert.parse_arguments(["--download", "vox"]).sources == PUBLISHED
