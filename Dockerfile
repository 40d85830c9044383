# Written by: prebake init --name prebake --python 3.11 --package service -- prebake serve --host 0.0.0.0 --port 8000
# prebake init, template 1, sha256:7198c0c46cef6d24
# This file is yours; docker-bake.hcl sets its arguments. `prebake init --check` shows what a newer Prebake would write.
ARG BASE_IMAGE=python:3.11-slim-bookworm
# Empty, unless the variables PREBAKE, WHEELS and CHECKPOINTS name folders
FROM scratch AS prebake
FROM scratch AS wheels
FROM scratch AS checkpoints
# base: an empty environment, the standard library's byte code (a read-only root can't store it later), and a last
# choice for temporary files (/usr/tmp). SEAL: byte code without times, and all times 0, so that layers are the same.
FROM ${BASE_IMAGE} AS base
ARG PIP_PYTHON=/opt/prebake/bin/python PIP_FIND_LINKS=/wheels PIP_COMPILE=0 PIP_EXTRA_INDEX_URL
ARG PIP_CONSTRAINT=/constraints.txt UV_CONSTRAINT=/constraints.txt CONSTRAINTS=constraints.txt
ARG SEAL="find /opt/prebake /app -newermt @1 -type f -name '*.py' | python3 -m compileall -qq -i - -j 0 --invalidation-mode \
unchecked-hash; find /opt/prebake /app -newermt @1 -exec touch --no-dereference --date=@0 {} +"
ENV PATH=/opt/prebake/bin:$PATH OMP_WAIT_POLICY=passive PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
RUN python3 -m venv --without-pip /opt/prebake && mkdir /app && ln -sfn /dev/shm /usr/tmp \
 && stdlib=$(python3 -c 'import os; print(os.path.dirname(os.__file__))') \
 && python3 -m compileall -q -j 0 -x '/(test|tests|idlelib|lib2to3|turtledemo|(site|dist)-packages)/' "$stdlib" \
 && find /usr /opt -newer /opt/prebake/pyvenv.cfg -exec touch --no-dereference --date=@0 {} + && eval "$SEAL"
# dependencies: what your code imports. System packages go before it: RUN apt-get update && apt-get install -y …
FROM base AS dependencies
RUN --mount=type=bind,source=requirements.txt,target=/requirements/requirements.txt \
    --mount=type=bind,source=${CONSTRAINTS},target=/constraints.txt --mount=type=bind,from=wheels,target=/wheels \
    --mount=type=cache,target=/root/.cache,id=prebake-pip pip install -r /requirements/requirements.txt && eval "$SEAL"
FROM dependencies AS builder
<<<<<<< HEAD
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
=======
ARG PREBAKE_BUILD=prebake-build
RUN --mount=type=bind,from=prebake,target=/prebake,rw --mount=type=bind,from=wheels,target=/wheels \
    --mount=type=bind,source=${CONSTRAINTS},target=/constraints.txt pip install --no-cache-dir $PREBAKE_BUILD
ARG MODEL MODELS_FILE=models.toml
# A model: its part of the models file, its checkpoint (with network and token), the bake (with neither)
FROM builder AS selected
RUN --mount=type=bind,target=/project python3 -m prebake_build.baking.stage select "$MODEL" \
      --models "/project/$MODELS_FILE" --project /project/service --output /selected
FROM builder AS fetched
ARG HF_ENDPOINT EASYOCR_MIRROR PREBAKE_CACHE=/cache
RUN --mount=type=bind,from=selected,source=/selected,target=/selected --mount=type=secret,id=hf_token,env=HF_TOKEN \
    --mount=type=bind,from=checkpoints,target=/checkpoints --mount=type=cache,target=/cache,id=prebake-cache \
    python3 -m prebake_build.baking.stage fetch "$MODEL" --models /selected/models.toml --output /fetched
FROM builder AS bake
RUN --network=none --mount=type=bind,from=fetched,source=/fetched,target=/fetched \
    python3 -m prebake_build.baking.stage bake "$MODEL" --models /fetched/models.toml --output /out/models
# package: the wheel of your code
FROM base AS package
RUN --mount=type=bind,source=service,target=/source,rw --mount=type=bind,source=${CONSTRAINTS},target=/constraints.txt \
    --mount=type=bind,from=wheels,target=/wheels pip wheel --no-deps --no-cache-dir --wheel-dir /dist /source
>>>>>>> main
FROM dependencies AS runtime
ARG PREBAKE=prebake PIP_CONSTRAINT=
RUN --mount=type=bind,from=prebake,target=/prebake,rw --mount=type=bind,from=wheels,target=/wheels \
    --mount=type=bind,from=package,source=/dist,target=/dist pip install --no-cache-dir $PREBAKE /dist/*.whl \
 && python3 -B -m prebake.startup.prepare /opt/prebake && eval "$SEAL"
ENV HOME=/tmp HF_HUB_OFFLINE=1 PREBAKE_ROOT=/models PREBAKE_MEMO=/opt/prebake/memo PREBAKE_READAHEAD=/opt/prebake/readahead
WORKDIR /app
USER 65532:65532
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --start-interval=1s --retries=3 \
  CMD ["/opt/prebake/bin/python", "-SEB", "/opt/prebake/probe.py", "ready"]
ENTRYPOINT ["/opt/prebake/bin/prebake", "run", "--"]
CMD ["prebake", "serve", "--host", "0.0.0.0", "--port", "8000"]
