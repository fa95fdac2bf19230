"""Histories of tokens as sequences of items, for networks that read those.

Such a network knows of every token that it writes which level it is of, and
gives logits of that level's own codes alone.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gr_jax.core import checks
from gr_jax.models import attention

# First token and number of codes, K_l, of each level.
CodeRanges = tuple[tuple[int, int], ...]

# float32 logits of each level's codes for P items a row: L arrays [B, P, K_l].
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


def log_likelihood(
  logits: LevelLogits, targets: Int[Array, "B T"], code_ranges: CodeRanges
) -> Float[Array, " B"]:
  """Sums log p(target) over the targets that are not padding.

  Args:
    logits: Of the items that the targets hold, T = P L.
    targets: Tokens; one that is none of its level's has probability 0.
    code_ranges: The levels' tokens.
  """
  items = split_items(targets, len(code_ranges))  # [B, P, L]
  total = jnp.zeros(targets.shape[0], jnp.float32)
  for level, (first, count) in enumerate(code_ranges):
    token = items[..., level]
    log_probs = jax.nn.log_softmax(logits[level])
    chosen = jnp.take_along_axis(
      log_probs, jnp.clip(token - first, 0, count - 1)[..., None], axis=-1
    )[..., 0]  # [B, P]
    is_own = (token >= first) & (token < first + count)
    chosen = jnp.where(is_own, chosen, -jnp.inf)
    total += jnp.sum(jnp.where(token != 0, chosen, 0.0), axis=1)
  return total


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
