"""`models.lock`: one spelling, refused where it is none; what a bake asks of it, and what has drifted."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import ROOT
from helpers.hub_server import COMMIT
from prebake.baked import layout
from prebake.baked.manifest import File
from prebake.errors import ConfigError, DocumentError, NewerFormatError
from prebake_build.declared.lock import DamagedLockError, Lock, LockedModel, drift
from prebake_build.declared.result import Baked
from prebake_build.declared.spec import read_spec
from prebake_build.sources import Resolved, Upstream
from prebake_build.upstream.easyocr import archive_members

ZERO, ONE = "0" * 64, "1" * 64
DIGEST = '"sha256:" and 64 hexadecimal digits'

CAPTION = LockedModel(
    source="hf:acme/tiny",
    resolved=Resolved(
        revision=f"commit:{COMMIT}",
        files=(File(path="config.json", size=2, sha256=ZERO), File(path="model.safetensors", size=9, sha256=ONE)),
        licence="mit",
    ),
    baked=Baked(converter={"torch": "2.13.0", "prebake": "0.1.0"}, set_digest=f"sha256:{ZERO}"),
)
OCR = LockedModel(
    source="easyocr:en",
    unresolved="no network",
    upstream=(Upstream(path="a.zip", url="https://host/a.zip", member="a.pth", md5="0" * 32),),
)
BOTH = Lock(models={"ocr": OCR, "caption": CAPTION})

TEXT = f"""\
# Exact revisions, sizes and hashes for models.toml, written by `prebake lock`. Do not edit it; commit it.
# `prebake lock --check` reports whether upstream or models.toml has changed since.

format = 1

[models.caption]
source = "hf:acme/tiny"
revision = "commit:{COMMIT}"
licence = "mit"

[[models.caption.files]]
path = "config.json"
size = 2
sha256 = "{ZERO}"

[[models.caption.files]]
path = "model.safetensors"
size = 9
sha256 = "{ONE}"

[models.caption.baked]
set_digest = "sha256:{ZERO}"

[models.caption.baked.converter]
prebake = "0.1.0"
torch = "2.13.0"

[models.ocr]
source = "easyocr:en"
unresolved = "no network"

