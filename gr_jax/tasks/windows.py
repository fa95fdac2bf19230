"""Training windows by index arithmetic on arrays that stay on the device.

The one definition of an example: the history a model reads and the item it
shall predict, as tokens. The seqio tasks yield the same, by test.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Int32

from gr_jax.core import checks
from gr_jax.data import interactions as interactions_lib
from gr_jax.data import splits
from gr_jax.sids import sid_catalog
from gr_jax.sids import vocabulary as vocabulary_lib

# How a user's training part becomes examples; see `training_examples`.
SEQUENCES = "sequences"
AUGMENTATIONS = ("prefixes", "subsequences", "none", SEQUENCES)


@dataclasses.dataclass(frozen=True)
class WindowLayout:
  """How an example is laid out in tokens; static and hashable.

  inputs = [user token] + up to H items, oldest first + EOS + padding, with
  no padding in between; targets = the next item's tokens (+ EOS, + padding),
  or with `every_item` those of the item after each of the inputs'.

  Attributes:
    max_history: Items kept, counted from the newest: H.
    num_levels: Columns of an item's tokens, L.
    has_user_token: Whether inputs begin with the user's bucket token.
    append_eos: Whether targets end with EOS.
    is_variable_length: Whether items may have fewer than L tokens.
    every_item: Whether each item of the inputs has a target, the item after
      it, and not the newest alone.
  """

  max_history: int
  num_levels: int
  has_user_token: bool = False
  append_eos: bool = False
  is_variable_length: bool = False
  every_item: bool = False

  def __post_init__(self):
    """Refuses layouts that could hold nothing, or items without a place."""
    if self.max_history < 1 or self.num_levels < 1:
      raise checks.InputError(
        "A window needs max_history and num_levels of at least 1; got "
        f"{self.max_history} and {self.num_levels}."
      )
    if self.every_item and (
      self.has_user_token or self.append_eos or self.is_variable_length
    ):
      raise checks.InputError(
        f"augmentation={SEQUENCES!r} needs items of one length and no user "
        "tokens; use another collision policy or task.num_user_buckets=0, or "
        "augmentation='prefixes'."
      )

  @classmethod
  def create(
    cls,
    catalog: sid_catalog.SidCatalog,
    vocabulary: vocabulary_lib.SidVocabulary,
    *,
    max_history: int,
    every_item: bool = False,
  ) -> WindowLayout:
    """Returns the layout of a catalog's examples."""
    return cls(
      max_history=max_history,
      num_levels=catalog.num_levels,
      has_user_token=vocabulary.num_user_buckets > 0,
      append_eos=vocabulary.append_eos,
      is_variable_length=catalog.is_variable_length,
      every_item=every_item,
    )

  @property
  def input_length(self) -> int:
    """Tokens of the longest input, its EOS included: S."""
    return int(self.has_user_token) + self.max_history * self.num_levels + 1

  @property
  def target_length(self) -> int:
    """Tokens of the longest target: T."""
    if self.every_item:
      return self.max_history * self.num_levels
    return self.num_levels + int(self.append_eos)


@struct.dataclass
class TrainingData:
  """Everything windows are cut from, as arrays for the device.

  Example m asks for `items[target_position[m]]` given
  `items[history_start[m]:target_position[m]]`; in a layout of `every_item`
  for each item of `items[history_start[m] + 1 : target_position[m] + 1]`
  given those before it.
  """

  # Any, not jax.Array: shapes and shardings travel in this tree too.
  items: Any  # int32 [T], item indices, users back to back
  item_tokens: Any  # int32 [N, L], pad after an item's last token
  user_tokens: Any  # int32 [U], pad without user buckets
  user_index: Any  # int32 [M]
  history_start: Any  # int32 [M]
  target_position: Any  # int32 [M]
  neighbors: Any = None  # int32 [N, S], draws from each item's neighbors

  @property
  def num_examples(self) -> int:
    """Number of examples, M."""
    return self.user_index.shape[0]


