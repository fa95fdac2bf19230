"""Balanced residual k-means: every code of a level holds as many items.

`balanced_assign` is the whole of Algorithm 1's inner loop. It selects instead
of sorting: the w-th smallest distance among free items is found by counting,
four bits of the float at a time, and ties are settled by item index.
"""

import dataclasses
import functools
import time
from typing import ClassVar, no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax
from jaxtyping import Array, Float, Int, Int32

from gr_jax.core import checks, nearest, progress
from gr_jax.tokenizers import base, kmeans, reporting
from gr_jax.tokenizers.residual_kmeans import (
  CodebooksState,
  abstract_codebooks,
  decode_sum,
  encode_residual,
  residual_distances,
  subtract,
)

ORDERS = ("given", "random", "demand")
_BLOCK = 64  # centers whose distances to all items are held at once
_DIGIT_BITS = 4
_TAKEN = np.int32(2**31 - 1)  # above the bits of every finite distance


def capacities(num_rows: int, num_codes: int) -> np.ndarray:
  """Returns how many items each cluster holds: N // K, one more for the first.

  Args:
    num_rows: N.
    num_codes: K.

  Returns:
    int32 [K], summing to N.
  """
  share, rest = divmod(num_rows, num_codes)
  return np.full(num_codes, share, np.int32) + (np.arange(num_codes) < rest)


def _take_smallest(bits: jax.Array, count: jax.Array) -> jax.Array:
  """Marks the `count` smallest of int32 >= 0, ties by lowest index.

  Finds the count-th smallest value digit by digit: of the values that share
  the digits found so far, count those below each of 15 next digits.
  """
  digits = 1 << _DIGIT_BITS

  def body(step: jax.Array, carry):
    prefix, below = carry  # the value's high digits; items surely below it
    shift = 32 - _DIGIT_BITS * (step + 1)
    # The top digit never sets the sign bit: distances are not negative.
    tries = prefix + (jnp.arange(1, digits, dtype=jnp.uint32) << shift)
    smaller = jnp.sum(
      bits.astype(jnp.uint32)[None, :] < tries[:, None], axis=1
    )  # [15], items below each candidate
    digit = jnp.sum(smaller < count).astype(jnp.uint32)
    known = jnp.where(digit > 0, smaller[digit - 1], below)
    return prefix + (digit << shift), known

  value, below = lax.fori_loop(
    0, 32 // _DIGIT_BITS, body, (jnp.uint32(0), jnp.int32(0))
  )
  value = value.astype(jnp.int32)
  ties = bits == value
  turn = jnp.cumsum(ties)  # [N]
  return (bits < value) | (ties & (turn <= count - below))


