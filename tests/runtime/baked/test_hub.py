"""The view of baked models in the layout of the hub's cache, and what the hub's own libraries find in it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from helpers.adopted import COMMIT, bake_from_hub
from helpers.runtime_fakes import SHA, manifest_of
from prebake.baked import hub
from prebake.baked.manifest import File, Source
from prebake.baked.model import BakedModel

OTHER = "2" * 40


def model(name: str, uri: str, commit: str = COMMIT, files: tuple[str, ...] = ("model.safetensors",)) -> BakedModel:
    listed = tuple(File(path=path, size=1, sha256=SHA) for path in sorted(files))
    source = Source(uri=uri, revision=f"commit:{commit}")
    return BakedModel(Path("/models") / name, manifest_of(name, source=source, files=listed))


def test_files_and_the_default_branch() -> None:
    files = ("model.safetensors", "sub/config.json", "buffers.safetensors", "structure.json")
    assert hub.view_of([model("tiny", "hf:acme/tiny", files=files)]) == hub.View(
        links={
            f"models--acme--tiny/snapshots/{COMMIT}/model.safetensors": "tiny/model.safetensors",
            f"models--acme--tiny/snapshots/{COMMIT}/sub/config.json": "tiny/sub/config.json",
        },
        refs={"models--acme--tiny/refs/main": COMMIT},
    )


@pytest.mark.parametrize(
    ("uri", "names"),
    [("@main", ["main"]), ("@v1", ["main", "v1"]), (f"@{COMMIT}", ["main"]), ("@refs/pr/1", ["main", "refs/pr/1"]),
     (f"@v1@{COMMIT}", ["main", "v1"])],
)  # fmt: skip
def test_refs_are_the_declared_name_and_the_default_branch(uri: str, names: list[str]) -> None:
    refs = hub.view_of([model("tiny", f"hf:acme/tiny{uri}")]).refs
    assert sorted(path.removeprefix("models--acme--tiny/refs/") for path in refs) == names


def test_of_two_revisions_the_default_branch_is_main() -> None:
    view = hub.view_of([model("a", "hf:acme/tiny@v1", OTHER), model("b", "hf:acme/tiny")])
    assert view.refs == {"models--acme--tiny/refs/v1": OTHER, "models--acme--tiny/refs/main": COMMIT}
    pinned = hub.view_of([model("a", f"hf:acme/tiny@{OTHER}", OTHER), model("b", f"hf:acme/tiny@{COMMIT}")])
    assert pinned.refs == {}
    named = hub.view_of([model("a", f"hf:acme/tiny@v1@{OTHER}", OTHER), model("b", f"hf:acme/tiny@main@{COMMIT}")])
    assert named.refs == view.refs


@pytest.mark.parametrize(
    ("file", "linked"),
    [("net.bin", {}), ("sub/net.safetensors", {"sub/net.safetensors": "a/model.safetensors"}),
     ("../../net.safetensors", {})],
)  # fmt: skip
def test_a_single_file_is_not_the_network_s_weights(file: str, linked: dict[str, str]) -> None:
    net, files = model("z", "hf:acme/tiny"), ("model.safetensors", "object.json")
    alone = model("a", "hf:acme/tiny", files=files)
    alone = replace(alone, manifest=replace(alone.manifest, family="tensors", options={"file": file}))
    snapshot = f"models--acme--tiny/snapshots/{COMMIT}/"
    links = {path.removeprefix(snapshot): target for path, target in hub.view_of([alone, net]).links.items()}
    assert links == {"model.safetensors": "z/model.safetensors", "object.json": "a/object.json"} | linked


@pytest.mark.parametrize("uri", ["path:x", "dummy:blip", "hf:../x/y", "hf:a/../b", "hf:.."])
def test_other_sources_and_wrong_names_have_no_view(uri: str) -> None:
    assert not hub.view_of([model("tiny", uri)])


def test_a_revision_cannot_leave_the_folder() -> None:
    assert hub.view_of([model("tiny", "hf:acme/tiny@../../x")]).refs == {"models--acme--tiny/refs/main": COMMIT}


@pytest.mark.filterwarnings("ignore")
def test_the_hub_s_libraries_load_from_it_offline(tmp_path: Path) -> None:
    """No hook: `from_pretrained("org/name")` reads the view like its own cache."""
    import torch
    from huggingface_hub import hf_hub_download, scan_cache_dir, snapshot_download
    from transformers import AutoModelForMaskedLM

    from helpers.baking import save, tiny

    network = tiny("BertForMaskedLM")
    folder = bake_from_hub(save(network, tmp_path / "c", "pickle"), tmp_path / "models" / "tiny")
    place = tmp_path / "models" / ".hub"
    place.mkdir()
    hub.write(hub.view_of([BakedModel.open(folder)]), place, "..")
    path = hf_hub_download("acme/tiny", "model.safetensors", cache_dir=place, local_files_only=True)
    assert Path(path).samefile(folder / "model.safetensors")
    for revision in (None, "main", COMMIT):
        found = snapshot_download("acme/tiny", cache_dir=place, local_files_only=True, revision=revision)
        assert found == str(place / "models--acme--tiny" / "snapshots" / COMMIT)
    loaded = AutoModelForMaskedLM.from_pretrained("acme/tiny", cache_dir=place, local_files_only=True)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name])
    assert loaded.config.name_or_path == "acme/tiny"
    assert [repo.repo_id for repo in scan_cache_dir(place).repos] == ["acme/tiny"]
