# The image of the reference service. docker-bake.hcl lists what can be built from these stages, and assembles the final
# image: one layer per model on top of the stage `runtime`.
#
#   base ── dependencies ─┬─ runtime ── baseline
#                         └─ builder ─┬─ runtime-wheel, build-wheel, service-wheel, naive-checkpoints
#                                     └─ converter ── fetched ── bake ── weights (one per model)
#
# There is no `# syntax=` line: the engine's built-in frontend is enough, so nothing has to be pulled for it.
# docs/decisions/0003-image-layers.md explains the boundaries of the stages.

ARG BASE_IMAGE=python:3.11-slim-bookworm

# wheels: empty, unless WHEELS=DIR replaces it with a folder of wheels: for wheels that are on no index, and for builds
# without an index
FROM scratch AS wheels

# checkpoints: empty, unless CHECKPOINTS=DIR replaces it with a folder, for sources of the form `path:/checkpoints/…`
FROM scratch AS checkpoints

# base: an empty virtual environment, at the same path for every base image. The official Python images ship their
# standard library without bytecode, and a read-only root can't store any at run time.
FROM ${BASE_IMAGE} AS base
RUN python3 -m venv --without-pip /opt/prebake \
 && stdlib=$(python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))') \
 && if ! ls "$stdlib"/__pycache__/os.*.pyc >/dev/null 2>&1; then \
      python3 -m compileall -q -j 0 --invalidation-mode unchecked-hash \
        -x '/(test|tests|idlelib|lib2to3|turtledemo|site-packages)/' "$stdlib"; \
    fi \
 && find /opt -exec touch --no-dereference --date=@0 {} +

# dependencies: what the service imports. All mtimes are set, and the bytecode, unlike pip's, contains no timestamps, so
# two builds give the same layer. (Some packages ship files in the syntax of a newer Python: these stay uncompiled.)
FROM base AS dependencies
ARG CONSTRAINTS=constraints.txt
ARG TORCH_INDEX
RUN --mount=type=bind,source=${CONSTRAINTS},target=/constraints.txt \
    --mount=type=bind,from=wheels,target=/wheels \
    --mount=type=cache,target=/root/.cache/pip,id=prebake-pip \
    pip --python /opt/prebake/bin/python install --no-compile --prefer-binary --disable-pip-version-check \
      --find-links /wheels ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} --constraint /constraints.txt \
      torch torchvision transformers easyocr pillow prometheus-client safetensors waitress 'tomli; python_version < "3.11"' \
 && { python3 -m compileall -qq -j 0 --invalidation-mode unchecked-hash /opt/prebake/lib || true; } \
 && find /opt/prebake -exec touch --no-dereference --date=@0 {} +

# builder: additional packages for building wheels and baking models
FROM dependencies AS builder
ARG CONSTRAINTS=constraints.txt
RUN --mount=type=bind,source=${CONSTRAINTS},target=/constraints.txt \
    --mount=type=bind,from=wheels,target=/wheels \
    --mount=type=cache,target=/root/.cache/pip,id=prebake-pip \
    pip --python /opt/prebake/bin/python install --prefer-binary --disable-pip-version-check \
      --find-links /wheels --constraint /constraints.txt \
      hatchling huggingface_hub platformdirs tomli-w tqdm

# runtime-wheel, build-wheel, service-wheel: the three distributions of this repository
FROM builder AS runtime-wheel
RUN --mount=type=bind,source=runtime,target=/source \
    pip --python /opt/prebake/bin/python wheel --no-deps --no-build-isolation --no-index \
      --wheel-dir /dist /source
FROM builder AS build-wheel
RUN --mount=type=bind,source=build,target=/source \
    pip --python /opt/prebake/bin/python wheel --no-deps --no-build-isolation --no-index \
      --wheel-dir /dist /source
FROM builder AS service-wheel
RUN --mount=type=bind,source=service,target=/source \
    pip --python /opt/prebake/bin/python wheel --no-deps --no-build-isolation --no-index \
      --wheel-dir /dist /source

