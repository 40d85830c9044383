"""A cached checkpoint is hashed once for each state of its files, and the proof is trusted only where it may be."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.fake_sources import FakeSource
from prebake_build.cache.checkpoints import Cache
from prebake_build.files import digest
from prebake_build.sources import Resolved


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are hashed to be checked."""
    names: list[str] = []
    real = digest.sha256_of

    def sha256_of(path: Path) -> str:
        names.append(path.name)
        return real(path)

    monkeypatch.setattr(digest, "sha256_of", sha256_of)
    return names


def hit(source: FakeSource, folder: Path | None = None, *, resolved: Resolved | None = None) -> Path:
    """The checkpoint out of a cache that is opened for it."""
    resolved = resolved or source.resolve()
    with Cache(folder) as cache:
        return cache.checkpoint(source, resolved)


def test_other_bytes_of_the_same_size_are_noticed_and_fetched_anew(
    source: FakeSource, caplog: pytest.LogCaptureFixture
) -> None:
    folder = hit(source)
    status = (folder / "weights.bin").stat()
    (folder / "weights.bin").write_bytes(b"WEIGHTS" * 100)
    os.utime(folder / "weights.bin", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (hit(source) / "weights.bin").read_bytes() == b"weights" * 100
    assert source.fetched == 2
    assert "weights.bin: expected sha256 " in caplog.text
    assert "Fetching it again." in caplog.text


def test_what_was_fetched_is_not_hashed_again(source: FakeSource, hashed: list[str]) -> None:
    resolved = source.resolve()
    hit(source, resolved=resolved)
    hashed.clear()
    hit(source, resolved=resolved)
    assert hashed == []


def test_a_file_that_was_touched_is_hashed_once_more(source: FakeSource, hashed: list[str]) -> None:
    resolved = source.resolve()
    folder = hit(source, resolved=resolved)
    (folder / "config.json").touch()
    hashed.clear()
    hit(source, resolved=resolved)
    hit(source, resolved=resolved)
    assert hashed == ["config.json"]


def test_verify_hashes_whatever_the_proof_says(source: FakeSource, hashed: list[str]) -> None:
    resolved = source.resolve()
    hit(source, resolved=resolved)
    hashed.clear()
    with Cache() as cache:
        cache.checkpoint(source, resolved, verify=True)
    assert sorted(hashed) == ["config.json", "extra.txt", "weights.bin"]


@pytest.mark.parametrize("text", ["", "{}", '{"format": 99}', '{"format": 1, "files": [{}]}'])
def test_a_proof_that_cannot_be_read_proves_nothing(source: FakeSource, hashed: list[str], text: str) -> None:
    resolved = source.resolve()
    proof = hit(source, resolved=resolved).with_name("proof.json")
    proof.write_text(text)
    hashed.clear()
    hit(source, resolved=resolved)
    hit(source, resolved=resolved)
    assert sorted(hashed) == ["config.json", "extra.txt", "weights.bin"]


def test_a_proof_of_another_hash_proves_nothing(source: FakeSource, hashed: list[str]) -> None:
    resolved = source.resolve()
    proof = hit(source, resolved=resolved).with_name("proof.json")
    (digest_,) = (file.sha256 for file in resolved.files if file.path == "config.json")
    proof.write_text(proof.read_text().replace(digest_, "0" * 64))
    hashed.clear()
    hit(source, resolved=resolved)
    assert hashed == ["config.json"]


@pytest.mark.parametrize("name", ["proof.json", "."])
def test_a_proof_that_others_may_write_counts_for_nothing(source: FakeSource, hashed: list[str], name: str) -> None:
    resolved = source.resolve()
    entry = hit(source, resolved=resolved).parent
    (entry / name).chmod(0o777)
    hashed.clear()
    hit(source, resolved=resolved)
    assert sorted(hashed) == ["config.json", "extra.txt", "weights.bin"]


def test_a_proof_of_another_user_counts_for_nothing(source: FakeSource, hashed: list[str]) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root gives files away")
    resolved = source.resolve()
    entry = hit(source, resolved=resolved).parent
    os.chown(entry / "proof.json", 65534, 65534)
    hashed.clear()
    hit(source, resolved=resolved)
    assert sorted(hashed) == ["config.json", "extra.txt", "weights.bin"]


def test_a_read_only_cache_is_hashed_each_time(
    tmp_path: Path, source: FakeSource, small_disk: Callable[[Path, str], Path], hashed: list[str]
) -> None:
    resolved = source.resolve()
    disk = small_disk(tmp_path / "small", "1m")
    hit(source, disk, resolved=resolved).with_name("proof.json").unlink()
    if subprocess.run(["mount", "-o", "remount,ro", str(disk)], capture_output=True).returncode:
        pytest.skip("cannot mount read-only here")
    hashed.clear()
    for _ in range(2):
        with Cache(disk, offline=True) as cache:
            cache.checkpoint(source, resolved)
    assert sorted(hashed) == sorted(["config.json", "extra.txt", "weights.bin"] * 2)
    assert source.fetched == 1
