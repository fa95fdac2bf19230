"""The trie of what can be recommended now, an artifact of its own."""

from gr_jax.core import checks, processes
from gr_jax.decoding import trie as trie_lib
from gr_jax.decoding import trie_update
from gr_jax.stages.live_catalog import LiveCatalog
from gr_jax.stages.workdir import Workdir

KIND = "trie"


def load(workdir: Workdir, live: LiveCatalog) -> trie_lib.Trie:
  """Returns the catalog's trie; built and stored unless that was done.

  When items were appended, removed or taken back, it is made from the one
  before.

  Args:
    workdir: Where it lies.
    live: The catalog.
  """
  parents = {"sids": live.sids_artifact, **live.parents}
  kept = workdir.matching(KIND, {}, parents)
  if kept is not None:
    return trie_lib.from_arrays(kept.arrays)
  trie = _from_the_last(workdir, live) or live.trie()
  workdir.save(
    KIND,
    {},
    trie_lib.to_arrays(trie),
    parents,
    metadata={"items": trie.num_items, "bytes": trie.num_bytes},
  )
  return trie


def _from_the_last(workdir: Workdir, live: LiveCatalog) -> trie_lib.Trie | None:
  """Returns the trie made from the stored one; None where none fits.

  The first process alone reads it, for it will replace it.
  """
  if not processes.is_first():
    return None
  try:
    last = workdir.load(KIND)
  except checks.InputError:
    return None
  trie = trie_lib.from_arrays(last.arrays)
  if (
    last.parents["sids"] != live.sids_artifact.hash
    or trie.codebook_sizes != live.sids.codebook_sizes
    or trie.catalog_size > live.sids.num_items
  ):
    return None
  return trie_update.update(trie, live.sids.codes, live.recommendable)