# converter-source: only the sub-packages that determine the contents of the weights' layers (docs/overview.md): a
# change in the service, telemetry or startup code does not bake anything again
FROM scratch AS converter-source
COPY runtime/pyproject.toml runtime/LICENSE /runtime/
COPY <<EOF /runtime/README.md
EOF
COPY runtime/prebake/__init__.py runtime/prebake/cgroup.py runtime/prebake/errors.py /runtime/prebake/
COPY runtime/prebake/documents /runtime/prebake/documents
COPY runtime/prebake/baked /runtime/prebake/baked
COPY runtime/prebake/weights /runtime/prebake/weights
COPY runtime/prebake/modules /runtime/prebake/modules
COPY runtime/prebake/families /runtime/prebake/families
COPY runtime/prebake/tiers /runtime/prebake/tiers
COPY build/pyproject.toml build/LICENSE /build/
COPY <<EOF /build/README.md
EOF
COPY build/prebake_build/__init__.py /build/prebake_build/
COPY build/prebake_build/files /build/prebake_build/files
COPY build/prebake_build/upstream /build/prebake_build/upstream
COPY build/prebake_build/dummies /build/prebake_build/dummies
COPY build/prebake_build/sources /build/prebake_build/sources
COPY build/prebake_build/cache /build/prebake_build/cache
COPY build/prebake_build/families /build/prebake_build/families
COPY build/prebake_build/declared /build/prebake_build/declared
COPY build/prebake_build/baking /build/prebake_build/baking

# converter: these sub-packages, installed
FROM builder AS converter
RUN --mount=type=bind,from=converter-source,target=/source \
    pip --python /opt/prebake/bin/python install --no-deps --no-build-isolation --no-index --no-compile \
      /source/runtime /source/build

# declared: the models file and its lock, if it exists (the brackets make it a pattern, which may match nothing)
FROM scratch AS declared
ARG MODELS_FILE=models.toml
COPY ${MODELS_FILE} ${MODELS_FILE%.toml}.loc[k] /declared/

# selected: one model's part of these files, so that changes to other models do not bake this one again
FROM converter AS selected
ARG MODEL
RUN --mount=type=bind,from=declared,source=/declared,target=/declared \
    mkdir /selected \
 && /opt/prebake/bin/python -m prebake_build.baking.stage select "${MODEL}" --models /declared/*.toml --output /selected

# fetched: the checkpoint and its lock, through a cache that outlives the build. The token is in this step's environment
# and in no layer.
FROM converter AS fetched
ARG MODEL
ARG HF_ENDPOINT
ARG EASYOCR_MIRROR
RUN --mount=type=bind,from=selected,source=/selected,target=/selected \
    --mount=type=bind,from=checkpoints,target=/checkpoints \
    --mount=type=cache,target=/cache,id=prebake-cache \
    --mount=type=secret,id=hf_token,env=HF_TOKEN \
    PREBAKE_CACHE=/cache /opt/prebake/bin/python -m prebake_build.baking.stage fetch "${MODEL}" \
      --models /selected/models.toml --output /fetched

# bake: convert, prove, write. The step that reads the checkpoint has no token and no network, and can't write to the
# cache.
FROM converter AS bake
ARG MODEL
RUN --network=none \
    --mount=type=bind,from=fetched,source=/fetched,target=/fetched \
    /opt/prebake/bin/python -m prebake_build.baking.stage bake "${MODEL}" \
      --models /fetched/models.toml --output /out/models

# snapshot-programs: the restorer and the library of snapshots (docs/snapshot.md). The compiler is in no image.
FROM base AS compiler
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends gcc >/dev/null && rm -rf /var/lib/apt/lists/*
FROM compiler AS compiled
RUN --network=none --mount=type=bind,source=runtime,target=/source \
    PYTHONPATH=/source PYTHONDONTWRITEBYTECODE=1 python3 -m prebake snapshot --build-programs /out/opt/prebake/libexec/prebake \
 && find /out -exec touch --date=@0 {} +
FROM scratch AS snapshot-programs
COPY --link --from=compiled /out /

# weights: only the baked model
FROM scratch AS weights
COPY --link --from=bake /out /

# runtime: the service without its models
FROM dependencies AS runtime
RUN --mount=type=bind,from=runtime-wheel,source=/dist,target=/runtime-dist \
    --mount=type=bind,from=service-wheel,source=/dist,target=/service-dist \
    pip --python /opt/prebake/bin/python install --no-deps --no-index --no-compile \
      /runtime-dist/*.whl /service-dist/*.whl \
 && pip --python /opt/prebake/bin/python check \
 && python3 -m compileall -q --invalidation-mode unchecked-hash \
      /opt/prebake/lib/python3.*/site-packages/prebake /opt/prebake/lib/python3.*/site-packages/image_analyzer \
 && ln -s /opt/prebake/lib/python3.*/site-packages/prebake/telemetry/probe.py /opt/prebake/probe.py \
 && PREBAKE_MEMO=/opt/prebake/memo /opt/prebake/bin/python -B -c \
      'import prebake; prebake.quickstart.begin(); import transformers' \
 && find /opt/prebake -newermt @1 -exec touch --no-dereference --date=@0 {} +
