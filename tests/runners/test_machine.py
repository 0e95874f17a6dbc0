from pathlib import Path

import pytest

from mentatlab.runners.machine import this_machine

GIB = 1 << 30


def write(root: Path, **files: str) -> None:
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name.replace("__", "/")
        path = path.with_name(path.name.replace("_dot_", "."))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_without_a_container_it_is_the_hardware(tmp_path: Path) -> None:
    machine = this_machine(tmp_path)
    assert machine.cpus >= 1
    assert machine.memory > 256 << 20
    assert machine.gpus == 0


@pytest.mark.parametrize(
    "files",
    [
        {"memory_dot_max": str(GIB // 8), "cpu_dot_max": "50000 100000"},
        {
            "memory__memory_dot_limit_in_bytes": str(GIB // 8),
            "cpu__cpu_dot_cfs_quota_us": "50000",
            "cpu__cpu_dot_cfs_period_us": "100000",
        },
    ],
)
def test_a_container_limits_it(tmp_path: Path, files: dict[str, str]) -> None:
    write(tmp_path, **files)
    machine = this_machine(tmp_path)
    assert (machine.cpus, machine.memory) == (0.5, GIB // 8)


@pytest.mark.parametrize(
    "files",
    [
        {"memory_dot_max": "max", "cpu_dot_max": "max 100000"},
        {
            "memory__memory_dot_limit_in_bytes": str((1 << 63) - 4096),
            "cpu__cpu_dot_cfs_quota_us": "-1",
        },
    ],
)
def test_no_limit_is_none(tmp_path: Path, files: dict[str, str]) -> None:
    write(tmp_path, **files)
    assert this_machine(tmp_path) == this_machine(tmp_path / "nothing")


def test_gpus_are_counted(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    for name in ("nvidia0", "nvidia1", "nvidiactl"):
        (tmp_path / "dev" / name).touch()
    assert this_machine(tmp_path).gpus == 2
