"""From a model's logits to log-probabilities of stored codes.

A candidate's log-probability is its log-softmax over all that the model gives
logits of: the *full* vocabulary, or the level's own codes where the model
writes no other token there. The trie only removes candidates and never
renormalizes, so a constrained beam and exhaustive scoring rank by the same
likelihood. Which of the two it is shows in the logits' last axis.
"""

from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gr_jax.core.checks import InputError, check_known
from gr_jax.decoding import trie as trie_lib

NORMALIZERS = ("auto", "two_pass", "one_pass")


@runtime_checkable
class TokenLayout(Protocol):
  """What decoding reads of a `sids.vocabulary.SidVocabulary`."""

  codebook_sizes: tuple[int, ...]
  append_eos: bool

  @property
  def eos_id(self) -> int:
    """Token that ends an ID."""

  @property
  def level_offsets(self) -> tuple[int, ...]:
    """First token of each level's codes."""

  @property
  def vocab_size(self) -> int:
    """Number of tokens, before any padding of the model's output."""


def check_layout(trie: trie_lib.Trie, vocabulary: TokenLayout) -> None:
  """Refuses a vocabulary that was not made for the trie's catalog.

  Raises:
    InputError: Codebook sizes differ, or IDs of unequal length come with a
      vocabulary that has no EOS to end them.
  """
  if tuple(vocabulary.codebook_sizes) != trie.codebook_sizes:
    raise InputError(
      f"Vocabulary has codebook sizes {tuple(vocabulary.codebook_sizes)}, "
      f"the trie {trie.codebook_sizes}; build both from one SID catalog."
    )
  if trie.has_end and not vocabulary.append_eos:
    raise InputError(
      "IDs of unequal length need a vocabulary with append_eos=True, so that "
      "the model scores where an ID ends."
    )


def check_logits(
  logits: jax.Array,
  batch_size: int,
  num_beams: int,
  vocabulary: TokenLayout,
  level: int,
) -> None:
  """Refuses logits of a shape that the search did not ask for.

  Raises:
    InputError: Neither [batch_size, num_beams, >= vocab_size] nor as many as
      the level has codes, or the latter where IDs end with EOS.
  """
  shape, size = logits.shape, vocabulary.vocab_size
  fits = shape[:-1] == (batch_size, num_beams)
  if fits and shape[-1] >= size:
    return
  own = (*vocabulary.codebook_sizes, 0)[level]  # then EOS is asked for
  if not fits or shape[-1] != own:
    raise InputError(
      f"tokens_to_logits returned shape {shape} at level {level}; want "
      f"({batch_size}, {num_beams}, V) with V >= {size}"
      + (f", or V = {own} for the level's own codes." if own else ".")
    )
  if vocabulary.append_eos:
    raise InputError(
      f"tokens_to_logits returned logits of the {own} codes of level {level} "
      "alone, but IDs end with EOS, which is none of them; return logits of "
      "all tokens, or use a vocabulary with append_eos=False."
    )


def log_normalizer(
  logits: Float[Array, "B W V"], *, method: str = "auto"
) -> Float[Array, "B W"]:
  """Returns log sum exp over all that there are logits of, float32.

  Args:
    logits: Float32 logits.
    method: "two_pass" reads the row for its maximum and again for the sum;
      "one_pass" carries both through one reduction, which halves the traffic
      of the largest array there is. "auto": two passes on CPU, else one.

  Raises:
    InputError: Unknown method.
  """
  check_known(method, NORMALIZERS, "normalizer")
  if method == "auto":
    method = "two_pass" if jax.default_backend() == "cpu" else "one_pass"
  return _two_pass(logits) if method == "two_pass" else _one_pass(logits)


def _two_pass(logits):
  top = jnp.max(logits, axis=-1)
  top = jnp.where(jnp.abs(top) < jnp.inf, top, jnp.zeros_like(top))
  return top + jnp.log(jnp.sum(jnp.exp(logits - top[..., None]), axis=-1))


def _one_pass(logits):
  """Reduces pairs (maximum m, sum of exp(x - m)), Milakov and Gimelshein 2018.

  arXiv:1805.02867, equation 4, with one exponential a merge.
  """

  def merge(left, right):
    (m1, s1), (m2, s2) = left, right
    scale = jnp.exp(-jnp.abs(m1 - m2))
    is_first = m1 >= m2
    total = jnp.where(is_first, s1 + s2 * scale, s2 + s1 * scale)
    return jnp.maximum(m1, m2), total

  # A finite start: -inf - -inf would not be a number.
  start = (jnp.float32(-1e38), jnp.float32(0))
  pairs = (logits, jnp.ones_like(logits))
  top, total = jax.lax.reduce(pairs, start, merge, (logits.ndim - 1,))
  return top + jnp.log(total)


def code_tokens(
  trie: trie_lib.Trie, vocabulary: TokenLayout, level: int, code: jax.Array
) -> jax.Array:
  """Returns the tokens of stored codes of `level`, int32, any shape."""
  offset = vocabulary.level_offsets[level]
  if not trie.has_end:
    return code + offset
  return jnp.where(code == 0, vocabulary.eos_id, code + (offset - 1))


def level_logits(
  trie: trie_lib.Trie,
  vocabulary: TokenLayout,
  level: int,
  logits: Float[Array, "B W V"],
) -> Float[Array, "B W K"]:
  """Returns the columns of `level`'s stored codes, in their order."""
  if _is_own(vocabulary, logits):
    return logits
  offset = vocabulary.level_offsets[level]
  own = logits[..., offset : offset + trie.codebook_sizes[level]]
  if not trie.has_end:
    return own
  end = logits[..., vocabulary.eos_id : vocabulary.eos_id + 1]
  return jnp.concatenate([end, own], axis=-1)


def logits_at(
  trie: trie_lib.Trie,
  vocabulary: TokenLayout,
  level: int,
  logits: Float[Array, "B W V"],
  beam: Int[Array, "#B C 1"],
  code: Int[Array, "B C M"],
) -> Float[Array, "B C M"]:
  """Gathers the logits of stored codes of some beams.

  Codes past the level's last give an arbitrary logit, to be masked.
  """
  batch, _, size = logits.shape
  column = code
  if not _is_own(vocabulary, logits):
    column = code_tokens(trie, vocabulary, level, code)
  index = (beam * size + jnp.minimum(column, size - 1)).reshape(batch, -1)
  flat = logits.reshape(batch, -1)
  return jnp.take_along_axis(
    flat, index, axis=1, mode="promise_in_bounds"
  ).reshape(code.shape)


def _is_own(vocabulary, logits):
  """Whether logits are of a level's codes alone, see `check_logits`."""
  return logits.shape[-1] < vocabulary.vocab_size
