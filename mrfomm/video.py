"""Images, clips and folders of frames, in and out. Every frame is an RGB array, uint8 [H,W,3].

Clips stream through ffmpeg (the binary that imageio-ffmpeg carries): memory does not grow with their length.
Frames come and go at a constant rate: frame ``n`` is what a player shows at ``n / fps`` seconds, in step
with the sound. Output is written aside and renamed: a failed run leaves no half file and loses no old one.
"""

import contextlib
import dataclasses
import fcntl
import functools
import io
import os
import re
import shutil
import struct
import subprocess
import tempfile
import warnings
import zlib
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO, Callable, Generator, Iterable, Iterator, List, NamedTuple, Optional, Tuple, cast

import cv2
import imageio_ffmpeg
import numpy as np
from PIL import Image, ImageOps, PngImagePlugin

from mrfomm.errors import AnyPath, UserError, check_is_file

FOLDER_FPS = 25.0  # VoxCeleb's rate: a folder of images says nothing of time
IMAGE_SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"))

# what Pillow's decoders raise
_BROKEN_IMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)
_FRAME_NAME = re.compile(r"\d{6,}\.png")
_STAGING, _NEW_STAGING = ".mrfomm-", ".new-mrfomm-"  # how folders for unfinished output begin

# What ffmpeg may take a file for: containers, streams, sound, and stills and text, which are refused with a better
# message. A playlist or a list of files (hls, concat, dash, sdp) would have it open others.
_FORMATS = (
    "mov,matroska,webm,avi,gif,apng,webp_anim,flv,asf,mpeg,mpegts,mpegvideo,ogg,mxf,dv,nut,ivf,rm,wtv,h264,hevc,m4v,mjpeg,"
    "yuv4mpegpipe,wav,mp3,aac,flac,image2,tty,bmp_pipe,jpeg_pipe,pam_pipe,pgm_pipe,png_pipe,ppm_pipe,tiff_pipe,webp_pipe"
)

# Matroska's Segment with a length that was unknown when its recording began, as browsers write it
_LIVE_SEGMENT = b"\x18\x53\x80\x67\x01" + b"\xff" * 7


# Images


def read_image(path: AnyPath) -> np.ndarray:
    """Read an image file as uint8 [H,W,3] RGB, turned upright by its EXIF orientation.

    Alpha is dropped, as FOMM does; of 16 bits the high byte is kept, as libpng and OpenCV do; grey and
    palette images become RGB; of an animation the first frame is read.

    Raises:
        UserError: missing, a folder, not an image, truncated, 32 bits per channel, or too many pixels
            (Pillow's own limit against decompression bombs, 89 megapixels).
    """
    check_is_file(path)
    with _readable(path), Image.open(path) as image:
        image.load()
        upright = ImageOps.exif_transpose(image)
    return _to_rgb(path, upright)


