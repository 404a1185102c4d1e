# syntax=docker/dockerfile:1
# Three stages: `build` installs the packages, `train` writes the artefacts to a volume, and `serve` (the default) serves
# them without torch. The image contains code only; models and indexes are in volumes.
#   docker build -t quintet .
#   docker build --target train -t quintet-train .
#   docker build --build-arg EXTRAS=traces,registry -t quintet .

FROM python:3.11-slim-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/quintet
ENV PATH=/opt/quintet/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY requirements.lock pyproject.toml README.md LICENSE NOTICE ./
COPY protos protos
COPY clients/python clients/python
COPY server server
COPY training training
# Extras of pyproject.toml for the serving image, separated by commas: traces, registry, postgres.
ARG EXTRAS=""
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install -c requirements.lock hatchling editables \
    && pip install --no-build-isolation -c requirements.lock ./clients/python ".${EXTRAS:+[$EXTRAS]}"

FROM build AS train
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --home-dir /nonexistent quintet \
    && install -d -o quintet /data/models /data/index /cache
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --no-build-isolation -c requirements.lock ./clients/python '.[train]'
ENV QUINTET_DATA=/data QUINTET_CACHE=/cache OMP_WAIT_POLICY=PASSIVE
USER 10001
ENTRYPOINT ["python", "-m", "training"]

FROM python:3.11-slim-bookworm AS serve
# xllamacpp needs the system's OpenMP library.
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --home-dir /nonexistent quintet \
    && install -d -o quintet /data/models /data/index /data/state
COPY --from=build /opt/quintet /opt/quintet
ARG GIT_COMMIT=""
ENV PATH=/opt/quintet/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    QUINTET_HOST=0.0.0.0 \
    QUINTET_DATA=/data \
    QUINTET_GIT_COMMIT=$GIT_COMMIT
# The server refuses to start on 0.0.0.0 unless QUINTET_TENANTS or QUINTET_ALLOW_ANONYMOUS=true is set.
USER 10001
EXPOSE 50051
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s CMD ["quintet", "health"]
ENTRYPOINT ["python", "-m", "server"]
