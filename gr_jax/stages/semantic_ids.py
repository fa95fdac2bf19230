"""Stages 3 to 5: embeddings -> codes -> unique semantic IDs."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jaxtyping import Float32, Int32, Int64

from gr_jax.core import artifact, rng
from gr_jax.core import mesh as mesh_lib
from gr_jax.embeddings.table import EmbeddingTable
from gr_jax.sids import hourglass
from gr_jax.sids.resolution import CollisionContext
from gr_jax.sids.sid_catalog import SidCatalog
from gr_jax.stages import prepare
from gr_jax.stages.config import RunConfig
from gr_jax.stages.workdir import Workdir
from gr_jax.tokenizers import base, last_level


@dataclasses.dataclass(frozen=True, eq=False)
class StoredTokenizer:
  """The fitted tokenizer of a workdir and the codes it gave every item."""

  artifact: artifact.Artifact
  state: Any
  codes: Int32[np.ndarray, "N L"]


def fit_tokenizer(
  config: RunConfig,
  workdir: Workdir,
  embeddings: artifact.Artifact,
  table: EmbeddingTable,
) -> StoredTokenizer:
  """Fits the tokenizer on all items and encodes them, unless done before.

  Raises:
    InputError: The tokenizer refuses the embeddings.
  """
  section = tokenizer_section(config)
  parents = {"embeddings": embeddings}
  kept = workdir.matching("tokenizer", section, parents)
  if kept is not None:
    return _stored(config, kept, table)
  key = rng.stream(jax.random.key(config.seed), "tokenizer")
  state, report = fit(config, table.vectors, key=key)
  for alarm in report.alarms:
    logging.warning("tokenizer: %s", alarm)
  # Not `encode` again: a balanced fit gives its items codes of their own.
  codes = report.codes
  saved = workdir.save(
    "tokenizer",
    section,
    artifact.prefixed(base.state_to_arrays(state), "state") | {"codes": codes},
    parents,
    metadata=report.to_dict(),
  )
  logging.info(
    "tokenizer: %s codes, relative error %.3f, %.1f %% of items share their "
    "codes, %.1f s.",
    " x ".join(map(str, config.tokenizer.codebook_sizes)),
    report.relative_mse,
    100 * report.collision_rate,
    report.seconds,
  )
  return StoredTokenizer(saved, state, codes)


def fit(
  config: RunConfig,
  vectors: Float32[np.ndarray, "N D"],
  *,
  key: jax.Array,
  init: Any = None,
) -> tuple[Any, base.FitReport]:
  """Fits the tokenizer, on all devices where it knows how to share the rows.

  Args:
    config: The run's settings.
    vectors: Of the items.
    key: For whatever is random.
    init: The state to start from; None for a new one.

  Raises:
    InputError: The tokenizer refuses the vectors, or the mesh the devices.
  """
  mesh = config.mesh.arrange(jax.devices())
  options = {}
  shares = getattr(config.tokenizer, "fits_on_mesh", False)
  if shares and mesh_lib.row_parts(mesh) > 1:
    options["mesh"] = mesh
  else:
    vectors = jnp.asarray(vectors)
  return config.tokenizer.fit(vectors, key=key, init=init, **options)


def load_tokenizer(
  config: RunConfig,
  workdir: Workdir,
  embeddings: artifact.Artifact,
  table: EmbeddingTable,
) -> StoredTokenizer:
  """Reads the workdir's tokenizer of these embeddings.

  Raises:
    InputError: It is missing, damaged, or of other embeddings.
  """
  saved = workdir.load_child("tokenizer", {"embeddings": embeddings})
  return _stored(config, saved, table)


def _stored(
  config: RunConfig, saved: artifact.Artifact, table: EmbeddingTable
) -> StoredTokenizer:
  template = config.tokenizer.abstract_state(table.embedding_dim)
  state = base.state_from_arrays(
    template, artifact.group(saved.arrays, "state")
  )
  return StoredTokenizer(saved, state, saved.arrays["codes"])


def make_sids(
  config: RunConfig,
  workdir: Workdir,
  tokenizer: StoredTokenizer,
  table: EmbeddingTable,
) -> tuple[artifact.Artifact, SidCatalog]:
  """Turns codes into semantic IDs by the collision policy.

  Raises:
    InputError: The policy cannot place every item.
  """
  section = sids_section(config)
  parents = {"tokenizer": tokenizer.artifact}
  kept = workdir.matching("sids", section, parents)
  if kept is not None:
    return kept, SidCatalog.from_arrays(kept.arrays)
  tokenizer_sizes = config.tokenizer.codebook_sizes
  removed = config.hourglass.removed_codes(tokenizer.codes, tokenizer_sizes)
  codes, sizes = config.hourglass.apply(
    tokenizer.codes, tokenizer_sizes, removed
  )
  resolution = config.collisions.resolve(
    codes,
    sizes,
    key=rng.stream(jax.random.key(config.seed), "collisions"),
    context=collision_context(config, tokenizer, table, tokenizer.codes),
  )
  catalog = SidCatalog.from_levels(
    table.item_ids,
    resolution.codes,
    resolution.codebook_sizes,
    num_semantic_levels=len(sizes),
    hierarchical=config.tokenizer.hierarchical,
    shares_ids=resolution.shares_ids,
  )
  facts = {
    "num_shared": resolution.num_shared,
    "largest_bucket": resolution.largest_bucket,
    "num_moved": resolution.num_moved,
    "removed_codes": removed.tolist(),
    "hourglass": hourglass.report(tokenizer.codes, tokenizer_sizes),
  }
  saved = workdir.save("sids", section, catalog.to_arrays(), parents, facts)
  logging.info(
    "sids: %s codes a level, %d items shared codes, up to %d on one; %d moved.",
    " x ".join(map(str, catalog.codebook_sizes)),
    resolution.num_shared,
    resolution.largest_bucket,
    resolution.num_moved,
  )
  return saved, catalog


def tokenizer_section(config: RunConfig) -> dict[str, Any]:
  """The settings that decide the codes of given embeddings."""
  return config.sections["tokenizer"] | {"seed": config.seed}


def removed_codes(sids: artifact.Artifact) -> Int64[np.ndarray, "n"]:
  """Returns the codes that the IDs leave out; see `hourglass`."""
  return np.array(sids.metadata["removed_codes"], np.int64)


def sids_section(config: RunConfig) -> dict[str, Any]:
  """The settings that decide the semantic IDs of given codes."""
  return config.sections["collisions"] | {
    "seed": config.seed,
    "hourglass": config.sections["hourglass"],
  }


def collision_context(
  config: RunConfig,
  tokenizer: StoredTokenizer,
  table: EmbeddingTable,
  codes: Int32[np.ndarray, "N L"],
) -> CollisionContext:
  """Returns what policies may ask about the items of `table`.

  Args:
    config: The run's settings.
    tokenizer: The fitted tokenizer.
    table: The items.
    codes: The tokenizer's codes of them, none left out.
  """
  return CollisionContext(
    last_level_distances=lambda rows: last_level.distances(
      config.tokenizer, tokenizer.state, table.vectors[rows], codes[rows]
    )
  )


def load_sids(workdir: Workdir) -> tuple[artifact.Artifact, SidCatalog]:
  """Reads the workdir's semantic IDs and checks what they were made from.

  Raises:
    InputError: Something is missing, damaged, or of other inputs.
  """
  stored = prepare.load_data(workdir)
  embeddings = workdir.load_child("embeddings", {"dataset": stored.artifact})
  tokenizer = workdir.load_child("tokenizer", {"embeddings": embeddings})
  saved = workdir.load_child("sids", {"tokenizer": tokenizer})
  return saved, SidCatalog.from_arrays(saved.arrays)
