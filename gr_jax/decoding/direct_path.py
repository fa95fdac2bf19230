"""Items by two paths: through all codes, and by their last code at once.

Where the last code is the item's own number, a network can predict it without
the codes before it. An item's probability is then the mean of both paths'.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gr_jax.core.checks import InputError
from gr_jax.decoding import constraint, denial, extension, selection
from gr_jax.decoding import trie as trie_lib


def check(
  direct: Float[Array, "B K"],
  trie: trie_lib.Trie,
  batch_size: int,
  constrained: bool = True,
) -> None:
  """Refuses a direct path that does not lead to the trie's items.

  That no two items end in one code is the caller's to know; here it is only
  asked whether there are codes enough.

  Raises:
    InputError: Another shape than [B, K] of the last level's codes, IDs that
      differ in length, are shared or outnumber those codes, or a free search.
  """
  want = (batch_size, trie.codebook_sizes[-1])
  if direct.shape != want:
    raise InputError(
      f"direct has shape {direct.shape}; want {want}, each request's "
      "log-probabilities of the last level's codes."
    )
  is_shared = trie.levels[-1].item_extra is not None
  if trie.has_end or is_shared or trie.num_leaves > trie.codebook_sizes[-1]:
    raise InputError(
      "A direct path needs each item's own number as last code; IDs of this "
      "catalog are shared, differ in length or outnumber the last codes."
    )
  if not constrained:
    raise InputError(
      "A direct path leads to items alone; search with constrained=True."
    )


def mean_scores(
  leaf_scores: Float[Array, "B P"],
  direct: Float[Array, "B K"],
  trie: trie_lib.Trie,
) -> Float[Array, "B P"]:
  """Returns the log of the mean of both probabilities of every ID."""
  return jnp.logaddexp(leaf_scores, _of_leaves(direct, trie)) - math.log(2.0)


def join(
  trie: trie_lib.Trie,
  beams: extension.Beams,
  direct: Float[Array, "B K"],
  denied: denial.DenyList | denial.AllowCounts | None,
  width: int,
  method: str,
) -> tuple[extension.Beams, list[tuple[Array, None]]]:
  """Returns the best IDs of both paths.

  An ID that is no beam counts as impossible by the codes' path, which did not
  find it.

  Args:
    trie: The catalog's IDs, as device arrays.
    beams: After the last level.
    direct: Log-probabilities of the last level's codes.
    denied: What a request must not get, placed in the catalog.
    width: IDs to return, W.
    method: Of `selection.best_in_order`.

  Returns:
    Beams in ascending order of their IDs, and their codes level by level, as
    a search keeps them.
  """
  scores = _of_leaves(direct, trie)  # [B, P]
  both = jnp.logaddexp(selection.take(scores, beams.node), beams.score)
  # Never lower, also where an empty place repeats a beam's node. Mapped over
  # requests, so that those of other devices are not gathered.
  add = jax.vmap(lambda row, node, score: row.at[node].max(score))
  scores = add(scores, beams.node, both) - math.log(2.0)
  if isinstance(denied, denial.DenyList):
    drop = jax.vmap(lambda row, at: row.at[at].set(-jnp.inf, mode="drop"))
    scores = drop(scores, denied.place)
  elif denied is not None:
    is_allowed = denied.below[:, 1:] > denied.below[:, :-1]
    scores = jnp.where(is_allowed, scores, -jnp.inf)
  scores = extension.drop_nan(scores)
  width = min(width, trie.num_leaves)
  leaf = selection.best_in_order(scores, width, method=method)
  node, codes = leaf, []
  for level in reversed(trie.levels):
    codes.append(level.child_code[node].astype(jnp.int32))
    node = constraint.parent(level, node)
  beams = extension.Beams(
    selection.take(scores, leaf), leaf, codes[0], done=None, parent=None
  )
  return beams, [(code, None) for code in reversed(codes)]


def _of_leaves(direct, trie):
  return direct[:, trie.levels[-1].child_code.astype(jnp.int32)]
