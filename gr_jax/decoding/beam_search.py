"""Beam search over semantic IDs, inside the catalog's trie or free.

Beams are kept in the order of their IDs, not of their scores: the best
candidates are then chosen as a set, a tie goes to the lowest position and so
to the lowest ID, and no level sorts. One sort at the end ranks them.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from gr_jax.core.checks import InputError
from gr_jax.decoding import constraint, denial, scoring, selection
from gr_jax.decoding import trie as trie_lib

TokensToLogits = Callable[[jax.Array, Any, int], tuple[jax.Array, Any]]


@struct.dataclass
class BeamResult:
  """Decoded IDs of each request, best first; equal scores by lowest ID.

  Places beyond what exists have item_index, leaf and codes -1, score -inf and
  valid False. A free search also returns IDs that name no item: their codes
  and score are real, valid is False, leaf and item_index are -1.
  """

  item_index: Any  # int32 [B, W], first item of the leaf
  codes: Any  # int32 [B, W, L], -1 after an ID's end
  scores: Any  # float32 [B, W], log-likelihood of the ID
  valid: Any  # bool [B, W], the ID names an item
  leaf: Any  # int32 [B, W], rank of the ID in the sorted catalog


def beam_search(
  tokens_to_logits: TokensToLogits,
  cache: Any,
  trie: trie_lib.Trie,
  vocabulary: scoring.TokenLayout,
  *,
  batch_size: int,
  beam_width: int | Sequence[int],
  constrained: bool = True,
  denied_items: jax.Array | None = None,
) -> BeamResult:
  """Decodes the best IDs of each request; pure, to be jitted by the caller.

  The trie is an argument of the jitted function, never a captured constant.

  Args:
    tokens_to_logits: (tokens int32 [B, W], cache, level) -> (logits [B, W, V],
      cache). Level 0 is called with W = 1 and token 0, level l with the tokens
      chosen at l - 1. W never exceeds the number of prefixes that exist.
    cache: Pytree of arrays [B, 1, ...]; the search gathers their second axis
      by parent beam.
    trie: The catalog's IDs.
    vocabulary: Token layout of the same catalog.
    batch_size: B.
    beam_width: Beams kept; or one width a level, the last being W.
    constrained: Whether only IDs of the catalog are candidates. A free search
      keeps to each level's own codes but follows any of them.
    denied_items: int32 [B, R], items that a request must not get, -1 filling
      the rows. The result is that of a catalog without them; a free search
      only leaves out their IDs. Of an ID that several items share, the first
      item that is not denied stands in `item_index`.

  Returns:
    BeamResult of width W. With W >= the number of distinct IDs it is the
    exact ranking of the catalog.

  Raises:
    InputError: Bad widths, a vocabulary of another catalog, or logits of
      another shape.
  """
  scoring.check_layout(trie, vocabulary)
  requested = _requested_widths(beam_width, trie.num_levels)
  trie = jax.tree.map(jnp.asarray, trie)
  denied_place = denied_node = None
  if denied_items is not None and denied_items.shape[1]:
    if denied_items.shape[0] != batch_size:
      raise InputError(
        "denied_items needs one row a request; got "
        f"{denied_items.shape[0]} rows, {batch_size=}."
      )
    denied_place = denial.positions(trie, denied_items)
    denied_node = jnp.zeros_like(denied_place)
  score = jnp.zeros((batch_size, 1), jnp.float32)
  node = jnp.zeros((batch_size, 1), jnp.int32)
  tokens = jnp.zeros((batch_size, 1), jnp.int32)
  done = None  # bool [B, W], the ID ended at an earlier level
  steps = []
  for l, level in enumerate(trie.levels):
    logits, cache = tokens_to_logits(tokens, cache, l)
    scoring.check_logits(logits, *tokens.shape, vocabulary)
    logits = logits.astype(jnp.float32)
    dead = None
    if denied_place is not None:
      dead, denied_node = denial.dead_children(
        level, denied_node, denied_place, trie.num_items
      )
    if constrained:
      step = _constrained_step(
        trie, vocabulary, l, logits, score, node, done, dead, requested[l]
      )
    else:
      step = _free_step(
        trie, vocabulary, l, logits, score, node, done, dead, requested[l]
      )
    score, node = step.score, step.node
    tokens = scoring.code_tokens(trie, vocabulary, l, step.code)
    done = step.code == 0 if trie.has_end else None
    if (
      step.parent is not None
      and l + 1 < trie.num_levels + vocabulary.append_eos
    ):
      cache = jax.tree.map(lambda x, p=step.parent: _take_beams(x, p), cache)
    steps.append(step)
  if vocabulary.append_eos:
    logits, _ = tokens_to_logits(tokens, cache, trie.num_levels)
    scoring.check_logits(logits, *tokens.shape, vocabulary)
    logits = logits.astype(jnp.float32)
    end = logits[..., vocabulary.eos_id] - scoring.log_normalizer(logits)
    score = _drop_nan(
      score + (end if done is None else jnp.where(done, 0, end))
    )
  return _result(trie, steps, score, node, denied_place, requested[-1])


@struct.dataclass
class _Step:
  """What one level chose; W' beams in ascending order of ID."""

  parent: jax.Array | None  # int32 [B, W'], None: every beam its own
  code: jax.Array  # int32 [B, W'], stored codes
  node: jax.Array  # int32 [B, W'], of the next depth
  score: jax.Array  # float32 [B, W']


