"""An artifact: a folder of arrays and a manifest that proves what they are.

    <path>/manifest.json   kind, schema_version, config, parents, metadata and
                           each array's shape, dtype and sha256
    <path>/<name>.npy      one file an array

An artifact's hash is that of its manifest without the metadata, which may tell
how long the work took: equal content, configuration and parents give an equal
hash, and through `parents` it covers everything that it was built from.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gr_jax.core import checks

SCHEMA_VERSION = 1
_MANIFEST = "manifest.json"


@dataclasses.dataclass(frozen=True)
class Artifact:
  """A stage's saved output, verified."""

  path: pathlib.Path
  kind: str
  config: dict[str, Any]
  arrays: dict[str, np.ndarray]
  parents: dict[str, str]  # what it was built from: name -> hash
  metadata: dict[str, Any]  # other facts, as JSON
  hash: str


def canonical(value: Any) -> Any:
  """Returns `value` as plain JSON types with tuples as lists.

  Args:
    value: Nested mappings, sequences, numbers, strings, booleans, None.

  Raises:
    InputError: Something in it cannot be written as JSON.
  """
  try:
    return json.loads(json.dumps(value, sort_keys=True))
  except TypeError as error:
    raise checks.InputError(f"Not writable as JSON: {error}.") from error


def pack_strings(strings: Sequence[str]) -> dict[str, np.ndarray]:
  """Turns strings into two arrays, for an artifact.

  Args:
    strings: Any number of strings.

  Returns:
    "bytes": uint8, their UTF-8 one after the other; "offsets": int64 [n + 1].
  """
  encoded = [s.encode() for s in strings]
  offsets = np.zeros(len(encoded) + 1, np.int64)
  np.cumsum([len(e) for e in encoded], out=offsets[1:])
  return {
    "bytes": np.frombuffer(b"".join(encoded), np.uint8),
    "offsets": offsets,
  }


def unpack_strings(packed: Mapping[str, np.ndarray]) -> tuple[str, ...]:
  """Returns the strings that `pack_strings` packed."""
  data = packed["bytes"].tobytes()
  ends = packed["offsets"].tolist()
  pairs = zip(ends[:-1], ends[1:], strict=True)
  return tuple(data[start:end].decode() for start, end in pairs)


def _digest(array: np.ndarray) -> str:
  return hashlib.sha256(np.ascontiguousarray(array).view(np.uint8)).hexdigest()


def hash_arrays(arrays: Mapping[str, np.ndarray]) -> str:
  """Returns the sha256 of named arrays, the same for equal content."""
  return hash_config(
    {
      name: [str(array.dtype), list(array.shape), _digest(array)]
      for name, array in arrays.items()
    }
  )


def _file_name(name: str) -> str:
  return name.replace("/", ".") + ".npy"


def save(
  path: str | os.PathLike[str],
  *,
  kind: str,
  config: Mapping[str, Any],
  arrays: Mapping[str, np.ndarray],
  parents: Mapping[str, str] | None = None,
  metadata: Mapping[str, Any] | None = None,
) -> Artifact:
  """Writes an artifact whole or not at all, replacing an older one.

  Args:
    path: Its folder; the parent folders are made.
    kind: What it is, e.g. "sid_catalog".
    config: The settings that it was made with, JSON types.
    arrays: Numeric arrays by name; "/" in a name groups.
    parents: Hashes of what it was built from, by name.
    metadata: Other facts about it, JSON types.

  Returns:
    The artifact as saved.

  Raises:
    InputError: An array that is not numeric, or settings that are not JSON.
  """
  path = pathlib.Path(path)
  arrays = {name: np.asarray(array) for name, array in arrays.items()}
  for name, array in arrays.items():
    if array.dtype.kind not in "biuf":
      raise checks.InputError(f"Array {name!r} has dtype {array.dtype}.")
  manifest = canonical(
    {
      "kind": kind,
      "schema_version": SCHEMA_VERSION,
      "config": dict(config),
      "parents": dict(parents or {}),
      "metadata": dict(metadata or {}),
      "arrays": {
        name: {
          "shape": list(array.shape),
          "dtype": str(array.dtype),
          "sha256": _digest(array),
        }
        for name, array in arrays.items()
      },
    }
  )
  path.parent.mkdir(parents=True, exist_ok=True)
  draft = path.parent / f".{path.name}.{uuid.uuid4().hex}"
  draft.mkdir()
  try:
    for name, array in arrays.items():
      np.save(draft / _file_name(name), array, allow_pickle=False)
    text = json.dumps(manifest, indent=1, sort_keys=True) + "\n"
    (draft / _MANIFEST).write_text(text)
    if path.exists():
      old = path.parent / f".{path.name}.old.{uuid.uuid4().hex}"
      path.rename(old)
      draft.rename(path)
      shutil.rmtree(old)
    else:
      draft.rename(path)
  finally:
    shutil.rmtree(draft, ignore_errors=True)
  return _assemble(path, manifest, arrays)


