"""A long clip through animate.py: memory stays flat, no frame is lost, the sound is in step to the end."""

import subprocess
import sys
import time
import wave
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest

from mrfomm import bundled

ROOT = Path(__file__).parent.parent.parent
FPS, RATE = 25, 8000
FFMPEG = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y"]


def write_clicks(path, seconds):
    """A WAV file with a click at every full second."""
    samples = np.zeros(round(seconds * RATE), np.int16)
    for second in range(1, int(seconds)):
        samples[second * RATE : second * RATE + 40] = 25000
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(samples.tobytes())


def make_driving(folder, frames):
    """The bundled driving clip over and over, with clicks."""
    write_clicks(folder / "clicks.wav", frames / FPS)
    target = folder / "long.mp4"
    inputs = ["-stream_loop", "-1", "-i", str(bundled.SAMPLE_DRIVING), "-i", str(folder / "clicks.wav")]
    output = ["-map", "0:v", "-map", "1:a", "-frames:v", str(frames), "-r", str(FPS), "-c:a", "aac", str(target)]
    subprocess.run([*FFMPEG, *inputs, *output], check=True)
    return target


def last_click(path):
    """Seconds from the beginning to the last click in a file's sound."""
    command = [*FFMPEG, "-i", str(path), "-f", "s16le", "-ac", "1", "-ar", str(RATE), "-"]
    sound = np.frombuffer(subprocess.run(command, check=True, capture_output=True).stdout, np.int16)
    return np.flatnonzero(np.abs(sound.astype(int)) > 8000)[-1] / RATE


def count_frames(path):
    command = [*FFMPEG, "-i", str(path), "-map", "0:v", "-f", "framecrc", "-"]
    text = subprocess.run(command, check=True, capture_output=True).stdout
    return sum(not line.startswith(b"#") for line in text.splitlines())


def resident_megabytes(pid):
    """Of a process, or None when it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS")), None)


@pytest.mark.long
@pytest.mark.parametrize("frames", [20000])
def test_soak(tmp_path, frames):
    driving, result = make_driving(tmp_path, frames), tmp_path / "result.mp4"
    command = [sys.executable, str(ROOT / "animate.py"), "--driving", str(driving), "--output", str(result)]
    memory, begin = [], time.monotonic()
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            memory.append(resident_megabytes(process.pid))
            time.sleep(1)
    memory = [value for value in memory if value]
    quarter = len(memory) // 4
    print(f"{frames} frames in {time.monotonic() - begin:.0f} s; MB by quarter:", end=" ")
    print([round(max(memory[i * quarter : (i + 1) * quarter])) for i in range(4)])
    assert process.returncode == 0
    assert count_frames(result) == frames
    assert abs(last_click(result) - last_click(driving)) < 1 / FPS
    assert max(memory[2 * quarter :]) < max(memory[: 2 * quarter]) + 20
