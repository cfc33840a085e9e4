"""Still images: read as a viewer shows them, fitted to a network's size, listed in natural order."""

import contextlib
import io
import logging
import re
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageOps

from mrfomm.errors import AnyPath, UserError, check_is_file
from mrfomm.store import entries

IMAGE_SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"))

_SRGB_GAMMA, _SRGB_PRIMARIES = 0.45455, (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)  # as PNG has them

# what Pillow's decoders raise
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)
_log = logging.getLogger(__name__)


def read_image(path: AnyPath) -> np.ndarray:
    """Read an image file as uint8 [H,W,3], in sRGB, turned upright by its EXIF orientation.

    An embedded colour profile is converted; transparent pixels are laid over white. Of 16 bits the high byte is kept,
    as libpng and OpenCV do; grey, CMYK and palette images become RGB; of an animation the first frame is read. A
    UserError tells of a file that is missing, a folder, no image or truncated, of 32 bits per channel, and of more than
    89 megapixels (Pillow's own limit against decompression bombs).
    """
    with _opened(path) as image:
        image.load()
        upright = ImageOps.exif_transpose(image)
        profile = image.info.get("icc_profile")
        if profile is None and (other := _other_colours(image)):
            _log.warning("%s: %s, but without a profile; colours are taken as sRGB", path, other)
    if upright.mode.startswith(("I", "F")):  # convert() would clip these modes at 255
        grey = np.asarray(upright)
        if upright.mode == "F" or grey.min() < 0 or grey.max() > 65535:
            raise UserError(f"{path}: more than 16 bits per channel; convert it to an 8-bit PNG")
        upright = Image.fromarray((grey >> 8).astype(np.uint8))
    return _to_rgb(path, upright, profile)


def read_rgba(path: AnyPath) -> np.ndarray:
    """Read an image file as uint8 [H,W,4] with its transparency, as it is stored. Errors: as in read_image()."""
    with _opened(path) as image:
        return np.array(image.convert("RGBA"))


@contextlib.contextmanager
def _opened(path: AnyPath) -> Iterator[Image.Image]:
    """Open an image; the file is named in what Pillow raises."""
    check_is_file(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of metadata that is damaged beside a picture that is whole
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                yield image
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        limit = (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        raise UserError(f"{path}: more than {limit} megapixels; make the image smaller") from error
    except _BROKEN as error:
        raise UserError(f"{path}: not a readable image ({error}); give a whole PNG or JPEG file") from error


def _other_colours(image: Image.Image) -> str:
    """What says that colours aren't sRGB's in a file without a profile: PNG's own chunks, or the EXIF of cameras
    without room for a profile (DCF 2.0); "" if nothing does."""
    interoperability = image.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.IFD.Interop)
    if isinstance(interoperability, dict) and interoperability.get(ExifTags.Interop.InteropIndex) == "R03":
        return "Adobe RGB by its EXIF"
    gamma, primaries = image.info.get("gamma", _SRGB_GAMMA), image.info.get("chromaticity", _SRGB_PRIMARIES)
    is_srgb = "srgb" in image.info or np.allclose([gamma, *primaries], [_SRGB_GAMMA, *_SRGB_PRIMARIES], atol=0.02)
    return "" if is_srgb else "a gamma or primaries of its own"


def _to_rgb(path: AnyPath, image: Image.Image, profile: bytes | None) -> np.ndarray:
    """uint8 [H,W,3] in sRGB, over white."""
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    colours = image if image.mode in ("L", "CMYK", "LAB") else image.convert("RGB")  # what profiles are made for
    if image.mode == "LA":
        colours = image.getchannel("L")
    if profile is not None:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            to_srgb = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), colours.mode, "RGB")
            colours = ImageCms.applyTransform(colours, to_srgb) or colours
        except (ImageCms.PyCMSError, OSError) as error:
            _log.warning("%s: its colour profile can't be used (%s); colours are taken as sRGB", path, error)
    rgb = np.array(colours.convert("RGB"))
    return rgb if alpha is None else over_white(np.dstack([rgb, np.asarray(alpha)]))


