"""Three hosts of one machine: one is cut off while they scale, and nothing of it shows in the result."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "examples" / "cluster" / "namespaces.sh"


def hosts_can_be_made() -> bool:
    """Tell whether this process may make network namespaces."""
    if shutil.which("ip") is None:
        return False
    made = subprocess.run(["ip", "netns", "add", "isovoxel-try"], capture_output=True, check=False)
    if made.returncode == 0:
        subprocess.run(["ip", "netns", "del", "isovoxel-try"], capture_output=True, check=False)
    return made.returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not hosts_can_be_made(), reason="network namespaces cannot be made here: that takes ip and root")
def test_a_host_that_is_cut_off_is_done_without(tmp_path: Path) -> None:
    """Its blocks go to the other one, and the bits are those of one process."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = ["sh", str(SCRIPT), str(tmp_path / "hosts"), "100", "3"]
    said = subprocess.run(
        command, env=os.environ | {"PATH": path}, capture_output=True, text=True, check=False, timeout=240
    )
    assert said.returncode == 0, said.stdout + said.stderr
    assert "cut off host-a after" in said.stdout
    assert "worker a" in said.stdout
    assert "the bits are those of one process" in said.stdout
