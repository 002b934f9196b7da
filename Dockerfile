FROM python:3.12-slim AS build

# An address here lets pip find a torch without CUDA libraries; empty means the default index alone.
ARG PIP_EXTRA_INDEX_URL=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/stride
ENV PATH="/opt/stride/bin:$PATH"
# The biggest dependency in a layer of its own, which a change of the source leaves alone.
RUN pip install "torch>=2.11,<2.14"
WORKDIR /src
COPY pyproject.toml README.md ./
COPY kernels ./kernels
COPY service ./service
RUN pip install .

FROM python:3.12-slim

# The CPU kernels are compiled for the processor that runs them, once, when the first server starts there.
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/stride /opt/stride
ENV PATH="/opt/stride/bin:$PATH" \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    MPLCONFIGDIR=/tmp/matplotlib \
    STRIDE_HOST=0.0.0.0 \
    STRIDE_PORT=8000
RUN useradd --system --uid 10001 --create-home stride
USER stride
WORKDIR /home/stride
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health/ready', timeout=4)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["stride"]
CMD ["serve"]
