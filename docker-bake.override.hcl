# What this repository adds to docker-bake.hcl, which `prebake init` wrote. Bake reads both.
#
#   docker buildx bake release         the image, pushed with provenance and a bill of materials (docs/distribution.md)
#   AIRGAPPED=1 WHEELS=… docker buildx bake    no step of the build has a network
#   docker buildx bake baseline        the naive service with the same models, for measurements
#   docker buildx bake snapshot        the image with its started service in a layer (docs/snapshot.md); also SNAPSHOT=1
#   docker buildx bake check           lint the Dockerfiles
#   docker buildx bake --list=variables
#
# `MODELS_FILE=models.dummy.toml docker buildx bake` needs no hub, and `HF_TOKEN=… docker buildx bake` fetches gated
# models (only the fetch step gets the token, as a build secret). Needs buildx 0.20 or newer (descriptions of variables).

# ---- inputs ----------------------------------------------------------------------------------------------------------

variable "MODELS" {
  default     = "caption,ocr,florence"
  description = "Models in the image, comma separated: names of tables in MODELS_FILE. Each gets its own layer."
  validation {
    condition     = length(regexall("^[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?( *, *[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?)*$", MODELS)) == 1
    error_message = "MODELS: expected names of models with commas between them, such as \"caption,ocr\" (lower case, digits, '.', '_', '-')."
  }
  validation {
    condition     = length(distinct(split(",", replace(MODELS, " ", "")))) == length(split(",", MODELS))
    error_message = "MODELS: a model is listed twice."
  }
}

variable "MODELS_FILE" {
  default     = "models.toml"
  description = "The models file, relative to this folder. Its lock is the file of the same name with the suffix .lock."
  validation {
    condition     = length(regexall("^[A-Za-z0-9][A-Za-z0-9._/-]*\\.toml$", MODELS_FILE)) == 1
    error_message = "MODELS_FILE: expected a path below this folder that ends in .toml, such as \"models.dummy.toml\"."
  }
}

variable "SHARDS" {
  default     = {}
  description = "Model = number of files, for models whose weights were split: each file gets a layer. Not from the environment."
}

variable "CHECKPOINTS" {
  default     = ""
  description = "A local folder of checkpoints for sources of the form `path:/checkpoints/…`. Empty: none."
  validation {
    condition     = length(regexall("^([./].*)?$", CHECKPOINTS)) == 1
    error_message = "CHECKPOINTS: expected a folder, its path beginning with / or ./, or nothing."
  }
}

variable "HF_ENDPOINT" {
  default     = ""
  description = "A mirror of the Hugging Face hub. Empty: the hub itself."
  validation {
    condition     = length(regexall("^(https?://[^ ]+)?$", HF_ENDPOINT)) == 1
    error_message = "HF_ENDPOINT: expected an address that begins with http:// or https://, or nothing."
  }
}

variable "EASYOCR_MIRROR" {
  default     = ""
  description = "A mirror for EasyOCR's zips. Empty: their original addresses."
  validation {
    condition     = length(regexall("^(https?://[^ ]+)?$", EASYOCR_MIRROR)) == 1
    error_message = "EASYOCR_MIRROR: expected an address that begins with http:// or https://, or nothing."
  }
}

# ---- base images and packages ----------------------------------------------------------------------------------------

variable "BASE_IMAGE" {
  default     = "python:3.11-slim-bookworm"
  description = "The base of all images: Python 3.10 or newer with pip and venv, glibc."
  validation {
    condition     = length(regexall("^[a-z0-9][a-zA-Z0-9./_:@-]*$", BASE_IMAGE)) == 1
    error_message = "BASE_IMAGE: expected an image's name, such as \"python:3.11-slim-bookworm\" or one with @sha256:…"
  }
}

variable "PREBAKE" {
  default     = "0.1.0"
  description = "Not used here: Prebake comes from this workspace."
}

variable "TORCH_INDEX" {
  default     = "https://download.pytorch.org/whl/cpu"
  description = "An additional package index with torch builds for this kind of machine. Empty: only pip's own index."
  validation {
    condition     = length(regexall("^(https?://[^ ]+)?$", TORCH_INDEX)) == 1
    error_message = "TORCH_INDEX: expected an address that begins with http:// or https://, or nothing."
  }
}

variable "WHEELS" {
  default     = ""
  description = "An additional local folder of wheels for pip. Empty: none. A folder outside this one needs --allow=fs.read=DIR."
  validation {
    condition     = length(regexall("^([./].*)?$", WHEELS)) == 1
    error_message = "WHEELS: expected a folder, its path beginning with / or ./, or nothing."
  }
}