def _assemble(
  path: pathlib.Path, manifest: dict[str, Any], arrays: dict[str, np.ndarray]
) -> Artifact:
  return Artifact(
    path=path,
    kind=manifest["kind"],
    config=manifest["config"],
    arrays=arrays,
    parents=manifest["parents"],
    metadata=manifest["metadata"],
    hash=hash_config({k: v for k, v in manifest.items() if k != "metadata"}),
  )


def hash_config(value: Any) -> str:
  """Returns the sha256 of a JSON value, the same for equal values."""
  text = json.dumps(canonical(value), sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def read_manifest(path: str | os.PathLike[str], *, kind: str) -> dict[str, Any]:
  """Returns the manifest at `path` without reading the arrays.

  Args:
    path: The artifact's folder.
    kind: What it has to be.

  Raises:
    InputError: No artifact there, another kind, or another schema version.
  """
  file = pathlib.Path(path) / _MANIFEST
  if not file.is_file():
    raise checks.InputError(
      f"No {kind} at {str(path)!r}; run the stage that makes it first, or "
      "check --workdir."
    )
  try:
    manifest = json.loads(file.read_text())
  except json.JSONDecodeError as error:
    raise checks.InputError(
      f"{str(file)!r} is damaged ({error}); delete {str(path)!r} and re-run."
    ) from error
  if manifest["kind"] != kind:
    raise checks.InputError(
      f"{str(path)!r} holds a {manifest['kind']}, want a {kind}."
    )
  if manifest["schema_version"] != SCHEMA_VERSION:
    raise checks.InputError(
      f"{str(path)!r} has schema version {manifest['schema_version']}, this "
      f"code reads {SCHEMA_VERSION}; delete it and re-run its stage."
    )
  return manifest


def load(path: str | os.PathLike[str], *, kind: str) -> Artifact:
  """Reads an artifact and verifies every array against the manifest.

  Args:
    path: The artifact's folder.
    kind: What it has to be.

  Raises:
    InputError: As `read_manifest`, or an array that is missing or differs.
  """
  path = pathlib.Path(path)
  manifest = read_manifest(path, kind=kind)
  arrays = {}
  for name, want in manifest["arrays"].items():
    file = path / _file_name(name)
    remedy = f"delete {str(path)!r} and re-run its stage"
    try:
      array = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
      raise checks.InputError(
        f"{str(file)!r} cannot be read ({error}); {remedy}."
      ) from error
    if _digest(array) != want["sha256"] or list(array.shape) != want["shape"]:
      raise checks.InputError(
        f"{str(file)!r} differs from its manifest; {remedy}."
      )
    arrays[name] = array
  return _assemble(path, manifest, arrays)


def group(
  arrays: Mapping[str, np.ndarray], prefix: str
) -> dict[str, np.ndarray]:
  """Returns the arrays below "prefix/", without it in their names."""
  start = prefix + "/"
  return {n[len(start) :]: a for n, a in arrays.items() if n.startswith(start)}


def prefixed(
  arrays: Mapping[str, np.ndarray], prefix: str
) -> dict[str, np.ndarray]:
  """Returns the arrays with "prefix/" put before every name."""
  return {f"{prefix}/{name}": array for name, array in arrays.items()}
