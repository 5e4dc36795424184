"""The systemd units, as systemd itself judges them."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

OPS = Path(__file__).parents[2] / "ops"
UNITS = sorted(OPS.glob("*.service"))
SYSTEMD = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed: apt-get install systemd"
)


def settings_of(unit: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in re.findall(r"^(\w+)=(.*)$", unit.read_text(), re.MULTILINE):
        found.setdefault(name, []).append(value)
    return found


@SYSTEMD
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_systemd_finds_nothing_wrong(unit: Path, tmp_path: Path) -> None:
    # A program that is there, since the unit's own is not installed here.
    text = re.sub(
        r"^(ExecStart=)/opt/neuronetz/bin/neuronetz", rf"\1{sys.executable}", unit.read_text(), flags=re.MULTILINE
    )
    copy = tmp_path / unit.name
    copy.write_text(text)
    done = subprocess.run(["systemd-analyze", "verify", copy], capture_output=True, text=True, timeout=60)
    about = [line for line in done.stderr.splitlines() if unit.name in line]
    assert about == []


def test_both_units_are_hardened_alike() -> None:
    gateway, migrate = (settings_of(OPS / f"{name}.service") for name in ("neuronetz", "neuronetz-migrate"))
    wanted = {
        "NoNewPrivileges": ["yes"],
        "ProtectSystem": ["strict"],
        "ProtectHome": ["yes"],
        "PrivateTmp": ["yes"],
        "PrivateDevices": ["yes"],
        "CapabilityBoundingSet": [""],
        "MemoryDenyWriteExecute": ["yes"],
        "RestrictAddressFamilies": ["AF_INET AF_INET6 AF_UNIX"],
        "SystemCallFilter": ["@system-service", "~@privileged @resources"],
        "DynamicUser": ["yes"],
    }
    assert {name: gateway[name] for name in wanted} == wanted
    own = {"Description", "Type", "ExecStart", "Wants", "After", "Before", "TimeoutStartSec"}
    assert {n: v for n, v in migrate.items() if n not in own} == {n: gateway[n] for n in migrate if n not in own}
    assert set(wanted) <= set(migrate)


def test_the_migration_is_a_unit_that_ends() -> None:
    migrate = settings_of(OPS / "neuronetz-migrate.service")
    assert migrate["Type"] == ["oneshot"]
    assert migrate["ExecStart"] == ["/opt/neuronetz/bin/neuronetz migrate"]
