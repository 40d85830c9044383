"""A signed root is accepted by `verify --key` and at start, and refused by both after any change."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.baked_folders import baked_folder
from helpers.baking import flip_byte, names
from helpers.commands import run_command
from helpers.keys import key_pair
from prebake import Models, load
from prebake.baked.model import find_models
from prebake.baked.signature import Signature, check_signature
from prebake.errors import ConfigError, IntegrityError, PrebakeError
from prebake_build.commands import sign as sign_command
from prebake_build.commands import verify as verify_command

pytest.importorskip("model_signing", reason="signing is optional: pip install 'prebake-build[trust]'")

STRUCTURE = {"structure.json": b'{"format": 1}'}


def run_sign(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    return run_command(capsys, sign_command, "sign", *arguments)


def run_verify(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    return run_command(capsys, verify_command, "verify", *arguments)


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return key_pair(tmp_path)[1]


@pytest.fixture
def root(tmp_path: Path, key: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """Two signed models."""
    for name in ("caption", "ocr"):
        baked_folder(tmp_path / "models", name, files=STRUCTURE)
    assert run_sign(capsys, tmp_path / "models", "--key", key.with_suffix(".pem")) == (
        0, f"{tmp_path}/models/prebake.sig\n", ""
    )  # fmt: skip
    return tmp_path / "models"


def start(root: Path, key: Path, monkeypatch: pytest.MonkeyPatch) -> Models:
    monkeypatch.setenv("PREBAKE_VERIFY_KEY", str(key))
    return Models(root)


def test_signed_models_are_accepted_by_both(
    root: Path, key: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert names(root) == ["caption", "ocr", "prebake.sig"]
    code, out, err = run_verify(capsys, root, "--key", key)
    assert (code, out.splitlines()[-1], err) == (0, "prebake.sig  -  as promised", "")
    assert tuple(start(root, key, monkeypatch)) == ("caption", "ocr")


def test_a_start_hashes_no_weights(root: Path, key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for baked in find_models(root):
        (baked.folder / "model.safetensors").unlink()
    assert start(root, key, monkeypatch).names == ("caption", "ocr")


def manifest(root: Path) -> None:
    path = root / "ocr" / "manifest.json"
    path.write_text(path.read_text().replace("BertModel", "EvilModel"))


def structure_and_manifest(root: Path) -> None:
    """An attacker who knows the format writes a manifest that fits the changed file."""
    baked_folder(root, "ocr", files={"structure.json": b'{"format": 2}'})


def added_model(root: Path) -> None:
    baked_folder(root, "third")


def removed_model(root: Path) -> None:
    shutil.rmtree(root / "caption")


def renamed(root: Path) -> None:
    """The signature of another model: its manifest says another name, so it fits none."""
    shutil.rmtree(root / "ocr")
    baked_folder(root, "ocr", {"w": [5]})


def statement(root: Path) -> None:
    path = root / "prebake.sig"
    document = json.loads(path.read_text())
    payload = base64.b64decode(document["dsseEnvelope"]["payload"])
    changed = payload.replace(b"caption", b"captain")
    document["dsseEnvelope"]["payload"] = base64.b64encode(changed).decode()
    path.write_text(json.dumps(document))


def signature_bytes(root: Path) -> None:
    path = root / "prebake.sig"
    document = json.loads(path.read_text())
    raw = bytearray(base64.b64decode(document["dsseEnvelope"]["signatures"][0]["sig"]))
    raw[-1] ^= 1
    document["dsseEnvelope"]["signatures"][0]["sig"] = base64.b64encode(raw).decode()
    path.write_text(json.dumps(document))


def no_signature(root: Path) -> None:
    (root / "prebake.sig").unlink()


CHANGES = [
    manifest,
    structure_and_manifest,
    added_model,
    removed_model,
    renamed,
    statement,
    signature_bytes,
    no_signature,
]


@pytest.mark.parametrize("change", CHANGES)
def test_any_change_is_refused_by_both(
    root: Path, key: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path], None],
) -> None:  # fmt: skip
    change(root)
    code, out, err = run_verify(capsys, root, "--key", key, "--quick")
    assert (code, "prebake.sig  -  differs" in out, "prebake.sig" in err) == (1, True, True)
    with pytest.raises(IntegrityError):
        start(root, key, monkeypatch)


@pytest.mark.parametrize(
    ("change", "findings"),
    [(added_model, ["third/manifest.json: was not signed"]),
     (removed_model, ["caption/manifest.json: was signed, but is not there"])],
)  # fmt: skip
def test_what_does_not_fit_is_listed_by_both_alike(
    root: Path, key: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path], None], findings: list[str],
) -> None:  # fmt: skip
    change(root)
    _, _, err = run_verify(capsys, root, "--key", key, "--quick")
    assert err == f"prebake: {root}/prebake.sig: does not fit the models:\n  " + "\n  ".join(findings) + "\n"
    with pytest.raises(IntegrityError) as caught:
        start(root, key, monkeypatch)
    assert str(caught.value) == (
        f"{root}: the signature does not fit the models:\n  " + "\n  ".join(findings)
        + "\nPull these models again, or sign what is there: prebake sign."
    )  # fmt: skip


@pytest.mark.parametrize("path", ["ocr/structure.json", "ocr/config.json", "ocr/model.safetensors"])
def test_a_changed_file_is_found_by_its_hash(
    root: Path, key: Path, capsys: pytest.CaptureFixture[str], path: str
) -> None:
    flip_byte(root / path)
    code, _, err = run_verify(capsys, root, "--key", key)
    assert (code, f"{path.partition('/')[2]}: expected sha256" in err) == (1, True)


def test_an_added_file_is_found(root: Path, key: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "ocr" / "more.py").touch()
    code, _, err = run_verify(capsys, root, "--key", key, "--quick")
    assert (code, "more.py: not listed" in err) == (1, True)


@pytest.mark.parametrize("path", ["structure.json", "config.json"])
def test_a_start_hashes_the_files_beside_the_weights(
    root: Path, key: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    flip_byte(root / "ocr" / path)
    for begin in (lambda: start(root, key, monkeypatch), lambda: load(root / "ocr")):
        with pytest.raises(IntegrityError) as caught:
            begin()
        assert str(caught.value).startswith(f"{root}/ocr: differs from its manifest:\n  {path}: expected sha256 ")
        assert str(caught.value).endswith("\nBake or pull this model again.")


def test_a_start_refuses_files_and_links_that_the_manifest_does_not_list(
    root: Path, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "ocr" / "sub").mkdir()
    (root / "ocr" / "sub" / "more.py").touch()
    (root / "ocr" / "elsewhere").symlink_to(root)
    with pytest.raises(IntegrityError) as caught:
        start(root, key, monkeypatch)
    assert str(caught.value) == (
        f"{root}/ocr: differs from its manifest:\n  elsewhere: is not in the manifest\n"
        "  sub/more.py: is not in the manifest\nBake or pull this model again."
    )


def test_another_key_is_refused_by_both(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = key_pair(tmp_path, "other")[1]
    message = (
        f"{root}/prebake.sig: was not made with the private key of {other}, or was changed afterwards: "
        "name the key that signed these models, or pull them again"
    )
    code, _, err = run_verify(capsys, root, "--key", other, "--quick")
    assert (code, err) == (1, f"prebake: {message}\n")
    with pytest.raises(IntegrityError) as caught:
        start(root, other, monkeypatch)
    assert str(caught.value) == message


@pytest.mark.parametrize("curve", ["SECP256R1", "SECP384R1", "SECP521R1"])
def test_each_curve_and_an_encrypted_key_work(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, curve: str
) -> None:
    private, public = key_pair(tmp_path, curve, curve, password="geheim")
    code, _, err = run_sign(capsys, root, "--key", private)
    assert (code, err.startswith(f"prebake: error: {private}: cannot be used to sign: ")) == (2, True)
    monkeypatch.setenv("PREBAKE_KEY_PASSWORD", "geheim")
    assert run_sign(capsys, root, "--key", private)[0] == 0
    assert run_verify(capsys, root, "--key", public)[0] == 0
    check_signature(root, public, ["caption", "ocr"])


def test_one_model_is_loaded_with_the_signature_around_it(
    root: Path, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREBAKE_VERIFY_KEY", str(key))
    manifest(root)
    with pytest.raises(IntegrityError, match=r"ocr/manifest\.json: signed with sha256"):
        load(root / "ocr")
    check_signature(root, key, ["caption"], all_of_them=False)


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "cannot read this key: No such file or directory"),
     ("nothing", "is not a public key in PEM form (-----BEGIN PUBLIC KEY-----)")],
)  # fmt: skip
def test_a_key_that_cannot_be_used_is_said(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, message: str
) -> None:
    path = tmp_path / "bad.pub"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        start(root, path, monkeypatch)
    assert str(caught.value) == f"{path}: {message}"


def test_a_key_of_another_kind_is_refused(root: Path, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric import ed25519

    public = ed25519.Ed25519PrivateKey.generate().public_key()
    (tmp_path / "ed.pub").write_bytes(public.public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo))
    with pytest.raises(ConfigError) as caught:
        check_signature(root, tmp_path / "ed.pub", ["caption", "ocr"])
    assert str(caught.value) == f"{tmp_path}/ed.pub: expected an elliptic-curve key (P-256, P-384 or P-521)"


@pytest.mark.parametrize(
    ("change", "message"),
    [(lambda d: d.pop("dsseEnvelope"), "dsseEnvelope: is missing (expected a table)"),
     (lambda d: d["dsseEnvelope"].update(payload="*"), "dsseEnvelope.payload: is not base64: "),
     (lambda d: d["dsseEnvelope"].update(payload="e30="), "statement.predicateType: is missing (expected a string)"),
     (lambda d: d["dsseEnvelope"].update(payloadType="x"), 'dsseEnvelope.payloadType: "x" is not application/vnd.'),
     (lambda d: d["dsseEnvelope"].update(signatures=[]), "dsseEnvelope.signatures: expected one, found 0")],
)  # fmt: skip
def test_a_malformed_signature_is_said(
    root: Path, key: Path, capsys: pytest.CaptureFixture[str], change: Callable[[Any], object], message: str
) -> None:
    path = root / "prebake.sig"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    with pytest.raises(PrebakeError) as caught:
        Signature.read(path)
    assert message in str(caught.value)
    code, _, err = run_verify(capsys, root, "--key", key, "--quick")
    assert (code, message in err) == (1, True)


def test_one_models_folder_is_not_signed_alone(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_sign(capsys, root / "ocr", "--key", "x") == (
        2, "",
        f"prebake: error: {root}/ocr: is one model: name the folder around it, whose models are signed together\n",
    )  # fmt: skip