def over_white(image: np.ndarray) -> np.ndarray:
    """Lay uint8 or uint16 [H,W,4] over white; [H,W,3] comes back as it is."""
    if image.shape[2] == 3:
        return image
    top = np.iinfo(image.dtype).max
    wide: np.ndarray = image.astype(np.uint16 if top == 255 else np.uint32)
    return ((wide[..., :3] * wide[..., 3:] + top * (top - wide[..., 3:]) + top // 2) // top).astype(image.dtype)


def fit(frame: np.ndarray, size: int) -> np.ndarray:
    """Cut the central square out of uint8 [H,W,3] and resize it to uint8 [size,size,3]. Shrinking averages areas,
    growing is bilinear. A frame that has the size already is returned as it is."""
    height, width = frame.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = frame[top : top + side, left : left + side]
    if side == size:
        return square
    return cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA if side > size else cv2.INTER_LINEAR)


def squaring(size: int, tell: Callable[[str], object]) -> Callable[[np.ndarray, str], np.ndarray]:
    """``fit`` to a size, of a frame and its file's name; ``tell`` takes a line, once for each name of which edges are
    lost."""
    told = set()

    def fitted(frame: np.ndarray, name: str) -> np.ndarray:
        height, width = frame.shape[:2]
        if height != width and name not in told:
            told.add(name)
            remedy = "give --crop to find the face, or crop it to the face by hand"
            tell(f"{name}: {width}x{height} pixels, of which the middle square is taken; {remedy}")
        return fit(frame, size)

    return fitted


def list_images(folder: AnyPath) -> list[Path]:
    """The images of a folder in natural order; hidden files don't count. A UserError if there are none."""
    files = [entry for entry in entries(folder) if entry.suffix.lower() in IMAGE_SUFFIXES]
    files = sorted((entry for entry in files if not entry.name.startswith(".")), key=natural_order)
    if not files:
        raise UserError(f"{folder}: no image in this folder; give a folder of PNG or JPEG frames, or a video")
    return files


def natural_order(entry: Path) -> tuple[list, str]:
    """What to sort files by so that 2 comes before 10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", entry.name)], entry.name


def is_animation(path: AnyPath) -> bool:
    """Whether it moves and FFmpeg doesn't read it as it is shown: WebP, AVIF with transparency, any with a profile."""
    try:
        with Image.open(path, formats=["WEBP", "AVIF", "PNG"]) as image:
            is_hard = image.format == "WEBP" or image.format == "AVIF" and image.mode == "RGBA"
            return getattr(image, "n_frames", 1) > 1 and (is_hard or "icc_profile" in image.info)
    except (*_BROKEN, Image.DecompressionBombError):
        return False


def animation(path: AnyPath) -> Iterator[tuple[Fraction, Fraction, np.ndarray]]:
    """Every frame of an animated image: when it is shown first, for how long, in seconds; uint8 [H,W,3]. A UserError
    if one can't be read."""
    start = Fraction(0)
    with _opened(path) as image:
        for number in range(getattr(image, "n_frames", 1)):
            image.seek(number)
            frame = _to_rgb(path, image, image.info.get("icc_profile"))
            duration = as_browsers(Fraction(image.info.get("duration", 0)).limit_denominator(1000) / 1000)
            yield start, duration, frame
            start += duration


def as_browsers(delay: Fraction) -> Fraction:
    """How long browsers show a frame of an animated image, in seconds: one of 1/100 s or less for 1/10 s."""
    return delay if delay > Fraction(1, 100) else Fraction(1, 10)


def read_text(path: AnyPath) -> str | None:
    """The comment in an image's metadata (PNG's tEXt, for one); None without one."""
    with _opened(path) as image:
        return image.info.get("Comment")
