"""Images and clips in and out under one name, for code outside this package; inside, mrfomm.media is imported."""

from mrfomm.media.images import IMAGE_SUFFIXES, fit, list_images, read_image
from mrfomm.media.reading import FOLDER_FPS, FrameSource, open_frames, read_comment
from mrfomm.media.writing import FrameSink, open_sink

__all__ = [
    "FOLDER_FPS",
    "IMAGE_SUFFIXES",
    "FrameSink",
    "FrameSource",
    "fit",
    "list_images",
    "open_frames",
    "open_sink",
    "read_comment",
    "read_image",
]
