"""Histories of tokens as sequences of items, for networks that read those.

Such a network knows of every token that it writes which level it is of, and
gives logits of that level's own codes alone.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gr_jax.core import checks
from gr_jax.models import attention

# First token and number of codes, K_l, of each level.
CodeRanges = tuple[tuple[int, int], ...]

# float32 logits of each level's codes for P items a row: L arrays [B, P, K_l];
# of a network with a direct path one more, of the last level's first codes.
LevelLogits = tuple[Float[Array, "B P _"], ...]

# The largest token that begins no item: padding is 0, EOS 1.
_LAST_SPECIAL = 1


def check_ranges(code_ranges: CodeRanges, vocab_size: int) -> None:
  """Refuses levels whose codes are not all tokens of the network.

  Raises:
    InputError: A range without codes, or one that leaves the table.
  """
  for level, (first, count) in enumerate(code_ranges):
    if first < 0 or count < 1 or first + count > vocab_size:
      raise checks.InputError(
        f"code_ranges[{level}]={(first, count)} does not lie within the "
        f"network's {vocab_size} tokens; take SidVocabulary.code_ranges of the "
        "vocabulary that it was made for."
      )


def levels_of(logits: LevelLogits, num_levels: int) -> tuple[int, ...]:
  """Returns the level that each of the logits is of.

  Raises:
    InputError: Neither one for each level nor a direct path's beside them.
  """
  levels = (*range(num_levels), num_levels - 1)[: len(logits)]
  if not num_levels <= len(logits) == len(levels):
    raise checks.InputError(
      f"Need logits of {num_levels} levels, or one more; got {len(logits)}."
    )
  return levels


def log_likelihood(
  logits: LevelLogits, targets: Int[Array, "B T"], code_ranges: CodeRanges
) -> Float[Array, " B"]:
  """Sums log p(target) over the targets that are not padding.

  With a direct path an item's probability is the mean of both paths'.

  Args:
    logits: Of the items that the targets hold, T = P L.
    targets: Tokens; one that is none of its level's has probability 0.
    code_ranges: The levels' tokens.

  Raises:
    InputError: As `levels_of`.
  """
  items = split_items(targets, len(code_ranges))  # [B, P, L]
  chosen = []
  for own, level in zip(
    logits, levels_of(logits, len(code_ranges)), strict=True
  ):
    first, count = code_ranges[level][0], own.shape[-1]
    token = items[..., level]
    log_probs = jax.nn.log_softmax(own)
    found = jnp.take_along_axis(
      log_probs, jnp.clip(token - first, 0, count - 1)[..., None], axis=-1
    )[..., 0]  # [B, P]
    is_own = (token >= first) & (token < first + count)
    found = jnp.where(is_own, found, -jnp.inf)
    chosen.append(jnp.where(token != 0, found, 0.0))
  of_codes = sum(chosen[: len(code_ranges)])  # [B, P]
  if len(chosen) > len(code_ranges):
    of_codes = jnp.logaddexp(of_codes, chosen[-1]) - math.log(2.0)
  return jnp.sum(of_codes, axis=1)


def split_items(
  tokens: Int[Array, "B S"], num_levels: int
) -> Int[Array, "B H L"]:
  """Returns a row's tokens item by item, without those left over at its end."""
  count = tokens.shape[1] // num_levels
  cut = tokens[:, : count * num_levels]
  return cut.reshape(tokens.shape[0], count, num_levels)


def count_targets(
  decoder_inputs: Int[Array, "B T"],
  items: Int[Array, "B H L"],
  num_levels: int,
) -> int:
  """Returns the items a row's targets hold: one, or one for each of its own.

  Raises:
    InputError: They hold neither.
  """
  count, rest = divmod(decoder_inputs.shape[1], num_levels)
  if rest or not 1 <= count <= items.shape[1]:
    raise checks.InputError(
      f"Targets of {decoder_inputs.shape[1]} tokens are neither one item of "
      f"{num_levels} nor one for each of {items.shape[1]} items."
    )
  return count


def is_item(items: Int[Array, "B H L"]) -> Bool[Array, "B H"]:
  """True where an item stands, not EOS or padding."""
  return items[:, :, 0] > _LAST_SPECIAL


def item_mask(
  items: Int[Array, "B H L"], segment_ids: Int[Array, "B S"] | None = None
) -> Bool[Array, "B H H"]:
  """True where an item may see another: itself and its example's earlier.

  Args:
    items: From `split_items`.
    segment_ids: Packed rows only: the example that each token of the row that
      was split belongs to.
  """
  mask = is_item(items)[:, None, :] & attention.causal_mask(items.shape[1])
  if segment_ids is not None:
    segments = split_items(segment_ids, items.shape[2])[:, :, 0]  # [B, H]
    mask = mask & attention.segment_mask(segments, segments)
  return mask


def newest(
  hidden: Float[Array, "B H E"], items: Int[Array, "B H L"]
) -> Float[Array, "B 1 E"]:
  """Picks the hidden state of each row's newest item."""
  count = jnp.sum(is_item(items), axis=1, dtype=jnp.int32)  # [B]
  last = jnp.maximum(count - 1, 0)[:, None, None]
  return jnp.take_along_axis(hidden, last, axis=1)
