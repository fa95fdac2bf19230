"""The trie of what can be recommended now, an artifact of its own."""

from gr_jax.decoding import trie as trie_lib
from gr_jax.stages.live_catalog import LiveCatalog
from gr_jax.stages.workdir import Workdir

KIND = "trie"


def load(workdir: Workdir, live: LiveCatalog) -> trie_lib.Trie:
  """Returns the catalog's trie; built and stored unless that was done.

  It is built anew when items were appended, removed or taken back.

  Args:
    workdir: Where it lies.
    live: The catalog.
  """
  parents = {"sids": live.sids_artifact, **live.parents}
  kept = workdir.matching(KIND, {}, parents)
  if kept is not None:
    return trie_lib.from_arrays(kept.arrays)
  trie = live.trie()
  workdir.save(
    KIND,
    {},
    trie_lib.to_arrays(trie),
    parents,
    metadata={"items": trie.num_items, "bytes": trie.num_bytes},
  )
  return trie
