# Written by: @{written}
# @{marker}
# Yours, with a docker-bake.override.hcl beside it. Variables come from the environment: TAG=1.2 docker buildx bake --push
variable "MODELS" { default = "@{models}" } # tables of the models file; `prebake init --check` compares
variable "MODELS_FILE" { default = "@{models_file}" }
variable "SHARDS" { default = {@{shards}} } # model = its files of weights, each a layer, if it was split: its build tells
variable "PREBAKE" { default = "@{version}" } # a version, or the folder of a checkout, such as ./prebake
variable "BASE_IMAGE" { default = "@{base_image}" }
variable "TORCH_INDEX" { default = "@{torch_index}" } # empty: pip's own, with torch for CUDA
variable "WHEELS" { default = "" } # a folder of wheels; one outside this folder needs --allow=fs.read=DIR
variable "CHECKPOINTS" { default = "@{checkpoints}" } # the folder of sources path:checkpoints/…
variable "HF_ENDPOINT" { default = "" } # a mirror of the hub; HF_TOKEN is a secret, which no layer has
variable "EASYOCR_MIRROR" { default = "" }
variable "IMAGE" { default = "@{image}" }
variable "TAG" { default = "latest" }
variable "VERSION" { default = "@{project_version}" }
variable "REVISION" { default = "" } # of your code, for a label: $(git rev-parse HEAD)
variable "READAHEAD" { default = "" } # "recorded": the build starts the image once, and cold starts read ahead
variable "SLIM" { default = "1" } # stage slim: what inference never reads goes (prebake slim --explain); 0: it stays
variable "SLIM_KEEP" { default = "@{keep}" } # paths in site-packages that stay all the same: "torch/include/*"
variable "COMPRESSION" { default = "uncompressed" } # weights barely compress; or zstd, gzip, estargz
models  = split(",", replace(MODELS, " ", ""))
stages  = { for model in models : "weights-${replace(model, ".", "_")}" => model }
weights = flatten([for stage, model in stages : [for n in range(try(SHARDS[model], 0) + 1) : "COPY --link --from=${stage} /out${n == 0 ? "" : ".${n}"} /"]])
started = concat(["FROM runtime AS started"], weights, @{code}["USER 0:0",
"RUN --network=none mkdir -p /listed/opt/prebake && @{record}"])
listed  = READAHEAD == "" ? [] : ["COPY --link --from=started /listed /"]
layers  = concat(@{compiled}READAHEAD == "" ? [] : started, ["FROM runtime"], @{layers})
prebake = { for folder, name in { runtime = "prebake", build = "prebake-build" } :
folder => can(regex("^[./]", PREBAKE)) ? "/prebake/${folder}" : "${name}==${PREBAKE}" }
labels = { for name, value in { title = "@{image}", version = VERSION, revision = REVISION } :
"org.opencontainers.image.${name}" => value if value != "" }
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
  matrix   = { part = concat(@{stages}, keys(stages)) }
  target   = can(stages[part]) ? "bake" : part
  args     = { MODEL = lookup(stages, part, ""), SHARDS = try(SHARDS[stages[part]], 0), SLIM = SLIM, SLIM_KEEP = SLIM_KEEP }
}
target "images" {
  name              = kind
  matrix            = { kind = ["image", "weights"] }
  dockerfile-inline = join("\n", concat(kind == "image" ? layers : concat(["FROM scratch"], weights), [""]))
  contexts          = { for stage in concat(kind == "image" ? @{stages} : [], keys(stages)) : stage => "target:${stage}" }
  tags              = [kind == "image" ? "${IMAGE}:${TAG}" : "${IMAGE}-weights:${TAG}"]
  labels            = merge(labels, { "dev.prebake.models" = join(",", models) })
  annotations       = [for name, value in labels : "${name}=${value}"]
  output            = ["type=docker,compression=${COMPRESSION},force-compression=true,oci-mediatypes=true"]
}
