"""Several short examples in one row of tokens: little padding, one shape.

Most histories are short, and a row as long as the longest is mostly padding.
Examples are sorted by length into strata of equal size, of which every batch
holds equally many examples. So the room that a batch's examples need is known
before training: one plan of which example stands where serves every batch,
and packing is a gather with constant indices.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int32, Int64

from gr_jax.tasks.windows import Batch, TrainingData, WindowLayout

# A stratum's examples come one time in `size` more or less often than those
# of one that holds an example more; so many make that nothing.
_SMALLEST_STRATUM = 256
_MOST_STRATA = 32
# Lengths of rows are multiples of this: aligned tiles for matrix units.
_LENGTH_MULTIPLE = 8
_MOST_TARGETS = 16
# What a decoder token costs, in encoder tokens: it attends to both sides.
_DECODER_COST = 2


@dataclasses.dataclass(frozen=True)
class Strata:
  """Examples cut into runs of equal size; the first may hold one more.

  Attributes:
    num_examples: M.
    count: Number of strata, a divisor of the batch size.
  """

  num_examples: int
  count: int = 1

  @classmethod
  def create(cls, num_examples: int, batch_size: int) -> Strata:
    """Returns as many strata as the batch and the examples allow."""
    count = math.gcd(batch_size, _MOST_STRATA)
    while count > 1 and num_examples // count < _SMALLEST_STRATUM:
      count //= 2
    return cls(num_examples, count)

  @property
  def sizes(self) -> Int64[np.ndarray, "G"]:
    """Examples of each stratum."""
    small, more = divmod(self.num_examples, self.count)
    return small + (np.arange(self.count) < more)

  @property
  def starts(self) -> Int64[np.ndarray, "G"]:
    """The first example of each stratum."""
    return np.cumsum(self.sizes) - self.sizes


@dataclasses.dataclass(frozen=True, eq=False)
class PackPlan:
  """Where a batch's examples stand in rows; constants of a program.

  Attributes:
    input_source: Place in the flattened unpacked inputs [B * S] that each
      token comes from; -1 for padding.
    input_segments: Which of its row's examples, from 1, a token belongs to;
      0 for padding.
    target_source: Like `input_source`, in the unpacked targets [B * T].
    target_segments: Like `input_segments`, of the targets.
    num_examples: B.
    input_length: S, tokens of an unpacked input.
    target_length: T, tokens of an unpacked target.
  """

  input_source: Int32[np.ndarray, "R S"]
  input_segments: Int32[np.ndarray, "R S"]
  target_source: Int32[np.ndarray, "R U"]
  target_segments: Int32[np.ndarray, "R U"]
  num_examples: int
  input_length: int
  target_length: int

  @property
  def num_rows(self) -> int:
    """R."""
    return self.input_source.shape[0]

  def take_rows(self, rows: slice) -> tuple[Int64[np.ndarray, "n"], PackPlan]:
    """Returns the examples in some rows, and the plan of them alone."""
    targets = self.target_source[rows]
    chosen = np.unique(targets[targets >= 0] // self.target_length)
    place = np.full(self.num_examples, -1, np.int32)
    place[chosen] = np.arange(chosen.size, dtype=np.int32)

    def moved(source, length):
      example, token = np.divmod(source, np.int32(length))
      source = np.where(
        source >= 0, place[example] * np.int32(length) + token, np.int32(-1)
      )
      return source.astype(np.int32)

    return chosen.astype(np.int64), dataclasses.replace(
      self,
      input_source=moved(self.input_source[rows], self.input_length),
      input_segments=self.input_segments[rows],
      target_source=moved(targets, self.target_length),
      target_segments=self.target_segments[rows],
      num_examples=chosen.size,
    )


def example_lengths(
  data: TrainingData, layout: WindowLayout
) -> Int64[np.ndarray, "M"]:
  """Returns the tokens of every example's input, user and EOS included.

  Args:
    data: NumPy or device arrays.
    layout: How examples become tokens.
  """
  tokens = np.count_nonzero(np.asarray(data.item_tokens), axis=1)  # [N]
  before = np.concatenate([[0], np.cumsum(tokens[np.asarray(data.items)])])
  target = np.asarray(data.target_position)
  start = np.maximum(
    np.asarray(data.history_start), target - layout.max_history
  )
  return before[target] - before[start] + 1 + int(layout.has_user_token)


def sort_examples(
  data: TrainingData, lengths: Int64[np.ndarray, "M"]
) -> TrainingData:
  """Returns the data with its examples from the shortest to the longest."""
  order = np.argsort(lengths, kind="stable")
  return data.replace(
    user_index=data.user_index[order],
    history_start=data.history_start[order],
    target_position=data.target_position[order],
  )


def make_plan(
  lengths: Int64[np.ndarray, "M"],
  layout: WindowLayout,
  *,
  strata: Strata,
  batch_size: int,
  row_multiple: int = 1,
) -> PackPlan:
  """Plans a batch's rows: best fit, longest first.

  Args:
    lengths: Tokens of every example, ascending.
    layout: How examples become tokens.
    strata: Example b of a batch is of stratum b // (B / strata.count).
    batch_size: B.
    row_multiple: Rows of padding are added up to a multiple of it, which
      changes no result.
  """
  longest = lengths[strata.starts + strata.sizes - 1]  # [G]
  room = np.repeat(longest, batch_size // strata.count)  # [B]
  if layout.every_item:
    # Without EOS a row is a sequence of items, and so are its targets.
    room = room - 1
    width = layout.target_length
    rows = _best_fit(room, width, width)
    target_room, target_width = room, width
  else:
    width = -(-layout.input_length // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE
    rows = _cheapest(room, width, _DECODER_COST * layout.target_length)
    target_room = np.full_like(room, layout.target_length)
    target_width = layout.target_length * max(map(len, rows))
  rows = rows + [[]] * (-len(rows) % row_multiple)
  source, segments = _places(rows, room, layout.input_length, width)
  target_source, target_segments = _places(
    rows, target_room, layout.target_length, target_width
  )
  return PackPlan(
    input_source=source,
    input_segments=segments,
    target_source=target_source,
    target_segments=target_segments,
    num_examples=batch_size,
    input_length=layout.input_length,
    target_length=layout.target_length,
  )


def _places(
  rows: list[list[int]], room: Int64[np.ndarray, "B"], length: int, width: int
) -> tuple[Int32[np.ndarray, "R W"], Int32[np.ndarray, "R W"]]:
  """Returns where the first `room` of an example's `length` tokens stand."""
  source = np.full((len(rows), width), -1, np.int32)
  segments = np.zeros((len(rows), width), np.int32)
  for r, members in enumerate(rows):
    place = 0
    for number, example in enumerate(members):
      end = place + room[example]
      source[r, place:end] = example * length + np.arange(room[example])
      segments[r, place:end] = number + 1
      place = end
  return source, segments


