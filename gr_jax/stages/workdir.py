"""Where a run's artifacts lie, and whether one can be kept."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from absl import logging

from gr_jax.core import artifact, checks, processes
from gr_jax.stages.config import RunConfig

_CONFIG = "config.json"


@dataclasses.dataclass(frozen=True)
class Workdir:
  """The folder of one run; each stage writes one artifact in it.

  Of a job's processes the first writes and the others read what it wrote, so
  the folder must be one that all of them see.
  """

  root: pathlib.Path

  def path(self, kind: str) -> pathlib.Path:
    """Returns the folder of the artifact of this kind."""
    return self.root / kind

  @property
  def training(self) -> pathlib.Path:
    """Checkpoints, metrics and TensorBoard events of the training run."""
    return self.root / "training"

  def write_config(self, config: Any) -> None:
    """Stores the settings, for mains that are started without a config."""
    if not processes.is_first():
      return
    self.root.mkdir(parents=True, exist_ok=True)
    text = json.dumps(dict(config.sections), indent=1, sort_keys=True)
    (self.root / _CONFIG).write_text(text + "\n")

  def read_config(self) -> RunConfig:
    """Returns the settings that the workdir's run was made with.

    Raises:
      InputError: It holds none.
    """
    return RunConfig.from_dict(self.read_sections())

  def read_sections(self) -> dict[str, Any]:
    """Returns the content of the config that the workdir was made with.

    Raises:
      InputError: It holds none.
    """
    path = self.root / _CONFIG
    if not path.is_file():
      raise checks.InputError(
        f"No run in {str(self.root)!r}; start it with --config=configs/..."
      )
    return json.loads(path.read_text())

  def load(self, kind: str) -> artifact.Artifact:
    """Reads and verifies the artifact of this kind.

    Raises:
      InputError: It is missing, damaged or of another schema.
    """
    return artifact.load(self.path(kind), kind=kind)

  def load_child(
    self, kind: str, parents: Mapping[str, artifact.Artifact]
  ) -> artifact.Artifact:
    """Reads an artifact that must have been built from these parents.

    Raises:
      InputError: As `load`, or it was built from others.
    """
    child = self.load(kind)
    for name, parent in parents.items():
      if child.parents.get(name) != parent.hash:
        raise checks.InputError(
          f"{str(child.path)!r} was built from another {name} than the one in "
          f"{str(parent.path)!r}; re-run the stages after {name}, or choose "
          "another --workdir."
        )
    return child

  def matching(
    self, kind: str, config: Any, parents: Mapping[str, artifact.Artifact]
  ) -> artifact.Artifact | None:
    """Returns the artifact of this kind if it need not be made again.

    Args:
      kind: What it is.
      config: The settings that it must have been made with.
      parents: What it must have been built from.

    Returns:
      The artifact, verified; None if it is missing, damaged, or was made
      from other settings or parents. Process 0 decides for all.

    Raises:
      InputError: Another process cannot read what process 0 found.
    """
    kept = None
    if processes.is_first():
      kept = self._matching(kind, config, parents)
    found = processes.first_decides(kept is not None)
    with processes.together():
      if found and kept is None:
        kept = self.load(kind)
    return kept

  def _matching(
    self, kind: str, config: Any, parents: Mapping[str, artifact.Artifact]
  ) -> artifact.Artifact | None:
    try:
      manifest = artifact.read_manifest(self.path(kind), kind=kind)
    except checks.InputError:
      return None
    hashes = {name: parent.hash for name, parent in parents.items()}
    if manifest["config"] != artifact.canonical(config):
      logging.info("%s: made with other settings; making it anew.", kind)
      return None
    if manifest["parents"] != hashes:
      logging.info("%s: made from other inputs; making it anew.", kind)
      return None
    try:
      kept = artifact.load(self.path(kind), kind=kind)
    except checks.InputError as error:
      logging.warning("%s Making it anew.", error)
      return None
    logging.info("%s: matches its settings and inputs; skipped.", kind)
    return kept

  def save(
    self,
    kind: str,
    config: Any,
    arrays: Mapping[str, Any],
    parents: Mapping[str, artifact.Artifact],
    metadata: Mapping[str, Any] | None = None,
  ) -> artifact.Artifact:
    """Writes the artifact of this kind, replacing an older one.

    Raises:
      InputError: Another process cannot read what process 0 wrote.
    """
    saved = None
    if processes.is_first():
      saved = artifact.save(
        self.path(kind),
        kind=kind,
        config=config,
        arrays=arrays,
        parents={name: parent.hash for name, parent in parents.items()},
        metadata=metadata,
      )
    processes.wait(f"saved {kind}")
    with processes.together():
      if saved is None:
        saved = self.load(kind)
    return saved
