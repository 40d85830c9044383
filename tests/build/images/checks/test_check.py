"""Each fault is found once, with its layer, its bytes and the way to mend it, and a good image has none."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.baked_folders import baked_folder
from helpers.image_findings import CODE, PACKAGES, found, one
from helpers.oci_images import MEGABYTE, LayerOf, Node, weights, write_image
from prebake.errors import ConfigError, DocumentError
from prebake_build.images.checks.check import RULES, check
from prebake_build.images.oci_layout import Layout
from prebake_build.images.pack import Packing, pack

BIG = LayerOf({"models/m/model.safetensors": weights(2)}, created_by="COPY models /models")


def test_an_image_with_weights_and_code_in_layers_of_their_own_has_no_finding(tmp_path: Path) -> None:
    assert found(tmp_path, CODE, BIG) == []


def test_what_prebake_writes_has_no_finding(tmp_path: Path) -> None:
    baked = baked_folder(tmp_path / "models", "m", {"w": [400_000]})
    pack([baked], tmp_path / "oci", Packing())
    assert check(Layout.open(tmp_path / "oci").image()) == []


# --- weights -----------------------------------------------------------------------------------------------------


def test_a_pickle_beside_safetensors(tmp_path: Path) -> None:
    pickle = b"PK\3\4" + bytes(3 * MEGABYTE)
    finding = one(tmp_path, CODE, LayerOf({**BIG.files, "models/m/pytorch_model.bin": pickle}))
    assert (finding.rule, finding.layer, finding.bytes, finding.paths) == (
        "duplicate-weights", 1, len(pickle), ("/models/m/pytorch_model.bin",)
    )  # fmt: skip
    assert finding.message == "/models/m holds the model as pickle beside safetensors"
    assert "prebake bake" in finding.mend


def test_a_pickle_in_another_folder_or_a_small_one_is_none(tmp_path: Path) -> None:
    layer = LayerOf({**BIG.files, "models/o/model.bin": bytes(2 * MEGABYTE), "models/m/training_args.bin": b"x" * 5000})
    assert found(tmp_path, CODE, layer) == []


def test_the_same_weights_twice(tmp_path: Path) -> None:
    again = LayerOf({"app/copy.safetensors": weights(2)}, created_by="COPY copy /app")
    finding = one(tmp_path, BIG, again)
    assert (finding.rule, finding.layer, finding.bytes) == ("duplicate-weights", 1, len(weights(2)))
    assert finding.paths == ("/models/m/model.safetensors", "/app/copy.safetensors")
    assert finding.message == "the same weights are stored again (first in layer 0)"


def test_a_chown_in_a_later_layer_stores_them_again(tmp_path: Path) -> None:
    again = LayerOf({"models/m/model.safetensors": Node(weights(2), uid=1000)}, created_by="RUN chown -R app /models")
    finding = one(tmp_path, BIG, again)
    assert (finding.rule, finding.layer, finding.bytes) == ("duplicate-weights", 1, len(weights(2)))
    assert "COPY --chown" in finding.mend


@pytest.mark.parametrize("hard", [True, False])
def test_a_link_to_weights_is_no_copy(tmp_path: Path, hard: bool) -> None:
    target = "models/m/model.safetensors" if hard else "../models/m/model.safetensors"
    assert found(tmp_path, LayerOf({**BIG.files, "app/m.safetensors": Node(target=target, hard=hard)})) == []


@pytest.mark.parametrize("entries", [True, False])
@pytest.mark.parametrize("whiteout", ["models/m/.wh.model.safetensors", "models/.wh.m", "models/m/.wh..wh..opq"])
def test_weights_that_a_later_layer_deletes(tmp_path: Path, whiteout: str, entries: bool) -> None:
    folders = {path: Node(folder=True, mode=0o755) for path in ("models", "models/m") if entries}
    finding = one(tmp_path, LayerOf({**folders, **BIG.files}), LayerOf({whiteout: b""}, created_by="RUN rm"))
    assert (finding.rule, finding.layer, finding.bytes) == ("deleted-weights", 0, len(weights(2)))
    assert finding.message == "layer 1 deletes or replaces them, but they stay in the image"


def test_weights_in_a_gzip_layer(tmp_path: Path) -> None:
    finding = one(tmp_path, CODE, LayerOf(BIG.files, gzip=True))
    assert (finding.rule, finding.layer, finding.bytes) == ("compressed-weights", 1, len(weights(2)))
    assert "compression=uncompressed" in finding.mend


def test_weights_and_code_in_one_layer(tmp_path: Path) -> None:
    finding = one(tmp_path, LayerOf({**CODE.files, "app/model.safetensors": weights(11)}))
    assert (finding.rule, finding.layer, finding.bytes) == ("mixed-layer", 0, len(weights(11)))
    assert finding.message.startswith("weights and 3 files of code in one layer")


@pytest.mark.parametrize(
    "name", ["model.gguf", "weights", "model.onnx", "model.pth"]
)  # fmt: skip
def test_weights_are_known_by_their_name_or_first_bytes(tmp_path: Path, name: str) -> None:
    data = {"model.gguf": b"GGUF" + bytes(2 * MEGABYTE), "weights": weights(2)}.get(name, bytes(2 * MEGABYTE))
    (finding,) = found(tmp_path, CODE, LayerOf({f"app/{name}": data}, gzip=True))
    assert (finding.rule, finding.paths) == ("compressed-weights", (f"/app/{name}",))


def test_the_public_habit_a_download_into_the_hubs_cache_in_a_run(tmp_path: Path) -> None:
    """`RUN python -c "AutoModel.from_pretrained(…)"` as root: blobs by hash, links to them, 0700 above."""
    hub = "root/.cache/huggingface/hub/models--acme--m"
    run = LayerOf(
        {
            "root": Node(folder=True, mode=0o700),
            f"{hub}/blobs/aaaa": weights(2),
            f"{hub}/blobs/bbbb": bytes(3 * MEGABYTE),
            f"{hub}/snapshots/1/model.safetensors": Node(target="../../blobs/aaaa"),
            f"{hub}/snapshots/1/pytorch_model.bin": Node(target="../../blobs/bbbb"),
            "root/.cache/huggingface/token": b"hf_" + b"a" * 34,
        },
        created_by="RUN |1 HF_TOKEN=hf_" + "a" * 34 + " /bin/sh -c python -c 'AutoModel.from_pretrained(\"acme/m\")'",
        gzip=True,
    )
    package = LayerOf({f"{PACKAGES}/huggingface_hub/__init__.py": b"", f"{PACKAGES}/huggingface_hub/x.py": b""})
    findings = found(tmp_path, package, run, config={"Env": ["PATH=/bin"], "Labels": {}})
    assert {finding.rule for finding in findings} == {
        "duplicate-weights", "compressed-weights", "download-cache", "secret", "unreadable", "hub-calls",
        "missing-annotations",
    }  # fmt: skip
    by_rule = {finding.rule: finding for finding in findings}
    assert by_rule["duplicate-weights"].bytes == 3 * MEGABYTE
    assert by_rule["download-cache"].bytes == len(weights(2)) + 3 * MEGABYTE
    assert by_rule["unreadable"].message == (
        "user 65532 cannot read files of the model (folder /root has mode 0700, owner 0)"
    )
    assert {finding.layer for finding in findings if finding.layer is not None} == {1}
    assert not any("aaaa" in finding.message for finding in findings if finding.rule == "secret")


# --- the process -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("user", "message"),
    [("", "the process runs as root"), ("root", "the process runs as root"), ("0:0", "the process runs as root"),
     ("00", "the process runs as root"),
     ("app", "the user app is a name: Kubernetes' runAsNonRoot refuses it, as it cannot tell who that is")],
)  # fmt: skip
def test_root_and_names_of_users(tmp_path: Path, user: str, message: str) -> None:
    finding = one(tmp_path, CODE, BIG, config={"User": user})
    assert (finding.rule, finding.layer, finding.message) == ("root-user", None, message)
    assert "USER 65532:65532" in finding.mend


def test_an_image_of_data_needs_no_user(tmp_path: Path) -> None:
    assert found(tmp_path, BIG, config={"User": "", "Cmd": None, "Env": None}) == []


def test_files_that_only_root_may_read(tmp_path: Path) -> None:
    files = {"models/m/model.safetensors": Node(weights(2), mode=0o600), "models/m/config.json": Node(b"{}")}
    finding = one(tmp_path, CODE, LayerOf(files, created_by="COPY models /models"))
    assert (finding.rule, finding.layer, finding.bytes) == ("unreadable", 1, len(weights(2)))
    assert finding.message == "user 65532 cannot read files of the model (mode 0600, owner 0)"
    assert finding.paths == ("/models/m/model.safetensors",)


def test_files_of_the_users_own_and_of_its_groups_are_readable(tmp_path: Path) -> None:
    accounts = LayerOf({"etc/passwd": b"root:x:0:0::/:\napp:x:700:70::/:/bin/sh\n", "etc/group": b"models:x:0:app\n"})
    own = LayerOf({"models/m/model.safetensors": Node(weights(2), mode=0o400, uid=700)})
    group = LayerOf({"models/o/model.safetensors": Node(weights(3), mode=0o640)})
    findings = found(tmp_path, accounts, own, group, config={"User": "app"})
    assert [finding.rule for finding in findings] == ["root-user"]


def test_gpu_libraries_in_an_image_for_cpus(tmp_path: Path) -> None:
    library = LayerOf(
        {f"{PACKAGES}/nvidia/cublas/lib/libcublas.so.12": bytes(4 * MEGABYTE)}, created_by="RUN pip install torch"
    )
    finding = one(tmp_path, library)
    assert (finding.rule, finding.layer, finding.bytes) == ("gpu-packages", 0, 4 * MEGABYTE)
    assert "download.pytorch.org/whl/cpu" in finding.mend


def test_gpu_libraries_are_right_in_an_image_for_gpus(tmp_path: Path) -> None:
    library = LayerOf({f"{PACKAGES}/nvidia/cublas/lib/libcublas.so.12": bytes(4 * MEGABYTE)})
    assert found(tmp_path, library, gpu=True) == []
    assert found(tmp_path / "2", library, config={"Env": ["NVIDIA_VISIBLE_DEVICES=all"]}) == []


DEAD = {
    f"{PACKAGES}/torch/test/a_test": bytes(21 * MEGABYTE), f"{PACKAGES}/torch/include/ATen/a.h": bytes(4 * MEGABYTE),
    f"{PACKAGES}/a/tests/test_a.py": b"x" * 900, f"{PACKAGES}/a/tests/__pycache__/test_a.cpython-311.pyc": b"c" * 100,
    f"{PACKAGES}/torch/include/LICENSE": b"l" * MEGABYTE, f"{PACKAGES}/torch/lib/libtorch_cpu.so": bytes(MEGABYTE),
}  # fmt: skip


def test_what_inference_never_reads_of_packages(tmp_path: Path) -> None:
    finding = one(tmp_path, LayerOf(DEAD, created_by="RUN pip install torch"))
    assert (finding.rule, finding.layer, finding.bytes) == ("dead-weight", 0, 25 * MEGABYTE + 1000)
    assert finding.message == (
        "inference never reads 4 files of packages (torch-cpp-tests 21 MB, torch-headers 4 MB, tests 1 kB)"
    )
    assert finding.paths[0] == f"/{PACKAGES}/torch/test/a_test"
    assert finding.mend.startswith("prebake slim PREFIX in the stage that installs them")


def test_headers_are_no_dead_weight_beside_a_compiler_and_little_is_none(tmp_path: Path) -> None:
    compiler = LayerOf({"usr/bin/g++": b"elf"})
    headers = LayerOf({f"{PACKAGES}/torch/include/a.h": bytes(30 * MEGABYTE)})
    assert found(tmp_path, compiler, headers) == []
    assert found(tmp_path / "2", LayerOf({f"{PACKAGES}/torch/test/a_test": bytes(19 * MEGABYTE)})) == []
    assert [finding.rule for finding in found(tmp_path / "3", headers)] == ["dead-weight"]


def test_a_hub_that_is_not_switched_off(tmp_path: Path) -> None:
    package = LayerOf({f"{PACKAGES}/huggingface_hub/__init__.py": b""})
    finding = one(tmp_path, package, BIG, config={"Env": ["HF_HUB_OFFLINE=0"]})
    assert (finding.rule, finding.mend) == ("hub-calls", "add ENV HF_HUB_OFFLINE=1")
    assert found(tmp_path / "2", package, config={"Env": []}) == []  # no weights: it has to download


# --- registries and readers --------------------------------------------------------------------------------------


def test_a_layer_above_a_registrys_limit(tmp_path: Path) -> None:
    huge = LayerOf({"a": b""}, created_by="COPY", declared_size=10_100_000_000)  # a sparse file
    finding = one(tmp_path, CODE, huge)
    assert (finding.rule, finding.layer, finding.bytes) == ("layer-too-large", 1, 10_100_000_000)
    assert finding.message == "10.1 GB are more than registries take in one layer (ghcr: 10 GB)"
    assert found(tmp_path / "2", CODE, huge, registries=["ecr"]) == []


def test_missing_annotations(tmp_path: Path) -> None:
    findings = found(tmp_path, CODE, config={"Labels": {"org.opencontainers.image.title": "x"}})
    assert [finding.message for finding in findings] == [
        "nothing says under which licence: org.opencontainers.image.licenses",
        "nothing says from where: org.opencontainers.image.source or org.opencontainers.image.revision or "
        "org.opencontainers.image.version or dev.prebake.models",
    ]


# --- options and bad input ---------------------------------------------------------------------------------------


def test_a_rule_is_left_out_and_an_unknown_one_refused(tmp_path: Path) -> None:
    assert found(tmp_path, CODE, config={"User": ""}, ignored=["root-user"]) == []
    with pytest.raises(ConfigError) as caught:
        found(tmp_path / "2", CODE, ignored=["root"])
    assert str(caught.value) == (
        f'"root" is not a known rule (expected one of {", ".join(RULES)}): did you mean "root-user"?'
    )
    with pytest.raises(ConfigError, match=r'^"gcr" is not a known registry .*: did you mean "ghcr"\?$'):
        found(tmp_path / "3", CODE, registries=["gcr"])


@pytest.mark.parametrize("zipped", [True, False])
def test_a_layer_that_is_no_tar_file(tmp_path: Path, zipped: bool) -> None:
    folder = write_image(tmp_path / "image", LayerOf({"a": b"x" * 2000}, gzip=zipped))
    image = Layout.open(folder).image()
    layer = image.layer(0)
    layer.write_bytes(b"\7" * layer.stat().st_size)
    with pytest.raises(DocumentError) as caught:
        check(image)
    assert str(caught.value).startswith(f"{layer}: this layer cannot be read: ")


def test_paths_that_leave_the_image_stay_in_it(tmp_path: Path) -> None:
    layer = LayerOf(
        {
            "../../models/m/model.safetensors": weights(2),
            "/abs/l.bin": Node(target="../../../models/m/model.safetensors"),
        }
    )
    assert found(tmp_path, layer) == []


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    assert found(tmp_path, LayerOf({"a.bin": Node(target="b.bin"), "b.bin": Node(target="a.bin")})) == []


def test_a_sparse_file_of_exabytes_is_not_read(tmp_path: Path) -> None:
    image = Layout.open(write_image(tmp_path / "image", LayerOf({"a": b"x" * 512}))).image()
    layer = image.layer(0)
    data = bytearray(layer.read_bytes())
    data[156:157] = b"S"  # GNU's old format: parts of the file, and its real size
    data[386:410] = b"00000000000\0" + b"00000001000\0"
    data[483:495] = (0x80 << 88 | 1 << 62).to_bytes(12, "big")
    data[148:156] = b"%06o\0 " % (sum(data[:148]) + 8 * 32 + sum(data[156:512]))
    layer.write_bytes(data)
    with pytest.raises(DocumentError) as caught:
        check(image)
    assert str(caught.value) == 'layer 0: "/a": is a sparse file: write the layer without them'
