"""``--offload host:8GiB,disk:PATH:64GiB``."""

from pathlib import Path

import pytest

from kvrt.errors import ConfigError
from kvrt.kv.tiers.config import TierConfig, parse_tiers
from kvrt.units import GIB, MIB


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("host:8GiB", TierConfig(host_bytes=8 * GIB)),
        ("disk:/var/kv:64GiB", TierConfig(disk_bytes=64 * GIB, disk_path=Path("/var/kv"))),
        (
            "host:512MiB, disk:cache/kv:1GB",
            TierConfig(512 * MIB, 10**9, Path("cache/kv")),
        ),
        ("disk:kv:1GiB,host:1MiB", TierConfig(MIB, GIB, Path("kv"))),
        ("disk:/a:b/c:1GiB", TierConfig(disk_bytes=GIB, disk_path=Path("/a:b/c"))),
        ("disk:~/kv:1GiB", TierConfig(disk_bytes=GIB, disk_path=Path.home() / "kv")),
    ],
)
def test_tiers_are_read(text: str, meant: TierConfig) -> None:
    assert parse_tiers(text) == meant


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "''"),
        ("8GiB", "'8GiB'"),
        ("ram:8GiB", "'ram:8GiB'"),
        ("host:8GiB,", "''"),
        ("host:", "'host:'"),
        ("host:8XB", "'8XB'"),
        ("host:0", "'host:0'"),
        ("host:-1", "'-1'"),
        ("host:8GiB,host:1GiB", "twice"),
        ("disk:64GiB", "'disk:64GiB' has no path or no size"),
        ("disk::64GiB", "'disk::64GiB' has no path or no size"),
        ("disk:/var/kv", "no path or no size"),
        ("disk:/var/kv:", "'disk:/var/kv:'"),
        ("disk:/var/a,b:1GiB", "'disk:/var/a' has no path or no size"),
        ("disk:~no-such-user/kv:1GiB", "'disk:~no-such-user/kv:1GiB'"),
        ("host:" + "9" * 500, "is not a size"),
    ],
)
def test_a_part_that_is_wrong_is_named_with_the_right_form(text: str, part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_tiers(text)
    assert part in str(caught.value)
    assert caught.value.fix
