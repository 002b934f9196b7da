# docker build --target cpu .      processors, with or without AVX-512
# docker build --target cuda .     NVIDIA GPUs; the default

# Of the package: `images` for pipelines, `tracing` for spans.
ARG EXTRAS="images,tracing"

FROM python:3.12-slim AS tools
# The Debian release of the base image is its maintainers' choice, and so is the compiler's version.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/stride
ENV PATH="/opt/stride/bin:$PATH"

# The biggest dependency in a layer of its own, which a change of the source leaves alone.
FROM tools AS torch-cpu
# The address of an index of CPU builds, as PyTorch's site names it, makes the image some gigabytes smaller; without one torch
# comes with CUDA libraries that nothing here uses.
ARG TORCH_INDEX_URL=""
# It is pinned: the check does not see that behind an option that may be empty.
# hadolint ignore=DL3013
RUN pip install ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} "torch>=2.11,<2.14"

FROM tools AS torch-cuda
RUN pip install "torch>=2.11,<2.14"

# The kernels for processors are compiled here for all that have AVX-512 with bfloat16; whether one has, is seen when it starts.
FROM torch-cpu AS build-cpu
ARG EXTRAS
WORKDIR /src
COPY pyproject.toml README.md ./
COPY kernels ./kernels
COPY service ./service
# The project itself has no version to pin.
# hadolint ignore=DL3013
RUN pip install ".[$EXTRAS]"
WORKDIR /
RUN python -m kernels.cpu --portable \
    && pip uninstall --quiet --yes pip

FROM torch-cuda AS build-cuda
ARG EXTRAS
WORKDIR /src
COPY pyproject.toml README.md ./
COPY kernels ./kernels
COPY service ./service
# The project itself has no version to pin.
# hadolint ignore=DL3013
RUN pip install ".[$EXTRAS]"
WORKDIR /
# And what Triton would compile when it first launches a kernel.
RUN python -m kernels.cpu --portable \
    && python -m kernels.triton_bridge /opt/stride/triton \
    && pip uninstall --quiet --yes pip

FROM python:3.12-slim AS runtime
ENV PATH="/opt/stride/bin:$PATH" \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    MPLCONFIGDIR=/tmp/matplotlib \
    STRIDE_HOST=0.0.0.0 \
    STRIDE_PORT=8000 \
    STRIDE_LOG_FORMAT=json
# A volume that is mounted on an empty folder gets its owner.
RUN groupadd --system --gid 10001 stride \
    && useradd --system --uid 10001 --gid stride --create-home stride \
    && install --directory --owner stride --group stride /home/stride/.cache
WORKDIR /home/stride
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.build_opener(r.ProxyHandler({})).open(f\"http://127.0.0.1:{os.environ['STRIDE_PORT']}/health/ready\", timeout=4)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["stride"]
CMD ["serve"]

FROM runtime AS cpu
COPY --from=build-cpu /opt/stride /opt/stride
USER 10001:10001

FROM runtime AS cuda
ENV STRIDE_DEVICE=cuda \
    CC=/opt/stride/triton/cc \
    TRITON_CACHE_DIR=/home/stride/.cache/triton
COPY --from=build-cuda /opt/stride /opt/stride
USER 10001:10001
