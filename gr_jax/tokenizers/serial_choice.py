"""Algorithm 1's pass by windows of clusters: exact, parallel, no sort of items.

Clusters that take their nearest free items in turn are a serial dictatorship:
whoever comes first chooses first. A window of clusters can choose together.
Each lists more of its nearest free items than it will take; then every cluster
takes the first of its list that no earlier one holds, again and again, until
nothing changes. The fixed point is the result of choosing in turn.

How it stays exact:
- A list holds every free item within a radius: a fast low-precision matmul
  gives a lower bound of each distance, and what the bound lets in is measured
  again in float32, as sum (x - c)^2.
- A cluster that finds its items within its list is done; the clusters of a
  window up to the first that does not are, too, since none depends on a later
  one. The next window starts at that one.
- When even the first cluster's list was too short, it selects among all items
  by counting (`select.take_smallest`).
"""

import dataclasses
import functools
from typing import no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax
from jaxtyping import Array, Float, Int32

from gr_jax.core import checks, pallas_gpu, precision
from gr_jax.tokenizers import candidate_lists, select, turn_kernels

_NOBODY = np.int32(2**30)  # above every mark, and no NaN's bits
_FAR = np.float32(1e38)  # beyond every squared distance
_NORM_PARTS = 3  # bfloat16 numbers whose sum is a float32
_MATMUL_ELEMENTS = 5 << 28  # of one [clusters, N] matmul: 5 GB
_MANY_CODES = 1024
_ROWS_PER_STAGE = 1 << 14


@dataclasses.dataclass(frozen=True)
class Windows:
  """How a pass is cut up; any values give the same codes.

  `reach` and `sample` trade long lists against windows that end early.
  """

  window: int = 32  # clusters that choose together
  matmul: int = 128  # most clusters whose scores are held at once
  reach: float = 1.0  # list length, in shares: 1 for a window's first, + reach
  sample: int = 32  # sampled items a share, which the radii come from
  stages: int = 4  # times that taken items are dropped from the arrays
  precision: str = "auto"  # of the matmul: tfloat32 on GPU, bfloat16 on TPU

  def __post_init__(self):
    """Refuses impossible options."""
    checks.check_known(
      self.precision, ("auto", *precision.PRECISIONS), "precision"
    )
    if not 1 <= self.window <= 256 or self.matmul < self.window:
      raise checks.InputError(
        "Want 1 <= window <= 256 and matmul >= window; got "
        f"{self.window=}, {self.matmul=}."
      )
    if self.reach < 0 or self.sample < 1 or self.stages < 1:
      raise checks.InputError(
        "Want reach >= 0, sample >= 1 and stages >= 1; got "
        f"{self.reach=}, {self.sample=}, {self.stages=}."
      )