@jax.jit
def balanced_assign(
  x: Float[Array, "N D"],
  centers: Float[Array, "K D"],
  counts: Int32[Array, " K"],
  order: Int32[Array, " K"],
) -> Int32[Array, " N"]:
  """Gives every cluster, in turn, its nearest items that are still free.

  One pass of Algorithm 1 (OneRec, arXiv:2502.18965): cluster k takes the
  counts[k] nearest unassigned items, ties by lowest item index. Distances come
  in blocks of 64 centers, so memory is N x 64, never N x K.

  Args:
    x: Rows.
    centers: Centers at the start of the pass; none moves within it.
    counts: Items each cluster takes; they sum to N.
    order: Cluster whose turn it is, a permutation of 0..K-1.

  Returns:
    The cluster of every row.
  """
  num_rows, num_codes = x.shape[0], centers.shape[0]
  block = min(_BLOCK, num_codes)
  num_blocks = -(-num_codes // block)
  padding = num_blocks * block - num_codes
  # Clusters that only fill the last block up take no item.
  order = jnp.pad(order, (0, padding))
  takes = jnp.where(
    jnp.arange(num_blocks * block) < num_codes, counts[order], 0
  ).astype(jnp.int32)

  def one_block(codes: jax.Array, turn):
    clusters, wanted = turn  # [block]
    # Distances are exact when x and centers are small integers, which lets
    # tests compare with a sort: no shift by the centers' mean here.
    distances = nearest.squared_distances(x, centers[clusters], centered=False)
    bits = lax.bitcast_convert_type(distances, jnp.int32)  # order-preserving

    def one_cluster(codes: jax.Array, j: jax.Array):
      free = jnp.where(codes < 0, bits[:, j], _TAKEN)
      taken = _take_smallest(free, wanted[j]) & (codes < 0)
      return jnp.where(taken, clusters[j], codes), None

    return lax.scan(one_cluster, codes, jnp.arange(block))[0], None

  codes = jnp.full((num_rows,), -1, jnp.int32)
  turns = (order.reshape(-1, block), takes.reshape(-1, block))
  return lax.scan(one_block, codes, turns)[0]


@no_type_check  # leaves may be shapes, or anything in a tree.map
@struct.dataclass
class BalancedFit:
  """What `fit` returns."""

  codebook: jax.Array  # float32 [K, D], means of the clusters
  codes: jax.Array  # int32 [N]
  inertias: jax.Array  # float32 [max_iters], NaN after the last iteration
  num_iters: jax.Array  # int32 []


@functools.partial(jax.jit, static_argnames=("max_iters", "order"))
def fit(
  x: Float[Array, "N D"],
  centers: Float[Array, "K D"],
  *,
  key: jax.Array,
  max_iters: int,
  order: str = "given",
) -> BalancedFit:
  """Repeats Algorithm 1 until no item changes its cluster.

  Args:
    x: Rows.
    centers: First centers, e.g. distinct random rows.
    key: Random key of the order "random".
    max_iters: Most passes, static.
    order: Whose turn is first: "given" by cluster number, "random" anew in
      every pass, "demand" by how many items are nearest to it, most first.

  Returns:
    Codes of the last pass and the means of its clusters; the inertia of a
    pass is summed over its codes and its first centers.
  """
  num_rows, num_codes = x.shape[0], centers.shape[0]
  counts = jnp.asarray(capacities(num_rows, num_codes))

  def turns(centers: jax.Array, step: jax.Array) -> jax.Array:
    if order == "random":
      step_key = jax.random.fold_in(key, step)
      return jax.random.permutation(step_key, num_codes).astype(jnp.int32)
    if order == "demand":
      wanted = nearest.nearest_code(x, centers)
      demand = jnp.bincount(wanted, length=num_codes)
      return jnp.argsort(-demand, stable=True).astype(jnp.int32)
    return jnp.arange(num_codes, dtype=jnp.int32)

  def going(carry) -> jax.Array:
    found, changed = carry
    return changed & (found.num_iters < max_iters)

  def body(carry):
    found, _ = carry
    whose = turns(found.codebook, found.num_iters)
    codes = balanced_assign(x, found.codebook, counts, whose)
    inertia = jnp.sum(jnp.square(x - found.codebook[codes]))
    sums = kmeans.sum_by_code(codes, x, num_codes)
    after = BalancedFit(
      codebook=sums / counts.astype(jnp.float32)[:, None],
      codes=codes,
      inertias=found.inertias.at[found.num_iters].set(inertia),
      num_iters=found.num_iters + 1,
    )
    return after, jnp.any(codes != found.codes)

  start = BalancedFit(
    codebook=centers,
    codes=jnp.full((num_rows,), -1, jnp.int32),
    inertias=jnp.full((max_iters,), jnp.nan, jnp.float32),
    num_iters=jnp.int32(0),
  )
  return lax.while_loop(going, body, (start, jnp.bool_(True)))[0]


@dataclasses.dataclass(frozen=True)
class BalancedResidualKMeans:
  """Residual k-means with Algorithm 1 at every level (OneRec).

  The cluster sizes of a level differ by at most one, so its entropy is log K.
  Balance is a property of the fitted items as a whole: their codes are
  `FitReport.codes`. `encode` gives any row its nearest codes, which for a
  fitted item may differ from its balanced ones.
  """

  hierarchical: ClassVar[bool] = True

  codebook_sizes: tuple[int, ...] = (256, 256, 256)
  max_iters: int = 20  # passes of Algorithm 1 per level
  order: str = "given"  # whose turn is first: given, random, demand
  init_kmeans: bool = False  # start from k-means++ seeds, not random rows

  def __post_init__(self):
    """Refuses impossible options."""
    base.check_sizes(self.codebook_sizes)
    checks.check_known(self.order, ORDERS, "order")

  def fit(
    self,
    x: Float[Array | np.ndarray, "N D"],
    *,
    key: jax.Array,
    init: CodebooksState | None = None,
  ) -> tuple[CodebooksState, base.FitReport]:
    """Fits level after level; `init` gives each its first centers.

    Args:
      x: float32, one row an item.
      key: Random key.
      init: State of an earlier fit with the same configuration.

    Returns:
      The codebooks and the balanced codes of the fitted rows in the report.

    Raises:
      InputError: See `base.check_fit`.
    """
    started = time.monotonic()
    template = self.abstract_state(x.shape[1])
    base.check_fit(x, self.codebook_sizes, init=init, template=template)
    residual = jnp.array(x)  # a copy: it is donated below
    codebooks, codes, curves = [], [], {}
    num_levels = len(self.codebook_sizes)
    with progress.bar(
      "balanced k-means", total=num_levels, unit="level"
    ) as advance:
      for level, size in enumerate(self.codebook_sizes):
        start_key, pass_key = jax.random.split(jax.random.fold_in(key, level))
        if init is not None:
          centers = init.codebooks[level]
        elif self.init_kmeans:
          centers = kmeans.init(residual, num_codes=size, key=start_key)
          centers = centers.codebook
        else:
          centers = kmeans.random_rows(residual, size, start_key)
        found = fit(
          residual,
          centers,
          key=pass_key,
          max_iters=self.max_iters,
          order=self.order,
        )
        residual = subtract(residual, found.codebook, found.codes)
        codebooks.append(found.codebook)
        codes.append(np.asarray(found.codes))
        inertias = np.asarray(found.inertias)
        curves[f"inertia/level_{level}"] = inertias[: int(found.num_iters)]
        advance(1)
    state = CodebooksState(codebooks=tuple(codebooks))
    return state, reporting.fit_report(
      self,
      state,
      x,
      started=started,
      codes=np.stack(codes, axis=-1),
      curves=curves,
    )

  def encode(
    self, state: CodebooksState, x: Float[Array | np.ndarray, "B D"]
  ) -> Int32[Array, "B L"]:
    """Returns the nearest codes, level by level; see the class."""
    base.check_rows(x, state.codebooks[0].shape[1])
    return encode_residual(state, x)

  def decode(
    self, state: CodebooksState, codes: Int[Array | np.ndarray, "B L"]
  ) -> Float[Array, "B D"]:
    """Returns the sum of the chosen codes."""
    base.check_codes(codes, self.codebook_sizes)
    return decode_sum(state, codes)

  def last_level_distances(
    self,
    state: CodebooksState,
    x: Float[Array | np.ndarray, "B D"],
    codes: Int[Array | np.ndarray, "B L"],
  ) -> Float[Array, "B K"]:
    """Returns |r - c_k|^2 to the last level's codes; `codes` lead to r."""
    return residual_distances(state, x, codes)

  def abstract_state(self, embedding_dim: int) -> CodebooksState:
    """Returns the state's shapes for rows of width `embedding_dim`."""
    return abstract_codebooks(self.codebook_sizes, embedding_dim)
