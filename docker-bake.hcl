<<<<<<< HEAD
# The index of what can be built.
#
#   docker buildx bake                 the image: the service and its baked models
#   docker buildx bake baseline        the naive service with the same models, for measurements
#   docker buildx bake weights         only the baked models: a KServe modelcar, a Kubernetes image volume
#   docker buildx bake check           lint the Dockerfile
#   docker buildx bake --list=variables
#
# Variables are set from the environment: `MODELS_FILE=models.dummy.toml docker buildx bake` needs no hub, and
# `HF_TOKEN=… docker buildx bake` fetches gated models (only the fetch step gets the token, as a build secret).
# Needs buildx 0.20 or newer (descriptions of variables).

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
  description = "1: the build starts the service once and writes it to a layer; containers go on from there where the host allows it (docs/snapshot.md). warm: each model answers once before. Empty: no snapshot."
  validation {
    condition     = contains(["1", "warm", ""], SNAPSHOT)
    error_message = "SNAPSHOT: expected \"1\", \"warm\", or nothing."
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

variable "SOURCE_DATE_EPOCH" {
  default     = ""
  description = "The images' creation time in seconds since 1970, for reproducible builds. Empty: now."
  validation {
    condition     = length(regexall("^[0-9]*$", SOURCE_DATE_EPOCH)) == 1
    error_message = "SOURCE_DATE_EPOCH: expected a number of seconds, or nothing."
  }
}

# ---- functions -------------------------------------------------------------------------------------------------------

function "models" {
  params = []
  result = split(",", replace(MODELS, " ", ""))
}

# Names of targets and stages must not contain dots.
function "of_model" {
  params = [model]
  result = "weights-${replace(model, ".", "_")}"
}

# Each model gets its own layer, independent of the layers below it.
function "with_weights" {
  params = [stage]
  result = join("\n", concat(
    ["FROM ${stage}"], [for model in models() : "COPY --link --from=${of_model(model)} / /"], [""]
  ))
}

# The same, plus a layer below the weights with the list of file ranges that a start reads, recorded by starting it once.
function "with_readahead" {
  params = [stage]
  result = join("\n", [
    trimspace(replace(with_weights(stage), "FROM ${stage}", "FROM ${stage} AS started")),
    "USER 0:0",
    "RUN --network=none mkdir -p /listed/opt/prebake \\",
    " && prebake check --record-reads /listed/opt/prebake/readahead \\",
    " && find /listed -exec touch --date=@0 {} +",
    "FROM ${stage} AS listed",
    "COPY --link --from=started /listed /",
    with_weights("listed"),
  ])
}

# The image, plus a layer on top with the started service, and the program that restores it.
function "with_snapshot" {
  params = [dockerfile, last]
  result = join("\n", [
    trimspace(replace(dockerfile, "FROM ${last}\n", "FROM ${last} AS loaded\n")),
    "COPY --link --from=snapshot-programs / /",
    "FROM loaded AS dumped",
    "USER 0:0",
    "RUN --network=none PREBAKE_SNAPSHOT_WARM=${SNAPSHOT == "warm" ? 1 : 0} prebake snapshot --output /dumped/snapshot \\",
    "      -- /opt/prebake/bin/prebake serve --host 0.0.0.0 --port 8000 \\",
    " && find /dumped -exec touch --date=@0 {} +",
    "FROM loaded",
    "COPY --link --from=dumped /dumped /",
    "ENTRYPOINT [\"/opt/prebake/libexec/prebake/prebake-restore\", \"/snapshot\", \"/opt/prebake/bin/prebake\"]",
    "CMD [\"serve\", \"--host\", \"0.0.0.0\", \"--port\", \"8000\"]",
    "",
  ])
}

function "image" {
  params = []
  result = READAHEAD == "" ? with_weights("runtime") : with_readahead("runtime")
}

function "weights_contexts" {
  params = []
  result = { for model in models() : of_model(model) => "target:${of_model(model)}" }
}

function "about" {
  params = [title, description]
  result = merge({
    "org.opencontainers.image.title"       = title
    "org.opencontainers.image.description" = description
    "org.opencontainers.image.licenses"    = "Apache-2.0"
    "org.opencontainers.image.version"     = VERSION
    "dev.prebake.models"                   = join(",", models())
    },
    REVISION == "" ? {} : { "org.opencontainers.image.revision" = REVISION },
    SOURCE == "" ? {} : { "org.opencontainers.image.source" = SOURCE },
  )
}

function "annotated" {
  params = [labels]
  result = [for name, value in labels : "${name}=${value}"]
}
=======
# Written by: prebake init --name prebake --python 3.11 --package service -- prebake serve --host 0.0.0.0 --port 8000
# prebake init, template 1, sha256:56323382dfec27f7
# This file is yours; a docker-bake.override.hcl beside it is read too. Variables come from the environment:
#   TAG=1.2 docker buildx bake      the image: your code, and a layer for each model; --push pushes it
#   docker buildx bake weights      the models alone, for an image volume
variable "MODELS" { default = "caption,ocr,florence" } # tables of the models file; `prebake init --check` compares
variable "MODELS_FILE" { default = "models.toml" }
variable "PREBAKE" { default = "0.1.0" } # a version, or the folder of a checkout, such as ./prebake
variable "BASE_IMAGE" { default = "python:3.11-slim-bookworm" }
variable "TORCH_INDEX" { default = "https://download.pytorch.org/whl/cpu" } # empty: pip's own, with torch for CUDA
variable "WHEELS" { default = "" } # a folder of wheels; one outside this folder needs --allow=fs.read=DIR
variable "CHECKPOINTS" { default = "" } # the folder of sources path:checkpoints/…
variable "HF_ENDPOINT" { default = "" } # a mirror of the hub; HF_TOKEN is a secret, which no layer has
variable "EASYOCR_MIRROR" { default = "" }
variable "IMAGE" { default = "prebake" }
variable "TAG" { default = "latest" }
variable "VERSION" { default = "0.1.0" }
variable "REVISION" { default = "" } # of your code, for a label: $(git rev-parse HEAD)
variable "READAHEAD" { default = "" } # "recorded": the build starts the image once, and cold starts read ahead
variable "COMPRESSION" { default = "uncompressed" } # weights barely compress; or zstd, gzip, estargz
models  = split(",", replace(MODELS, " ", ""))
stages  = { for model in models : "weights-${replace(model, ".", "_")}" => model }
weights = [for stage, model in stages : "COPY --link --from=${stage} /out /"]
started = concat(["FROM runtime AS started"], weights, ["USER 0:0",
"RUN --network=none mkdir -p /listed/opt/prebake && prebake check --record-reads /listed/opt/prebake/readahead"])
listed  = READAHEAD == "" ? [] : ["COPY --link --from=started /listed /"]
layers  = concat(READAHEAD == "" ? [] : started, ["FROM runtime"], listed, weights)
prebake = { for folder, name in { runtime = "prebake", build = "prebake-build" } :
folder => can(regex("^[./]", PREBAKE)) ? "/prebake/${folder}" : "${name}==${PREBAKE}" }
labels = { for name, value in { title = "prebake", version = VERSION, revision = REVISION } :
"org.opencontainers.image.${name}" => value if value != "" }
>>>>>>> main

group "default" { targets = ["image"] }
target "_common" {
  args = { for name, value in {
    BASE_IMAGE = BASE_IMAGE, PIP_EXTRA_INDEX_URL = TORCH_INDEX, MODELS_FILE = MODELS_FILE, HF_ENDPOINT = HF_ENDPOINT
    EASYOCR_MIRROR = EASYOCR_MIRROR, PREBAKE = prebake.runtime, PREBAKE_BUILD = "${prebake.runtime} ${prebake.build}"
  } : name => value if value != "" }
  contexts = { for name, folder in { wheels = WHEELS, checkpoints = CHECKPOINTS, prebake = PREBAKE } :
  name => folder if can(regex("^[./]", folder)) }
  secret = ["id=hf_token,env=HF_TOKEN"]
  output = ["type=cacheonly"]
}
target "parts" {
  inherits = ["_common"]
  name     = part
  matrix   = { part = concat(["runtime"], keys(stages)) }
  target   = can(stages[part]) ? "bake" : part
  args     = { MODEL = lookup(stages, part, "") }
}
<<<<<<< HEAD

# ---- targets ---------------------------------------------------------------------------------------------------------

group "default" {
  targets = ["image"]
}

target "runtime" {
  inherits    = ["_common"]
  description = "The service without models (a part of `image`)"
  target      = "runtime"
  output      = ["type=cacheonly"]
}

target "snapshot-programs" {
  inherits    = ["_common"]
  description = "The restorer of snapshots (a part of `image`)"
  target      = "snapshot-programs"
  output      = ["type=cacheonly"]
}

target "weights-model" {
  inherits    = ["_common"]
  description = "One baked model (a part of `image` and `weights`)"
  name        = of_model(model)
  matrix      = { model = models() }
  target      = "weights"
  args        = { MODEL = model }
  output      = ["type=cacheonly"]
}

target "image" {
  inherits          = ["_image"]
  description       = "The service and its baked models"
  dockerfile-inline = SNAPSHOT == "" ? image() : with_snapshot(image(), READAHEAD == "" ? "runtime" : "listed")
  contexts = merge(
    { runtime = "target:runtime" },
    SNAPSHOT == "" ? {} : { snapshot-programs = "target:snapshot-programs" },
    weights_contexts(),
  )
  args              = SOURCE_DATE_EPOCH == "" ? {} : { SOURCE_DATE_EPOCH = SOURCE_DATE_EPOCH }
  tags              = ["${IMAGE}:${TAG}"]
  labels            = about("Prebake", "Image analysis with its model weights baked in, mapped at start")
  annotations       = annotated(about("Prebake", "Image analysis with its model weights baked in, mapped at start"))
}

target "baseline" {
  inherits    = ["_common", "_image"]
  description = "The naive service with the same models, for measurements"
  target      = "baseline"
  args        = { MODELS = join(" ", models()) }
  tags        = ["${IMAGE}-baseline:${TAG}"]
  labels      = about("Prebake's baseline", "The same service without Prebake: checkpoints as upstream ships them")
  annotations = annotated(about("Prebake's baseline", "The same service without Prebake: checkpoints as upstream ships them"))
}

target "weights" {
  inherits          = ["_image"]
  description       = "Only the baked models"
  dockerfile-inline = with_weights(WEIGHTS_BASE)
  contexts          = weights_contexts()
  args              = SOURCE_DATE_EPOCH == "" ? {} : { SOURCE_DATE_EPOCH = SOURCE_DATE_EPOCH }
  tags              = ["${IMAGE}-weights:${TAG}"]
  labels            = about("Prebake's weights", "Baked models under /models")
  annotations       = annotated(about("Prebake's weights", "Baked models under /models"))
}

target "check" {
  inherits    = ["_common"]
  description = "Lint the Dockerfile"
  call        = "check"
=======
target "images" {
  name              = kind
  matrix            = { kind = ["image", "weights"] }
  dockerfile-inline = join("\n", concat(kind == "image" ? layers : concat(["FROM scratch"], weights), [""]))
  contexts          = { for stage in concat(kind == "image" ? ["runtime"] : [], keys(stages)) : stage => "target:${stage}" }
  tags              = [kind == "image" ? "${IMAGE}:${TAG}" : "${IMAGE}-weights:${TAG}"]
  labels            = merge(labels, { "dev.prebake.models" = join(",", models) })
  annotations       = [for name, value in labels : "${name}=${value}"]
  output            = ["type=docker,compression=${COMPRESSION},force-compression=true,oci-mediatypes=true"]
>>>>>>> main
}
