"""A new fit that starts from an earlier one, and what it changed.

The items of the new run are embedded in the space of the earlier one: known
items keep their vectors, new ones are embedded as they would be to append
them. Vectors that come from files are read anew.
"""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jaxtyping import Int, Int32

from gr_jax.core import artifact, checks, rng
from gr_jax.embeddings.table import EmbeddingTable
from gr_jax.sids import churn, groups
from gr_jax.sids.sid_catalog import SidCatalog
from gr_jax.stages import live_catalog, prepare, semantic_ids
from gr_jax.stages.config import RunConfig
from gr_jax.stages.semantic_ids import StoredTokenizer
from gr_jax.stages.workdir import Workdir
from gr_jax.tokenizers import base
from gr_jax.tokenizers.residual_kmeans import CodebooksState


@dataclasses.dataclass(frozen=True, eq=False)
class Earlier:
  """The run that a refit starts from."""

  table: EmbeddingTable  # of all its items, appended ones last
  tokenizer: StoredTokenizer  # its codes are those of all items
  live: live_catalog.LiveCatalog


def refit(
  config: RunConfig, workdir: Workdir, earlier: Workdir, *, stable: bool = False
) -> churn.ChurnReport:
  """Fits from the earlier run's codebooks and reports what changed.

  Writes dataset, embeddings, tokenizer and semantic IDs into `workdir` and
  the report into its `churn.json`; `earlier` is only read. Later stages go
  on from there as after any fit.

  Args:
    config: Of the new run; its tokenizer is the earlier one's.
    workdir: Of the new run.
    earlier: The run to start from.
    stable: Whether new codes are renamed after the old ones that hold the
      same items (Hungarian assignment), and items whose codes so stay the
      same keep their whole ID.

  Raises:
    InputError: The earlier run's own workdir, another tokenizer or policy than
      before, no item in common, or, for `stable`, a tokenizer whose codes
      cannot be renamed.
  """
  if workdir.root.resolve() == earlier.root.resolve():
    raise checks.InputError(
      f"{str(earlier.root)!r} is the run to start from, whose generator needs "
      "its IDs; give the refit a --workdir of its own."
    )
  old = load_earlier(config, earlier)
  if stable and not isinstance(old.tokenizer.state, CodebooksState):
    raise checks.InputError(
      f"--stable renames codes, which {type(config.tokenizer).__name__} "
      "cannot; use one of the residual k-means tokenizers, or leave it out."
    )
  stored, dataset = prepare.prepare_data(config, workdir)
  if config.embedding.reads_files:
    prepare.embed(config, workdir, stored, dataset)
  else:
    _embed_as_before(config, workdir, stored, old.table)
  embeddings, table = prepare.load_embeddings(workdir, stored)
  place = {item_id: n for n, item_id in enumerate(old.table.item_ids)}
  index = np.array([place.get(item_id, -1) for item_id in table.item_ids])
  if not (index >= 0).any():
    raise checks.InputError(
      f"None of the {table.num_items} items was among the {len(place)} of "
      f"{str(earlier.root)!r}; start from a run of this catalog."
    )
  _warn_of_moved_vectors(table, old.table, index)
  tokenizer = _fit(config, workdir, embeddings, table, old, index, stable)
  if stable:
    catalog = _keep_ids(config, workdir, tokenizer, table, old, index)
  else:
    _, catalog = semantic_ids.make_sids(config, workdir, tokenizer, table)
  workdir.write_config(config)
  report = churn.report(old.live.sids, catalog)
  text = json.dumps(dataclasses.asdict(report), indent=1)
  (workdir.root / "churn.json").write_text(text + "\n")
  logging.info(
    "refit: %.1f %% of %s common items have another ID; by level another "
    "code: %s.",
    100 * report.id_changed,
    f"{report.num_common:,}",
    ", ".join(f"{100 * share:.1f} %" for share in report.code_changed),
  )
  return report


def load_earlier(config: RunConfig, earlier: Workdir) -> Earlier:
  """Reads the run to start from.

  Raises:
    InputError: It has other tokenizer or collision settings, or lacks
      semantic IDs.
  """
  old_config = earlier.read_config()
  for name in ("tokenizer", "hourglass", "collisions"):
    if config.sections[name] != old_config.sections[name]:
      raise checks.InputError(
        f"The {name} of {str(earlier.root)!r} has other settings; a refit "
        "starts from a run of the same ones."
      )
  stored = prepare.load_data(earlier)
  embeddings, table = prepare.load_embeddings(earlier, stored)
  tokenizer = semantic_ids.load_tokenizer(
    old_config, earlier, embeddings, table
  )
  live = live_catalog.load(earlier, stored)
  table, tokenizer = live.with_appended(config, table, tokenizer)
  return Earlier(table, tokenizer, live)