@contextlib.contextmanager
def _readable(path: AnyPath) -> Iterator[None]:
    """Name the file in what Pillow raises."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of metadata that is damaged beside a picture that is whole
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        limit = (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        raise UserError(f"{path}: more than {limit} megapixels; make the image smaller") from error
    except _BROKEN_IMAGE as error:
        raise UserError(f"{path}: not a readable image ({error}); give a whole PNG or JPEG file") from error


def _to_rgb(path: AnyPath, image: Image.Image) -> np.ndarray:
    if not image.mode.startswith(("I", "F")):
        return np.array(image.convert("RGB"))
    grey = np.asarray(image)  # convert() would clip these modes at 255
    if image.mode == "F" or grey.min() < 0 or grey.max() > 65535:
        raise UserError(f"{path}: more than 16 bits per channel; convert it to an 8-bit PNG")
    return np.repeat((grey >> 8).astype(np.uint8)[:, :, None], 3, axis=2)


def fit(frame: np.ndarray, size: int) -> np.ndarray:
    """Cut the central square out of uint8 [H,W,3] and resize it to uint8 [size,size,3].

    Shrinking averages areas, growing is bilinear. A frame that has the size already is returned as it is.
    """
    height, width = frame.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = frame[top : top + side, left : left + side]
    if side == size:
        return square
    interpolation = cv2.INTER_AREA if side > size else cv2.INTER_LINEAR
    return cv2.resize(square, (size, size), interpolation=interpolation)


# ffmpeg


# ffmpeg's fast conversion between RGB and YUV darkens a frame by one level of 255.
_EXACT_COLOURS = ("-sws_flags", "bicubic+accurate_rnd+full_chroma_int+full_chroma_inp")
_OUTPUT_PIPE = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE}


class _Ffmpeg:
    """A running ffmpeg. Its messages go to a file, as a pipe that nobody reads would block it in the end."""

    def __init__(self, arguments: Iterable[str], stdin: Optional[int] = None, stdout: Optional[int] = None) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-hide_banner", *arguments]
        self.process = subprocess.Popen(command, stdin=stdin, stdout=stdout, stderr=self._log)
        # what is a pipe can be used; Popen's own types don't know
        self.stdin = cast(BinaryIO, self.process.stdin)
        self.stdout = cast(io.BufferedReader, self.process.stdout)

    def __enter__(self) -> "_Ffmpeg":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.process.kill()  # without effect once it has ended
        with contextlib.suppress(BrokenPipeError):  # from flushing what a dead ffmpeg never took
            self.process.__exit__(None, None, None)
        self._log.close()

    def finish(self) -> Tuple[int, str]:
        """Wait for the end; return the exit code and the messages."""
        code = self.process.wait()
        self._log.seek(0)
        return code, self._log.read().decode(errors="replace")


def _ffmpeg(*arguments: str) -> Tuple[int, str, bytes]:
    """Run ffmpeg to its end; return exit code, messages and standard output."""
    with _Ffmpeg(arguments, **_OUTPUT_PIPE) as ffmpeg:
        output = ffmpeg.stdout.read()
        return (*ffmpeg.finish(), output)


def _input(path: AnyPath) -> Tuple[str, ...]:
    limit = ("-max_pixels", str(Image.MAX_IMAGE_PIXELS))  # of a frame, as for images
    return ("-protocol_whitelist", "file", "-format_whitelist", _FORMATS, *limit, "-i", _url(path))


def _url(path: AnyPath) -> str:
    return f"file:{path}"  # keeps names such as "-x.mp4" and "a:b.mp4" whole


def _complaint(log: str) -> Optional[str]:
    """The first of ffmpeg's errors, which is the most telling, without its tags (needs ``-v level+...``).

    "mmco" is not one: a clip trimmed with ``ffmpeg -ss ... -c copy`` refers to frames before its start.
    """
    found = re.search(r"\[(?:error|fatal|panic)\] (?!mmco: unref short failure)(.+)", log)
    return re.sub("(on whitelist) '.*", r"\1", found.group(1).strip()) if found else None


def _inspect(path: AnyPath, *output: str) -> Tuple[int, str, bytes]:
    """Run ffmpeg over a clip at the level where it describes the streams."""
    check_is_file(path)
    return _ffmpeg("-v", "level+info", *_input(path), *output)


# Reading


def read_comment(path: AnyPath) -> Optional[str]:
    """The comment in the metadata of a video, a gif, an image or the first image of a folder; None without one.

    Raises:
        UserError: missing, or none of these.
    """
    if os.path.isdir(path):
        path = list_images(path)[0]
    if Path(path).suffix.lower() in IMAGE_SUFFIXES:
        check_is_file(path)
        with _readable(path), Image.open(path) as image:
            return image.info.get("Comment")
    code, log, text = _inspect(path, "-f", "ffmetadata", "-")
    if code:
        raise UserError(f"{path}: not a readable video ({_complaint(log)}); give a video, a gif or a PNG")
    found = re.search(r"^comment=(.*)$", text.decode(errors="replace"), re.MULTILINE | re.IGNORECASE)
    return re.sub(r"\\(.)", r"\1", found.group(1)) if found else None


@dataclasses.dataclass(frozen=True)
class FrameSource:
    """Frames of a clip or folder, uint8 [H,W,3] RGB. Every ``iter()`` is a new pass from the first frame.

    Attributes:
        path: where the frames come from.
        fps: constant rate in frames per second.
        count_hint: number of frames for a progress bar: counted in a folder, a clip's header's, or None.
        has_audio: whether there is a sound track.
    """

    path: str
    fps: float
    count_hint: Optional[int]
    has_audio: bool
    _open: Callable[[], Iterator[np.ndarray]] = dataclasses.field(repr=False)

    def __iter__(self) -> Iterator[np.ndarray]:
        return self._open()


class _Video(NamedTuple):
    width: int
    height: int
    rate: Fraction
    count_hint: Optional[int]
    has_audio: bool


def open_frames(path: AnyPath) -> FrameSource:
    """Open a video (mp4, mov, avi, mkv, webm...), a gif, or a folder of images as uint8 [H,W,3] RGB frames.

    Videos are turned upright and given square pixels. A variable frame rate becomes the constant one that
    fits its time stamps: frames are doubled or left out, and the first one is doubled where the sound
    starts earlier. A folder's images come in natural order (2 before 10) at 25 frames per second and may
    differ in size.

    Raises:
        UserError: here for what is missing, empty or no video; while iterating, after the good frames, for a
            file that is damaged or cut short. Any error that ffmpeg reports counts, as a frame it has
            patched up is not what was filmed. A cut transport stream (.ts) or browser's recording passes for a
            short one.
    """
    return _open_folder(path) if os.path.isdir(path) else _open_video(path)


def _open_folder(path: AnyPath) -> FrameSource:
    files = list_images(path)
    return FrameSource(str(path), FOLDER_FPS, len(files), False, functools.partial(map, read_image, files))


def list_images(folder: AnyPath) -> List[Path]:
    """The images of a folder in natural order (2 before 10); hidden files don't count.

    Raises:
        UserError: there are none.
    """
    files = [entry for entry in _entries(folder) if entry.suffix.lower() in IMAGE_SUFFIXES]
    files = sorted((entry for entry in files if not entry.name.startswith(".")), key=_natural)
    if not files:
        raise UserError(f"{folder}: no image in this folder; give a folder of PNG or JPEG frames, or a video")
    return files


def _entries(folder: AnyPath) -> List[Path]:
    try:
        return list(Path(folder).iterdir())
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed ({error.strerror}); check its permissions") from error


def _natural(entry: Path) -> Tuple[list, str]:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", entry.name)], entry.name


def _open_video(path: AnyPath) -> FrameSource:
    video = _probe(path)
    frames = functools.partial(_video_frames, str(path), video)
    return FrameSource(str(path), float(video.rate), video.count_hint, video.has_audio, frames)


def _probe(path: AnyPath) -> _Video:
    """Decode one frame into ffmpeg's ``framecrc`` text: exact rate, and size after rotation."""
    code, log, text = _inspect(path, "-map", "0:V:0", "-frames:v", "1", "-f", "framecrc", "-")
    time_base = re.search(rb"#tb 0: (\d+)/(\d+)", text)
    size = re.search(rb"#dimensions 0: (\d+)x(\d+)", text)
    frame = re.search(rb"^0,", text, re.MULTILINE)
    if code or not (time_base and size and frame):
        reason = _complaint(log) or "no frame in it"
        raise UserError(f"{path}: not a readable video ({reason}); give a whole mp4 or another video")
    _check_moving_and_whole(path, log)
    rate = _constant_rate(path, 1 / Fraction(*map(int, time_base.groups())), log)
    seconds = _duration(log)
    aspect = _pixel_aspect(text)
    return _Video(
        width=max(1, round(int(size.group(1)) * aspect)),
        height=int(size.group(2)),
        rate=rate,
        count_hint=None if seconds is None else max(1, round(seconds * rate)),
        has_audio=_audio_codec(log) is not None,
    )