def _constrained_step(
  trie, vocabulary, l, logits, score, node, done, dead, requested
):
  level = trie.levels[l]
  num_beams = score.shape[1]
  width = min(requested, level.num_children, num_beams * level.max_children)
  log_norm = scoring.log_normalizer(logits)
  if level.child_bits is None:
    family = constraint.children(level, node)
    gain = scoring.chosen_logits(trie, vocabulary, l, logits, family.code)
    exists = family.exists
    if dead is not None:
      exists = denial.alive_children(dead, family)
  else:
    gain = scoring.level_logits(trie, vocabulary, l, logits)
    exists = constraint.allowed(level, node)
    if dead is not None:
      exists = denial.alive_codes(dead, node, exists)
  gain = gain - log_norm[..., None]  # [B, W, M] or [B, W, K]
  if done is not None:
    gain = jnp.where(done[..., None], 0.0, gain)
  total = jnp.where(exists, score[..., None] + gain, -jnp.inf)
  total = _drop_nan(total)
  if level.max_children == 1 and width == num_beams:
    # One way on from every beam: nothing to choose.
    return _Step(None, family.code[..., 0], family.node[..., 0], total[..., 0])
  num_candidates = total.shape[-1]
  total = total.reshape(total.shape[0], -1)
  chosen = selection.best_in_order(total, width)  # [B, W']
  parent = chosen // num_candidates
  score = jnp.take_along_axis(total, chosen, axis=1)
  if level.child_bits is None:
    code = _take_flat(family.code, chosen)
    next_node = _take_flat(family.node, chosen)
  else:
    code = chosen % num_candidates
    next_node = constraint.child_node(
      level, jnp.take_along_axis(node, parent, axis=1), code
    )
    # An empty place may hold a code that is no child; keep its node in range.
    next_node = jnp.maximum(next_node, 0)
  return _Step(parent, code, next_node, score)


def _free_step(trie, vocabulary, l, logits, score, node, done, dead, requested):
  level = trie.levels[l]
  width = min(requested, score.shape[1] * level.width)
  gain = scoring.level_logits(trie, vocabulary, l, logits)
  gain = gain - scoring.log_normalizer(logits)[..., None]  # [B, W, K]
  if trie.has_end:
    is_end = (jnp.arange(level.width) == 0)[None, None]
    if done is None:
      gain = jnp.where(is_end, -jnp.inf, gain)  # an ID has a code at least
    else:
      ended = jnp.where(is_end, 0.0, -jnp.inf)
      gain = jnp.where(done[..., None], ended, gain)
  if dead is not None and l + 1 == trie.num_levels:
    # A dead prefix has other continuations, which name no item but are free.
    alive = denial.alive_codes(dead, node, jnp.ones(gain.shape, bool))
    gain = jnp.where(alive, gain, -jnp.inf)
  total = _drop_nan(score[..., None] + gain)
  total = total.reshape(total.shape[0], -1)
  chosen = selection.best_in_order(total, width)
  parent, code = chosen // level.width, chosen % level.width
  next_node = constraint.child_node(
    level, jnp.take_along_axis(node, parent, axis=1), code
  )
  score = jnp.take_along_axis(total, chosen, axis=1)
  return _Step(parent, code, next_node, score)


def _result(trie, steps, score, node, denied_place, beam_width):
  """Ranks the beams, reads their IDs back along the parents, and pads."""
  place = selection.best_first(score)  # [B, W]
  score = jnp.take_along_axis(score, place, axis=1)
  leaf = jnp.take_along_axis(node, place, axis=1)
  codes = []
  for step in reversed(steps):
    codes.append(jnp.take_along_axis(step.code, place, axis=1))
    if step.parent is not None:
      place = jnp.take_along_axis(step.parent, place, axis=1)
  codes = jnp.stack(codes[::-1], axis=-1) - int(trie.has_end)  # [B, W, L]
  exists = score > -jnp.inf
  valid = exists & (leaf >= 0)
  leaf = jnp.where(valid, leaf, -1)
  start, _ = constraint.leaf_item_range(trie, leaf)
  if denied_place is not None and trie.leaf_start is not None:
    start = denial.first_alive(denied_place, start)
  item_index = jnp.where(valid, trie.item_order[start], -1)
  codes = jnp.where(exists[..., None], codes, -1)
  short = beam_width - score.shape[1]
  if short > 0:

    def pad(x, value):
      widths = [(0, 0), (0, short)] + [(0, 0)] * (x.ndim - 2)
      return jnp.pad(x, widths, constant_values=value)

    item_index, codes, leaf = (pad(x, -1) for x in (item_index, codes, leaf))
    score, valid = pad(score, -jnp.inf), pad(valid, False)
  return BeamResult(item_index, codes, score, valid, leaf)


def _requested_widths(beam_width, num_levels):
  if isinstance(beam_width, int):
    widths = (beam_width,) * num_levels
  else:
    widths = tuple(beam_width)
  if len(widths) != num_levels:
    raise InputError(
      f"beam_width names {len(widths)} levels, the trie has {num_levels}; "
      "pass one number or one a level."
    )
  if min(widths) < 1:
    raise InputError(f"beam_width must be at least 1; got {min(widths)}.")
  return widths


def _take_beams(x, parent):
  index = parent.reshape(parent.shape + (1,) * (x.ndim - 2))
  return jnp.take_along_axis(x, index, axis=1, mode="clip")


def _take_flat(x, index):
  return jnp.take_along_axis(x.reshape(x.shape[0], -1), index, axis=1)


def _drop_nan(x):
  """A score that is not a number counts as impossible."""
  return jnp.where(x > -jnp.inf, x, -jnp.inf)