variable "CONSTRAINTS" {
  default     = "constraints.txt"
  description = "The file with the package versions to install, in this folder; its name begins with `constraints`."
  validation {
    condition     = length(regexall("^constraints[A-Za-z0-9._-]*\\.txt$", CONSTRAINTS)) == 1
    error_message = "CONSTRAINTS: expected a file in this folder that is called constraints….txt."
  }
}

variable "WEIGHTS_BASE" {
  default     = "scratch"
  description = "The base of `weights`: scratch for Kubernetes' image volumes; a KServe modelcar needs a shell, such as busybox:stable."
  validation {
    condition     = length(regexall("^[a-z0-9][a-zA-Z0-9./_:@-]*$", WEIGHTS_BASE)) == 1
    error_message = "WEIGHTS_BASE: expected an image's name, such as \"busybox:stable\", or \"scratch\"."
  }
}

# ---- outputs ---------------------------------------------------------------------------------------------------------

variable "IMAGE" {
  default     = "prebake"
  description = "The image's name, with the registry if it is pushed. The other images are IMAGE-baseline and IMAGE-weights."
  validation {
    condition     = length(regexall("^[a-z0-9]([a-z0-9.:_/-]*[a-z0-9])?$", IMAGE)) == 1
    error_message = "IMAGE: expected an image's name without a tag, such as \"registry.example:5000/prebake\"."
  }
}

variable "TAG" {
  default     = "latest"
  description = "The images' tag."
  validation {
    condition     = length(regexall("^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$", TAG)) == 1
    error_message = "TAG: expected letters, digits, '_', '.' and '-', at most 128 (no image name: that is IMAGE)."
  }
}

variable "VERSION" {
  default     = "0.1.0"
  description = "The version in the image's labels."
  validation {
    condition     = length(regexall("^[A-Za-z0-9][A-Za-z0-9.+_-]*$", VERSION)) == 1
    error_message = "VERSION: expected letters, digits, '.', '+', '_' and '-'."
  }
}

variable "REVISION" {
  default     = ""
  description = "The commit that the image is built from, for its label: REVISION=$(git rev-parse HEAD)."
  validation {
    condition     = length(regexall("^([0-9a-f]{7,64})?$", REVISION)) == 1
    error_message = "REVISION: expected a commit's hexadecimal hash, or nothing."
  }
}

variable "SOURCE" {
  default     = ""
  description = "The address of the source code, for the image's label."
  validation {
    condition     = length(regexall("^(https?://[^ ]+)?$", SOURCE)) == 1
    error_message = "SOURCE: expected an address that begins with http:// or https://, or nothing."
  }
}

variable "READAHEAD" {
  default     = "recorded"
  description = "recorded: the build starts the image once and records which file ranges it reads, so that cold starts read them ahead. Empty: no readahead (for reproducible images)."
  validation {
    condition     = contains(["recorded", ""], READAHEAD)
    error_message = "READAHEAD: expected \"recorded\", or nothing."
  }
}

variable "SNAPSHOT" {
  default     = ""
  description = "1: `docker buildx bake` makes `snapshot` instead of `image`. Empty: it makes the image."
  validation {
    condition     = contains(["1", ""], SNAPSHOT)
    error_message = "SNAPSHOT: expected \"1\", or nothing."
  }
}

variable "SNAPSHOT_WARM" {
  default     = ""
  description = "1: in `snapshot`, each model answers once before the dump. Empty: none does."
  validation {
    condition     = contains(["1", ""], SNAPSHOT_WARM)
    error_message = "SNAPSHOT_WARM: expected \"1\", or nothing."
  }
}

variable "SLIM" {
  default     = "1"
  description = "1: the image has nothing of its packages that inference never reads (`prebake slim --explain`). 0: everything."
  validation {
    condition     = contains(["1", "0"], SLIM)
    error_message = "SLIM: expected \"1\" or \"0\"."
  }
}

variable "SLIM_KEEP" {
  default     = ""
  description = "Patterns of paths in site-packages that stay with SLIM=1, with spaces between them: \"torch/include/* */tests/*\"."
  validation {
    condition     = length(regexall("^[^\"\\\\]*$", SLIM_KEEP)) == 1
    error_message = "SLIM_KEEP: expected patterns with spaces between them, such as \"torch/include/*\"."
  }
}

variable "COMPRESSION" {
  default     = "uncompressed"
  description = "Compression of the layers: uncompressed (weights barely compress, and unpacking takes as long as pulling), zstd, gzip, estargz."
  validation {
    condition     = contains(["uncompressed", "zstd", "gzip", "estargz"], COMPRESSION)
    error_message = "COMPRESSION: expected uncompressed, zstd, gzip or estargz."
  }
}

