"""Every item's log-likelihood: the yardstick that beam search is held to."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gr_jax.core.checks import InputError
from gr_jax.decoding import constraint, scoring
from gr_jax.decoding import trie as trie_lib
from gr_jax.decoding.beam_search import TokensToLogits


def exact_scores(
  tokens_to_logits: TokensToLogits,
  cache: Any,
  trie: trie_lib.Trie,
  vocabulary: scoring.TokenLayout,
  *,
  batch_size: int,
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
    chunk_size: Prefixes that one model call handles.

  Returns:
    float32 [B, N]: log p(ID of item i), with log p(EOS) where the vocabulary
    appends it. Items that share an ID share its score.

  Raises:
    InputError: `chunk_size` < 1, or a vocabulary of another catalog.
  """
  trie = jax.tree.map(jnp.asarray, trie)
  leaf_scores = exact_leaf_scores(
    tokens_to_logits,
    cache,
    trie,
    vocabulary,
    batch_size=batch_size,
    chunk_size=chunk_size,
  )
  leaf = jnp.arange(trie.num_items, dtype=jnp.int32)
  if trie.leaf_start is not None:
    count = trie.leaf_start[1:] - trie.leaf_start[:-1]
    leaf = jnp.repeat(
      jnp.arange(trie.num_leaves, dtype=jnp.int32),
      count,
      total_repeat_length=trie.num_items,
    )
  return leaf_scores[:, leaf[trie.item_position]]


def exact_leaf_scores(
  tokens_to_logits: TokensToLogits,
  cache: Any,
  trie: trie_lib.Trie,
  vocabulary: scoring.TokenLayout,
  *,
  batch_size: int,
  chunk_size: int = 1024,
) -> Float[Array, "B P"]:
  """As `exact_scores`, one column for each distinct ID in sorted order."""
  scoring.check_layout(trie, vocabulary)
  if chunk_size < 1:
    raise InputError(f"chunk_size must be at least 1; got {chunk_size}.")
  trie = jax.tree.map(jnp.asarray, trie)
  num_levels = trie.num_levels
  score = jnp.zeros((batch_size, 1), jnp.float32)
  tokens = jnp.zeros((1,), jnp.int32)  # [P_l], last token of each prefix
  parent = jnp.zeros((1,), jnp.int32)  # [P_l], into the cache
  done = jnp.zeros((1,), bool)
  for l in range(num_levels + vocabulary.append_eos):
    is_end = l == num_levels
    level = None if is_end else trie.levels[l]
    num_nodes = score.shape[1]
    size = min(chunk_size, num_nodes)
    num_chunks = -(-num_nodes // size)
    keep_cache = l + 1 < num_levels + vocabulary.append_eos
    num_children = num_nodes if is_end else level.num_children

    def run_chunk(carry, chunk, l=l, level=level, size=size, **_):
      next_score, next_cache = carry
      # The last chunk reaches back and repeats what its neighbor computed.
      begin = jnp.minimum(chunk * size, num_nodes - size)
      nodes = begin + jnp.arange(size, dtype=jnp.int32)
      own_cache = jax.tree.map(lambda x: x[:, parent[nodes]], cache)
      own_tokens = jnp.broadcast_to(tokens[nodes][None], (batch_size, size))
      logits, own_cache = tokens_to_logits(own_tokens, own_cache, l)
      scoring.check_logits(logits, batch_size, size, vocabulary)
      logits = logits.astype(jnp.float32)
      log_norm = scoring.log_normalizer(logits)
      own_score = score[:, nodes]
      if level is None:
        gain = logits[..., vocabulary.eos_id] - log_norm
        gain = jnp.where(done[nodes][None], 0.0, gain)
        next_score = next_score.at[:, nodes].set(own_score + gain)
      else:
        family = constraint.children(level, nodes[None])
        code = jnp.broadcast_to(
          family.code, (batch_size, *family.code.shape[1:])
        )
        gain = scoring.chosen_logits(trie, vocabulary, l, logits, code)
        gain = gain - log_norm[..., None]  # [B, chunk, M]
        gain = jnp.where(done[nodes][None, :, None], 0.0, gain)
        child = jnp.where(family.exists, family.node, num_children)[0]
        next_score = next_score.at[:, child.reshape(-1)].set(
          (own_score[..., None] + gain).reshape(batch_size, -1), mode="drop"
        )
      if next_cache is not None:
        next_cache = jax.tree.map(
          lambda x, y: x.at[:, nodes].set(y), next_cache, own_cache
        )
      return (next_score, next_cache), None

    next_score = jnp.full((batch_size, num_children), -jnp.inf, jnp.float32)
    next_cache = None
    if keep_cache:
      next_cache = jax.tree.map(
        lambda x: jnp.zeros((x.shape[0], num_nodes, *x.shape[2:]), x.dtype),
        cache,
      )
    (score, cache), _ = jax.lax.scan(
      run_chunk,
      (next_score, next_cache),
      jnp.arange(num_chunks, dtype=jnp.int32),
    )
    if is_end:
      break
    stored = level.child_code.astype(jnp.int32)
    tokens = scoring.code_tokens(trie, vocabulary, l, stored)
    done = (stored == 0) if trie.has_end else jnp.zeros(stored.shape, bool)
    parent = _parents(level)
  return score


def _parents(level):
  """Returns each child's node, int32 [P_{l+1}]."""
  nodes = jnp.arange(level.num_nodes, dtype=jnp.int32)
  if level.child_start is None:
    return nodes
  count = level.child_start[1:] - level.child_start[:-1]
  return jnp.repeat(nodes, count, total_repeat_length=level.num_children)
