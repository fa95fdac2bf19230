"""One codebook by k-means: k-means++ seeds, Lloyd updates, a fit driver.

Everything is chunked over rows: no [N, K] array of distances exists. Rows may
be stored in bfloat16, which halves what an iteration reads; codebooks are
float32.
"""

import functools
from typing import no_type_check

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jaxtyping import Array, Float, Int32

from gr_jax.core import (
  checks,
  lookup,
  nearest,
  pallas_gpu,
  row_split,
  sorted_sum,
)
from gr_jax.core.row_split import RowSplit

# Seeds are drawn from at most this many rows per code, chosen at random.
SEED_ROWS_PER_CODE = 64
_FEW_CODES = 1024  # up to so many are summed by one-hot matmuls


@no_type_check  # leaves may be shapes, or anything in a tree.map
@struct.dataclass
class KMeansState:
  """One codebook after `step` Lloyd updates."""

  step: jax.Array  # int32 []
  codebook: jax.Array  # float32 [K, D]
  counts: jax.Array  # float32 [K], rows that chose each code
  inertia: jax.Array  # float32 [], summed squared distance before the update


@no_type_check
@struct.dataclass
class Assigned:
  """What an update reads of the rows; sums go over all devices."""

  sums: jax.Array  # float32 [K, D], rows of each code
  counts: jax.Array  # float32 [K], how many
  inertia: jax.Array  # float32 [], summed squared distance
  distance: jax.Array  # float32 [N], of this device's rows


@no_type_check
@struct.dataclass
class KMeansFit:
  """What `fit` returns."""

  state: KMeansState
  inertias: jax.Array  # float32 [max_iters], NaN after the last iteration
  num_iters: jax.Array  # int32 []
  revived: jax.Array  # int32 [], empty clusters re-seeded
  changed: jax.Array  # float32 [], share of rows that float32 codes otherwise


def init(
  x: Float[Array, "N D"],
  *,
  num_codes: int,
  key: jax.Array,
  split: RowSplit | None = None,
) -> KMeansState:
  """Draws the first codebook by k-means++ (Arthur and Vassilvitskii 2007).

  Each seed is a row drawn with probability proportional to its squared
  distance to the nearest seed so far. Above 64 rows a code, a uniform sample
  of that size stands for all rows.

  Args:
    x: Rows.
    num_codes: K, static.
    key: Random key.
    split: How the rows lie on several devices. The seeds are those of one.

  Raises:
    InputError: Fewer rows than codes.
  """
  num_rows = x.shape[0] if split is None else split.num_rows
  if num_rows < num_codes:
    raise checks.InputError(
      f"Need N >= num_codes; got N={num_rows}, {num_codes=}."
    )
  if split is None:
    return from_codebook(_plus_plus(x, num_codes, key))
  sample_key, first_key, rest_key = jax.random.split(key, 3)
  size = SEED_ROWS_PER_CODE * num_codes
  sample = sample_rows(x, size, sample_key, split=split)
  return from_codebook(_draw_seeds(sample, num_codes, first_key, rest_key))


def from_codebook(codebook: Float[Array, "K D"]) -> KMeansState:
  """Returns the state of a codebook that no update has seen yet."""
  return KMeansState(
    step=jnp.int32(0),
    codebook=codebook,
    counts=jnp.zeros((codebook.shape[0],), jnp.float32),
    inertia=jnp.float32(jnp.inf),
  )


@functools.partial(jax.jit, static_argnames="num_codes")
def _plus_plus(x: jax.Array, num_codes: int, key: jax.Array) -> jax.Array:
  sample_key, first_key, rest_key = jax.random.split(key, 3)
  x = sample_rows(x, SEED_ROWS_PER_CODE * num_codes, sample_key)
  return _draw_seeds(x, num_codes, first_key, rest_key)