def _embed_as_before(
  config: RunConfig,
  workdir: Workdir,
  stored: prepare.StoredDataset,
  old: EmbeddingTable,
) -> None:
  """Stores known items' vectors and embeds the new ones beside them."""
  place = {item_id: n for n, item_id in enumerate(old.item_ids)}
  item_ids = stored.catalog.item_ids
  index = np.array([place.get(item_id, -1) for item_id in item_ids])
  vectors = old.vectors[index]
  is_new = index < 0
  if is_new.any():
    new = stored.catalog.take(np.flatnonzero(is_new))
    vectors[is_new] = config.embedding.embed_new(old, new).vectors
  table = dataclasses.replace(old, item_ids=item_ids, vectors=vectors)
  # The settings that `prepare.embed` compares: it keeps these embeddings.
  section = {
    k: v for k, v in config.sections["embedding"].items() if k != "path"
  }
  parents = {"dataset": stored.artifact}
  workdir.save("embeddings", section, table.to_arrays(), parents)


def _warn_of_moved_vectors(
  table: EmbeddingTable, old: EmbeddingTable, index: Int[np.ndarray, "N"]
) -> None:
  common = index >= 0
  before, now = old.vectors[index[common]], table.vectors[common]
  if before.shape != now.shape:
    return  # the tokenizer refuses the width by name
  moved = np.square(now - before).sum() / np.square(before).sum()
  if moved > 1e-4:
    logging.warning(
      "refit: vectors of known items moved by %.1f %% of their length; their "
      "codes follow. Embed them as before to keep IDs.",
      100 * moved**0.5,
    )


def _fit(
  config: RunConfig,
  workdir: Workdir,
  embeddings: artifact.Artifact,
  table: EmbeddingTable,
  old: Earlier,
  index: Int[np.ndarray, "N"],
  stable: bool,
) -> StoredTokenizer:
  """Fits from the earlier state and stores the tokenizer."""
  key = rng.stream(jax.random.key(config.seed), "tokenizer")
  state, report = semantic_ids.fit(
    config, table.vectors, key=key, init=old.tokenizer.state
  )
  for alarm in report.alarms:
    logging.warning("tokenizer: %s", alarm)
  codes = report.codes
  if stable:
    common = index >= 0
    names = churn.match_codes(
      old.tokenizer.codes[index[common]],
      codes[common],
      config.tokenizer.codebook_sizes,
      hierarchical=config.tokenizer.hierarchical,
    )
    codes = churn.rename(codes, names)
    state = rename_codebooks(state, names)
  arrays = artifact.prefixed(base.state_to_arrays(state), "state")
  saved = workdir.save(
    "tokenizer",
    semantic_ids.tokenizer_section(config),
    arrays | {"codes": codes},
    {"embeddings": embeddings},
    metadata=report.to_dict()
    | {"refit_from": old.tokenizer.artifact.hash, "stable": stable},
  )
  return StoredTokenizer(saved, state, codes)


def rename_codebooks(
  state: CodebooksState, names: tuple[Int32[np.ndarray, "_"], ...]
) -> CodebooksState:
  """Returns codebooks in which code k of each level is called names[k]."""
  originals = churn.original_names(names)
  return CodebooksState(
    codebooks=tuple(
      codebook[jnp.asarray(original)]
      for codebook, original in zip(state.codebooks, originals, strict=True)
    )
  )


def _keep_ids(
  config: RunConfig,
  workdir: Workdir,
  tokenizer: StoredTokenizer,
  table: EmbeddingTable,
  old: Earlier,
  index: Int[np.ndarray, "N"],
) -> SidCatalog:
  """Stores IDs in which items of unchanged codes keep theirs whole."""
  sizes = config.tokenizer.codebook_sizes
  # The same codes are left out as before, or no shortened ID could stay.
  removed = semantic_ids.removed_codes(old.live.sids_artifact)
  codes, left_sizes = config.hourglass.apply(tokenizer.codes, sizes, removed)
  common = index >= 0
  unchanged = common.copy()
  unchanged[common] = (
    tokenizer.codes[common] == old.tokenizer.codes[index[common]]
  ).all(axis=1)
  old_ids, id_sizes = old.live.sids.level_codes()
  ids = churn.keep_ids(
    config.collisions,
    old_ids[index],
    id_sizes,
    unchanged,
    codes,
    key=rng.stream(jax.random.key(config.seed), "collisions"),
    context=semantic_ids.collision_context(
      config, tokenizer, table, tokenizer.codes
    ),
  )
  catalog = SidCatalog.from_levels(
    table.item_ids,
    ids,
    id_sizes,
    num_semantic_levels=len(left_sizes),
    hierarchical=config.tokenizer.hierarchical,
    shares_ids=groups.group_rows(ids, id_sizes).largest > 1,
  )
  workdir.save(
    "sids",
    semantic_ids.sids_section(config),
    catalog.to_arrays(),
    {"tokenizer": tokenizer.artifact},
    {"removed_codes": removed.tolist(), "num_kept": int(unchanged.sum())},
  )
  return catalog
