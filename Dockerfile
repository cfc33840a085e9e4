# mrfomm on a CPU.
#   docker build -t mrfomm .
#   docker run --rm -v "$PWD:/data" --user "$(id -u):$(id -g)" mrfomm mrfomm-animate --refs a.png b.png --driving v.mp4
#   docker run --rm -p 127.0.0.1:7860:7860 mrfomm mrfomm-app --host 0.0.0.0
# Files are read from and written to the folder mounted at /data. `--build-arg EXTRAS=cpu,onnx,mediapipe,dlib` and so on
# chooses other extras of setup.py.

FROM python:3.10-slim-bookworm AS wheel
WORKDIR /source
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.10-slim-bookworm
# libGL and GLib are loaded by OpenCV, libgomp by oneDNN. Debian keeps no old versions that could be pinned.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgl1 libglib2.0-0 libgomp1 \
    && rm -rf /var/lib/apt/lists/*
ARG EXTRAS=cpu,onnx,app
RUN --mount=type=bind,source=constraints.txt,target=/tmp/constraints.txt \
    --mount=type=bind,from=wheel,source=/wheels,target=/tmp/wheels \
    pip install --no-cache-dir --constraint /tmp/constraints.txt "$(ls /tmp/wheels/mrfomm-*.whl)[${EXTRAS}]"

# Compiled loops and ONNX graphs are kept below HOME: a place where any user, as given by --user, may write.
ENV HOME=/tmp PYTHONUNBUFFERED=1
RUN useradd --uid 1000 --no-create-home --home-dir /tmp mrfomm \
    && install --directory --owner mrfomm /data
USER 1000
WORKDIR /data
CMD ["mrfomm-animate", "--help"]
