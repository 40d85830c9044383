"""Sources come from installed distributions, through entry points."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.distributions import Distributions
from prebake.errors import ConfigError
from prebake_build.cache.checkpoints import Cache
from prebake_build.declared.spec import read_spec
from prebake_build.sources import Source, open_source, schemes

WHERE = "models.toml: models.m.source"
OWN = (
    "abfs", "abfss", "az", "dummy", "easyocr", "gcs", "gs", "hdfs", "hf", "lakefs", "oci", "oss", "package", "path",
    "s3", "s3a", "sftp", "smb", "tos", "url", "webhdfs",
)  # fmt: skip
INSTALLED = f"(installed: {', '.join(name + ':' for name in OWN)})"
SHELF = """
from dataclasses import dataclass
from pathlib import Path

from prebake.baked.manifest import set_digest
from prebake.errors import ConfigError
from prebake_build.files import digest
from prebake_build.sources import Resolved


@dataclass
class Shelf:
    uri: str
    folder: Path

    def resolve(self):
        files = digest.files_of(self.folder)
        return Resolved(revision=set_digest(files), files=files, licence="MIT")

    def fetch(self, resolved, folder):
        for file in resolved.files:
            (folder / file.path).write_bytes((self.folder / file.path).read_bytes())


def shelf(uri, rest, where, base):
    if "/" in rest:
        raise ConfigError(f"{where}: a shelf has no compartments")
    return Shelf(uri, base / "shelves" / rest)
"""


def opened(uri: str, base: Path = Path()) -> Source:
    return open_source(uri, base=base, where=WHERE)


def refused(uri: str) -> str:
    with pytest.raises(ConfigError) as error:
        opened(uri)
    return str(error.value)


def test_the_sources_in_the_box_come_through_the_same_door() -> None:
    assert schemes() == OWN


def test_a_source_of_another_distribution_is_locked_and_fetched(tmp_path: Path, distributions: Distributions) -> None:
    distributions.add("acme-shelf", {"prebake.sources": {"shelf": "acme_shelf:shelf"}}, {"acme_shelf.py": SHELF})
    (tmp_path / "shelves" / "tiny").mkdir(parents=True)
    (tmp_path / "shelves" / "tiny" / "w.pth").write_bytes(b"weights")
    declared = tmp_path / "models.toml"
    declared.write_text('[models.m]\nsource = "shelf:tiny"\nclass = "torch:app:network"\n')
    spec = read_spec(declared)
    source = spec.open(spec.models[0])
    with Cache() as cache:
        resolved = cache.resolve(source)
        assert (resolved.licence, [file.path for file in resolved.files]) == ("MIT", ["w.pth"])
        assert (cache.checkpoint(source, resolved) / "w.pth").read_bytes() == b"weights"


def test_the_form_of_its_uri_is_its_own_matter(tmp_path: Path, distributions: Distributions) -> None:
    distributions.add("acme-shelf", {"prebake.sources": {"shelf": "acme_shelf:shelf"}}, {"acme_shelf.py": SHELF})
    assert refused("shelf:a/b") == f"{WHERE}: a shelf has no compartments"


@pytest.mark.parametrize(
    ("uri", "hint"),
    [
        ("hff:acme/tiny", ': did you mean "hf"?'),
        ("https://host/w.pth", ': did you mean "url:https://host/w.pth"?'),
        ("weights", ": other schemes come with distributions that have an entry point of the group prebake.sources: "
                    "install the one that this needs"),
    ],
)  # fmt: skip
def test_an_unknown_scheme_gets_the_nearest_or_what_to_do(uri: str, hint: str) -> None:
    assert refused(uri) == f'{WHERE}: "{uri}" has no known scheme {INSTALLED}{hint}'


def test_a_distribution_does_not_replace_a_source_in_the_box(distributions: Distributions) -> None:
    distributions.add("acme-shelf", {"prebake.sources": {"path": "acme_shelf:shelf"}}, {"acme_shelf.py": SHELF})
    assert type(opened("path:c")).__module__ == "prebake_build.sources.path"


def test_two_distributions_with_one_scheme_are_refused(distributions: Distributions) -> None:
    for name in ("acme-shelf", "other-shelf"):
        distributions.add(name, {"prebake.sources": {"shelf": f"{name.replace('-', '_')}:shelf"}}, {})
    assert refused("shelf:a") == (
        f'{WHERE}: "shelf:a": acme-shelf and other-shelf both provide the scheme shelf: uninstall one of them'
    )


def test_a_source_that_cannot_be_imported_names_its_distribution(distributions: Distributions) -> None:
    distributions.add("acme-shelf", {"prebake.sources": {"shelf": "acme_none:shelf"}}, {})
    assert refused("shelf:a") == (
        f"{WHERE}: cannot import the source shelf: of acme-shelf (acme_none:shelf): ModuleNotFoundError: No module "
        "named 'acme_none'"
    )
