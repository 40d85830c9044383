# Written by: @{written}
# @{marker}
# Beside docker-bake.hcl, Bake reads this file by itself:
#   docker buildx bake snapshot     the image, and the started service in a layer on top (Prebake's docs/snapshot.md)
#   SNAPSHOT=1 docker buildx bake   the same
# The service is started in the build, with its models, and without network: what it asks for there must be in the image.
variable "SNAPSHOT" { default = "" } # 1: `docker buildx bake` makes it too
variable "SNAPSHOT_OPTIONS" { default = "" } # of `prebake snapshot`, such as "--variable NAME"
group "default" { targets = [SNAPSHOT == "1" ? "snapshot" : "image"] }
target "restorer" {
  contexts = { runtime = "target:runtime" }
  output   = ["type=cacheonly"]
  dockerfile-inline = <<-EOT
    FROM runtime AS compiled
    USER 0:0
    RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends gcc libc6-dev >/dev/null
    RUN --network=none prebake snapshot --build-programs /out/opt/prebake/libexec/prebake \
     && find /out -exec touch --date=@0 {} +
    FROM scratch
    COPY --link --from=compiled /out /
  EOT
}
target "snapshot" {
  contexts = { image = "target:image", restorer = "target:restorer" }
  dockerfile-inline = <<-EOT
    FROM image AS restorable
    COPY --link --from=restorer / /
    FROM restorable AS dumped
    USER 0:0
    RUN --network=none prebake snapshot --output /dumped/snapshot ${SNAPSHOT_OPTIONS} -- \
          @{entry} \
@{rehearse}     && find /dumped -exec touch --date=@0 {} +
    FROM restorable
    COPY --link --from=dumped /dumped /
    ENTRYPOINT @{restore}
    CMD @{command}
  EOT
  tags        = ["${IMAGE}-snapshot:${TAG}"]
  labels      = merge(labels, { "dev.prebake.models" = join(",", models) })
  annotations = [for name, value in labels : "${name}=${value}"]
  output      = ["type=docker,compression=${COMPRESSION},force-compression=true,oci-mediatypes=true"]
}
