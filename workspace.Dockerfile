# What the image of the reference service takes from this workspace instead of an index, and the baseline that it is
# measured against. `prebake init` wrote the Dockerfile; docker-bake.override.hcl puts these stages in the place of its
# stages `prebake` and `package`, and gives them its stages `base`, `dependencies` and `runtime`.
#
#   base ── compiler ── snapshot-programs
#   base ── tools ── runtime-wheel, service-wheel, converter-wheels
#   base ── sbom-generator
#   dependencies ── naive-checkpoints, slimmer
#   runtime ── baseline

FROM scratch AS wheels
FROM scratch AS checkpoints

# tools: what builds wheels
FROM base AS tools
ARG CONSTRAINTS=constraints.txt
ARG PIP_PYTHON=/opt/prebake/bin/python PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INDEX
RUN --mount=type=bind,source=${CONSTRAINTS},target=/constraints.txt --mount=type=bind,from=wheels,target=/wheels \
    --mount=type=cache,target=/root/.cache,id=prebake-pip \
    pip install --find-links /wheels --constraint /constraints.txt hatchling

# runtime-wheel, service-wheel: what the image runs
FROM tools AS runtime-built
RUN --mount=type=bind,source=runtime,target=/source \
    pip wheel --no-deps --no-build-isolation --no-index --wheel-dir /dist /source
FROM scratch AS runtime-wheel
COPY --from=runtime-built /dist /
FROM tools AS service-built
RUN --mount=type=bind,source=service,target=/source \
    pip wheel --no-deps --no-build-isolation --no-index --wheel-dir /dist /source
FROM scratch AS service-wheel
COPY --from=service-built /dist /dist

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

# converter-wheels: these sub-packages, for the stage that bakes
FROM tools AS converter-built
RUN --mount=type=bind,from=converter-source,target=/source \
    pip wheel --no-deps --no-build-isolation --no-index --wheel-dir /dist /source/runtime /source/build
FROM scratch AS converter-wheels
COPY --from=converter-built /dist /

# slimmer: what takes out of the dependencies what inference never reads, in the place of `builder`
FROM scratch AS slimmer-source
COPY runtime/prebake/__init__.py runtime/prebake/errors.py /prebake/
COPY runtime/prebake/documents /prebake/documents
COPY build/prebake_build/__init__.py /prebake_build/
COPY build/prebake_build/files /prebake_build/files
COPY build/prebake_build/slimming /prebake_build/slimming
FROM dependencies AS slimmer
RUN --mount=type=bind,from=slimmer-source,target=/source \
    cp -R /source/. "$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"

# sbom-generator: what lists an image's models and Python packages for BuildKit, which runs it in `release`
FROM base AS sbom-generator
ARG CONSTRAINTS=constraints.txt
ARG PIP_PYTHON=/opt/prebake/bin/python PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INDEX
RUN --mount=type=bind,source=${CONSTRAINTS},target=/constraints.txt --mount=type=bind,from=wheels,target=/wheels \
    --mount=type=bind,from=runtime-wheel,target=/prebake \
    pip install --no-cache-dir --find-links /wheels --constraint /constraints.txt packaging /prebake/*.whl
COPY build/prebake_build/__init__.py /app/prebake_build/
COPY build/prebake_build/trust/__init__.py build/prebake_build/trust/spdx.py /app/prebake_build/trust/
WORKDIR /app
ENTRYPOINT ["/opt/prebake/bin/python", "-m", "prebake_build.trust.spdx"]

# snapshot-programs: the restorer and the library of snapshots (docs/snapshot.md). The compiler is in no image.
FROM base AS compiler
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends gcc libc6-dev >/dev/null \
 && rm -rf /var/lib/apt/lists/*
FROM compiler AS compiled
RUN --network=none --mount=type=bind,source=runtime,target=/source \
    PYTHONPATH=/source python3 -m prebake snapshot --build-programs /out/opt/prebake/libexec/prebake \
 && find /out -exec touch --date=@0 {} +
FROM scratch AS snapshot-programs
COPY --link --from=compiled /out /

# naive-checkpoints: the same models, as upstream publishes them
FROM dependencies AS naive-checkpoints
ARG CONSTRAINTS=constraints.txt
ARG PIP_PYTHON=/opt/prebake/bin/python PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INDEX
RUN --mount=type=bind,source=${CONSTRAINTS},target=/constraints.txt --mount=type=bind,from=wheels,target=/wheels \
    --mount=type=bind,source=runtime,target=/source/runtime,rw --mount=type=bind,source=build,target=/source/build,rw \
    --mount=type=cache,target=/root/.cache,id=prebake-pip \
    pip install --find-links /wheels --constraint /constraints.txt hatchling \
 && pip install --find-links /wheels --constraint /constraints.txt --no-build-isolation /source/runtime /source/build
ARG MODELS
ARG MODELS_FILE=models.toml
ARG HF_ENDPOINT
ARG EASYOCR_MIRROR
RUN --mount=type=bind,target=/project \
    --mount=type=bind,from=checkpoints,target=/checkpoints \
    --mount=type=cache,target=/cache,id=prebake-cache \
    --mount=type=secret,id=hf_token,env=HF_TOKEN \
    PREBAKE_CACHE=/cache prebake fetch --models "/project/${MODELS_FILE}" --output /out/checkpoints ${MODELS} \
 && chmod -R u=rwX,go=rX /out && find /out -exec touch --no-dereference --date=@0 {} +

# baseline: the naive service; everything else is as in the image
FROM runtime AS baseline
COPY --link --from=naive-checkpoints /out /
ENTRYPOINT ["/opt/prebake/bin/python", "-m", "image_analyzer.naive"]
CMD ["--checkpoints", "/checkpoints", "--host", "0.0.0.0", "--port", "8000"]
