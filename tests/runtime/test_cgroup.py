"""Free memory is the least of what the system and the control groups leave, in both versions of these."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from prebake.cgroup import free_memory

MB = 1 << 20
UNLIMITED = 9223372036854771712
"""What version 1 says where there is no limit."""


def system(root: Path, groups: str = "", available: int = 1000 * MB) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups)
    (root / "proc/meminfo").write_text(f"MemTotal:  99999 kB\nMemAvailable:  {available // 1024} kB\nBuffers:  1 kB\n")
    return root


def v2(root: Path, path: str, limit: int | str, used: int, inactive: int = 0, high: int | str = "max") -> None:
    folder = root / "sys/fs/cgroup" / path
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.high").write_text(f"{high}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon {used - inactive}\nfile {inactive}\ninactive_file {inactive}\n")


def v1(root: Path, path: str, limit: int, used: int, inactive: int = 0) -> None:
    folder = root / "sys/fs/cgroup/memory" / path
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.limit_in_bytes").write_text(f"{limit}\n")
    (folder / "memory.usage_in_bytes").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"inactive_file 0\ntotal_cache {inactive}\ntotal_inactive_file {inactive}\n")


def test_without_groups_it_is_what_the_system_has(tmp_path: Path) -> None:
    assert free_memory(system(tmp_path)) == 1000 * MB


def test_where_nothing_is_told_nothing_is_known(tmp_path: Path) -> None:
    assert free_memory(tmp_path) is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 5 kB\nMemAvailable:\n")
    assert free_memory(tmp_path) is None


def test_a_group_leaves_its_limit_less_what_is_used_and_cannot_be_given_up(tmp_path: Path) -> None:
    root = system(tmp_path, "0::/app.slice/service\n")
    v2(root, "app.slice/service", 500 * MB, used=300 * MB, inactive=100 * MB)
    assert free_memory(root) == 300 * MB


def test_a_container_is_the_root_of_its_namespace(tmp_path: Path) -> None:
    root = system(tmp_path, "0::/\n")
    v2(root, "", 500 * MB, used=300 * MB)
    assert free_memory(root) == 200 * MB


@pytest.mark.parametrize("path", ["/../../other", "/docker/0123", "/kubepods/pod1/0123"])
def test_a_path_that_is_not_there_means_the_group_that_is_mounted(tmp_path: Path, path: str) -> None:
    root = system(tmp_path, f"0::{path}\n")
    v2(root, "", 500 * MB, used=300 * MB)
    assert free_memory(root) == 200 * MB


def test_limits_of_the_groups_above_hold_too(tmp_path: Path) -> None:
    root = system(tmp_path, "0::/pod/container\n")
    v2(root, "pod", 400 * MB, used=350 * MB)
    v2(root, "pod/container", 500 * MB, used=10 * MB)
    assert free_memory(root) == 50 * MB


def test_a_group_is_held_back_from_its_high_mark_on(tmp_path: Path) -> None:
    root = system(tmp_path, "0::/\n")
    v2(root, "", "max", used=100 * MB, high=300 * MB)
    assert free_memory(root) == 200 * MB


def test_without_a_limit_the_system_decides(tmp_path: Path) -> None:
    root = system(tmp_path, "0::/\n", available=70 * MB)
    v2(root, "", "max", used=100 * MB)
    assert free_memory(root) == 70 * MB


def test_a_group_above_its_limit_leaves_nothing(tmp_path: Path) -> None:
    root = system(tmp_path, "0::/\n")
    v2(root, "", 100 * MB, used=101 * MB)
    assert free_memory(root) == 0


VERSION_1 = "12:cpu,cpuacct:/docker/0123\n5:memory:/docker/0123\n1:name=systemd:/docker/0123\n"


def test_version_1_is_asked_in_its_own_hierarchy(tmp_path: Path) -> None:
    root = system(tmp_path, VERSION_1)
    v1(root, "docker/0123", 500 * MB, used=300 * MB, inactive=50 * MB)
    v1(root, "", UNLIMITED, used=900 * MB)
    assert free_memory(root) == 250 * MB


def test_a_container_of_version_1_is_told_its_path_on_the_host(tmp_path: Path) -> None:
    root = system(tmp_path, VERSION_1)
    v1(root, "", 500 * MB, used=300 * MB)
    assert free_memory(root) == 200 * MB


def test_both_versions_at_once(tmp_path: Path) -> None:
    """As systemd mounts them in its hybrid mode: memory is accounted for by version 1."""
    root = system(tmp_path, f"{VERSION_1}0::/docker/0123\n")
    (root / "sys/fs/cgroup/unified/docker/0123").mkdir(parents=True)
    v1(root, "docker/0123", 500 * MB, used=300 * MB)
    assert free_memory(root) == 200 * MB


def test_files_that_say_something_else_are_no_limit(tmp_path: Path) -> None:
    root = system(tmp_path, "no groups\n0::/\n")
    v2(root, "", 500 * MB, used=300 * MB)
    (root / "sys/fs/cgroup/memory.stat").write_text("inactive_file\n")
    assert free_memory(root) == 200 * MB
    (root / "sys/fs/cgroup/memory.current").write_text("much\n")
    assert free_memory(root) == 1000 * MB


@pytest.mark.skipif(sys.platform != "linux", reason="other systems tell nothing")
def test_this_system_tells() -> None:
    assert (free_memory() or 0) > 0