def _check_moving_and_whole(path: AnyPath, log: str) -> None:
    """Refuse what ffmpeg reads without a word: stills, text, and some files that were cut short."""
    described = re.search(r"Input #0, (\S+), from", log)
    container = described.group(1) if described else ""
    if container in ("image2", "tty") or container.endswith("_pipe"):
        raise UserError(f"{path}: a still image or text; give a video, a gif or a folder of images")
    length_by_container = {"avi": _riff_length, "gif": _gif_length, "mov,mp4,m4a,3gp,3g2,mj2": _mp4_length}
    length = length_by_container.get(container)
    if length is not None:
        with open(path, "rb") as file:
            cut = length(file) > os.path.getsize(path)
        if cut:
            raise UserError(f"{path}: the file is cut short; copy or export it again")


def _riff_length(file: BinaryIO) -> int:
    return 8 + int.from_bytes(file.read(8)[4:], "little")


def _gif_length(file: BinaryIO) -> int:
    """One more than there is if the trailer, a semicolon, is missing."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 4096))
    return size if file.read().rstrip(b"\0").endswith(b";") else size + 1


def _mp4_length(file: BinaryIO) -> int:
    """Where the last box ends. A box starts with its length (4 bytes; or 1: after the name), a name (4)."""
    size = file.seek(0, os.SEEK_END)
    position, length = 0, 8
    while position + 8 <= size and length >= 8:  # a length of 0: to the end of the file
        file.seek(position)
        head = file.read(16)
        length = int.from_bytes(head[8:] if head[:4] == b"\0\0\0\1" else head[:4], "big")
        position += length
    return position


def _constant_rate(path: AnyPath, guess: Fraction, log: str) -> Fraction:
    """ffmpeg's guess, the coarsest grid that all time stamps lie on, unless it would mostly repeat frames.

    The grid of an irregular gif can be as fine as 1/100 s, that of a browser's recording is 1/1000 s: their average
    rate serves better.
    """
    if guess <= 60:
        return guess
    told = re.search(r"Video: .*?, ([\d.]+) fps", log)
    average = Fraction(told.group(1)) if told else _average_rate(path)
    return average if 0 < 1.5 * average < guess else guess


def _average_rate(path: AnyPath) -> Fraction:
    """By the time stamps of all frames, without decoding them; 0 for a single frame."""
    _, _, text = _inspect(path, "-map", "0:V:0", "-c", "copy", "-f", "framecrc", "-")
    unit = re.search(rb"#tb 0: (\d+)/(\d+)", text)
    stamps = [int(stamp) for stamp in re.findall(rb"^0, *-?\d+, *(-?\d+),", text, re.MULTILINE)]
    if unit is None or max(stamps) == min(stamps):
        return Fraction(0)
    seconds = (max(stamps) - min(stamps)) * Fraction(*map(int, unit.groups()))
    return ((len(stamps) - 1) / seconds).limit_denominator(1001)


def _duration(log: str) -> Optional[Fraction]:
    found = re.search(r"Duration: (\d+):(\d+):(\d+\.\d+)", log)
    if not found:
        return None
    hours, minutes, seconds = map(Fraction, found.groups())
    return 3600 * hours + 60 * minutes + seconds


def _pixel_aspect(text: bytes) -> Fraction:
    """Width over height of one pixel; "0/1" stands for unknown."""
    found = re.search(rb"#sar 0: (\d+)/(\d+)", text)
    across, down = map(int, found.groups()) if found else (1, 1)
    return Fraction(across, down) if across and down else Fraction(1)


def _audio_codec(log: str) -> Optional[str]:
    found = re.search(r"Stream #0:\d+.*?: Audio: (\w+)", log)
    return found.group(1) if found else None


def _video_frames(path: str, video: _Video) -> Iterator[np.ndarray]:
    constant = f"fps={video.rate}:start_time=0"  # ffmpeg's default shows a frame after a gap too early
    arguments = ["-v", "level+error", "-xerror", *_input(path), "-map", "0:V:0", "-vf", constant]
    arguments += ["-s", f"{video.width}x{video.height}", "-f", "rawvideo", "-pix_fmt", "rgb24"]
    with _Ffmpeg([*arguments, *_EXACT_COLOURS, "-"], **_OUTPUT_PIPE) as ffmpeg:
        filled = yield from _raw_frames(ffmpeg.stdout, (video.height, video.width, 3))
        code, log = ffmpeg.finish()
    if _is_live(path):  # ffmpeg misses a length at its end, however whole it is
        log = re.sub(r"\[error\] File ended prematurely", "", log)
    complaint = _complaint(log) or (f"exit code {code}" if code else "half a frame" if filled else None)
    if complaint:
        raise UserError(
            f"{path}: damaged or cut short ({complaint}); get a whole copy, or keep what is left of it: "
            f"ffmpeg -i {path} repaired.mp4"
        )


def _is_live(path: str) -> bool:
    with open(path, "rb") as file:
        return _LIVE_SEGMENT in file.read(4096)


def _raw_frames(pipe: io.BufferedReader, shape: Tuple[int, int, int]) -> Generator[np.ndarray, None, int]:
    """Yield whole frames; return the number of bytes of a last, incomplete one."""
    while True:
        frame = np.empty(shape, np.uint8)
        filled = pipe.readinto(frame.reshape(-1).data)
        if filled < frame.nbytes:
            return filled
        yield frame


# Writing


class _Container(NamedTuple):
    encoding: Tuple[str, ...]
    multiple: int  # what height and width must be a multiple of
    muxing: Tuple[str, ...] = ()
    copied_audio: Tuple[str, ...] = ()  # the codecs that players expect in it
    other_audio: str = ""  # the encoder for all others; "": the container has no sound


class _Audio(NamedTuple):
    path: str
    codec: str


_H264 = (*_EXACT_COLOURS, "-c:v", "libx264", "-crf", "18", "-pix_fmt", "yuv420p")
_MP4 = _Container(_H264, 2, ("-movflags", "+faststart"), ("aac", "mp3"), "aac")
# One palette per frame: a palette for the whole clip would make ffmpeg hold all frames in memory.
_GIF = ("-vf", "split[a][b];[a]palettegen=stats_mode=single[palette];[b][palette]paletteuse=new=1")
_CONTAINERS = {
    ".mp4": _MP4,
    ".mov": _MP4,
    ".mkv": _Container(_H264, 2, (), ("aac", "mp3", "opus", "vorbis", "flac"), "aac"),
    # AVI has no time stamps: B-frames and a codec's delay would move the pictures
    ".avi": _Container((*_H264, "-bf", "0"), 2, other_audio="pcm_s16le"),
    ".gif": _Container(_GIF, 1),
}


class FrameSink:
    """Takes frames one by one; made by :func:`open_sink`. ``count`` is the number of frames taken so far."""

    def __init__(self, target: Path) -> None:
        self.count = 0
        self._target = target

    def write(self, frame: np.ndarray) -> None:
        """Add one frame, uint8 [H,W,3] RGB.

        Raises:
            UserError: the disk is full or ffmpeg fails.
            ValueError: not such an array, or not the size of the frames before it in a video or gif.
        """
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            raise ValueError(f"a frame is uint8 [H,W,3], not {frame.dtype} {list(frame.shape)}")
        self._put(frame)
        self.count += 1

    def _put(self, frame: np.ndarray) -> None:
        raise NotImplementedError

    def _finish(self) -> Path:
        """Complete the output; return where it stands aside."""
        raise NotImplementedError

    def _release(self) -> None:
        """Stop what is still running, after success or failure."""


class _FolderSink(FrameSink):
    def __init__(self, target: Path, staging: Path, comment: Optional[str]) -> None:
        super().__init__(target)
        self._folder = staging / "frames"
        self._folder.mkdir()
        self._text = PngImagePlugin.PngInfo()
        if comment is not None:
            self._text.add_text("Comment", comment)

    def _put(self, frame: np.ndarray) -> None:
        with _named_errors(self._target):
            # level 1 is three times as fast as the default and a tenth larger
            path = self._folder / f"{self.count:06d}.png"
            Image.fromarray(frame).save(path, compress_level=1, pnginfo=self._text)

    def _finish(self) -> Path:
        return self._folder


class _VideoSink(FrameSink):
    def __init__(
        self, target: Path, staging: Path, fps: float, audio: Optional[_Audio], comment: Optional[str]
    ) -> None:
        super().__init__(target)
        self._staging = staging
        self._rate = Fraction(float(fps)).limit_denominator(1001)  # 23.976... becomes 24000/1001 again
        self._container = _CONTAINERS[target.suffix.lower()]
        self._audio = audio
        self._comment = comment
        self._shape: Tuple[int, ...] = ()
        self._ffmpeg: Optional[_Ffmpeg] = None

    def _put(self, frame: np.ndarray) -> None:
        padding = [(0, -length % self._container.multiple) for length in frame.shape[:2]]
        padded = np.pad(frame, [*padding, (0, 0)], mode="edge")
        if self._ffmpeg is None:
            self._shape = frame.shape
            self._ffmpeg = self._start(*padded.shape[:2])
        if frame.shape != self._shape:
            raise ValueError(f"frame {self.count} is {list(frame.shape)}, the first is {list(self._shape)}")
        try:
            self._ffmpeg.stdin.write(padded.data.cast("B"))
        except BrokenPipeError:  # ffmpeg has died: its message tells why
            self._check(*self._ffmpeg.finish())
            raise

    def _start(self, height: int, width: int) -> _Ffmpeg:
        arguments = ["-v", "level+error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}"]
        arguments += ["-r", str(self._rate), "-i", "pipe:0", *self._container.encoding]
        if self._comment is not None:
            arguments += ["-metadata", f"comment={self._comment}"]
        arguments += [*self._container.muxing, _url(self._staged("silent"))]
        return _Ffmpeg(arguments, stdin=subprocess.PIPE)

    def _staged(self, stem: str) -> Path:
        return self._staging / (stem + self._target.suffix.lower())

    def _finish(self) -> Path:
        ffmpeg = self._ffmpeg
        if ffmpeg is None:
            raise ValueError("no frame was written")
        with contextlib.suppress(BrokenPipeError):
            ffmpeg.stdin.close()
        self._check(*ffmpeg.finish())
        if self._target.suffix.lower() == ".gif" and self._comment is not None:
            with _named_errors(self._target):
                return _with_gif_comment(self._staged("silent"), self._staged("comment"), self._comment)
        return self._staged("silent") if self._audio is None else self._mux(self._audio)

    def _mux(self, audio: _Audio) -> Path:
        """Join pictures and sound in a second, quick pass: only now is it known where to cut the sound."""
        container = self._container
        codec = "copy" if audio.codec in container.copied_audio else container.other_audio
        seconds = float(self.count / self._rate)
        arguments = ["-v", "level+error", *_input(self._staged("silent"))]
        arguments += ["-t", f"{seconds:.6f}", *_input(audio.path), "-map", "0:v", "-map", "1:a:0"]
        arguments += ["-c:v", "copy", "-c:a", codec, *container.muxing, _url(self._staged("sound"))]
        self._check(*_ffmpeg(*arguments)[:2])
        return self._staged("sound")

    def _check(self, code: int, log: str) -> None:
        if code:
            reason = _complaint(log) or f"ffmpeg's exit code is {code}"
            raise UserError(f"{self._target}: cannot be written ({reason}); make room or use another place")

    def _release(self) -> None:
        if self._ffmpeg is not None:
            self._ffmpeg.close()


def _with_gif_comment(source: Path, target: Path, comment: str) -> Path:
    """Copy a gif with a comment extension before its first frame (GIF89a, 24), which ffmpeg reads but doesn't write."""
    text = comment.encode()
    blocks = [text[start : start + 255] for start in range(0, len(text), 255)]
    extension = b"\x21\xfe" + b"".join(bytes([len(block)]) + block for block in blocks) + b"\0"
    with open(source, "rb") as old, open(target, "wb") as new:
        head = old.read(13)  # signature and logical screen
        palette = 3 * 2 ** ((head[10] & 7) + 1) if head[10] & 0x80 else 0
        new.write(head + old.read(palette) + extension)
        shutil.copyfileobj(old, new)
    return target


