"""New items under frozen codebooks, items taken away and back; no training.

Old IDs, the vocabulary and the generator stay valid: only the trie changes.
"""

import dataclasses

import jax
from absl import logging

from gr_jax.core import artifact, checks, rng
from gr_jax.data.readers import folder
from gr_jax.stages import live_catalog, prepare, semantic_ids
from gr_jax.stages.config import RunConfig
from gr_jax.stages.workdir import Workdir
from gr_jax.tokenizers import base


def append(
  config: RunConfig, workdir: Workdir, items: str, vectors: str = ""
) -> artifact.Artifact:
  """Gives new items semantic IDs that a trained generator can write.

  Args:
    config: The settings that the workdir was made with.
    workdir: With semantic IDs.
    items: A file in the format of `items.jsonl.gz`.
    vectors: A .npy file with a row for each, where vectors come from files.

  Returns:
    The artifact `catalog_changes`, after all items were placed.

  Raises:
    InputError: An item exists, vectors that nothing reads, settings of
      another tokenizer, or the collision policy has no room; nothing was
      written.
  """
  if vectors and not config.embedding.reads_files:
    raise checks.InputError(
      f"--append_embeddings={vectors!r} would not be read: embedding.name="
      f"{config.sections['embedding']['name']!r} embeds the texts itself; "
      "leave the flag out."
    )
  new = folder.read_catalog(items)
  stored = prepare.load_data(workdir)
  embeddings, table = prepare.load_embeddings(workdir, stored)
  _check_settings(config, workdir)
  tokenizer = semantic_ids.load_tokenizer(config, workdir, embeddings, table)
  live = live_catalog.load(workdir, stored)
  removed = [item_id for item_id in new.item_ids if item_id in live.removed]
  if removed:
    raise checks.InputError(
      f"{len(removed)} of {new.num_items} new items were removed and keep "
      f"their IDs, the first is {removed[0]!r}; take them back with --restore."
    )
  live.items.append(new)  # refuses items that exist
  new_table = config.embedding.embed_new(table, new, path=vectors)
  codes = base.encode_in_chunks(
    config.tokenizer, tokenizer.state, new_table.vectors
  )
  left, _ = config.hourglass.apply(
    codes,
    config.tokenizer.codebook_sizes,
    semantic_ids.removed_codes(live.sids_artifact),
  )
  old_ids, id_sizes = live.sids.level_codes()
  key = rng.stream(jax.random.key(config.seed), "append")
  new_ids = config.collisions.append(
    old_ids,
    id_sizes,
    left,
    key=jax.random.fold_in(key, live.items.num_items),
    context=semantic_ids.collision_context(config, tokenizer, new_table, codes),
  )
  live.sids.append(new.item_ids, new_ids)  # refuses another token layout
  saved = live_catalog.save(
    workdir,
    live,
    num_trained=stored.catalog.num_items,
    appended=(new, new_table.vectors),
    new_ids=new_ids,
  )
  logging.info(
    "append: %s new items, %s in all; no known ID changed.",
    f"{new.num_items:,}",
    f"{live.items.num_items + new.num_items:,}",
  )
  return saved


def remove(
  config: RunConfig, workdir: Workdir, item_ids: tuple[str, ...]
) -> artifact.Artifact:
  """Takes items out of what is recommended; histories may still hold them.

  A removed item keeps its ID, which no later item gets.

  Args:
    config: The settings that the workdir was made with.
    workdir: With semantic IDs.
    item_ids: The items.

  Returns:
    The artifact `catalog_changes`.

  Raises:
    InputError: An unknown item, one removed before, or all of them; nothing
      was written.
  """
  del config  # The IDs stay as they are.
  stored = prepare.load_data(workdir)
  live = live_catalog.load(workdir, stored)
  live.items.indices_of(item_ids)  # refuses unknown items
  again = [item_id for item_id in item_ids if item_id in live.removed]
  if again:
    raise checks.InputError(
      f"{len(again)} of {len(item_ids)} items were removed before, the first "
      f"is {again[0]!r}; leave them out."
    )
  removed = live.removed | set(item_ids)
  if len(removed) == live.items.num_items:
    raise checks.InputError(
      f"Removing all {len(removed)} items leaves nothing to recommend."
    )
  return _save_removed(workdir, stored, live, removed)


def restore(
  config: RunConfig, workdir: Workdir, item_ids: tuple[str, ...]
) -> artifact.Artifact:
  """Takes removed items back, under the IDs that they had.

  Args:
    config: The settings that the workdir was made with.
    workdir: With removed items.
    item_ids: The items.

  Returns:
    The artifact `catalog_changes`.

  Raises:
    InputError: An item that is not removed; nothing was written.
  """
  del config  # The IDs stay as they are.
  stored = prepare.load_data(workdir)
  live = live_catalog.load(workdir, stored)
  live.items.indices_of(item_ids)  # refuses unknown items
  there = [item_id for item_id in item_ids if item_id not in live.removed]
  if there:
    raise checks.InputError(
      f"{len(there)} of {len(item_ids)} items were not removed, the first is "
      f"{there[0]!r}; leave them out."
    )
  return _save_removed(workdir, stored, live, live.removed - set(item_ids))


def _save_removed(
  workdir: Workdir,
  stored: prepare.StoredDataset,
  live: live_catalog.LiveCatalog,
  removed: frozenset[str],
) -> artifact.Artifact:
  live = dataclasses.replace(live, removed=removed)
  saved = live_catalog.save(workdir, live, num_trained=stored.catalog.num_items)
  logging.info(
    "catalog: %s items are removed, %s are left.",
    f"{len(removed):,}",
    f"{live.items.num_items - len(removed):,}",
  )
  return saved


def _check_settings(config: RunConfig, workdir: Workdir) -> None:
  """Refuses settings other than those that the IDs were made with."""
  for kind, wanted in (
    ("tokenizer", semantic_ids.tokenizer_section(config)),
    ("sids", semantic_ids.sids_section(config)),
  ):
    path = workdir.path(kind)
    manifest = artifact.read_manifest(path, kind=kind)
    if manifest["config"] != artifact.canonical(wanted):
      raise checks.InputError(
        f"{str(path)!r} was made with other settings; leave "
        "--config out to append with those."
      )
