"""The notebook of the examples: it is stored without outputs, and runs from its first cell to its last."""

from __future__ import annotations

from base64 import b64decode
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

NOTEBOOK = Path(__file__).parents[1] / "examples" / "crash_to_isotropic.ipynb"


def test_it_is_stored_without_outputs() -> None:
    """And so it is small, and says nothing of a machine."""
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(NOTEBOOK, 4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(code) > 8
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_it_runs(tmp_path: Path) -> None:
    """The call crashes where it is foretold; the stack is scaled under a bar that ends full; pictures are drawn."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    pytest.importorskip("pyclesperanto_prototype", reason="it is that cle.scale which crashes here")
    notebook = nbformat.read(NOTEBOOK, 4)
    where = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=200, kernel_name="python3", resources=where).execute()
    outputs: list[Any] = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert [output.text for output in outputs if output.get("name") == "stderr"] == []
    said = "".join(output.text for output in outputs if output.output_type == "stream")
    assert "INVALID_BUFFER_SIZE" in said
    assert "voxels compared; error in grey levels: largest 0.50" in said

    shown = [output.data for output in outputs if "data" in output]
    (bar,) = [
        data["text/html"] for data in shown if "Mvoxel/s" in data.get("text/html", "") and "<pre" in data["text/html"]
    ]
    assert "done" in bar
    assert "16/16 blocks" in bar
    pictures = [b64decode(data["image/png"]) for data in shown if "image/png" in data]
    assert len(pictures) == 2
    for png in pictures:
        with Image.open(BytesIO(png)) as image:
            assert np.asarray(image.convert("L")).std() > 20
