"""One level of beam search: which continuations of which beams go on.

Three forms, by what the level looks like; all choose the same set:

- single: every node has one child. Nothing is selected, no beam moves.
- narrow: small families. Only the children's logits are gathered.
- wide: a bitmask of the whole codebook. The k best candidates lie in the k
  best groups of 32 codes, so groups are selected first, by one pass over the
  logits, and only theirs are looked at again. A free search is a wide level
  whose bits are all set.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, UInt32

from gr_jax.decoding import constraint, denial, scoring, selection
from gr_jax.decoding import trie as trie_lib

_ALL = 0xFFFFFFFF


@dataclasses.dataclass(frozen=True)
class Tuning:
  """Choices that change the speed of decoding and never its result.

  Attributes:
    selection: One of `selection.METHODS`.
    normalizer: One of `scoring.NORMALIZERS`.
    group_first: Whether wide levels select groups of 32 codes first.
  """

  selection: str = "auto"
  normalizer: str = "auto"
  group_first: bool = True


@struct.dataclass
class Beams:
  """The W beams of each request, in ascending order of their IDs.

  Empty places have score -inf, any code, and a node in range.
  """

  score: Any  # float32 [B, W]
  node: Any  # int32 [B, W], -1: outside the trie, free search alone
  code: Any  # int32 [B, W], stored code chosen last
  done: Any  # bool [B, W], the ID ended; None where that cannot be
  parent: Any  # int32 [B, W] into the beams before, None: each its own


def constrained_step(
  trie: trie_lib.Trie,
  vocabulary: scoring.TokenLayout,
  l: int,
  logits: Float[Array, "B W V"],
  beams: Beams,
  requested: int,
  dead: denial.DeadChildren | denial.CountedChildren | None,
  tuning: Tuning,
) -> Beams:
  """Extends beams by one code, inside the trie."""
  level = trie.levels[l]
  num_beams = beams.score.shape[1]
  width = min(requested, level.num_children, num_beams * level.max_children)
  if level.child_bits is not None:
    words = level.child_bits[beams.node]
    if dead is not None:
      words = denial.clear_dead(dead, beams.node, beams.score, words)
    parent, code, score = _choose_wide(
      trie, vocabulary, l, logits, beams, words, width, tuning
    )
    # An empty place may hold a code that is no child; keep its node in range.
    node = selection.take(beams.node, parent)
    node = jnp.maximum(constraint.child_node(level, node, code), 0)
    return Beams(score, node, code, _done(trie, code), parent)
  family = constraint.children(level, beams.node)
  exists = family.exists
  if dead is not None:
    exists = exists & ~denial.is_dead(dead, family.node)
  beam = jnp.arange(num_beams, dtype=jnp.int32)[None, :, None]
  logits_of = scoring.logits_at(trie, vocabulary, l, logits, beam, family.code)
  log_norm = scoring.log_normalizer(logits, method=tuning.normalizer)
  total = _total(
    beams.score[..., None],
    logits_of,
    log_norm[..., None],
    None if beams.done is None else beams.done[..., None],
  )
  total = jnp.where(exists, total, -jnp.inf)  # [B, W, M]
  if level.max_children == 1 and width == num_beams:
    code = family.code[..., 0]
    node = family.node[..., 0]
    return Beams(total[..., 0], node, code, _done(trie, code), None)
  total, codes, nodes = (
    x.reshape(x.shape[0], -1) for x in (total, family.code, family.node)
  )
  chosen = selection.best_in_order(total, width, method=tuning.selection)
  code = selection.take(codes, chosen)
  return Beams(
    score=selection.take(total, chosen),
    node=selection.take(nodes, chosen),
    code=code,
    done=_done(trie, code),
    parent=chosen // level.max_children,
  )


def free_step(
  trie: trie_lib.Trie,
  vocabulary: scoring.TokenLayout,
  l: int,
  logits: Float[Array, "B W V"],
  beams: Beams,
  requested: int,
  dead: denial.DeadChildren | denial.CountedChildren | None,
  tuning: Tuning,
) -> Beams:
  """Extends beams by any code of the level; their nodes follow if they can."""
  level = trie.levels[l]
  width = min(requested, beams.score.shape[1] * level.width)
  words = _free_words(trie, level, beams)
  if dead is not None and l + 1 == trie.num_levels:
    # A dead prefix has other continuations, which name no item but are free.
    words = denial.clear_dead(dead, beams.node, beams.score, words)
  parent, code, score = _choose_wide(
    trie, vocabulary, l, logits, beams, words, width, tuning
  )
  node = constraint.child_node(level, selection.take(beams.node, parent), code)
  return Beams(score, node, code, _done(trie, code), parent)


def _choose_wide(trie, vocabulary, l, logits, beams, words, k, tuning):
  """Returns parent, code, score of the k best, [B, k] each."""
  batch, num_beams, num_words = words.shape
  log_norm = scoring.log_normalizer(logits, method=tuning.normalizer)
  own = scoring.level_logits(trie, vocabulary, l, logits)
  pad = num_words * 32 - own.shape[-1]
  if pad:
    own = jnp.pad(own, ((0, 0), (0, 0), (0, pad)), constant_values=-jnp.inf)
  allowed = constraint.unpack_bits(words)
  masked = jnp.where(allowed, own, -jnp.inf)
  if not tuning.group_first or 2 * 32 * k > num_beams * num_words * 32:
    total = _total(
      beams.score[..., None],
      masked,
      log_norm[..., None],
      None if beams.done is None else beams.done[..., None],
    )
    total = jnp.where(allowed, total, -jnp.inf).reshape(batch, -1)
    chosen = selection.best_in_order(total, k, method=tuning.selection)
    size = num_words * 32
    return chosen // size, chosen % size, selection.take(total, chosen)

  # A group's best total is the total of its best logit, since rounding keeps
  # order; so whole groups compare by one number each.
  best = jnp.max(masked.reshape(batch, num_beams, num_words, 32), axis=-1)
  best_total = _total(
    beams.score[..., None],
    best,
    log_norm[..., None],
    None if beams.done is None else beams.done[..., None],
  )
  best_total = jnp.where(words != 0, best_total, -jnp.inf)
  group = selection.best_in_order(
    best_total.reshape(batch, -1), k, method=tuning.selection
  )  # [B, k], ascending
  beam, word = group // num_words, group % num_words
  code = word[..., None] * 32 + jnp.arange(32, dtype=jnp.int32)[None, None]
  bits = selection.take(words.reshape(batch, -1), group)
  total = _total(
    selection.take(beams.score, beam)[..., None],
    scoring.logits_at(trie, vocabulary, l, logits, beam[..., None], code),
    selection.take(log_norm, beam)[..., None],
    None if beams.done is None else selection.take(beams.done, beam)[..., None],
  )  # [B, k, 32]
  allowed = constraint.unpack_bits(bits).reshape(total.shape)
  total = jnp.where(allowed, total, -jnp.inf).reshape(batch, -1)
  chosen = selection.best_in_order(total, k, method=tuning.selection)
  place = chosen // 32
  return (
    selection.take(beam, place),
    selection.take(word, place) * 32 + chosen % 32,
    selection.take(total, chosen),
  )


def _total(score, logits, log_norm, done):
  """Log-probability first, then the sum; an ID that ended gains nothing."""
  gain = logits - log_norm
  if done is not None:
    gain = jnp.where(done, 0.0, gain)
  return drop_nan(score + gain)


def _done(trie, code) -> Bool[Array, "B W"] | None:
  return code == 0 if trie.has_end else None


def _free_words(trie, level, beams) -> UInt32[Array, "B W G"]:
  """All codes; with ends, no end at the first level and no code after one."""
  num_words = -(-level.width // 32)
  bits = [_ALL] * num_words
  bits[-1] = _ALL >> (-level.width % 32)
  if trie.has_end and beams.done is None:
    bits[0] -= 1  # an ID has one code at least
  words = jnp.array(bits, jnp.uint32)[None, None]
  words = jnp.broadcast_to(words, (*beams.score.shape, num_words))
  if beams.done is None:
    return words
  is_first = (jnp.arange(num_words) == 0)[None, None]
  only_end = is_first.astype(jnp.uint32)
  return jnp.where(beams.done[..., None], only_end, words)


def drop_nan(x: Float[Array, "*S"]) -> Float[Array, "*S"]:
  """Makes a score that is not a number impossible."""
  return jnp.where(x > -jnp.inf, x, -jnp.inf)