@functools.partial(jax.jit, static_argnames="num_codes")
def _draw_seeds(
  x: jax.Array, num_codes: int, first_key: jax.Array, rest_key: jax.Array
) -> jax.Array:
  num_rows, x = x.shape[0], x.astype(jnp.float32)
  norms = jnp.sum(jnp.square(x), axis=-1)  # [N]

  def distance_to(row: jax.Array) -> jax.Array:
    dots = jnp.matmul(x, x[row], precision=lax.Precision.HIGHEST)  # [N]
    return jnp.maximum(norms - 2.0 * dots + norms[row], 0.0).at[row].set(0.0)

  def body(nearest_so_far, share):
    total = jnp.cumsum(nearest_so_far)  # [N]
    row = jnp.searchsorted(total, share * total[-1], side="right")
    # With fewer distinct rows than codes every distance is zero, or rounding
    # may point past the end: take the farthest row.
    row = jnp.where(
      (row < num_rows) & (total[-1] > 0),
      jnp.minimum(row, num_rows - 1),
      jnp.argmax(nearest_so_far),
    )
    return jnp.minimum(nearest_so_far, distance_to(row)), row

  first = jax.random.randint(first_key, (), 0, num_rows)
  shares = jax.random.uniform(rest_key, (num_codes - 1,))
  _, rest = lax.scan(body, distance_to(first), shares)
  return x[jnp.concatenate([first[None], rest])]


def sample_rows(
  x: Float[Array, "N D"],
  num_rows: int,
  key: jax.Array,
  *,
  split: RowSplit | None = None,
) -> Float[Array, "M D"]:
  """Returns min(N, num_rows) distinct rows at random, all in order if N fits.

  Args:
    x: Rows.
    num_rows: How many are wanted at most, static.
    key: Random key.
    split: How the rows lie on several devices; the sample lies on one.
  """
  count = x.shape[0] if split is None else split.num_rows
  if split is None and count <= num_rows:
    return x
  index = jnp.arange(count)
  if count > num_rows:
    index = jax.random.permutation(key, count)[:num_rows]
  return x[index] if split is None else jnp.asarray(split.take(x, index))


def random_rows(
  x: Float[Array, "N D"],
  num_rows: int,
  key: jax.Array,
  *,
  split: RowSplit | None = None,
) -> Float[Array, "M D"]:
  """Returns `num_rows` distinct rows in random order.

  Args:
    x: Rows.
    num_rows: How many, static, at most N.
    key: Random key.
    split: How the rows lie on several devices; those drawn lie on one.

  Raises:
    InputError: Fewer rows than wanted.
  """
  count = x.shape[0] if split is None else split.num_rows
  if count < num_rows:
    raise checks.InputError(
      f"Need N >= num_codes; got N={count}, num_codes={num_rows}."
    )
  index = jax.random.permutation(key, count)[:num_rows]
  return x[index] if split is None else jnp.asarray(split.take(x, index))


def sum_and_count(
  codes: Int32[Array, " N"],
  x: Float[Array, "N D"],
  num_codes: int,
  *,
  all_inside: bool = False,
) -> tuple[Float[Array, "K D"], Float[Array, " K"]]:
  """Sums and counts the rows of every code.

  On NVIDIA GPUs in the order of a sort, the same bits in every run, on CPUs
  by a scatter-add. Elsewhere few codes would serialize that: up to 1,024 are
  summed by a one-hot matmul.

  Args:
    codes: Code of every row; any outside [0, K) goes nowhere.
    x: Rows.
    num_codes: K, static.
    all_inside: No code is outside, static; see `core.sorted_sum`.

  Returns:
    float32 sums, and counts as float32, exact below 2^24.
  """

  def apart(codes, x):
    sums = lookup.scatter_sum(codes, x, num_rows=num_codes)
    place = jnp.where(codes < 0, num_codes, codes)
    counts = jnp.zeros(num_codes, jnp.int32).at[place].add(1, mode="drop")
    return sums, counts.astype(jnp.float32)

  def in_order(codes, x):
    sums, counts = sorted_sum.sum_and_count(
      codes, x, num_rows=num_codes, all_inside=all_inside
    )
    return sums, counts.astype(jnp.float32)

  def together(codes, x):
    # One matmul for both: a column of ones counts.
    ones = jnp.ones((x.shape[0], 1), x.dtype)
    sums = lookup.one_hot_sum(
      codes,
      jnp.concatenate([x, ones], axis=1),
      num_rows=num_codes,
      precision=lax.Precision.HIGHEST,
    )
    return sums[:, :-1], sums[:, -1]

  default = together if num_codes <= _FEW_CODES else apart
  cuda = in_order if pallas_gpu.is_known_device() else default
  return lax.platform_dependent(codes, x, cpu=apart, cuda=cuda, default=default)


