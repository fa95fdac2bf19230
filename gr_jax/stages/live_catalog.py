"""The catalog as it is now: trained items, appended ones, removed ones.

Training artifacts never change. What was appended or removed since lies in an
artifact of its own, `catalog_changes`, which names the semantic IDs that it
extends; without it the catalog is the one that the generator was trained on.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float32, Int32

from gr_jax.core import artifact, checks
from gr_jax.data import ItemCatalog
from gr_jax.decoding import trie as trie_lib
from gr_jax.embeddings.table import EmbeddingTable
from gr_jax.sids.sid_catalog import SidCatalog
from gr_jax.stages import prepare, semantic_ids
from gr_jax.stages.config import RunConfig
from gr_jax.stages.workdir import Workdir
from gr_jax.tokenizers import base

KIND = "catalog_changes"


@dataclasses.dataclass(frozen=True, eq=False)
class LiveCatalog:
  """All items and their IDs.

  Attributes:
    items: The items, appended ones last.
    sids: Their semantic IDs.
    sids_artifact: The IDs that the generator was trained on.
    removed: Items that are not recommended any more.
    new_vectors: Embeddings of the appended items.
    changes: The artifact of what was changed; None without changes.
  """

  items: ItemCatalog
  sids: SidCatalog
  sids_artifact: artifact.Artifact
  removed: frozenset[str]
  new_vectors: Float32[np.ndarray, "M D"] | None
  changes: artifact.Artifact | None

  @property
  def parents(self) -> dict[str, artifact.Artifact]:
    """What else than the generator decides predictions."""
    return {} if self.changes is None else {KIND: self.changes}

  @property
  def num_appended(self) -> int:
    """M, the items that the generator was not trained on."""
    return 0 if self.new_vectors is None else self.new_vectors.shape[0]

  @property
  def recommendable(self) -> Bool[np.ndarray, "N"]:
    """False for removed items."""
    return np.array([i not in self.removed for i in self.items.item_ids])

  def with_appended(
    self,
    config: RunConfig,
    table: EmbeddingTable,
    tokenizer: semantic_ids.StoredTokenizer,
  ) -> tuple[EmbeddingTable, semantic_ids.StoredTokenizer]:
    """Returns embeddings and codes of all items, appended ones last.

    Args:
      config: The run's settings.
      table: Of the items that the tokenizer was fitted on.
      tokenizer: With their codes.
    """
    if self.new_vectors is None:
      return table, tokenizer
    codes = base.encode_in_chunks(
      config.tokenizer, tokenizer.state, self.new_vectors
    )
    return (
      dataclasses.replace(
        table,
        item_ids=self.items.item_ids,
        vectors=np.concatenate([table.vectors, self.new_vectors]),
      ),
      dataclasses.replace(
        tokenizer, codes=np.concatenate([tokenizer.codes, codes])
      ),
    )

  def trie(self) -> trie_lib.Trie:
    """Builds the trie of the recommendable items."""
    return build_trie(self.sids, self.recommendable)


def build_trie(
  sids: SidCatalog, recommendable: Bool[np.ndarray, "N"]
) -> trie_lib.Trie:
  """Builds the trie of some of a catalog's items, under their own indices.

  The others keep their IDs, for histories hold them, but no search finds
  them.
  """
  kept = np.flatnonzero(recommendable).astype(np.int32)
  return trie_lib.build_trie(
    sids.codes[kept],
    sids.codebook_sizes,
    item_index=kept,
    catalog_size=sids.num_items,
  )


def load(
  workdir: Workdir, stored: prepare.StoredDataset | None = None
) -> LiveCatalog:
  """Reads the workdir's semantic IDs with all later changes.

  Raises:
    InputError: Something is missing, damaged, or of other semantic IDs.
  """
  stored = stored or prepare.load_data(workdir)
  saved, sids = semantic_ids.load_sids(workdir)
  items, removed, vectors, changes = stored.catalog, frozenset(), None, None
  if workdir.path(KIND).exists():
    changes = workdir.load(KIND)
    if changes.parents.get("sids") != saved.hash:
      raise checks.InputError(
        f"{str(changes.path)!r} holds items appended to or removed from other "
        f"semantic IDs than those in {str(saved.path)!r}; delete that folder, "
        "then append or remove the items anew."
      )
    arrays = changes.arrays
    removed = frozenset(
      artifact.unpack_strings(artifact.group(arrays, "removed"))
    )
    if "vectors" in arrays:
      new = ItemCatalog.from_arrays(artifact.group(arrays, "items"))
      items = items.append(new)
      sids = sids.append(new.item_ids, arrays["ids"])
      vectors = arrays["vectors"]
  return LiveCatalog(items, sids, saved, removed, vectors, changes)


def save(
  workdir: Workdir,
  live: LiveCatalog,
  *,
  num_trained: int,
  appended: tuple[ItemCatalog, Float32[np.ndarray, "M D"]] | None = None,
  new_ids: Int32[np.ndarray, "M L"] | None = None,
) -> artifact.Artifact:
  """Writes what differs from the trained catalog.

  Args:
    workdir: Where to.
    live: The catalog after the changes but for `appended`.
    num_trained: Items that the generator was trained on.
    appended: Items to append now, and their embeddings.
    new_ids: Their IDs by level.
  """
  arrays = artifact.prefixed(
    artifact.pack_strings(sorted(live.removed)), "removed"
  )
  old_ids = live.sids.level_codes()[0][num_trained:]
  parts = []
  if live.num_appended:
    old = live.items.take(range(num_trained, live.items.num_items))
    parts.append((old, live.new_vectors, old_ids))
  if appended is not None:
    parts.append((*appended, new_ids))
  if parts:
    items = parts[0][0]
    for part in parts[1:]:
      items = items.append(part[0])
    arrays |= artifact.prefixed(items.to_arrays(), "items")
    arrays["vectors"] = np.concatenate([part[1] for part in parts])
    arrays["ids"] = np.concatenate([part[2] for part in parts])
  num_appended = sum(part[0].num_items for part in parts)
  return workdir.save(
    KIND,
    {},
    arrays,
    {"sids": live.sids_artifact},
    metadata={"appended": num_appended, "removed": len(live.removed)},
  )
