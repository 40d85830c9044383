"""`path:` folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from prebake.baked.manifest import set_digest
from prebake.documents.messages import quote
from prebake.errors import ConfigError, SourceError
from prebake_build.cache.checkpoints import Cache
from prebake_build.files import digest
from prebake_build.sources.path import PathSource


def source(base: Path, rest: str = "checkpoint") -> PathSource:
    return PathSource.parse(f"path:{rest}", rest, "models.toml: models.tiny.source", base)


def test_all_files_but_hidden_ones_are_taken_as_they_are(checkpoint: Path) -> None:
    (checkpoint / ".git").mkdir()
    (checkpoint / ".git" / "head").symlink_to("nowhere")
    (checkpoint / "README.md").write_text("no choice is made")
    resolved = source(checkpoint.parent).resolve()
    assert [file.path for file in resolved.files] == ["README.md", "config.json", "sub/extra.txt", "weights.bin"]
    assert resolved.revision == set_digest(resolved.files)


def test_fetching_copies_into_the_cache(checkpoint: Path) -> None:
    with Cache() as cache:
        resolved = cache.resolve(source(checkpoint.parent))
        folder = cache.checkpoint(source(checkpoint.parent), resolved)
    assert digest.files_of(folder) == resolved.files


def test_absolute_folders_and_a_link_to_the_folder_itself_are_followed(checkpoint: Path) -> None:
    (checkpoint.parent / "link").symlink_to(checkpoint)
    direct = source(checkpoint.parent).resolve()
    assert source(Path("/nowhere"), str(checkpoint)).resolve() == direct
    assert source(checkpoint.parent, "link").resolve() == direct


def test_symlinks_inside_are_refused_with_the_way_out(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").symlink_to("../../blobs/abc")
    with pytest.raises(SourceError) as error:
        source(checkpoint.parent).resolve()
    assert str(error.value) == (
        f"path:checkpoint: {checkpoint}: not only plain files:\n"
        "  model.safetensors: is a symlink to ../../blobs/abc\n"
        "Only plain files can be copied. A folder of the Hugging Face cache is made of symlinks: "
        "copy it out with `hf download ORG/NAME --local-dir DIR`, or use an hf: source."
    )


def test_an_absent_and_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(SourceError) as error:
        source(tmp_path).resolve()
    assert str(error.value) == (
        f"path:checkpoint: there is no folder {quote(str(tmp_path / 'checkpoint'))} (paths are relative to models.toml)"
    )
    (tmp_path / "checkpoint").mkdir()
    with pytest.raises(SourceError) as error:
        source(tmp_path).resolve()
    assert str(error.value) == f"path:checkpoint: {tmp_path}/checkpoint contains no files (hidden files do not count)"


def test_a_locked_file_that_is_gone(checkpoint: Path, tmp_path: Path) -> None:
    resolved = source(checkpoint.parent).resolve()
    (checkpoint / "config.json").unlink()
    target = tmp_path / "target"
    target.mkdir()
    with pytest.raises(SourceError) as error:
        source(checkpoint.parent).fetch(resolved, target)
    assert str(error.value) == f"path:checkpoint: cannot read {checkpoint}/config.json: No such file or directory"


@pytest.mark.parametrize("rest", ["", "a\0b"])
def test_a_uri_without_a_folder_is_refused(tmp_path: Path, rest: str) -> None:
    with pytest.raises(ConfigError, match=r'^models\.toml: models\.tiny\.source: .* is not of the form "path:FOLDER"$'):
        source(tmp_path, rest)