def measure(
  codebook: Float[Array, "K D"],
  x: Float[Array, "N D"],
  split: RowSplit | None = None,
  *,
  precision: str = "float32",
  fused: bool = True,
) -> Assigned:
  """Assigns every row to its nearest code and sums up; see `Assigned`."""
  num_codes = codebook.shape[0]
  found = nearest.nearest(x, codebook, precision=precision, fused=fused)
  codes, distance = found.codes, found.squared_distance
  if split is not None:
    codes = jnp.where(split.is_row(), codes, num_codes)  # goes nowhere
    distance = jnp.where(split.is_row(), distance, 0.0)
  sums, counts = sum_and_count(codes, x, num_codes, all_inside=split is None)
  sums, counts, inertia = row_split.total(
    split, (sums, counts, jnp.sum(distance))
  )
  return Assigned(sums, counts, inertia, distance)


def _assign_and_move(
  state: KMeansState,
  x: jax.Array,
  precision: str,
  fused: bool,
  split: RowSplit | None = None,
) -> tuple[KMeansState, jax.Array]:
  """One Lloyd update, and every row's squared distance before it."""
  found = measure(state.codebook, x, split, precision=precision, fused=fused)
  counts, sums = found.counts, found.sums
  means = sums / jnp.maximum(counts, 1.0)[:, None]
  moved = KMeansState(
    step=state.step + 1,
    # An empty cluster keeps its code: 0 / 1 would drag it to the origin.
    codebook=jnp.where(counts[:, None] > 0, means, state.codebook),
    counts=counts,
    inertia=found.inertia,
  )
  return moved, found.distance


@functools.partial(jax.jit, static_argnames=("precision", "fused", "split"))
def update(
  state: KMeansState,
  x: Float[Array, "N D"],
  precision: str = "float32",
  fused: bool = True,
  split: RowSplit | None = None,
) -> KMeansState:
  """Assigns every row, then moves each code to the mean of its rows.

  Args:
    state: Before.
    x: Rows.
    precision: Of the distances; see `core.precision`.
    fused: As for `nearest.nearest`.
    split: Given inside `RowSplit.run`, where `x` is one device's part.
  """
  return _assign_and_move(state, x, precision, fused, split)[0]


def _reseed_empty(
  state: KMeansState,
  x: jax.Array,
  distance: jax.Array,
  split: RowSplit | None = None,
) -> tuple[KMeansState, jax.Array]:
  """Moves empty clusters to the rows farthest from their code.

  The j-th empty cluster takes the j-th farthest row, if that is not at a code
  already. No row loses its code, so inertia cannot rise.
  """
  empty = state.counts == 0  # [K]

  def reseed() -> tuple[jax.Array, jax.Array]:
    num_codes = empty.size
    far, index = lax.top_k(distance, min(num_codes, distance.size))
    rows = row_split.gather(split, x[index])
    # The farthest of all parts; ties to the part, then the row, that is first.
    far, index = lax.top_k(row_split.gather(split, far), num_codes)  # [K]
    turn = jnp.cumsum(empty) - 1  # [K]
    taken = empty & (far[turn] > 0)
    codebook = jnp.where(
      taken[:, None], rows[index][turn].astype(jnp.float32), state.codebook
    )
    return codebook, jnp.sum(taken).astype(jnp.int32)

  codebook, count = lax.cond(
    jnp.any(empty), reseed, lambda: (state.codebook, jnp.int32(0))
  )
  return state.replace(codebook=codebook), count