@contextlib.contextmanager
def open_sink(
    path: AnyPath, fps: float, audio_from: Optional[AnyPath] = None, comment: Optional[str] = None
) -> Iterator[FrameSink]:
    """Write a video, gif or folder of frames: ``with open_sink("out.mp4", 25) as sink: sink.write(frame)``.

    ``.mp4 .mov .mkv .avi`` become H.264, yuv420p, crf 18; an odd height or width repeats its last row or
    column. ``.gif`` has one palette per frame. A path without a suffix, and any existing folder, takes
    lossless ``000000.png``, ``000001.png``... Missing parent folders are made. The output appears only when
    the block ends well: until then an old file or old frames stay, and after an error nothing new is left.

    Args:
        path: the output.
        fps: frames per second, 0.01 to 1000; of no effect on a folder.
        audio_from: clip or sound file whose first sound track goes along, cut to the length of the pictures:
            copied if players expect its codec in this container, else encoded (AAC; PCM in avi). Of no
            effect if it has no sound or is a folder, and on a gif or folder output.
        comment: one line that goes into the file's metadata, in a folder into every PNG (as tEXt); see
            :func:`read_comment`.

    Raises:
        UserError: on entering, before any work: a suffix that is not listed, a place that cannot be
            written, a folder that holds anything but such frames, fps out of range, an unreadable
            ``audio_from``. On leaving: no frame was written, or ffmpeg failed.
    """
    target = Path(path)
    _check_target(target)
    if not 0.01 <= fps <= 1000:
        raise UserError(f"{target}: {fps} frames per second; give a number from 0.01 to 1000")
    audio = None if audio_from is None else _find_audio(audio_from)
    with _staging_folder(target) as staging:
        sink = _make_sink(target, staging, fps, audio, comment)
        try:
            yield sink
            if not sink.count:
                raise UserError(f"{target}: not written, as there was no frame")
            finished = sink._finish()
        finally:
            sink._release()
        with _named_errors(target):
            _publish(finished, target)


