"""python -m eval.report: what stands on the page, from folders that the commands wrote."""

import base64
import io
import re
import shutil
from html.parser import HTMLParser
from types import SimpleNamespace

import imageio.v2 as imageio
import numpy as np
import pytest
import tiny

from eval import bins, reconstruction, report
from eval.results import read_rows, write_rows
from mrfomm.commands import animate, reconstruct
from mrfomm.errors import UserError
from mrfomm.reenactment.reconstruction import read_run

ANGLES = (-29, 1, 31)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with the results of every command, of the tiny model: run, scores, bins, masks."""
    folder = tmp_path_factory.mktemp("files")
    tiny.checkpoint(folder / "weights")
    model = ["--weights", str(folder / "weights"), "--context", "cpu", "--backend", "nnabla"]
    for seed, name in enumerate(("ann#0", "bob<b>#1")):
        write_frames(folder / "data" / "test" / name, tiny.frames(4, seed=seed))
    reconstruct.main([*model, "--data", str(folder / "data"), "--output", str(folder / "run")])
    scored = [str(folder / "run"), "--context", "cpu", "--landmarks", "none", "--identity", "none"]
    reconstruction.main([*scored, "--output", str(folder / "scores")])
    for seed, name in enumerate(("ann_lamp", "bob_sun")):
        write_frames(folder / "recordings" / name / "yaw", tiny.frames(len(ANGLES), seed=seed))
        rows = [f"{i},{angle},0,0" for i, angle in enumerate(ANGLES)]
        (folder / "recordings" / name / "yaw.csv").write_text("\n".join(["frame,yaw,pitch,roll", *rows]))
    bins.main([*model, "--data", str(folder / "recordings"), "--output", str(folder / "bins")])
    references = [str(path) for path in sorted((folder / "data" / "test" / "ann#0").glob("*.png"))[:2]]
    driving = ["--driving", str(folder / "data" / "test" / "bob<b>#1"), "--output", str(folder / "frames")]
    animate.main([*model, *driving, "--refs", *references, "--masks", str(folder / "masks")])
    return folder


def write_frames(folder, images):
    folder.mkdir(parents=True)
    for i, image in enumerate(images):
        imageio.imwrite(folder / f"{i}.png", image)


class Page(HTMLParser):
    """pictures: (caption, uint8 [H,W,3]) of every figure; tables: rows of cells; tags and addresses."""

    def __init__(self, text):
        super().__init__()
        self.pictures, self.rows, self.tags, self.addresses, self._cell = [], [], set(), [], False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.tags.add(tag)
        self.addresses += [values[name] for name in ("src", "href") if name in values]
        if tag == "img":
            content = base64.b64decode(values["src"].split(",")[1])
            self.pictures.append((values["alt"], imageio.imread(io.BytesIO(content))))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._cell = True

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self._cell = False

    def handle_data(self, data):
        if self._cell:
            self.rows[-1][-1] += data


def make(files, tmp_path, *arguments):
    """The page of results in ``files``: its text, and parsed."""
    paths = [str(files / name) if (files / name).exists() else name for name in arguments]
    assert report.main([*paths, "-o", str(tmp_path / "report.html")]) == 0
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    return SimpleNamespace(text=text, **vars(Page(text)))


def test_page_needs_nothing_else(files, tmp_path):
    page = make(files, tmp_path, "run", "scores", "bins", "masks")
    assert all(address.startswith(("data:image/png;base64,", "#result-")) for address in page.addresses)
    assert not page.tags & {"script", "link", "iframe", "object"}
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_names_are_escaped(files, tmp_path):
    page = make(files, tmp_path, "run", "--title", "<i>mine</i>")
    assert "b" not in page.tags
    assert "i" not in page.tags
    assert any("bob<b>#1" in caption for caption, _ in page.pictures)


def test_best_and_worst_frames_stand_beside_the_truth(files, tmp_path):
    page = make(files, tmp_path, "run", "--frames", "2")
    run = read_run(files / "run")
    rows = sorted((frame.l1, row.clip, frame) for row in run.rows for frame in row.frames)
    assert len(page.pictures) == 4
    for (caption, picture), (l1, clip, frame) in zip(page.pictures, [*rows[:2], *rows[:-3:-1]]):
        assert f"L1D {l1:.4f}: {clip}, frame {frame.frame};" in caption
        truth = imageio.imread(files / "data" / "test" / clip / f"{frame.frame}.png")
        np.testing.assert_array_equal(picture[::4, : 32 * 4 : 4], truth)
        np.testing.assert_array_equal(picture[::4, 34 * 4 :: 4], imageio.imread(files / "run" / frame.file))


def test_tables_are_the_commands_own(files, tmp_path):
    page = make(files, tmp_path, "scores", "bins")
    for name in ("scores", "bins"):
        lines = (files / name / "table.md").read_text(encoding="utf-8").splitlines()
        table = [line for line in lines if line.startswith("|") and not line.startswith("| --")]
        cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
        assert len(cells) > 2
        assert all(row in page.rows for row in cells)


def test_configuration_is_exact(files, tmp_path):
    page = make(files, tmp_path, "run", "scores", "bins")
    settings = read_run(files / "run").settings
    assert page.text.count(settings.weights) == 2
    assert "&#34;bin_width&#34;: 2" in page.text
    assert page.text.count("python -m eval.") >= 3


def test_curves_are_of_the_rows(files, tmp_path, monkeypatch):
    """What is drawn is, bin by bin, what the rows say."""
    drawn = []

    def draw(path, results, names, measure):
        drawn.extend(results)
        imageio.imwrite(path, np.zeros((4, 4, 3), np.uint8), format="png")

    monkeypatch.setattr(report, "draw_curves", draw)
    make(files, tmp_path, "bins")
    rows = read_rows(files / "bins" / "bins.jsonl")
    expected = [(r["method"], r["reference"], r["driving"], r["sequence"], r["angle"], r["lpips"]) for r in rows]
    assert [(*result[:4], b.angle, b.distance) for result in drawn for b in result.score.bins] == expected


def test_curves_are_a_picture(files, tmp_path):
    ((caption, picture),) = make(files, tmp_path, "bins").pictures
    assert "lpips" in caption
    assert picture.shape[1] > 1000
    assert len(np.unique(picture)) > 20


def test_frames_of_the_worst_bin(files, tmp_path):
    """Bins of 2 degrees around the three angles hold one frame each: the one with the angle."""
    page = make(files, tmp_path, "bins", "--data", str(files / "recordings"), "--frames", "1")
    worst = max(read_rows(files / "bins" / "bins.jsonl"), key=lambda row: row["lpips"])
    caption, picture = page.pictures[-1]
    assert f"lpips {worst['lpips']:.4f} at yaw {worst['angle']:g}: " in caption
    index = min(range(3), key=lambda i: abs(ANGLES[i] - worst["angle"]))
    truth = imageio.imread(files / "recordings" / worst["reference"] / "yaw" / f"{index}.png")
    made = files / "bins" / "generated" / worst["method"] / worst["reference"] / worst["driving"] / "yaw"
    np.testing.assert_array_equal(picture[::4, : 32 * 4 : 4], truth)
    np.testing.assert_array_equal(picture[::4, 34 * 4 :: 4], imageio.imread(sorted(made.glob("*.png"))[index]))


def test_frames_of_another_method_are_shown(files, tmp_path):
    """Black pictures in folders apart from eval.bins' own are the worst: they stand on the page."""
    for reference, driving in (("ann_lamp", "bob_sun"), ("bob_sun", "ann_lamp")):
        black = np.zeros((len(ANGLES), 32, 32, 3), np.uint8)
        write_frames(tmp_path / "black" / reference / driving / "yaw", black)
    arguments = ["--data", str(files / "recordings"), "--generated", str(tmp_path / "black"), "--context", "cpu"]
    bins.main([*arguments, "--output", str(tmp_path / "bins")])
    page = make(files, tmp_path, str(tmp_path / "bins"), "--data", str(files / "recordings"), "--frames", "1")
    caption, picture = page.pictures[-1]
    assert "black, " in caption
    assert not picture[::4, 34 * 4 :: 4].any()


