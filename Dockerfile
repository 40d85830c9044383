# Written by: prebake init --name prebake --python 3.11 --package service -- prebake serve --host 0.0.0.0 --port 8000
# prebake init, template 3, sha256:a975d5636857a664
# Yours to change; `prebake init --check` compares. docker-bake.hcl fills the empty stages. SEAL: byte code, times that are 0
ARG BASE_IMAGE=python:3.11-slim-bookworm
FROM scratch AS prebake
FROM scratch AS wheels
FROM scratch AS checkpoints
FROM ${BASE_IMAGE} AS base
ARG PIP_PYTHON=/opt/prebake/bin/python PIP_FIND_LINKS=/wheels PIP_COMPILE=0 PIP_EXTRA_INDEX_URL PIP_NO_INDEX
ARG PIP_CONSTRAINT=/constraints.txt UV_CONSTRAINT=/constraints.txt CONSTRAINTS=constraints.txt
ARG SEAL="find /opt /app -newermt @1 -type f -name '*.py' | python3 -m compileall -qq -i - -j 0 --invalidation-mode \
unchecked-hash; find /opt /app -newermt @1 -exec touch --no-dereference --date=@0 {} +"
ENV PATH=/opt/prebake/bin:$PATH OMP_WAIT_POLICY=passive GOMP_SPINCOUNT=10000 PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
RUN python3 -m venv --without-pip /opt/prebake && mkdir /app && ln -sfn /dev/shm /usr/tmp && python3 -m compileall \
    -q -j 0 -x '/(tests?|idlelib|lib2to3|turtledemo|(site|dist)-packages)/' $(python3 -c 'import os; print(os.__file__[:-5])') \
 && find /usr /opt -newer /opt/prebake/pyvenv.cfg -exec touch --no-dereference --date=@0 {} + && eval "$SEAL"
# System packages go here: RUN apt-get update && apt-get install -y … Then dependencies: what your code imports
FROM base AS dependencies
RUN --mount=type=bind,source=requirements.txt,target=/requirements/requirements.txt \
    --mount=type=bind,source=${CONSTRAINTS},target=/constraints.txt --mount=type=bind,from=wheels,target=/wheels \
    --mount=type=cache,target=/root/.cache,id=prebake-pip pip install -r /requirements/requirements.txt && eval "$SEAL"
FROM dependencies AS builder
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
ARG SHARDS SHARD_SIZE PREBAKE_CACHE=/cache PREBAKE_CONVERTED_SIZE
RUN --network=none --mount=type=bind,from=fetched,source=/fetched,target=/fetched --mount=type=cache,target=/cache/converted,id=prebake-converted \
    python3 -m prebake_build.baking.stage bake "$MODEL" --models /fetched/models.toml --output /out/models
FROM dependencies AS slim
ARG SLIM SLIM_KEEP
RUN --mount=from=builder,target=/b /b/opt/prebake/bin/python -m prebake_build.slimming /opt/prebake && eval "$SEAL"
FROM base AS package
RUN --mount=type=bind,source=service,target=/source,rw --mount=type=bind,source=${CONSTRAINTS},target=/constraints.txt \
    --mount=type=bind,from=wheels,target=/wheels pip wheel --no-deps --no-cache-dir --wheel-dir /dist /source
FROM base AS runtime
COPY --link --from=slim /opt /opt
ARG PREBAKE=prebake PIP_CONSTRAINT=
RUN --mount=type=bind,from=prebake,target=/prebake,rw --mount=type=bind,from=wheels,target=/wheels \
    --mount=type=bind,from=package,source=/dist,target=/dist pip install --no-cache-dir $PREBAKE /dist/*.whl \
 && python3 -B -m prebake.startup.prepare /opt/prebake && eval "$SEAL"
ENV HOME=/tmp NUMBA_CACHE_DIR=/usr/tmp/numba HF_HUB_OFFLINE=1 PREBAKE_ROOT=/models PREBAKE_MEMO=/opt/prebake/memo PREBAKE_READAHEAD=/opt/prebake/readahead
WORKDIR /app
USER 65532:65532
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --start-interval=1s --retries=3 \
  CMD ["/opt/prebake/bin/python", "-SEB", "/opt/prebake/probe.py", "ready"]
ENTRYPOINT ["/opt/prebake/bin/prebake", "run", "--"]
CMD ["prebake", "serve", "--host", "0.0.0.0", "--port", "8000"]