[[models.ocr.upstream]]
path = "a.zip"
url = "https://host/a.zip"
member = "a.pth"
md5 = "{"0" * 32}"
"""


# --- the document ------------------------------------------------------------------------------------------------


def test_a_lock_has_one_spelling(tmp_path: Path) -> None:
    assert BOTH.text == TEXT
    BOTH.write(tmp_path / "models.lock")
    assert Lock.read(tmp_path / "models.lock") == BOTH
    assert stat.S_IMODE((tmp_path / "models.lock").stat().st_mode) & 0o444 == 0o444 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_the_repositorys_own_lock_is_canonical_and_fits_models_toml() -> None:
    lock = Lock.read(ROOT / "models.lock")
    assert lock.text == (ROOT / "models.lock").read_text(encoding="utf-8")
    spec = read_spec(ROOT / "models.toml")
    assert {name: model.source for name, model in lock.models.items()} == {m.name: m.source for m in spec.models}
    assert len(lock.require("caption", spec.models[0].source).files) == 7


def test_the_repositorys_own_lock_carries_what_easyocrs_tables_publish() -> None:
    model = Lock.read(ROOT / "models.lock").models["ocr"]
    if model.resolved is None:
        known = archive_members(["ko", "en"]).values()
        assert model.upstream == tuple(Upstream(path=a.name, url=a.url, member=a.member, md5=a.md5) for a in known)


hexadecimal = st.text("0123456789abcdef", min_size=64, max_size=64)
digests = hexadecimal.map("sha256:{}".format)
texts = st.text(st.characters(codec="utf-8"), max_size=20)
paths = st.from_regex(r"[\w.-]{1,8}(/\w{1,8})?", fullmatch=True).filter(layout.is_inside)
files = st.lists(
    st.builds(File, path=paths, size=st.integers(0, 2**62), sha256=hexadecimal), min_size=1, max_size=4,
    unique_by=lambda file: file.path,
).map(lambda files: tuple(sorted(files, key=lambda file: file.path)))  # fmt: skip
resolutions = st.builds(
    Resolved, revision=digests, files=files, licence=st.none() | texts.filter(bool)
)  # fmt: skip
bakes = st.builds(
    Baked, converter=st.dictionaries(texts, texts, max_size=3), set_digest=digests, layer_digest=st.none() | digests
)
upstreams = st.builds(
    Upstream, path=paths, url=texts, member=paths, md5=st.text("0123456789abcdef", min_size=32, max_size=32)
)
models = st.builds(LockedModel, source=texts, resolved=resolutions, baked=st.none() | bakes) | st.builds(
    LockedModel, source=texts, unresolved=texts, upstream=st.lists(upstreams, max_size=2).map(tuple)
)
locks = st.builds(Lock, models=st.dictionaries(st.from_regex(layout.MODEL_NAME, fullmatch=True), models, max_size=3))


@given(lock=locks)
def test_any_lock_comes_back_as_it_was_written(lock: Lock, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "roundtrip.lock"
    lock.write(path)
    assert Lock.read(path) == lock
    assert Lock.read(path).text == path.read_text(encoding="utf-8")
    assert drift(lock, lock) == [] or any(model.unresolved is not None for model in lock.models.values())


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("format = 1", "", "format: is missing (expected a whole number)"),
        ("format = 1", "format = 1\nextra = 1", "extra: unknown key (known: format, models)"),
        ("size = 2", "size = 2.5", "models.caption.files[0].size: expected a whole number, found a number (2.5)"),
        ("size = 2", "size = -2", "models.caption.files[0].size: -2 is negative"),
        ('"config.json"', '"../x"', 'models.caption.files[0].path: "../x" leaves the model\'s folder'),
        ('"config.json"', '"z.json"', "models.caption.files: expected at least one, each path once, sorted"),
        (f"commit:{COMMIT}", "main", 'models.caption.revision: "main" is not of the form "commit:…" or "sha256:…"'),
        ("licence", "license", 'models.caption.license: unknown key: did you mean "licence"?'),
        (f'"sha256:{ZERO}"', '"abc"', f'models.caption.baked.set_digest: "abc" is not {DIGEST}'),
        ('"' + "0" * 32 + '"', '"0"', 'models.ocr.upstream[0].md5: "0" is not 32 hexadecimal digits'),
        ('"a.pth"', '"/a"', 'models.ocr.upstream[0].member: "/a" leaves the checkpoint'),
        (
            '"no network"',
            '"x"\nrevision = "commit:1"',
            "models.ocr.revision: unknown key (known: source, unresolved, upstream)",
        ),
        ("models.ocr", "models.OCR", 'models.OCR: "OCR" is not a valid model name'),
    ],
)
def test_a_lock_that_is_none_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in TEXT
    count = -1 if "models" in old else 1
    (tmp_path / "models.lock").write_text(TEXT.replace(old, new, count), encoding="utf-8")
    with pytest.raises(DocumentError) as error:
        Lock.read(tmp_path / "models.lock")
    assert str(error.value) == f"{tmp_path}/models.lock: {message}{mend(tmp_path / 'models.lock')}"


def mend(path: Path) -> str:
    return f": `prebake lock --lock {path}` writes it anew, or restore it from version control"


def test_a_newer_an_absent_and_a_broken_lock(tmp_path: Path) -> None:
    path = tmp_path / "models.lock"
    with pytest.raises(
        ConfigError, match=r"models\.lock: there is no such file: run `prebake lock --lock .*models\.lock`$"
    ):
        Lock.read(path)
    path.write_text("format = 2")
    with pytest.raises(NewerFormatError) as newer:
        Lock.read(path)
    assert str(newer.value) == (
        f"{path}: format: this lock has format 2, but this Prebake reads up to 1: install the prebake-build that wrote "
        f"it, or remove the file and run `prebake lock --lock {path}`"
    )
    for text in (b"format =", b"<<<<<<< HEAD\n", b"\xff"):
        path.write_bytes(text)
        with pytest.raises(DamagedLockError) as damaged:
            Lock.read(path)
        assert damaged.value.what.startswith(f"{path}: this lock is not TOML: ")
        assert str(damaged.value) == damaged.value.what + mend(path)


def test_the_way_out_names_the_models_file_beside_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("models", "other", "alone"):
        Path(f"{name}.lock").write_text("format = 2")
    Path("models.toml").touch()
    Path("other.toml").touch()

    def command(path: str) -> str:
        with pytest.raises(NewerFormatError) as error:
            Lock.read(Path(path))
        return str(error.value).rpartition(" run ")[2]

    assert command("models.lock") == "`prebake lock --lock models.lock`"
    assert command("other.lock") == "`prebake lock --models other.toml`"
    assert command("alone.lock") == "`prebake lock --lock alone.lock`"
    assert command(f"{tmp_path}/models.lock") == f"`prebake lock --models {tmp_path}/models.toml`"


# --- what a bake asks --------------------------------------------------------------------------------------------


def test_require_gives_what_was_locked() -> None:
    assert BOTH.require("caption", "hf:acme/tiny") == CAPTION.resolved


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        ("captoin", "hf:a/b", 'does not have "captoin": did you mean "caption"?'),
        ("caption", "hf:a/b", 'models.caption.source: locked "hf:acme/tiny", but models.toml has "hf:a/b"'),
        ("ocr", "easyocr:en", "models.ocr is unresolved: no network"),
    ],
)
def test_require_names_the_command_that_mends(name: str, source: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        BOTH.require(name, source)
    assert str(error.value) == f"models.lock: {message}: run `prebake lock {name}`"


def test_with_baked_changes_one_model() -> None:
    baked = Baked(converter={}, set_digest=f"sha256:{ONE}", layer_digest=f"sha256:{ZERO}")
    changed = BOTH.with_baked("caption", baked)
    assert changed.models["caption"] == replace(CAPTION, baked=baked)
    assert changed.models["ocr"] == OCR


# --- drift -------------------------------------------------------------------------------------------------------


def test_equal_locks_have_not_drifted_and_what_was_baked_does_not_count() -> None:
    assert drift(BOTH, Lock(models={"ocr": OCR, "caption": replace(CAPTION, baked=None)})) == []


def test_drift_names_each_difference() -> None:
    assert CAPTION.resolved
    changed = Resolved(
        revision="commit:" + "f" * 40,
        files=(
            File(path="config.json", size=3, sha256=ONE),
            File(path="new.json", size=1_000, sha256=ONE),
        ),
    )
    assert drift(BOTH, Lock(models={"caption": LockedModel(source="hf:acme/tiny", resolved=changed)})) == [
        "ocr: is in the lock, but not in models.toml",
        f"caption.revision: locked commit:{COMMIT}, now commit:{'f' * 40}",
        "caption.licence: locked mit, now none",
        f"caption.files: config.json: locked 2 bytes sha256:{ZERO}, now 3 bytes sha256:{ONE}",
        f"caption.files: model.safetensors: locked 9 bytes sha256:{ONE}, now none",
        f"caption.files: new.json: locked none, now 1,000 bytes sha256:{ONE}",
    ]


def test_drift_of_models_that_come_and_change_source() -> None:
    new = Lock(models={"caption": replace(CAPTION, source="hf:acme/big"), "ocr": OCR, "third": CAPTION})
    assert drift(BOTH, new) == [
        'caption.source: locked "hf:acme/tiny", now "hf:acme/big"',
        "third: is in models.toml, but not in the lock",
    ]


def test_drift_of_an_unresolved_model() -> None:
    found = replace(OCR, unresolved=None, resolved=CAPTION.resolved)
    assert drift(BOTH, Lock(models={"caption": CAPTION, "ocr": found})) == [
        f"ocr: is unresolved in the lock, now commit:{COMMIT}"
    ]
    silent = replace(OCR, unresolved="another reason")
    assert drift(BOTH, Lock(models={"caption": CAPTION, "ocr": silent})) == []
    published = replace(OCR, upstream=())
    assert drift(BOTH, Lock(models={"caption": CAPTION, "ocr": published})) == ["ocr.upstream: has changed"]