def change_truth(folder):
    imageio.imwrite(folder / "recordings" / "ann_lamp" / "yaw" / "1.png", tiny.frames(1, seed=9)[0])


def change_angles(folder):
    path = folder / "recordings" / "ann_lamp" / "yaw.csv"
    path.write_text(path.read_text().replace("-29", "-28.5"))


def change_generated(folder):
    for path in folder.glob("bins/generated/*/*/*/yaw/000001.png"):
        imageio.imwrite(path, tiny.frames(1, seed=9)[0])


@pytest.mark.parametrize("change", [change_truth, change_angles, change_generated])
def test_a_clip_that_changed_since_is_not_shown_beside_its_old_score(files, tmp_path, change):
    """Made again, as the message says, it is."""
    for name in ("recordings", "bins"):
        shutil.copytree(files / name, tmp_path / name)
    page = [str(tmp_path / "bins"), "--data", str(tmp_path / "recordings"), "-o", str(tmp_path / "page.html")]
    report.main(page)
    change(tmp_path)
    with pytest.raises(UserError, match="isn't what was scored; give the same --data, or run eval.bins again"):
        report.main(page)
    model = ["--weights", str(files / "weights"), "--context", "cpu", "--backend", "nnabla"]
    bins.main([*model, "--data", str(tmp_path / "recordings"), "--output", str(tmp_path / "bins")])
    assert report.main(page) == 0


