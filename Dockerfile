# syntax=docker/dockerfile:1
# The command line and its services in an image: CPU by default, CUDA by
#     docker build --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128 -t progressive-cascade:cuda .
# Run it without privileges and with a read-only root; what is kept lies in the volume /data:
#     docker run --read-only --tmpfs /tmp -v cascade:/data -p 127.0.0.1:8000:8000 \
#         -e PROGRESSIVE_CASCADE_TOKEN=$(openssl rand -hex 32) progressive-cascade
ARG PYTHON=3.11

FROM python:${PYTHON}-slim-bookworm AS build
ARG TORCH=2.13.0
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /build
RUN python -m venv /opt/cascade
ENV PATH=/opt/cascade/bin:$PATH
# torch is not in the lock: its build, and so its hash, is the processor's.
RUN python -m pip install "torch==${TORCH}" --index-url "${TORCH_INDEX}"
COPY requirements.lock ./
RUN python -m pip install --require-hashes --no-deps --requirement requirements.lock
COPY setup.cfg pyproject.toml LICENSE README.md ./
COPY scripts ./scripts
COPY bundle ./bundle
RUN python -m pip install --no-deps . && python -m pip check

FROM python:${PYTHON}-slim-bookworm
LABEL org.opencontainers.image.title="progressive cascade" \
      org.opencontainers.image.description="Two chest X-rays in, a CT out; research only" \
      org.opencontainers.image.licenses="Apache-2.0"
# numba compiles on the machine it runs on; what it compiled, and matplotlib's list of fonts, go where /tmp is.
ENV PATH=/opt/cascade/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    NUMBA_CACHE_DIR=/tmp/numba MPLCONFIGDIR=/tmp/matplotlib XDG_CACHE_HOME=/tmp HOME=/tmp
RUN useradd --system --uid 10001 --no-create-home cascade && mkdir /data && chown cascade /data
COPY --from=build /opt/cascade /opt/cascade
USER 10001
WORKDIR /data
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["progressive-cascade"]
CMD ["serve", "--host", "0.0.0.0", "--data", "/data/service"]