def _cheapest(
  room: Int64[np.ndarray, "B"], width: int, target_cost: int
) -> list[list[int]]:
  """Packs with the number of examples a row that costs least."""
  best, rows = math.inf, []
  for most in range(1, _MOST_TARGETS + 1):
    found = _best_fit(room, width, most)
    cost = len(found) * (width + most * target_cost)
    if cost < best:
      best, rows = cost, found
  return rows


def _best_fit(
  room: Int64[np.ndarray, "B"], width: int, most: int
) -> list[list[int]]:
  """Packs examples, at most `most` a row, into rows of `width`."""
  rows: list[list[int]] = []
  by_space: dict[int, list[int]] = {}  # space left -> rows that take more
  for example in np.argsort(-room, kind="stable").tolist():
    need = int(room[example])
    fits = [space for space, some in by_space.items() if some and space >= need]
    if fits:
      row, space = by_space[min(fits)].pop(), min(fits)
    else:
      row, space = len(rows), width
      rows.append([])
    rows[row].append(example)
    if len(rows[row]) < most:
      by_space.setdefault(space - need, []).append(row)
  return rows


def pack(batch: Batch, plan: PackPlan) -> Batch:
  """Moves a batch's examples to their places; NumPy in, NumPy out.

  Args:
    batch: Unpacked, [B, S] and [B, T].
    plan: Of B examples of these lengths.

  Returns:
    `inputs` [R, S'], `targets` [R, U].
  """
  xp = np if isinstance(batch.inputs, np.ndarray) else jnp

  def take(values, source):
    chosen = values.reshape(-1)[xp.asarray(np.maximum(source, 0))]
    return xp.where(xp.asarray(source >= 0), chosen, xp.zeros_like(chosen))

  return Batch(
    inputs=take(batch.inputs, plan.input_source),
    targets=take(batch.targets, plan.target_source),
  )


def cut_histories(
  key: jax.Array,
  segments: Int32[Array, "B S"],
  *,
  num_levels: int,
  rate: float,
) -> Int32[Array, "B S"]:
  """Cuts packed examples in two at random items, each a history of its own.

  What follows a cut is learned from what follows it alone, so that a network
  sees of every user short histories as well as the whole: for `every_item`
  what "subsequences" are for single targets.

  Args:
    key: Of this batch.
    segments: Number of the example that each token belongs to.
    num_levels: Tokens an item, L.
    rate: Probability that an item begins anew.

  Returns:
    Numbers that differ where `segments` do and on both sides of a cut.
  """
  num_rows, length = segments.shape
  num_items = -(-length // num_levels)
  is_cut = jax.random.bernoulli(key, rate, (num_rows, num_items))
  piece = jnp.cumsum(is_cut, axis=1, dtype=jnp.int32)  # [B, H]
  piece = jnp.repeat(piece, num_levels, axis=1)[:, :length]
  return segments * (num_items + 1) + piece