variable "SBOM" {
  default     = "type=sbom"
  description = "In `release`: the bill of materials. `type=sbom,generator=IMAGE` names the scanner, which is pulled otherwise. Empty: none."
  validation {
    condition     = length(regexall("^(type=sbom(,generator=[^ ,]+)?)?$", SBOM)) == 1
    error_message = "SBOM: expected \"type=sbom\", or one with a scanner, \"type=sbom,generator=IMAGE\", or nothing."
  }
}

variable "CACHE" {
  default     = ""
  description = "Where pipelines keep BuildKit's cache, such as type=registry,ref=registry.example/prebake-cache, or type=gha. Each target imports its part (REF-base, REF-weights-…) and exports it. Empty: nowhere."
  validation {
    condition     = length(regexall("^(type=(registry|gha|s3|azblob)(,[^ ]+)?)?$", CACHE)) == 1
    error_message = "CACHE: expected \"type=registry,ref=IMAGE\", or a cache of type gha, s3 or azblob, or nothing."
  }
}

variable "AIRGAPPED" {
  default     = ""
  description = "1: no step has a network, and packages come from WHEELS alone. Sources must be path:checkpoints/…, or be cached. Empty: with network."
  validation {
    condition     = contains(["1", ""], AIRGAPPED)
    error_message = "AIRGAPPED: expected \"1\", or nothing."
  }
}

variable "SOURCE_DATE_EPOCH" {
  default     = ""
  description = "The images' creation time in seconds since 1970, for reproducible builds. Empty: now."
  validation {
    condition     = length(regexall("^[0-9]*$", SOURCE_DATE_EPOCH)) == 1
    error_message = "SOURCE_DATE_EPOCH: expected a number of seconds, or nothing."
  }
}

# ---- this workspace in place of an index -----------------------------------------------------------------------------

target "_common" {
  args       = { for name, value in { CONSTRAINTS = CONSTRAINTS, PIP_NO_INDEX = AIRGAPPED } : name => value if value != "" }
  network    = AIRGAPPED == "" ? "default" : "none"
}

# Each target imports and exports its own part: its result alone (mode=min), and no checkpoints. A target that imports
# several parts finds less in each of them (tried, and docker/buildx issue 414).
function "cache" {
  params = [target]
  result = CACHE == "" ? [] : [
    can(regex("ref=", CACHE)) ? regex_replace(CACHE, "(ref=[^,]+)", "$${1}-${target}") :
    "${CACHE},${can(regex("type=gha", CACHE)) ? "scope" : "name"}=${target}"
  ]
}

target "_workspace" {
  inherits   = ["_common"]
  dockerfile = "workspace.Dockerfile"
}

target "shared" {
  inherits    = ["_common"]
  description = "A stage of the Dockerfile that others begin with"
  name        = stage
  matrix      = { stage = ["base", "dependencies"] }
  target      = stage
  cache-from  = cache(stage)
  cache-to    = [for to in cache(stage) : "${to},mode=min"]
}

target "wheels" {
  inherits    = ["_workspace"]
  description = "Wheels of this workspace's distributions"
  name        = wheel
  matrix      = { wheel = ["runtime-wheel", "service-wheel", "converter-wheels"] }
  contexts    = { base = "target:base" }
  target      = wheel
  cache-from  = cache(wheel)
  cache-to    = [for to in cache(wheel) : "${to},mode=min"]
}

# A change in the service, telemetry or startup code does not bake anything again: what bakes is `converter-wheels`.
target "converted" {
  description = "One baked model (a part of `image` and `weights`)"
  name        = stage
  matrix      = { stage = keys(stages) }
  contexts    = { prebake = "target:converter-wheels" }
  args        = { PREBAKE_BUILD = "/prebake/*.whl" }
  cache-from  = cache(stage)
  cache-to    = [for to in cache(stage) : "${to},mode=min"]
}

target "slimmer" {
  inherits    = ["_workspace"]
  description = "What slims the dependencies (a part of `image`)"
  contexts    = { dependencies = "target:dependencies" }
  target      = "slimmer"
  cache-from  = cache("slimmer")
  cache-to    = [for to in cache("slimmer") : "${to},mode=min"]
}

target "runtime" {
  description = "The service without models (a part of `image`)"
  contexts    = { prebake = "target:runtime-wheel", package = "target:service-wheel", builder = "target:slimmer" }
  args        = { PREBAKE = "/prebake/*.whl" }
  cache-from  = cache("runtime")
  cache-to    = [for to in cache("runtime") : "${to},mode=min"]
}

