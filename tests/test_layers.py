"""Imports follow the order in which data flows."""

import ast
import pathlib
import subprocess
import sys

import pytest

import gr_jax

ORDER = (
  "core", "data", "embeddings", "tokenizers", "sids", "tasks", "models",
  "training", "decoding", "evaluation", "export", "integrations", "stages",
)  # fmt: skip
ROOT = pathlib.Path(gr_jax.__file__).parent
HEAVY = {"tensorflow", "seqio", "tensorflow_datasets", "clu", "t5x", "torch"}
# The files whose purpose is that library; every other import must be lazy.
MAY_IMPORT_HEAVY = ("tasks/", "data/readers/tfds_", "integrations/")


def _imports(tree, *, top_level_only=False):
  nodes = tree.body if top_level_only else ast.walk(tree)
  for node in nodes:
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
      yield node.module
      yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _files(folder):
  return sorted(folder.rglob("*.py"))


@pytest.mark.parametrize("package", ORDER)
def test_a_package_imports_only_itself_and_earlier_ones(package):
  allowed = ORDER[: ORDER.index(package) + 1]
  for file in _files(ROOT / package):
    for name in _imports(ast.parse(file.read_text())):
      parts = name.split(".")
      if parts[0] == "gr_jax" and len(parts) > 1 and parts[1] in ORDER:
        assert parts[1] in allowed, f"{file} imports {name}"
      assert parts[0] not in ("launch", "configs"), f"{file} imports {name}"


def test_tensorflow_is_imported_only_where_it_is_the_purpose():
  for file in _files(ROOT):
    relative = file.relative_to(ROOT).as_posix()
    if relative.startswith(MAY_IMPORT_HEAVY):
      continue
    tree = ast.parse(file.read_text())
    for name in _imports(tree, top_level_only=True):
      assert name.split(".")[0] not in HEAVY, f"{relative} imports {name}"


def test_mains_import_only_stages():
  for file in _files(ROOT.parent / "launch"):
    for name in _imports(ast.parse(file.read_text())):
      if name.startswith("gr_jax."):
        assert name.split(".")[1] in ("stages", "core"), f"{file}: {name}"


def test_the_training_path_imports_no_tensorflow():
  """Accelerators often lack it."""
  code = (
    "import sys, gr_jax.stages; "
    "bad = {'tensorflow', 'seqio', 'clu', 'torch', 't5x'} & set(sys.modules); "
    "sys.exit(f'imported {bad}' if bad else 0)"
  )
  done = subprocess.run(
    [sys.executable, "-c", code],
    capture_output=True,
    text=True,
    cwd=ROOT.parent,
  )
  assert done.returncode == 0, done.stderr