# OMP_WAIT_POLICY: idle OpenMP threads spin by default, which on shared cores increased the CPU time of the first
# caption from 2.4 s to 8 s; later captions are equally fast.
ENV PATH=/opt/prebake/bin:$PATH \
    HOME=/tmp \
    HF_HUB_OFFLINE=1 \
    OMP_WAIT_POLICY=passive \
    PREBAKE_MEMO=/opt/prebake/memo \
    PREBAKE_READAHEAD=/opt/prebake/readahead \
    PREBAKE_ROOT=/models \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1
# Python's last choice for temporary files is the working directory. Containers have /dev/shm even if the root is
# read-only and nothing is mounted on /tmp; without a place for temporary files, `import torch._dynamo` fails.
WORKDIR /dev/shm
EXPOSE 8000
# numeric, so that Kubernetes can check that it is not root
USER 65532:65532
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --start-interval=1s --retries=3 \
  CMD ["/opt/prebake/bin/python", "-SEB", "/opt/prebake/probe.py", "ready"]
ENTRYPOINT ["/opt/prebake/bin/prebake"]
CMD ["serve", "--host", "0.0.0.0", "--port", "8000"]

# naive-checkpoints: the same models, as upstream publishes them
FROM builder AS naive-checkpoints
RUN --mount=type=bind,from=runtime-wheel,source=/dist,target=/runtime-dist \
    --mount=type=bind,from=build-wheel,source=/dist,target=/build-dist \
    pip --python /opt/prebake/bin/python install --no-deps --no-index --no-compile \
      /runtime-dist/*.whl /build-dist/*.whl
ARG MODELS
ARG HF_ENDPOINT
ARG EASYOCR_MIRROR
RUN --mount=type=bind,from=declared,source=/declared,target=/declared \
    --mount=type=bind,from=checkpoints,target=/checkpoints \
    --mount=type=cache,target=/cache,id=prebake-cache \
    --mount=type=secret,id=hf_token,env=HF_TOKEN \
    PREBAKE_CACHE=/cache /opt/prebake/bin/prebake fetch \
      --models /declared/*.toml --output /out/checkpoints ${MODELS} \
 && chmod -R u=rwX,go=rX /out && find /out -exec touch --no-dereference --date=@0 {} +

# baseline: the naive service; everything else is as in the image
FROM runtime AS baseline
COPY --link --from=naive-checkpoints /out /
ENTRYPOINT ["/opt/prebake/bin/python", "-m", "image_analyzer.naive"]
CMD ["--checkpoints", "/checkpoints", "--host", "0.0.0.0", "--port", "8000"]