def _make_sink(target: Path, staging: Path, fps: float, audio: Optional[_Audio], comment: Optional[str]) -> FrameSink:
    if _is_folder(target):
        return _FolderSink(target, staging, comment)
    if not _CONTAINERS[target.suffix.lower()].other_audio:
        audio = None
    return _VideoSink(target, staging, fps, audio, comment)


def _is_folder(target: Path) -> bool:
    return target.is_dir() or not target.suffix


def _check_target(target: Path) -> None:
    if target.is_dir():
        strangers = sorted(entry.name for entry in _entries(target) if not _is_ours(entry.name))
        if strangers:
            raise UserError(f"{target}: holds {strangers[0]}, which is no frame; give a new or empty folder")
    elif target.suffix.lower() not in (*_CONTAINERS, ""):
        known = " ".join(_CONTAINERS)
        raise UserError(f"{target}: unknown suffix; use one of {known}, or none for a folder of PNG")
    elif _is_folder(target) and target.exists():
        raise UserError(f"{target}: is a file; give a folder, or a name that ends with .mp4")


def _is_ours(name: str) -> bool:
    return _FRAME_NAME.fullmatch(name) is not None or name.startswith((_STAGING, _NEW_STAGING))


def _find_audio(path: AnyPath) -> Optional[_Audio]:
    if os.path.isdir(path):
        return None
    _, log, _ = _inspect(path)  # without an output ffmpeg describes the streams, then always fails
    if "Input #0" not in log:
        raise UserError(f"{path}: no sound can be read from it ({_complaint(log)}); check what the file is")
    codec = _audio_codec(log)
    return _Audio(str(path), codec) if codec else None


