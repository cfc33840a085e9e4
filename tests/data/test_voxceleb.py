"""VoxCeleb's metadata files: read as they are, refused when they aren't."""

import pytest

from mrfomm.data.preparing.cutting import Region
from mrfomm.data.preparing.voxceleb import TEST_IDENTITIES, read_utterance, read_utterances
from mrfomm.errors import UserError

HEADER = (
    "Identity  : \tid10001\n"
    "Reference : \t1zcIwhmdeo4\n"
    "Offset    : \t-2\n"
    "FV Conf   : \t18.549\t(1)\n"
    "ASD Conf  : \t4.766\n"
    "\n"
)
SHARES = HEADER + "FRAME \tX \tY \tW \tH \n000123 \t0.401 \t0.2 \t0.15 \t0.25\n000124 \t0.41 \t0.2 \t0.15 \t0.25\n"
PIXELS = HEADER + "FRAME \tX \tY \tW \tH \n004140 \t383 \t151 \t133 \t133\n"


def write(folder, text, name="00001.txt"):
    path = folder / name
    path.write_text(text)
    return path


def test_boxes_in_shares_of_the_frame(tmp_path):
    utterance = read_utterance(write(tmp_path, SHARES))
    assert (utterance.identity, utterance.video) == ("id10001", "1zcIwhmdeo4")
    assert [number for number, _ in utterance.track] == [123, 124]
    region = utterance.pixels(utterance.track[0][1], (400, 1000, 3))
    assert region == pytest.approx(Region(401, 80, 551, 180))


def test_boxes_in_pixels_at_a_height_of_360(tmp_path):
    utterance = read_utterance(write(tmp_path, PIXELS))
    region = utterance.pixels(utterance.track[0][1], (720, 1280, 3))
    assert region == pytest.approx(Region(766, 302, 1032, 568))


def test_windows_line_ends_are_read_alike(tmp_path):
    path = tmp_path / "00001.txt"
    path.write_bytes(SHARES.replace("\n", "\r\n").encode())
    assert read_utterance(path) == read_utterance(write(tmp_path, SHARES, "00002.txt"))


@pytest.mark.parametrize(
    ("text", "line", "expected"),
    [
        ("", 1, "Identity"),
        (SHARES.replace("Identity", "Person"), 1, "Identity"),
        (SHARES.replace("\t1zcIwhmdeo4", ""), 2, "Reference"),
        (SHARES.replace("Offset    : \t-2\n", ""), 3, "Offset"),
        (HEADER, 7, "FRAME X Y W H"),
        (SHARES.replace("FRAME \tX", "FRAME \tU"), 7, "FRAME X Y W H"),
        (HEADER + "FRAME X Y W H\n", 8, "a row"),
        (SHARES.replace("000124 \t0.41", "000124 \tO.41"), 9, "four numbers"),
        (SHARES + "000125 \t0.4 \t0.2 \t0.15\n", 10, "four numbers"),
        (SHARES + "000125 \t0.4 \t0.2 \t0 \t0.1\n", 10, "positive size"),
        (SHARES + "000125 \tnan \t0.2 \t0.1 \t0.1\n", 10, "positive size"),
        (SHARES + "000124 \t0.4 \t0.2 \t0.1 \t0.1\n", 10, "a frame after 124"),
    ],
)
def test_errors_name_file_and_line(tmp_path, text, line, expected):
    path = write(tmp_path, text)
    with pytest.raises(UserError, match=rf"00001.txt, line {line}: expected .*{expected}"):
        read_utterance(path)


def test_files_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "00001.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="00001.txt: can't be read"):
        read_utterances(tmp_path)


def test_links_to_folders_are_followed(tmp_path):
    (tmp_path / "drive" / "id10001").mkdir(parents=True)
    write(tmp_path / "drive" / "id10001", PIXELS, "00001.txt")
    (tmp_path / "txt").mkdir()
    (tmp_path / "txt" / "id10001").symlink_to(tmp_path / "drive" / "id10001")
    assert len(read_utterances(tmp_path / "txt")) == 1


def test_a_folder_is_read_in_order(tmp_path):
    (tmp_path / "id10001" / "1zcIwhmdeo4").mkdir(parents=True)
    write(tmp_path / "id10001" / "1zcIwhmdeo4", PIXELS, "00002.txt")
    write(tmp_path / "id10001" / "1zcIwhmdeo4", SHARES, "00001.txt")
    assert [u.in_shares for u in read_utterances(tmp_path)] == [True, False]
    with pytest.raises(UserError, match="nowhere: holds no .txt"):
        read_utterances(tmp_path / "nowhere")


def test_official_test_set_has_40_speakers():
    assert len(TEST_IDENTITIES) == 40
    assert {"id10270", "id10309"} <= TEST_IDENTITIES
