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
from gr_jax.decoding import (
  constraint,
  denial,
  direct_path,
  extension,
  scoring,
  selection,
)
from gr_jax.decoding import trie as trie_lib
from gr_jax.decoding.extension import Tuning

TokensToLogits = Callable[[jax.Array, Any, int], tuple[jax.Array, Any]]


@struct.dataclass
class BeamResult:
  """Decoded IDs of each request, best first; equal scores by lowest ID.

  Places beyond what exists have item_index, leaf and codes -1, score -inf and
  valid False. A free search also returns IDs that name no item: their codes
  and score are real, valid is False, leaf and item_index are -1. Fields are
  host or device arrays.
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
  item_mask: jax.Array | None = None,
  direct: jax.Array | None = None,
  tuning: Tuning = Tuning(),  # noqa: B008, frozen
) -> BeamResult:
  """Decodes the best IDs of each request; pure, to be jitted by the caller.

  The trie is an argument of the jitted function, never a captured constant.

  Args:
    tokens_to_logits: (tokens int32 [B, W], cache, level) -> (logits [B, W, V],
      cache), V all tokens, or the level's codes alone where no EOS is
      appended. Level 0 is called with W = 1 and token 0, level l with the
      tokens chosen at l - 1. W never exceeds the number of prefixes that exist.
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
    item_mask: bool [B, N], True for items that a request may get; the same
      for filters that deny many. Its cost grows with N.
    direct: float32 [B, K], log-probabilities of the last level's codes by a
      path of their own, see `direct_path`: a score is then the log of the mean
      of both paths' probabilities, and the best of both are returned.
    tuning: Choices of speed alone.

  Returns:
    BeamResult of width W. With W >= the number of distinct IDs it is the
    exact ranking of the catalog.

  Raises:
    InputError: Bad widths, a vocabulary of another catalog, logits of another
      shape, or a direct path to other IDs.
  """
  scoring.check_layout(trie, vocabulary)
  if direct is not None:
    direct_path.check(direct, trie, batch_size, constrained)
  requested = _requested_widths(beam_width, trie.num_levels)
  trie = jax.tree.map(jnp.asarray, trie)
  denied = _denied(trie, denied_items, item_mask, batch_size)
  zeros = jnp.zeros((batch_size, 1), jnp.int32)
  beams = extension.Beams(
    zeros.astype(jnp.float32), zeros, zeros, done=None, parent=None
  )
  tokens = zeros
  history = []
  for l in range(trie.num_levels):
    logits, cache = tokens_to_logits(tokens, cache, l)
    scoring.check_logits(logits, *tokens.shape, vocabulary, l)
    logits = logits.astype(jnp.float32)
    dead = None
    if denied is not None:
      dead, denied = denial.dead_children(trie, l, denied)
    step = extension.constrained_step if constrained else extension.free_step
    beams = step(trie, vocabulary, l, logits, beams, requested[l], dead, tuning)
    history.append((beams.code, beams.parent))
    tokens = scoring.code_tokens(trie, vocabulary, l, beams.code)
    if (
      beams.parent is not None
      and l + 1 < trie.num_levels + vocabulary.append_eos
    ):
      parent = beams.parent
      cache = jax.tree.map(lambda x, p=parent: _take_beams(x, p), cache)
  score = beams.score
  if vocabulary.append_eos:
    logits, _ = tokens_to_logits(tokens, cache, trie.num_levels)
    scoring.check_logits(logits, *tokens.shape, vocabulary, trie.num_levels)
    logits = logits.astype(jnp.float32)
    log_norm = scoring.log_normalizer(logits, method=tuning.normalizer)
    end = logits[..., vocabulary.eos_id] - log_norm
    if beams.done is not None:
      end = jnp.where(beams.done, 0.0, end)
    score = extension.drop_nan(score + end)
  if direct is not None:
    beams, history = direct_path.join(
      trie,
      beams.replace(score=score),
      direct,
      denied,
      requested[-1],
      tuning.selection,
    )
    score = beams.score
  return _result(
    trie, history, score, beams.node, denied, requested[-1], tuning
  )


def _result(trie, history, score, node, denied, beam_width, tuning):
  """Ranks the beams, reads their IDs back along the parents, and pads."""
  method = "auto" if tuning.selection == "auto" else "sort"
  place = selection.best_first(score, method=method)  # [B, W]
  score = selection.take(score, place)
  leaf = selection.take(node, place)
  codes = []
  for code, parent in reversed(history):
    codes.append(selection.take(code, place))
    if parent is not None:
      place = selection.take(parent, place)
  codes = jnp.stack(codes[::-1], axis=-1) - int(trie.has_end)  # [B, W, L]
  exists = score > -jnp.inf
  valid = exists & (leaf >= 0)
  leaf = jnp.where(valid, leaf, -1)
  start, _ = constraint.leaf_item_range(trie, leaf)
  if denied is not None and trie.levels[-1].item_extra is not None:
    start = denial.first_alive(denied, start)
  item_index = jnp.where(valid, constraint.item_at(trie, start), -1)
  codes = jnp.where(exists[..., None], codes, -1)
  result = BeamResult(item_index, codes, score, valid, leaf)
  short = beam_width - score.shape[1]
  if short <= 0:
    return result
  return jax.tree.map(
    lambda x, fill: jnp.pad(
      x, [(0, 0), (0, short)] + [(0, 0)] * (x.ndim - 2), constant_values=fill
    ),
    result,
    BeamResult(-1, -1, -jnp.inf, False, -1),
  )


def _denied(trie, denied_items, item_mask, batch_size):
  if denied_items is None and item_mask is None:
    return None
  if denied_items is not None and item_mask is not None:
    raise InputError("Pass denied_items or item_mask, not both.")
  name = "item_mask" if denied_items is None else "denied_items"
  given = item_mask if denied_items is None else denied_items
  if given.shape[0] != batch_size:
    raise InputError(
      f"{name} needs one row a request; got {given.shape[0]} rows, "
      f"{batch_size=}."
    )
  if denied_items is not None:
    # A list without places denies nothing.
    return denial.deny_list(trie, denied_items) if given.shape[1] else None
  if item_mask.shape[1] != trie.catalog_size:
    raise InputError(
      f"item_mask has {item_mask.shape[1]} columns; the catalog has "
      f"{trie.catalog_size} items."
    )
  return denial.allow_counts(trie, item_mask)


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
  return selection.take(x, index)