# ---- targets ---------------------------------------------------------------------------------------------------------

about = {
  "org.opencontainers.image.description" = "Image analysis with its model weights baked in, mapped at start"
  "org.opencontainers.image.licenses"    = "Apache-2.0"
  "org.opencontainers.image.title"       = "Prebake"
}
source = SOURCE == "" ? {} : { "org.opencontainers.image.source" = SOURCE }

group "default" { targets = [SNAPSHOT == "1" ? "snapshot" : "image"] }

target "image" {
  description = "The service and its baked models"
  labels      = merge(about, source)
  annotations = [for name, value in merge(about, source) : "${name}=${value}"]
}

target "release" {
  inherits    = ["image"]
  description = "The image, pushed to IMAGE's registry with provenance, a bill of materials and annotations"
  annotations = [for name, value in merge(labels, about, source) : "index:${name}=${value}"]
  attest      = compact(["type=provenance,mode=max", SBOM])
  cache-from  = cache("image")
  cache-to    = [for to in cache("image") : "${to},mode=min"]
  output      = ["type=registry,compression=${COMPRESSION},force-compression=true,oci-mediatypes=true"]
}

# In `release`: SBOM=type=sbom,generator=$IMAGE-sbom-generator:$TAG docker buildx bake release
target "sbom-generator" {
  inherits    = ["_workspace"]
  description = "What lists an image's models and Python packages for BuildKit, pushed to IMAGE's registry"
  contexts    = { base = "target:base" }
  target      = "sbom-generator"
  tags        = ["${IMAGE}-sbom-generator:${TAG}"]
  output      = ["type=registry"]
}

target "weights" {
  description       = "Only the baked models, under /models"
  dockerfile-inline = join("\n", concat(["FROM ${WEIGHTS_BASE}"], weights, [""]))
  labels            = merge(about, source, { "org.opencontainers.image.title" = "Prebake's weights" })
}

target "baseline" {
  inherits    = ["_workspace"]
  description = "The naive service with the same models, for measurements"
  contexts    = { dependencies = "target:dependencies", runtime = "target:runtime" }
  target      = "baseline"
  args        = { MODELS = join(" ", models) }
  tags        = ["${IMAGE}-baseline:${TAG}"]
  labels      = merge(labels, about, source, { "org.opencontainers.image.title" = "Prebake's baseline" })
  output      = ["type=docker,compression=${COMPRESSION},force-compression=true,oci-mediatypes=true"]
}

target "snapshot-programs" {
  inherits    = ["_workspace"]
  description = "The restorer of snapshots (a part of `snapshot`)"
  contexts    = { base = "target:base" }
  target      = "snapshot-programs"
}

# The image, the program that restores, and on top a layer with the service as it was once it had started.
target "snapshot" {
  description = "The service, its baked models, and a snapshot of the started service"
  contexts    = { loaded = "target:image", snapshot-programs = "target:snapshot-programs" }
  dockerfile-inline = join("\n", [
    "FROM loaded AS restorable",
    "COPY --link --from=snapshot-programs / /",
    "FROM restorable AS dumped",
    "USER 0:0",
    "RUN --network=none PREBAKE_SNAPSHOT_WARM=${SNAPSHOT_WARM} prebake snapshot --output /dumped/snapshot \\",
    "      -- /opt/prebake/bin/prebake serve --host 0.0.0.0 --port 8000 \\",
    " && prebake snapshot --rehearse /dumped/snapshot -- /opt/prebake/bin/prebake serve --host 0.0.0.0 --port 8000 \\",
    " && find /dumped -exec touch --date=@0 {} +",
    "FROM restorable",
    "COPY --link --from=dumped /dumped /",
    "ENTRYPOINT [\"/opt/prebake/libexec/prebake/prebake-restore\", \"/snapshot\", \"/opt/prebake/bin/prebake\"]",
    "CMD [\"serve\", \"--host\", \"0.0.0.0\", \"--port\", \"8000\"]",
    "",
  ])
  tags   = ["${IMAGE}-snapshot:${TAG}"]
  labels = merge(labels, about, source)
  output = ["type=docker,compression=${COMPRESSION},force-compression=true,oci-mediatypes=true"]
}

group "check" { targets = ["check-dockerfile", "check-workspace"] }

target "check-dockerfile" {
  inherits    = ["_common"]
  description = "Lint the Dockerfile"
  call        = "check"
}

target "check-workspace" {
  inherits    = ["_workspace"]
  description = "Lint workspace.Dockerfile"
  contexts    = { for stage in ["base", "dependencies", "runtime"] : stage => "docker-image://${BASE_IMAGE}" }
  call        = "check"
}