# history [B, H], each target's newest known place [B, P], items [B, P] that
# were chosen next -> items [B, P] to predict.
Retarget = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


@struct.dataclass
class Batch:
  """Token batch of an encoder-decoder."""

  inputs: Any  # int32 [B, S]
  targets: Any  # int32 [B, T]
  input_segments: Any = None  # int32 [B, S], where the plan's do not hold


def training_examples(
  interactions: interactions_lib.Interactions,
  split: splits.Split,
  augmentation: str = "subsequences",
  max_history: int = 20,
) -> splits.Examples:
  """Cuts examples from the training part of every user.

  "prefixes": every item after a user's first is a target once, given all
  that came before. "subsequences": additionally every contiguous piece of
  that history, the sliding-window augmentation. "none": the last item of the
  training part alone. "sequences": the training part cut from its end into
  runs of at most `max_history` targets, an example each, for layouts of
  `every_item`. A history never reaches back more than `max_history` items, so
  no two examples are the same window.

  Args:
    interactions: All interactions.
    split: Where each user's training part ends; nothing at or beyond
      `split.train_end` enters an example.
    augmentation: One of `AUGMENTATIONS`.
    max_history: Longest history, in items.

  Returns:
    Examples by user, then target, then longest history first.

  Raises:
    InputError: Unknown augmentation, `max_history` below 1, or no user with
      two training items.
  """
  checks.check_known(augmentation, AUGMENTATIONS, "augmentation")
  if max_history < 1:
    raise checks.InputError(
      f"max_history must be at least 1 item; got {max_history}."
    )
  first = interactions.offsets[:-1].astype(np.int64)  # [U]
  end = split.train_end.astype(np.int64)  # [U]
  num_targets = np.maximum(end - first - 1, 0)
  if not num_targets.any():
    raise checks.InputError(
      f"None of {first.size} users has two training items, so there is "
      "nothing to learn from; use longer histories or another split."
    )
  if augmentation == "none":
    user = np.flatnonzero(num_targets)
    target = end[user] - 1
  elif augmentation == SEQUENCES:
    num_runs = -(-num_targets // max_history)
    user = np.repeat(np.arange(first.size), num_runs)
    later = num_runs[user] - 1 - _within(num_runs)  # runs after this one
    target = end[user] - 1 - max_history * later
  else:
    user = np.repeat(np.arange(first.size), num_targets)
    target = first[user] + 1 + _within(num_targets)
  start = np.maximum(first[user], target - max_history)
  if augmentation == "subsequences":
    num_starts = target - start
    user, target = np.repeat(user, num_starts), np.repeat(target, num_starts)
    start = np.repeat(start, num_starts) + _within(num_starts)
  return splits.Examples(
    user_index=user.astype(np.int32),
    history_start=start.astype(np.int32),
    target_position=target.astype(np.int32),
  )


def training_data(
  interactions: interactions_lib.Interactions,
  catalog: sid_catalog.SidCatalog,
  vocabulary: vocabulary_lib.SidVocabulary,
  examples: splits.Examples,
) -> TrainingData:
  """Puts examples and what they refer to on the default device.

  Works for validation and test examples too; `with_examples` swaps them.

  Raises:
    InputError: Interactions name an item that the catalog lacks, or there
      are more of them than int32 can index.
  """
  if interactions.items.size >= 2**31:
    raise checks.InputError(
      f"{interactions.items.size} interactions are more than int32 can "
      "index; split the users into several data sets."
    )
  largest = int(interactions.items.max(initial=0))
  if largest >= catalog.num_items:
    raise checks.InputError(
      f"Interactions name item index {largest}, but the SID catalog has "
      f"{catalog.num_items} items; build it from the same item catalog."
    )
  return with_examples(
    TrainingData(
      items=jnp.asarray(interactions.items, jnp.int32),
      item_tokens=jnp.asarray(vocabulary.tokens_from_codes(catalog.codes)),
      user_tokens=jnp.asarray(vocabulary.user_tokens(interactions.user_ids)),
      user_index=jnp.zeros(0, jnp.int32),
      history_start=jnp.zeros(0, jnp.int32),
      target_position=jnp.zeros(0, jnp.int32),
    ),
    examples,
  )


def with_examples(
  data: TrainingData, examples: splits.Examples
) -> TrainingData:
  """Returns the data with other examples over the same interactions."""
  return data.replace(
    user_index=jnp.asarray(examples.user_index, jnp.int32),
    history_start=jnp.asarray(examples.history_start, jnp.int32),
    target_position=jnp.asarray(examples.target_position, jnp.int32),
  )


def history_data(
  histories: Sequence[Sequence | np.ndarray],
  item_tokens: Int32[np.ndarray | Array, "N L"],
  user_tokens: Int32[np.ndarray, "U"] | None = None,
) -> TrainingData:
  """Wraps histories from outside the data set, one example each.

  For recommending: the batch's `inputs` are right, its `targets` mean
  nothing, for there is no next item.

  Args:
    histories: Item indices of each user, oldest first; may be empty.
    item_tokens: Tokens of every catalog item.
    user_tokens: Token of each user; None where the layout has none.

  Raises:
    InputError: No history, or an item index outside the catalog.
  """
  if not histories:
    raise checks.InputError("No history was given; name at least one user's.")
  lengths = np.array([len(history) for history in histories], np.int32)
  # One element more, for gathers need one even where nobody has a history.
  items = np.concatenate([np.asarray(h, np.int64) for h in [*histories, [0]]])
  outside = (items < 0) | (items >= item_tokens.shape[0])
  if outside.any():
    raise checks.InputError(
      f"Item index {items[outside][0]} is outside the catalog of "
      f"{item_tokens.shape[0]} items."
    )
  if user_tokens is None:
    user_tokens = np.zeros(lengths.size, np.int32)
  ends = np.cumsum(lengths, dtype=np.int32)
  return TrainingData(
    items=jnp.asarray(items, jnp.int32),
    item_tokens=jnp.asarray(item_tokens),
    user_tokens=jnp.asarray(user_tokens),
    user_index=jnp.arange(lengths.size, dtype=jnp.int32),
    history_start=jnp.asarray(ends - lengths),
    target_position=jnp.asarray(ends),
  )


def gather_batch(
  data: TrainingData,
  example_index: Int32[Array, "B"],
  layout: WindowLayout,
  retarget: Retarget | None = None,
) -> Batch:
  """Cuts a batch of windows; pure, for use inside a jitted step.

  Args:
    data: Device arrays.
    example_index: Which examples; indices outside 0..M-1 are clipped.
    layout: Static.
    retarget: Exchanges items that were chosen next for others.

  Returns:
    `inputs` [B, S] and `targets` [B, T]; see `WindowLayout`.

  Raises:
    InputError: The data's items have another number of levels than `layout`
      (at trace time).
  """
  if data.item_tokens.shape[1] != layout.num_levels:
    raise checks.InputError(
      f"Items have {data.item_tokens.shape[1]} tokens, the layout expects "
      f"num_levels={layout.num_levels}; make both from one catalog."
    )
  target = data.target_position.at[example_index].get(mode="clip")  # [B]
  start = data.history_start.at[example_index].get(mode="clip")  # [B]
  start = jnp.maximum(start, target - layout.max_history)
  slots = jnp.arange(layout.max_history, dtype=jnp.int32)
  is_item = slots[None, :] < (target - start)[:, None]  # [B, H]
  history = data.items.at[start[:, None] + slots[None, :]].get(mode="clip")
  tokens = data.item_tokens[history]  # [B, H, L]
  tokens = jnp.where(is_item[:, :, None], tokens, vocabulary_lib.PAD_ID)
  flat = tokens.reshape(tokens.shape[0], -1)  # [B, H * L]
  if layout.is_variable_length:
    flat = _squeeze(tokens)
  num_tokens = jnp.sum(flat != vocabulary_lib.PAD_ID, axis=1, dtype=jnp.int32)
  columns = [flat, jnp.zeros_like(flat[:, :1])]
  if layout.has_user_token:
    user = data.user_index.at[example_index].get(mode="clip")  # [B]
    columns.insert(0, data.user_tokens[user][:, None])
    num_tokens = num_tokens + 1
  inputs = _put_eos(jnp.concatenate(columns, axis=1), num_tokens)  # [B, S]

  if layout.every_item:
    places = start[:, None] + slots[None, :] + 1
    items = data.items.at[places].get(mode="clip")  # [B, H]
    if retarget is not None:
      newest = jnp.broadcast_to(slots[None, :], items.shape)
      items = retarget(history, newest, items)
    following = data.item_tokens[items]
    following = jnp.where(is_item[:, :, None], following, vocabulary_lib.PAD_ID)
    return Batch(inputs=inputs, targets=following.reshape(tokens.shape[0], -1))
  next_item = data.items.at[target].get(mode="clip")  # [B]
  if retarget is not None:
    newest = (target - start - 1)[:, None]
    next_item = retarget(history, newest, next_item[:, None])[:, 0]
  targets = data.item_tokens[next_item]  # [B, L]
  if layout.append_eos:
    length = jnp.sum(
      targets != vocabulary_lib.PAD_ID, axis=1, dtype=jnp.int32
    )  # [B]
    room = jnp.zeros_like(targets[:, :1])
    targets = _put_eos(jnp.concatenate([targets, room], axis=1), length)
  return Batch(inputs=inputs, targets=targets)


def _within(counts: np.ndarray) -> np.ndarray:
  """Numbers the members of consecutive groups: 0..c-1 for each count c."""
  ends = np.cumsum(counts)
  return np.arange(ends[-1]) - np.repeat(ends - counts, counts)


def _squeeze(tokens: Int32[Array, "B H L"]) -> Int32[Array, "B HL"]:
  """Moves all tokens to the front of a row, padding to its end.

  Padding stands only at the end of each item, so the source of every output
  place follows from the items' lengths; no sort is needed.
  """
  num_rows, num_slots, num_levels = tokens.shape
  is_token = tokens != vocabulary_lib.PAD_ID
  lengths = jnp.sum(is_token, axis=2, dtype=jnp.int32)  # [B, H]
  ends = jnp.cumsum(lengths, axis=1, dtype=jnp.int32)  # [B, H]
  places = jnp.arange(num_slots * num_levels, dtype=jnp.int32)
  # The slot that fills a place: how many items end at or before it. [B, HL]
  slot = jnp.sum(
    places[None, :, None] >= ends[:, None, :], axis=2, dtype=jnp.int32
  )
  slot = jnp.minimum(slot, num_slots - 1)
  begin = jnp.take_along_axis(ends - lengths, slot, axis=1)  # [B, HL]
  source = slot * num_levels + places[None, :] - begin
  flat = tokens.reshape(num_rows, -1)
  moved = flat.at[jnp.arange(num_rows)[:, None], source].get(mode="clip")
  is_used = places[None, :] < ends[:, -1:]
  return jnp.where(is_used, moved, vocabulary_lib.PAD_ID)


def _put_eos(
  tokens: Int32[Array, "B S"], position: Int32[Array, "B"]
) -> Int32[Array, "B S"]:
  """Writes EOS at one position of each row."""
  places = jnp.arange(tokens.shape[1], dtype=jnp.int32)
  is_eos = places[None, :] == position[:, None]
  return jnp.where(is_eos, vocabulary_lib.EOS_ID, tokens)
