"""Notebooks: no outputs stored, and they run as they stand."""

import json
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "launch" / "colab").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_outputs_are_stripped_and_code_compiles(path):
  notebook = json.loads(path.read_text())
  assert path.stat().st_size < 20_000
  for cell in notebook["cells"]:
    if cell["cell_type"] == "code":
      assert cell["outputs"] == []
      assert cell["execution_count"] is None
      compile("".join(cell["source"]), path.name, "exec")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_runs_from_top_to_bottom(path, monkeypatch):
  import nbclient
  import nbformat

  monkeypatch.setenv("GR_JAX_NOTEBOOK_SIZE", "smoke")
  monkeypatch.setenv("XLA_FLAGS", "")
  monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=":")
  notebook = nbformat.read(path, as_version=4)
  client = nbclient.NotebookClient(
    notebook, timeout=600, resources={"metadata": {"path": str(ROOT)}}
  )
  client.execute()
  text = json.dumps(notebook)
  wanted = {"quickstart": "Recommended next", "tokenizers": "residual k-means"}
  assert wanted[path.stem] in text
