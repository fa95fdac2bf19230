"""From a model's logits to log-probabilities of stored codes.

A candidate's log-probability is its log-softmax over the *full* vocabulary;
the trie only removes candidates and never renormalizes, so a constrained beam
and exhaustive scoring rank by the same likelihood.
"""

from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gr_jax.core.checks import InputError
from gr_jax.decoding import trie as trie_lib


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
  logits: jax.Array, batch_size: int, num_beams: int, vocabulary: TokenLayout
) -> None:
  """Refuses logits of a shape that the search did not ask for.

  Raises:
    InputError: Not [batch_size, num_beams, >= vocab_size].
  """
  size = vocabulary.vocab_size
  if logits.shape[:-1] != (batch_size, num_beams) or logits.shape[-1] < size:
    raise InputError(
      f"tokens_to_logits returned shape {logits.shape}; want "
      f"({batch_size}, {num_beams}, V) with V >= {size}."
    )


def log_normalizer(logits: Float[Array, "B W V"]) -> Float[Array, "B W"]:
  """Returns log sum exp over the vocabulary, float32."""
  return jax.nn.logsumexp(logits, axis=-1)


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
  offset = vocabulary.level_offsets[level]
  own = logits[..., offset : offset + trie.codebook_sizes[level]]
  if not trie.has_end:
    return own
  end = logits[..., vocabulary.eos_id : vocabulary.eos_id + 1]
  return jnp.concatenate([end, own], axis=-1)


def chosen_logits(
  trie: trie_lib.Trie,
  vocabulary: TokenLayout,
  level: int,
  logits: Float[Array, "B W V"],
  code: Int[Array, "B W M"],
) -> Float[Array, "B W M"]:
  """Returns the logits of some stored codes of each beam."""
  tokens = code_tokens(trie, vocabulary, level, code)
  return jnp.take_along_axis(logits, tokens, axis=-1, mode="clip")
