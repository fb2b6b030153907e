"""What tests of codecs on a real GPU share."""

from __future__ import annotations

import pytest

from isovoxel.codecs.cuda import can_code
from isovoxel.engines.devices import list_devices


@pytest.fixture
def pci() -> str:
    """The place of a GPU on which chunks can be encoded and decoded."""
    gpus = [device.pci for device in list_devices() if device.pci]
    if not gpus:
        pytest.skip("no GPU is here")
    if not can_code():
        pytest.skip("CUDA or nvCOMP is not installed")
    return gpus[0]
