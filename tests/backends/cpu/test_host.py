import os
from pathlib import Path

import pytest
from kvrt_cpu.host import RESERVE_BYTES, HostMemory, huge_pages, mappings, processor, processors

GIB = 1 << 30


class Machine:
    """A copy of the files that tell what a machine has, with 32 GiB of memory, 24 of it free."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.write("proc/meminfo", "MemTotal: 33554432 kB\nMemAvailable: 25165824 kB")
        self.write("proc/self/mountinfo", "22 1 0:20 / /proc rw - proc proc rw")
        self.write("proc/self/cgroup", "")

    def write(self, path: str, text: object) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(str(text))

    def cgroup_v2(self, path: str, root: str = "/") -> None:
        self.write("proc/self/cgroup", f"0::{path}")
        line = f"29 23 0:26 {root} /sys/fs/cgroup rw - cgroup2 cgroup2 rw"
        self.write("proc/self/mountinfo", line)

    def group(self, path: str, *, limit: object, used: int, cache: int = 0) -> None:
        folder = f"sys/fs/cgroup/{path}"
        self.write(f"{folder}/memory.max", limit)
        self.write(f"{folder}/memory.current", used)
        self.write(f"{folder}/memory.stat", f"anon 1\ninactive_file {cache}")

    def memory(self) -> HostMemory:
        return HostMemory(self.root)


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def test_without_limits_the_machine_s_own_memory_counts(machine):
    assert machine.memory().total() == 32 * GIB
    assert machine.memory().free() == 24 * GIB - RESERVE_BYTES


def test_a_container_s_limit_counts_where_it_is_lower(machine):
    machine.cgroup_v2("/")
    machine.group("", limit=8 * GIB, used=3 * GIB)
    assert machine.memory().total() == 8 * GIB
    assert machine.memory().free() == 5 * GIB - RESERVE_BYTES


def test_the_tightest_of_the_groups_around_a_process_counts(machine):
    machine.cgroup_v2("/users/me/job:1")
    machine.group("users/me/job:1", limit="max", used=1 * GIB)
    machine.group("users/me", limit=6 * GIB, used=5 * GIB)
    machine.group("users", limit=4 * GIB, used=2 * GIB)
    assert machine.memory().total() == 4 * GIB
    assert machine.memory().free() == 1 * GIB - RESERVE_BYTES


def test_a_throttling_limit_counts_like_a_hard_one(machine):
    machine.cgroup_v2("/job")
    machine.group("job", limit=8 * GIB, used=1 * GIB)
    machine.write("sys/fs/cgroup/job/memory.high", 2 * GIB)
    assert machine.memory().total() == 2 * GIB


def test_a_group_is_found_where_only_a_part_of_the_tree_is_mounted(machine):
    machine.cgroup_v2("/docker/abc/inner", root="/docker/abc")
    machine.group("inner", limit=2 * GIB, used=0)
    assert machine.memory().total() == 2 * GIB


def test_cgroup_version_1_is_understood_and_its_no_limit_number_ignored(machine):
    machine.write("proc/self/cgroup", "5:cpu,cpuacct:/x\n4:memory:/a/b\n0::/x")
    mount = "32 31 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory"
    machine.write("proc/self/mountinfo", mount)
    for path, limit in (("a/b", 9223372036854771712), ("a", 4 * GIB)):
        folder = f"sys/fs/cgroup/memory/{path}"
        machine.write(f"{folder}/memory.limit_in_bytes", limit)
        machine.write(f"{folder}/memory.usage_in_bytes", 1 * GIB)
        machine.write(f"{folder}/memory.stat", f"total_inactive_file {GIB // 2}")
    assert machine.memory().total() == 4 * GIB
    assert machine.memory().free() == 3 * GIB + GIB // 2 - RESERVE_BYTES


def test_unused_file_pages_of_a_group_are_free_memory(machine):
    machine.cgroup_v2("/")
    machine.group("", limit=8 * GIB, used=6 * GIB, cache=3 * GIB)
    assert machine.memory().free() == 5 * GIB - RESERVE_BYTES
    assert machine.memory().free(exact=False) == 2 * GIB - RESERVE_BYTES


def test_near_the_limit_the_quick_answer_counts_file_pages_too(machine):
    machine.cgroup_v2("/")
    machine.group("", limit=8 * GIB, used=8 * GIB, cache=3 * GIB)
    assert machine.memory().free(exact=False) == 3 * GIB - RESERVE_BYTES


def test_free_memory_is_never_negative(machine):
    machine.cgroup_v2("/")
    machine.group("", limit=1 * GIB, used=2 * GIB)
    assert machine.memory().free() == 0


def test_a_limit_that_is_lowered_while_running_is_seen(machine):
    machine.cgroup_v2("/")
    machine.group("", limit=8 * GIB, used=0)
    memory = machine.memory()
    machine.group("", limit=4 * GIB, used=0)
    assert memory.total() == 4 * GIB


def test_the_processor_is_named_by_its_vendor(machine):
    machine.write("proc/cpuinfo", "processor\t: 0\nmodel name\t: Some CPU 9000 @ 2GHz")
    assert processor(machine.root) == "Some CPU 9000 @ 2GHz"


def test_a_processor_without_a_name_is_called_by_its_architecture(machine):
    machine.write("proc/cpuinfo", "processor\t: 0\nFeatures\t: fp asimd")
    assert processor(machine.root)


def test_the_huge_page_setting_is_the_word_in_brackets(machine):
    assert huge_pages(machine.root) == ("never", 0)
    folder = "sys/kernel/mm/transparent_hugepage"
    machine.write(f"{folder}/enabled", "always [madvise] never")
    machine.write(f"{folder}/hpage_pmd_size", 2 << 20)
    assert huge_pages(machine.root) == ("madvise", 2 << 20)


def test_a_limit_on_addresses_is_one_on_memory(machine):
    """Memory takes two addresses for each byte, and something is left for all else."""
    machine.write(
        "proc/self/limits",
        "Limit  Soft  Hard  Units\nMax address space  unlimited  unlimited  bytes",
    )
    assert machine.memory().total() == 32 * GIB
    machine.write(
        "proc/self/limits", f"Max cpu time  5  5  s\nMax address space  {8 * GIB}  unlimited  bytes"
    )
    machine.write("proc/self/statm", f"{2 * GIB // os.sysconf('SC_PAGE_SIZE')} 9 9 9 0 9 0")
    memory = machine.memory()
    assert memory.total() == 2 * GIB
    assert memory.free() == 2 * GIB
    machine.write("proc/self/statm", f"{7 * GIB // os.sysconf('SC_PAGE_SIZE')} 9 9 9 0 9 0")
    assert memory.total() == 2 * GIB, "what was promised at the start"
    assert memory.free() == 1 * GIB - RESERVE_BYTES
    machine.cgroup_v2("/")
    machine.group("", limit=1 * GIB, used=GIB // 2)
    assert machine.memory().total() == 1 * GIB // 3


def test_what_is_neither_free_nor_its_own_is_others(machine):
    machine.write("proc/self/status", f"Name: x\nRssAnon: {2 << 20} kB\nRssShmem: {1 << 20} kB")
    assert machine.memory().others() == (32 - 24 - 3) * GIB
    machine.cgroup_v2("/")
    machine.group("", limit=8 * GIB, used=7 * GIB, cache=1 * GIB)
    assert machine.memory().others() == (8 - 2 - 3) * GIB, "file pages that can be dropped are free"
    machine.group("", limit=8 * GIB, used=3 * GIB)
    assert machine.memory().others() == 0


def test_this_machine_can_be_asked():
    memory = HostMemory()
    assert 0 < memory.free() < memory.total()
    assert 0 <= memory.others() < memory.total()
    count, limit = mappings()
    assert 0 < count < limit


def test_a_container_s_processor_quota_limits_the_threads(machine, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    assert processors(machine.root) == 16
    machine.cgroup_v2("/job")
    machine.write("sys/fs/cgroup/job/cpu.max", "max 100000")
    assert processors(machine.root) == 16
    machine.write("sys/fs/cgroup/cpu.max", "250000 100000")
    assert processors(machine.root) == 3


def test_processor_quotas_of_cgroup_version_1_are_understood(machine, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    machine.write("proc/self/cgroup", "5:cpu,cpuacct:/x")
    mount = "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct"
    machine.write("proc/self/mountinfo", mount)
    machine.write("sys/fs/cgroup/cpu/x/cpu.cfs_quota_us", -1)
    machine.write("sys/fs/cgroup/cpu/x/cpu.cfs_period_us", 100000)
    assert processors(machine.root) == 16
    machine.write("sys/fs/cgroup/cpu/x/cpu.cfs_quota_us", 400000)
    assert processors(machine.root) == 4
