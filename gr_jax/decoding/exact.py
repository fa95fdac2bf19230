"""Every item's log-likelihood: the yardstick that beam search is held to."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from gr_jax.core.checks import InputError
from gr_jax.decoding import constraint, direct_path, scoring
from gr_jax.decoding import trie as trie_lib
from gr_jax.decoding.beam_search import TokensToLogits


@struct.dataclass
class _Prefixes:
  """All prefixes of one depth; P_l of them."""

  score: Any  # float32 [B, P_l]
  token: Any  # int32 [P_l], each prefix's last
  parent: Any  # int32 [P_l], its place in `cache`
  done: Any  # bool [P_l], the ID ended before
  cache: Any  # pytree [B, P_{l-1}, ...], after the parents' tokens


def exact_scores(
  tokens_to_logits: TokensToLogits,
  cache: Any,
  trie: trie_lib.Trie,
  vocabulary: scoring.TokenLayout,
  *,
  batch_size: int,
  direct: Float[Array, "B K"] | None = None,
  chunk_size: int = 1024,
) -> Float[Array, "B N"]:
  """Scores the whole catalog by walking the trie level by level.

  Each prefix is run through the model once, `chunk_size` prefixes at a time.
  The cache of a level's prefixes is kept until their children have run, so
  memory grows with the prefixes of depth L - 1: pass few users at a time.

  Args:
    tokens_to_logits: As for `beam_search`.
    cache: Pytree of arrays [B, 1, ...].
    trie: The catalog's IDs.
    vocabulary: Token layout of the same catalog.
    batch_size: B.
    direct: As for `beam_search`.
    chunk_size: Prefixes that one model call handles.

  Returns:
    float32 [B, N]: log p(ID of item i), with log p(EOS) where the vocabulary
    appends it. Items that share an ID share its score; items removed from the
    trie have -inf.

  Raises:
    InputError: `chunk_size` < 1, a vocabulary of another catalog, or a direct
      path to other IDs.
  """
  trie = jax.tree.map(jnp.asarray, trie)
  leaf_scores = exact_leaf_scores(
    tokens_to_logits,
    cache,
    trie,
    vocabulary,
    batch_size=batch_size,
    direct=direct,
    chunk_size=chunk_size,
  )
  leaf = _repeat_by(trie.levels[-1].item_extra, trie.num_leaves, trie.num_items)
  scores = leaf_scores[:, leaf]  # [B, num_items], sorted
  if trie.item_position is None:
    return scores
  present = trie.item_position >= 0
  scores = scores[:, jnp.maximum(trie.item_position, 0)]
  return jnp.where(present[None], scores, -jnp.inf)


def exact_leaf_scores(
  tokens_to_logits: TokensToLogits,
  cache: Any,
  trie: trie_lib.Trie,
  vocabulary: scoring.TokenLayout,
  *,
  batch_size: int,
  direct: Float[Array, "B K"] | None = None,
  chunk_size: int = 1024,
) -> Float[Array, "B P"]:
  """As `exact_scores`, one column for each distinct ID in sorted order."""
  scoring.check_layout(trie, vocabulary)
  if chunk_size < 1:
    raise InputError(f"chunk_size must be at least 1; got {chunk_size}.")
  if direct is not None:
    direct_path.check(direct, trie, batch_size)
  trie = jax.tree.map(jnp.asarray, trie)
  last = trie.num_levels - 1 + int(vocabulary.append_eos)
  zeros = jnp.zeros((1,), jnp.int32)
  prefixes = _Prefixes(
    score=jnp.zeros((batch_size, 1), jnp.float32),
    token=zeros,
    parent=zeros,
    done=jnp.zeros((1,), bool),
    cache=cache,
  )
  for l in range(last + 1):
    score, cache = _run_level(
      tokens_to_logits,
      trie,
      vocabulary,
      l,
      prefixes,
      chunk_size=chunk_size,
      keep_cache=l < last,
    )
    if l == trie.num_levels:
      prefixes = prefixes.replace(score=score)
      break
    level = trie.levels[l]
    code = level.child_code.astype(jnp.int32)
    prefixes = _Prefixes(
      score=score,
      token=scoring.code_tokens(trie, vocabulary, l, code),
      parent=_repeat_by(level.child_extra, level.num_nodes, level.num_children),
      done=(code == 0) & trie.has_end,
      cache=cache,
    )
  if direct is None:
    return prefixes.score
  return direct_path.mean_scores(prefixes.score, direct, trie)


def _run_level(
  tokens_to_logits, trie, vocabulary, l, prefixes, *, chunk_size, keep_cache
):
  """Returns the children's scores [B, P_{l+1}] and the prefixes' cache.

  Past the last level the "children" are the IDs themselves, ended by EOS.
  """
  batch_size, num_nodes = prefixes.score.shape
  level = trie.levels[l] if l < trie.num_levels else None
  num_children = num_nodes if level is None else level.num_children
  size = min(chunk_size, num_nodes)

  def run_chunk(carry, chunk):
    child_score, own_cache = carry
    # The last chunk reaches back and repeats what its neighbor computed.
    begin = jnp.minimum(chunk * size, num_nodes - size)
    nodes = begin + jnp.arange(size, dtype=jnp.int32)
    cache = jax.tree.map(lambda x: x[:, prefixes.parent[nodes]], prefixes.cache)
    tokens = jnp.broadcast_to(prefixes.token[nodes][None], (batch_size, size))
    logits, cache = tokens_to_logits(tokens, cache, l)
    scoring.check_logits(logits, batch_size, size, vocabulary, l)
    logits = logits.astype(jnp.float32)
    log_norm = scoring.log_normalizer(logits)[..., None]  # [B, chunk, 1]
    if level is None:
      child = nodes[:, None]
      gain = logits[..., vocabulary.eos_id, None] - log_norm
    else:
      family = constraint.children(level, nodes[None])
      child = jnp.where(family.exists, family.node, num_children)[0]
      code = jnp.broadcast_to(family.code, (batch_size, *child.shape))
      beam = jnp.arange(size, dtype=jnp.int32)[None, :, None]
      gain = (
        scoring.logits_at(trie, vocabulary, l, logits, beam, code) - log_norm
      )
    gain = jnp.where(prefixes.done[nodes][None, :, None], 0.0, gain)
    total = prefixes.score[:, nodes][..., None] + gain  # [B, chunk, M]
    child_score = child_score.at[:, child.reshape(-1)].set(
      total.reshape(batch_size, -1), mode="drop"
    )
    if keep_cache:
      own_cache = jax.tree.map(
        lambda x, y: x.at[:, nodes].set(y), own_cache, cache
      )
    return (child_score, own_cache), None

  child_score = jnp.full((batch_size, num_children), -jnp.inf, jnp.float32)
  own_cache = None
  if keep_cache:
    own_cache = jax.tree.map(
      lambda x: jnp.zeros((x.shape[0], num_nodes, *x.shape[2:]), x.dtype),
      prefixes.cache,
    )
  chunks = jnp.arange(-(-num_nodes // size), dtype=jnp.int32)
  return jax.lax.scan(run_chunk, (child_score, own_cache), chunks)[0]


def _repeat_by(extra, num_ranges, total):
  """Returns the range that each of `total` entries lies in, int32 [total]."""
  index = jnp.arange(num_ranges + 1, dtype=jnp.int32)
  if extra is None:
    return index[:-1]
  start = constraint.range_start(extra, index)
  return jnp.repeat(
    index[:-1], start[1:] - start[:-1], total_repeat_length=total
  )
