"""What a camera makes of a frame: exposure, colours, blur and noise."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import cv2
import numpy as np

from mrfomm.heads.person import Person, render_frame
from mrfomm.heads.scene import Stage, single


class Camera(NamedTuple):
    """How a clip was taken."""

    gain: tuple[float, ...]  # of red, green and blue
    contrast: float  # exponent about the middle grey
    saturation: float
    defocus: float  # of what is behind the head: a standard deviation as a share of the frame's width
    blur: float  # standard deviation, in pixels of a frame 128 wide
    noise: float  # standard deviation, of 255


def sample_camera(rng: np.random.Generator) -> Camera:
    """A random Camera."""
    gain = rng.normal(1, 0.1) * rng.normal(1, 0.025, 3)
    contrast, saturation, defocus = rng.uniform(0.85, 1.15), rng.uniform(0.75, 1.1), rng.uniform(0.01, 0.06)
    blur = rng.uniform(0.3, 0.8) if rng.random() < 0.4 else 0.0
    noise = rng.uniform(1, 5) if rng.random() < 0.6 else 0.0
    return Camera(tuple(gain.tolist()), contrast, saturation, defocus, blur, noise)


def film(
    person: Person, stage: Stage, moments: Iterable[tuple[np.ndarray, np.ndarray]], rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """Frames uint8 [S,S,3] as a random Camera takes them, one for each (angles, face unit weights)."""
    camera = sample_camera(rng)
    sigma = camera.defocus * len(stage.backdrop)
    muted = (stage.backdrop + stage.backdrop.mean(2, keepdims=True)) / 2  # rooms are greyer than painted ones
    stage = stage._replace(backdrop=cv2.GaussianBlur(muted, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE))
    for angles, weights in moments:
        yield take(render_frame(person, stage, angles, weights), camera, rng)


def take(frame: np.ndarray, camera: Camera, rng: np.random.Generator) -> np.ndarray:
    """The frame uint8 [S,S,3] as the camera gives it."""
    light = frame.astype(np.float32) / 255 * single(camera.gain)
    light = 0.5 * (light / 0.5) ** np.float32(camera.contrast)
    grey = light.mean(2, keepdims=True)
    light = grey + np.float32(camera.saturation) * (light - grey)
    if camera.blur:
        light = cv2.GaussianBlur(light, (0, 0), camera.blur * len(frame) / 128)
    light += np.float32(camera.noise / 255) * rng.standard_normal(light.shape, np.float32)
    return np.clip(255 * light + 0.5, 0, 255).astype(np.uint8)