@contextlib.contextmanager
def _staging_folder(target: Path) -> Iterator[Path]:
    """A folder on the target's disk, for atomic renaming; inside a target folder, maybe a mount point.

    It is locked while it is in use. Those that killed runs have left, without a lock, are removed.
    """
    home = target if target.is_dir() else target.parent
    with _named_errors(target):
        home.mkdir(parents=True, exist_ok=True)
        for left in home.glob(f"{_STAGING}*"):
            with _lock(left) as is_mine:
                if is_mine:
                    shutil.rmtree(left, ignore_errors=True)
        new = Path(tempfile.mkdtemp(prefix=_NEW_STAGING, dir=home))
    with _lock(new):
        staging = new.rename(home / new.name.replace(_NEW_STAGING, _STAGING))
        try:
            yield staging
        finally:
            shutil.rmtree(staging)


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[bool]:
    """Lock a folder until this process ends at the latest; yield whether that could be done."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)  # not inherited by ffmpeg
    except OSError:  # another run has just removed it
        yield False
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_mine = True
    except OSError:  # another's, or a file system without locks
        is_mine = False
    try:
        yield is_mine
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _named_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error}); make room or use another place") from error


def _publish(finished: Path, target: Path) -> None:
    if not target.is_dir():
        os.replace(finished, target)
        return
    fresh = {entry.name for entry in finished.iterdir()}
    for name in sorted(fresh):
        os.replace(finished / name, target / name)
    for entry in target.iterdir():
        if _FRAME_NAME.fullmatch(entry.name) and entry.name not in fresh:
            entry.unlink()
