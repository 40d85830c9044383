"""A family of another distribution: found by its entry point, in `models.toml`, in the worker, at load."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from helpers.baking import bake, declare
from helpers.other_family import install
from prebake import load
from prebake.baked.manifest import Manifest
from prebake.errors import ConfigError
from prebake.families.family import NAMES, family_names, family_of
from prebake_build.families.family import BuildFamily, build_family

SCALE = '[models.m]\nsource = "path:c"\nclass = "scale:Scale"\nsize = 3\n'
KNOWN = ", ".join(NAMES)
OTHERS = " (others come with a package that has an entry point of the group prebake.families)"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_process: None, processes: None) -> Path:
    """A folder that packages are installed into, on the path of this process and of those that it starts."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=":")
    return folder


@pytest.fixture
def models(tmp_path: Path) -> Path:
    checkpoint = tmp_path / "models" / "c"
    checkpoint.mkdir(parents=True)
    (checkpoint / "scale.csv").write_text("1\n2\n0.5\n")
    (checkpoint / "unit.txt").write_text("metre")
    return declare(tmp_path / "models", SCALE)


def test_a_family_of_another_distribution_is_baked_and_mapped(
    site: Path, models: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    install(site, scale="helpers.other_family:ScaleFamily")
    code, _, err = bake(capfd, models)
    assert (code, err.count("every start")) == (0, 0)
    folder = models.parent / "out" / "m"
    assert Manifest.read(folder).family == "scale"
    loaded = load(folder, ("mapped",))
    assert (loaded.tier, loaded.parts) == ("mapped", {"unit": "metre"})
    assert loaded.model(torch.ones(3)).tolist() == [1.0, 2.0, 0.5]


def test_its_keys_of_models_toml_are_its_own(site: Path, models: Path, capfd: pytest.CaptureFixture[str]) -> None:
    install(site, scale="helpers.other_family:ScaleFamily")
    declare(models.parent, SCALE.replace("size = 3", "size = 0\narguments = {}"))
    code, _, err = bake(capfd, models)
    assert (code, err.splitlines()) == (
        2,
        [
            f"prebake: error: {models}: models.m.size: 0 is not above 0",
            f"{models}: models.m.arguments: is only for the family timm or torch (this model's family is scale)",
        ],
    )


def test_an_error_of_its_loader_is_told(site: Path, models: Path, capfd: pytest.CaptureFixture[str]) -> None:
    install(site, scale="helpers.other_family:ScaleFamily")
    declare(models.parent, SCALE.replace("size = 3", "size = 4"))
    code, _, err = bake(capfd, models)
    assert (code, err.splitlines()[-1]) == (1, "prebake: error: models.m: scale.csv has 3 numbers, expected 4")


def test_without_its_distribution_the_family_is_unknown(models: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, _, err = bake(capfd, models)
    assert (code, err.splitlines()[0]) == (
        2,
        f'prebake: error: {models}: models.m.class: "scale" is not a known family (expected one of {KNOWN}){OTHERS}',
    )
    with pytest.raises(ConfigError) as error:
        family_of("scale", "it")
    assert str(error.value) == f'it: "scale" is not an installed family (installed: {KNOWN}){OTHERS}'


def test_the_nearest_installed_family_is_suggested(site: Path) -> None:
    install(site, scale="helpers.other_family:ScaleFamily")
    with pytest.raises(ConfigError) as error:
        family_of("scales", "it")
    known = ", ".join((*NAMES, "scale"))
    assert str(error.value) == f'it: "scales" is not an installed family (installed: {known}): did you mean "scale"?'


def test_a_family_in_the_box_cannot_be_replaced(site: Path) -> None:
    install(site, torch="helpers.other_family:ScaleFamily")
    assert type(family_of("torch", "it")).__module__ == "prebake.families.torch_module"
    assert family_names() == NAMES


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("helpers.no_such_module:Family",
         "cannot be imported: ModuleNotFoundError: No module named 'helpers.no_such_module'"),
        ("helpers.other_family:Incomplete",
         "lacks adopt, build, modules, ordinary, packages, prepare, skeleton, vocabulary, without_torch "
         "(prebake.families.family.Family lists what a family has)"),
    ],
)  # fmt: skip
def test_a_family_that_cannot_be_used_is_named_with_its_distribution(site: Path, value: str, message: str) -> None:
    install(site, scale=value)
    with pytest.raises(ConfigError) as error:
        family_of("scale", "it")
    assert str(error.value) == f'it: the family "scale" of scale-models 1.5 {message}'


def test_two_distributions_with_one_family_are_refused(site: Path) -> None:
    install(site, scale="helpers.other_family:ScaleFamily")
    install(site, "other-scales", scale="helpers.other_family:ScaleFamily")
    with pytest.raises(ConfigError) as error:
        family_of("scale", "it")
    assert str(error.value) == (
        'it: the family "scale" is provided by other-scales 1.5 and by scale-models 1.5: uninstall all but one'
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_families_in_the_box_have_both_halves(name: str) -> None:
    build = build_family(name, "it")
    assert isinstance(build, BuildFamily)
    assert build.pattern.fullmatch(build.example.partition(":")[2])
    assert build.example.partition(":")[0] == name