@functools.partial(
  jax.jit, static_argnames=("max_iters", "precision", "fused", "split")
)
def lloyd(
  state: KMeansState,
  x: Float[Array, "N D"],
  *,
  max_iters: int,
  tol: float | jax.Array,
  precision: str = "float32",
  fused: bool = True,
  split: RowSplit | None = None,
) -> KMeansFit:
  """Runs Lloyd updates until inertia settles, in one dispatch.

  Args:
    state: Where to start.
    x: Rows.
    max_iters: Most updates, static.
    tol: Stop when an update's inertia fell by at most this share, unless an
      empty cluster was just re-seeded.
    precision: Of the distances; see `core.precision`. `KMeansFit.changed`
      says what anything but float32 does to the codes.
    fused: As for `nearest.nearest`, static.
    split: How the rows lie on several devices, which then exchange sums of
      [K, D] an update.
  """
  run = functools.partial(
    _lloyd, max_iters=max_iters, precision=precision, fused=fused, split=split
  )
  if split is not None:
    run = split.run(run, takes_rows=(False, True, False))
  return run(state, x, jnp.float32(tol))


def _lloyd(
  state: KMeansState,
  x: jax.Array,
  tol: jax.Array,
  *,
  max_iters: int,
  precision: str,
  fused: bool,
  split: RowSplit | None,
) -> KMeansFit:
  """Implements `lloyd` on one device's rows."""

  def settled(fit: KMeansFit, last: jax.Array, reseeded: jax.Array):
    fell = last - fit.state.inertia
    return (fell <= tol * fit.state.inertia) & (reseeded == 0)

  def going(carry) -> jax.Array:
    fit, last, reseeded = carry
    started = fit.num_iters > 0
    return (fit.num_iters < max_iters) & ~(
      started & settled(fit, last, reseeded)
    )

  def body(carry):
    fit, _, _ = carry
    last = fit.state.inertia
    moved, distance = _assign_and_move(fit.state, x, precision, fused, split)
    moved, reseeded = _reseed_empty(moved, x, distance, split)
    fit = KMeansFit(
      state=moved,
      inertias=fit.inertias.at[fit.num_iters].set(moved.inertia),
      num_iters=fit.num_iters + 1,
      revived=fit.revived + reseeded,
      changed=fit.changed,
    )
    return fit, last, reseeded

  state = state.replace(inertia=jnp.float32(jnp.inf))
  start = KMeansFit(
    state=state,
    inertias=jnp.full((max_iters,), jnp.nan, jnp.float32),
    num_iters=jnp.int32(0),
    revived=jnp.int32(0),
    changed=jnp.float32(0.0),
  )
  carry = (start, jnp.float32(jnp.inf), jnp.int32(0))
  fit = lax.while_loop(going, body, carry)[0]
  if precision == "float32":
    return fit
  codebook = fit.state.codebook
  fast = nearest.nearest_code(x, codebook, precision=precision)
  changed = fast != nearest.nearest_code(x, codebook)
  if split is None:
    return fit.replace(changed=jnp.mean(changed.astype(jnp.float32)))
  changed = jnp.sum((changed & split.is_row()).astype(jnp.float32))
  changed = row_split.total(split, changed) / split.num_rows
  return fit.replace(changed=changed)


def fit(
  x: Float[Array, "N D"],
  *,
  num_codes: int,
  key: jax.Array,
  max_iters: int = 100,
  tol: float = 1e-4,
  codebook: Float[Array, "K D"] | None = None,
  precision: str = "float32",
  fused: bool = True,
  split: RowSplit | None = None,
) -> KMeansFit:
  """Fits one codebook by Lloyd's algorithm.

  Args:
    x: Rows.
    num_codes: K.
    key: Random key of the seeds.
    max_iters: Most Lloyd updates.
    tol: Smallest relative fall of inertia that keeps it going.
    codebook: Warm start; by default k-means++ seeds.
    precision: Of the distances; see `core.precision`.
    fused: As for `nearest.nearest`.
    split: How the rows lie on several devices.

  Raises:
    InputError: Fewer rows than codes.
  """
  if codebook is None:
    state = init(x, num_codes=num_codes, key=key, split=split)
  else:
    state = from_codebook(codebook)
  if split is not None:
    state = split.copy(state)
  return lloyd(
    state,
    x,
    max_iters=max_iters,
    tol=tol,
    precision=precision,
    fused=fused,
    split=split,
  )
