"""Histories of tokens as sequences of items, for networks that read those."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gr_jax.core import checks
from gr_jax.models import attention

# The largest token that begins no item: padding is 0, EOS 1.
_LAST_SPECIAL = 1


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