@pytest.mark.parametrize("changed", ["data/test/ann#0/0.png", "run/frames/ann#0/000000.png"])
def test_a_rebuilt_frame_that_changed_is_not_shown_with_its_old_l1d(files, tmp_path, changed):
    for name in ("run", "data"):
        shutil.copytree(files / name, tmp_path / name)
    text = (tmp_path / "run" / "manifest.jsonl").read_text().replace(str(files), str(tmp_path))
    (tmp_path / "run" / "manifest.jsonl").write_text(text)
    page = [str(tmp_path / "run"), "--frames", "8", "-o", str(tmp_path / "page.html")]
    report.main(page)
    imageio.imwrite(tmp_path / changed, tiny.frames(1, seed=9)[0])
    with pytest.raises(UserError, match="frame 0 of .*ann#0, but .* in the manifest: one of them has changed"):
        report.main(page)


def test_scores_from_before_frames_were_named(files, tmp_path):
    shutil.copytree(files / "bins", tmp_path / "bins")
    rows = [{k: v for k, v in row.items() if k != "digests"} for row in read_rows(tmp_path / "bins" / "scores.jsonl")]
    write_rows(tmp_path / "bins" / "scores.jsonl", rows)
    assert make(files, tmp_path, str(tmp_path / "bins")).pictures
    with pytest.raises(UserError, match="scores.jsonl: doesn't name the frames; leave out --data"):
        make(files, tmp_path, str(tmp_path / "bins"), "--data", str(files / "recordings"))


def test_masks_are_an_even_choice(files, tmp_path):
    page = make(files, tmp_path, "masks")
    assert [re.match(r"\d+", caption).group() for caption, _ in page.pictures] == [f"{i:06d}" for i in range(4)]
    np.testing.assert_array_equal(page.pictures[2][1], enlarged(imageio.imread(files / "masks" / "000002.png")))


def enlarged(picture):
    factor = max(1, 400 // len(picture))
    return picture.repeat(factor, 0).repeat(factor, 1)


BAD = [
    (["none"], "none: no result"),
    (["weights"], "weights: no result"),
    (["run", "--frames", "0"], "--frames 0"),
    (["bins", "--data", "none"], "none"),
]


@pytest.mark.parametrize(("arguments", "named"), BAD, ids=[named for _, named in BAD])
def test_bad_input_is_named_and_nothing_is_left(files, tmp_path, arguments, named):
    with pytest.raises(UserError, match=named):
        make(files, tmp_path, *arguments)
    assert list(tmp_path.iterdir()) == []


def test_an_old_page_stays_if_the_new_one_fails(files, tmp_path):
    page = tmp_path / "report.html"
    page.write_text("old")
    with pytest.raises(UserError):
        make(files, tmp_path, "run", "none")
    assert page.read_text() == "old"


def test_output_that_cannot_be_written(files, tmp_path):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(UserError, match=r"file/report\.html"):
        report.main([str(files / "run"), "-o", str(tmp_path / "file" / "report.html")])