def suited(num_rows: int, num_codes: int) -> Windows:
  """Returns windows for a size; measured in docs/balanced_kmeans.md."""
  return Windows(
    # Many clusters make many windows, each of many dependent kernels.
    window=64 if num_codes >= _MANY_CODES else 32,
    # Every stage is compiled anew: few rows are not worth it.
    stages=min(4, 1 + num_rows // _ROWS_PER_STAGE),
  )


@no_type_check  # leaves may be shapes, or anything in a tree.map
@struct.dataclass
class Choice:
  """What a pass chose, and how hard it was."""

  codes: jax.Array  # int32 [N]
  num_windows: jax.Array  # int32 []
  num_rounds: jax.Array  # int32 [], summed over windows; of kernels, launches
  num_slow: jax.Array  # int32 [], clusters that selected among all items


@functools.partial(jax.jit, static_argnames=("windows", "axis"))
def choose(
  x: Float[Array, "N D"],
  centers: Float[Array, "K D"],
  counts: Int32[Array, " K"],
  order: Int32[Array, " K"],
  *,
  windows: Windows,
  axis: str | tuple[str, ...] | None = None,
) -> Choice:
  """Gives every cluster, in turn, its nearest items that are still free.

  One pass of Algorithm 1 (OneRec, arXiv:2502.18965), ties by lowest item
  index. Memory is N x `matmul`, never N x K.

  Args:
    x: Rows; under `shard_map` over `axis`, this device's. A row of NaN is
      nobody's: it pads the last device.
    centers: Centers at the start of the pass; none moves within it.
    counts: Items each cluster takes; they sum to the rows there are, and
      differ by at most one.
    order: Cluster whose turn it is, a permutation of 0..K-1.
    windows: How to cut the pass up, static.
    axis: Mesh axis, or axes, that `x` is split over, static.

  Returns:
    The cluster of every row; rows that pad have -1.
  """
  here = _Here(axis, x.shape[0])
  num_codes = centers.shape[0]
  share = -(-here.num_rows // num_codes)  # most a cluster takes
  shift = here.sum(jnp.nansum(x, axis=0)) / here.num_rows  # [D]
  block = _matmul_size(windows, x.shape[0], num_codes)
  num_blocks = -(-num_codes // block)
  padding = num_blocks * block - num_codes
  order = jnp.pad(order, (0, padding)).reshape(num_blocks, block)
  wanted = jnp.where(
    jnp.arange(num_blocks * block).reshape(num_blocks, block) < num_codes,
    counts[order],
    0,
  ).astype(jnp.int32)
  # Free items can be counted ahead on one device; on many, each may keep all.
  stages = 1 if axis else min(windows.stages, num_blocks)
  bounds = [num_blocks * s // stages for s in range(stages + 1)]
  codes = jnp.full((x.shape[0],), -1, jnp.int32)
  stats = jnp.zeros((3,), jnp.int32)
  ids = None  # rows that are left, in order; None: all
  for first, last in zip(bounds[:-1], bounds[1:], strict=True):
    stage = _Stage(x, ids, shift, share, windows, here)
    body = functools.partial(_choose_block, stage, centers)
    carry = (jnp.full((stage.num_rows,), -1, jnp.int32), stats)
    (found, stats), _ = lax.scan(
      body, carry, (order[first:last], wanted[first:last])
    )
    if ids is None:
      codes = found[: x.shape[0]]
    else:
      codes = codes.at[ids].set(found[: ids.shape[0]], mode="drop")
    if last < num_blocks:
      taken = last * block * (here.num_rows // num_codes)  # at the least
      ids = jnp.nonzero(
        codes < 0, size=here.num_rows - taken, fill_value=x.shape[0]
      )[0].astype(jnp.int32)
  return Choice(codes, stats[0], stats[1], stats[2])


class _Here:
  """This device's place among those that share the rows."""

  def __init__(self, axis: str | tuple[str, ...] | None, num_rows: int):
    self.axis = axis
    self.num_devices = lax.axis_size(axis) if axis else 1
    self.num_rows = num_rows * self.num_devices
    self.index = lax.axis_index(axis) if axis else 0

  def sum(self, x: jax.Array) -> jax.Array:
    return lax.psum(x, self.axis) if self.axis else x

  def gather(self, x: jax.Array) -> jax.Array:
    """[...] of every device as [P, ...]."""
    return lax.all_gather(x, self.axis) if self.axis else x[None]


def _matmul_size(windows: Windows, num_rows: int, num_codes: int) -> int:
  """Clusters a matmul: a multiple of the window, as memory and K allow."""
  most = min(windows.matmul, _MATMUL_ELEMENTS // num_rows, num_codes)
  window = min(windows.window, num_codes)
  return max(1, most // window) * window


class _Stage:
  """The rows of one stage as the matmul and the samples want them."""

  def __init__(self, x, ids, shift, share, windows, here):
    self.x, self.ids, self.shift = x, ids, shift
    self.share, self.windows, self.here = share, windows, here
    count = x.shape[0] if ids is None else ids.shape[0]
    unit = candidate_lists.WORD * candidate_lists.GROUP
    self.num_rows = -(-count // unit) * unit
    self.stride = max(1, share // windows.sample)
    rows = x if ids is None else x.at[ids].get(mode="fill", fill_value=jnp.nan)
    rows = jnp.pad(
      rows, ((0, self.num_rows - count), (0, 0)), constant_values=jnp.nan
    )
    rows = rows.astype(jnp.float32) - shift[None, :]
    # Rows of NaN pad: an infinite norm keeps them out of every list.
    norms = jnp.sum(jnp.square(rows), axis=-1)  # [n]
    norms = jnp.where(jnp.isnan(norms), jnp.inf, norms)
    rows = jnp.where(jnp.isnan(rows), 0.0, rows)
    self.sample = rows[:: self.stride]  # [n / stride, D]
    self.sample_norms = norms[:: self.stride]
    self.left = _item_side(rows, norms)

  def rows_at(self, local: jax.Array) -> jax.Array:
    """Rows of the data as given; local indices past the end give any row."""
    if self.ids is not None:
      local = self.ids.at[local].get(mode="clip")
    return self.x.at[local].get(mode="clip")


def _slack(width: int) -> float:
  """Bounds the relative rounding of a float32 sum of `width` products."""
  return (width + 16) * 2.0**-22


def _item_side(rows: jax.Array, norms: jax.Array) -> jax.Array:
  """Rows [n, D] with columns that turn a dot product into a lower bound.

  Columns: the norm in three parts that bfloat16 holds exactly, rounded down
  together, and the length rounded up; zeros make the width a multiple of 8.
  """
  low = norms * (1.0 - _slack(rows.shape[1]))
  columns = []
  for _ in range(_NORM_PARTS):
    part = lax.reduce_precision(low, 8, 7)
    columns.append(part)
    low = jnp.where(jnp.isinf(part), 0.0, low - part)
  length = jnp.sqrt(jnp.where(jnp.isinf(norms), 0.0, norms))
  columns.append(lax.reduce_precision(length * (1 + 2.0**-7), 8, 7))
  columns += [jnp.zeros_like(low)] * (-(rows.shape[1] + len(columns)) % 8)
  return jnp.concatenate([rows, jnp.stack(columns, axis=1)], axis=1)


def _center_side(centers: jax.Array, rounding: float, width: int) -> jax.Array:
  """Shifted centers [M, D] with the columns that match `_item_side`."""
  length = jnp.sqrt(jnp.sum(jnp.square(centers), axis=-1))  # [M]
  error = 2.0 * (rounding + _slack(centers.shape[1])) * length
  error = lax.reduce_precision(error * (1 + 2.0**-7), 8, 7)
  ones = jnp.ones_like(error)
  columns = [ones] * _NORM_PARTS + [-error]
  columns += [jnp.zeros_like(error)] * (width - centers.shape[1] - len(columns))
  return jnp.concatenate([-2.0 * centers, jnp.stack(columns, axis=1)], axis=1)


def _scores(left: jax.Array, centers: jax.Array, how: str) -> jax.Array:
  """Lower bounds of |x - c|^2 - |c|^2, float32 [M, n].

  Of a product of two numbers rounded to u, the error is at most 2u + u^2 of
  it; by Cauchy-Schwarz the sum's is that share of |x| |c|.
  """

  def at(how, left, centers):
    unit = precision.unit(how)
    right = _center_side(centers, 2 * unit + unit**2, left.shape[1])
    return precision.row_dots(right, left, how)

  if how == "auto":
    return precision.fastest(at, left, centers)
  return at(how, left, centers)


def _choose_block(stage: _Stage, centers: jax.Array, carry, turn):
  """Lets the clusters of one matmul choose, window after window."""
  codes, stats = carry
  clusters, wanted = turn  # [M]
  block = clusters.shape[0]
  window = min(stage.windows.window, block)
  own = centers[clusters].astype(jnp.float32)  # [M, D]
  shifted = own - stage.shift[None, :]
  scores = _scores(stage.left, shifted, stage.windows.precision)  # [M, n]
  norms = jnp.sum(jnp.square(shifted), axis=-1)  # [M]
  dots = lax.dot_general(
    shifted,
    stage.sample,
    (((1,), (1,)), ((), ())),
    precision=lax.Precision.HIGHEST,
  )  # [M, s]
  sampled = stage.sample_norms[None, :] + norms[:, None] - 2.0 * dots
  sampled = jnp.maximum(sampled, 0.0)
  active = jnp.sum(wanted > 0)

  def one_window(carry):
    codes, holder, place, stats, _ = carry
    start = jnp.minimum(place, block - window)
    cut = functools.partial(lax.dynamic_slice_in_dim, start_index=start)
    row = start + jnp.arange(window, dtype=jnp.int32)
    wants = jnp.where(row >= place, cut(wanted, slice_size=window), 0)
    turns = jnp.maximum(row - place, 0)
    slack, norm = _slack(stage.x.shape[1]), cut(norms, slice_size=window)
    radius = _radii(stage, cut(sampled, slice_size=window), codes, turns)
    # Samples were measured by a dot product: |x|^2 <= 2 r + 2 |c|^2 rounds.
    radius = radius + slack * (2 * radius + 3 * norm)
    limit = radius * (1 + slack) - norm * (1 - slack)
    chosen = _choose_window(
      stage,
      cut(scores, slice_size=window),
      cut(own, slice_size=window),
      codes,
      holder,
      wants,
      jnp.where(wants > 0, radius, -1.0),
      jnp.where(wants > 0, limit, -jnp.inf),
    )
    ready = jnp.cumsum((~chosen.full).astype(jnp.int32)) == 0  # [m]
    done = ready[:, None] & chosen.taken  # [m, c]
    names = cut(clusters, slice_size=window)
    codes = codes.at[jnp.where(done, chosen.local, stage.num_rows)].set(
      jnp.broadcast_to(names[:, None], done.shape), mode="drop"
    )
    after = jnp.minimum(start + jnp.sum(ready), active)

    stats = stats + jnp.stack([1, chosen.num_rounds, 0])
    return codes, chosen.holder, after, stats, after <= place

  def body(carry):
    carry = lax.while_loop(lambda c: (c[2] < active) & ~c[4], one_window, carry)
    codes, holder, place, stats, stuck = carry

    def slowly(codes):
      taken = _take_among_all(stage, codes, own[place], wanted[place])
      return jnp.where(taken, clusters[place], codes)

    # Outside the loop over windows: a condition copies what it may change.
    codes = lax.cond(stuck, slowly, lambda codes: codes, codes)
    count = stuck.astype(jnp.int32)
    stats = stats + jnp.stack([0, 0, count])
    return codes, holder, place + count, stats, jnp.bool_(False)

  total = stage.num_rows * stage.here.num_devices
  holder = _Holder(jnp.full((total,), _NOBODY), jnp.int32(_NOBODY))
  carry = (codes, holder, jnp.int32(0), stats, jnp.bool_(False))
  carry = lax.while_loop(lambda c: c[2] < active, body, carry)
  return (carry[0], carry[3]), None


def _radii(stage, sampled, codes, turns) -> jax.Array:
  """A squared distance per cluster that should hold a list's length of items.

  The right rank among sampled distances, plus four standard deviations. A
  radius that is off costs time, nothing else.
  """
  free = codes[:: stage.stride] < 0  # [s]
  bits = lax.bitcast_convert_type(
    jnp.where(free[None, :], sampled, jnp.inf), jnp.int32
  )
  length = 1.0 + jnp.minimum(turns.astype(jnp.float32), stage.windows.reach)
  rank = _rank(length * (stage.share / stage.stride), stage.stride == 1, jnp)
  bits = _on_cuda(
    stage,
    turn_kernels.upper_bound,
    functools.partial(select.upper_bound, total=stage.here.sum),
    bits,
    rank.astype(jnp.int32),
    fits=bits.shape[1] <= turn_kernels.MOST_SAMPLES,
  )  # [m]
  radius = lax.bitcast_convert_type(bits, jnp.float32)
  # NaN or infinity: fewer samples are free than wanted; take all that is free.
  return jnp.where(radius < _FAR, radius, _FAR)


def _rank(mean, complete: bool, xp):
  """The rank among samples whose distance to use; all rows sampled: exact."""
  return xp.ceil(mean) if complete else xp.ceil(mean + 4 * xp.sqrt(mean) + 4)


def _capacity(stage: _Stage) -> int:
  """Slots of a list: its mean length and five standard deviations."""
  stride = stage.stride
  mean = (1.0 + stage.windows.reach) * stage.share / stride
  rank = _rank(mean, stride == 1, np)
  slots = (rank + 5 * np.sqrt(rank) + 8) * stride
  unit = candidate_lists.WORD * candidate_lists.GROUP
  rows = stage.num_rows * stage.here.num_devices
  return int(min(rows, -(-int(slots) // unit) * unit))


@no_type_check
@struct.dataclass
class _Holder:
  """Scratch of the rounds: who holds which item, as of the last window."""

  marks: jax.Array  # int32 [all rows], the window's stamp + the holder's row
  stamp: jax.Array  # int32 []


@no_type_check
@struct.dataclass
class _Chosen:
  """Lists of a window, nearest item first, and what is taken of them."""

  local: jax.Array  # int32 [m, c], rows of this device; else out of range
  taken: jax.Array  # bool [m, c]
  full: jax.Array  # bool [m], the cluster has its items
  holder: _Holder
  num_rounds: jax.Array  # int32 []


def _choose_window(
  stage, scores, centers, codes, holder, wants, radius, limit
) -> _Chosen:
  """Lists, orders and lets the clusters of a window take."""
  capacity = _capacity(stage)
  window = scores.shape[0]
  slots = min(capacity, stage.num_rows)
  local, count = _on_cuda(
    stage,
    functools.partial(turn_kernels.set_bits, capacity=slots),
    functools.partial(candidate_lists.set_bits, capacity=slots),
    candidate_lists.masks_within(scores, limit, codes < 0),
  )
  slot = jnp.arange(slots, dtype=jnp.int32)
  is_item = slot[None, :] < count[:, None]
  rows = stage.rows_at(jnp.where(is_item, local, 0))  # [m, c, D]
  distance = jnp.sum(
    jnp.square(rows.astype(jnp.float32) - centers[:, None, :]), axis=-1
  )  # [m, c]
  listed = is_item & (distance <= radius[:, None])
  offset = stage.here.index * stage.num_rows
  item, distance, listed, fits = candidate_lists.merge(
    stage.here, offset + local, distance, listed, count, capacity
  )
  item, listed = candidate_lists.by_distance(item, distance, listed)
  # Every window writes smaller numbers than the last: nothing to clear.
  stamp = holder.stamp - window
  marks, rounds = _on_cuda(
    stage,
    turn_kernels.settle,
    _settle,
    jnp.where(listed, item, -1),
    wants,
    holder.marks,
    stamp,
  )
  row = jnp.arange(window, dtype=jnp.int32)[:, None]
  taken = listed & (marks.at[item].get(mode="clip") == stamp + row)
  holder = _Holder(marks, stamp)
  full = fits & (jnp.sum(taken, axis=1) == wants)
  local = item - offset
  local = jnp.where(
    (local >= 0) & (local < stage.num_rows), local, stage.num_rows
  )
  return _Chosen(local, taken, full, holder, rounds)


def _settle(item, wants, marks, stamp) -> tuple[jax.Array, jax.Array]:
  """Marks who holds what, as `turn_kernels.settle`; and counts the rounds."""
  listed = item >= 0
  total = marks.shape[0]
  row = jnp.arange(item.shape[0], dtype=jnp.int32)[:, None]
  values = jnp.broadcast_to(stamp + row, item.shape)

  def take(available):
    return available & (
      candidate_lists.prefix_count(available) <= wants[:, None]
    )

  def one_round(taken, marks):
    marks = marks.at[jnp.where(taken, item, total)].min(values, mode="drop")
    return take(listed & (marks.at[item].get(mode="clip") >= values)), marks

  def body(carry):
    taken, marks, _, rounds = carry
    # Two rounds a turn: a loop's condition costs a GPU as much as a round.
    middle, marks = one_round(taken, marks)
    after, marks = one_round(middle, marks)
    return after, marks, jnp.any(after != middle), rounds + 2

  carry = (take(listed), marks, jnp.bool_(True), jnp.int32(0))
  _, marks, _, rounds = lax.while_loop(lambda c: c[2], body, carry)
  return marks, rounds


def _on_cuda(stage, kernel, plain, *operands, fits=True):
  """Calls a kernel on a single GPU where it fits, else its plain twin."""
  alone = stage.here.axis is None
  if not (alone and fits and pallas_gpu.is_known_device()):
    return plain(*operands)
  return lax.platform_dependent(*operands, cuda=kernel, default=plain)


def _take_among_all(stage, codes, center, wanted) -> jax.Array:
  """One cluster's items among all rows, by counting: slow and always right."""
  rows = stage.rows_at(jnp.arange(stage.num_rows, dtype=jnp.int32))
  distance = jnp.sum(
    jnp.square(rows.astype(jnp.float32) - center[None, :]), axis=-1
  )
  real = codes < 0
  real &= jnp.isfinite(stage.left[:, stage.x.shape[1]])
  bits = lax.bitcast_convert_type(distance, jnp.int32)
  bits = jnp.where(real, bits, select.NEVER)
  return select.take_smallest(bits, wanted, axis=stage.here.axis) & real
