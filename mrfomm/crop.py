"""Where faces are: ``mrfomm.media.crop`` under a shorter name."""

from mrfomm.media.crop import FaceFinder, find_clip_box

__all__ = ["FaceFinder", "find_clip_box"]
