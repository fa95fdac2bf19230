"""Balanced residual k-means: every code of a level holds as many items.

`balanced_assign` is the whole of Algorithm 1's inner loop. It never sorts the
items: few of them are enough for clusters to choose in windows
(`serial_choice`), and for one cluster the w-th smallest distance is found by
counting (`select`).
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
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Int32

from gr_jax.core import checks, nearest, progress, row_split
from gr_jax.core.row_split import RowSplit
from gr_jax.tokenizers import (
  base,
  capped,
  kmeans,
  reporting,
  select,
  serial_choice,
)
from gr_jax.tokenizers.residual_kmeans import (
  CodebooksState,
  abstract_codebooks,
  decode_sum,
  encode_residual,
  residual_distances,
  subtract,
)

ORDERS = ("given", "random", "demand")
_FEW_ROWS = 4096


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


def assign_by_counting(
  x: Float[Array, "N D"],
  centers: Float[Array, "K D"],
  counts: Int32[Array, " K"],
  order: Int32[Array, " K"],
) -> Int32[Array, " N"]:
  """Lets every cluster select among all free items; see `balanced_assign`.

  Selection by counting, one cluster after the other: the plain form of
  Algorithm 1, with nothing to tune.
  """

  def one_cluster(codes: jax.Array, cluster: jax.Array):
    distance = jnp.sum(jnp.square(x - centers[cluster][None, :]), axis=-1)
    # The bits of non-negative floats are in the order of the floats.
    bits = lax.bitcast_convert_type(distance, jnp.int32)
    bits = jnp.where(codes < 0, bits, select.NEVER)
    taken = select.take_smallest(bits, counts[cluster]) & (codes < 0)
    return jnp.where(taken, cluster, codes), None

  return lax.scan(one_cluster, jnp.full(x.shape[:1], -1, jnp.int32), order)[0]


@functools.partial(jax.jit, static_argnames="windows")
def balanced_assign(
  x: Float[Array, "N D"],
  centers: Float[Array, "K D"],
  counts: Int32[Array, " K"],
  order: Int32[Array, " K"],
  *,
  windows: serial_choice.Windows | None = None,
) -> Int32[Array, " N"]:
  """Gives every cluster, in turn, its nearest items that are still free.

  One pass of Algorithm 1 (OneRec, arXiv:2502.18965): cluster k takes the
  counts[k] nearest unassigned items, ties by lowest item index. Distances are
  float32 sums of (x - c)^2, and no [N, K] array exists.

  Args:
    x: Rows.
    centers: Centers at the start of the pass; none moves within it.
    counts: Items each cluster takes, as `capacities` gives them.
    order: Cluster whose turn it is, a permutation of 0..K-1.
    windows: How clusters choose together, static; changes time alone. By
      default they do from 4096 rows on.

  Returns:
    The cluster of every row.
  """
  if windows is None:
    if x.shape[0] < _FEW_ROWS:
      return assign_by_counting(x, centers, counts, order)
    windows = serial_choice.suited(x.shape[0], centers.shape[0])
  return serial_choice.choose(x, centers, counts, order, windows=windows).codes


@no_type_check  # leaves may be shapes, or anything in a tree.map
@struct.dataclass
class BalancedFit:
  """What `fit` returns."""

  codebook: jax.Array  # float32 [K, D], means of the clusters
  codes: jax.Array  # int32 [N]
  inertias: jax.Array  # float32 [max_iters], NaN after the last iteration
  num_iters: jax.Array  # int32 []


def fit(
  x: Float[Array, "N D"],
  centers: Float[Array, "K D"],
  *,
  key: jax.Array,
  max_iters: int,
  order: str = "given",
  slack: float | None = None,
  windows: serial_choice.Windows | None = None,
  split: RowSplit | None = None,
) -> BalancedFit:
  """Repeats Algorithm 1 until no item changes its cluster.

  Args:
    x: Rows.
    centers: First centers, e.g. distinct random rows.
    key: Random key of the order "random".
    max_iters: Most passes, static.
    order: Whose turn is first: "given" by cluster number, "random" anew in
      every pass, "demand" by how many items are nearest to it, most first.
    slack: In place of Algorithm 1, every pass gives each item its nearest
      cluster with room for it, (1 + slack) N / K items; static. See `capped`.
    windows: As for `balanced_assign`, static.
    split: How the rows lie on several devices. The codes are the same but for
      the rounding of means.

  Returns:
    Codes of the last pass and the means of its clusters; the inertia of a
    pass is summed over its codes and its first centers.
  """
  if split is not None:
    centers, key = split.copy((centers, key))
  return _fit(
    x,
    centers,
    key,
    max_iters=max_iters,
    order=order,
    slack=slack,
    windows=windows,
    split=split,
  )


@functools.partial(
  jax.jit, static_argnames=("max_iters", "order", "slack", "windows", "split")
)
def _fit(x, centers, key, *, split: RowSplit | None, **options) -> BalancedFit:
  run = functools.partial(_fit_part, split=split, **options)
  if split is not None:
    run = split.run(
      run,
      takes_rows=(True, False, False),
      gives_rows=BalancedFit(False, True, False, False),
    )
  return run(x, centers, key)


def _fit_part(
  x: jax.Array,
  centers: jax.Array,
  key: jax.Array,
  *,
  max_iters: int,
  order: str,
  slack: float | None,
  windows: serial_choice.Windows | None,
  split: RowSplit | None,
) -> BalancedFit:
  """Implements `fit` on one device's rows."""
  num_codes = centers.shape[0]
  num_rows = x.shape[0] if split is None else split.num_rows
  counts = jnp.asarray(capacities(num_rows, num_codes))
  total = functools.partial(row_split.total, split)
  real = jnp.ones(x.shape[:1], bool) if split is None else split.is_row()

  def turns(centers: jax.Array, step: jax.Array) -> jax.Array:
    if order == "random":
      step_key = jax.random.fold_in(key, step)
      return jax.random.permutation(step_key, num_codes).astype(jnp.int32)
    if order == "demand":
      wanted = nearest.nearest_code(x, centers)
      wanted = jnp.where(real, wanted, num_codes)  # goes nowhere
      demand = total(jnp.bincount(wanted, length=num_codes))
      return jnp.argsort(-demand, stable=True).astype(jnp.int32)
    return jnp.arange(num_codes, dtype=jnp.int32)

  def assign(centers: jax.Array, whose: jax.Array) -> jax.Array:
    if slack is not None:
      cap = capped.cap_of(num_rows, num_codes, slack)
      return capped.capped_assign(x, centers, cap=cap, split=split)
    if split is None:
      return balanced_assign(x, centers, counts, whose, windows=windows)
    return serial_choice.choose(
      jnp.where(real[:, None], x, jnp.nan),  # nobody's
      centers,
      counts,
      whose,
      windows=windows or serial_choice.suited(num_rows, num_codes),
      axis=split.axes,
    ).codes

  def going(carry) -> jax.Array:
    found, changed = carry
    return changed & (found.num_iters < max_iters)

  def body(carry):
    found, _ = carry
    codes = assign(found.codebook, turns(found.codebook, found.num_iters))
    far = jnp.where(real[:, None], x - found.codebook[codes], 0.0)
    inertia = total(jnp.sum(jnp.square(far)))
    sums, sizes = total(kmeans.sum_and_count(codes, x, num_codes))
    means = sums / jnp.maximum(sizes, 1.0)[:, None]
    after = BalancedFit(
      # With slack a cluster may hold nothing; it stays.
      codebook=jnp.where(sizes[:, None] > 0, means, found.codebook),
      codes=codes,
      inertias=found.inertias.at[found.num_iters].set(inertia),
      num_iters=found.num_iters + 1,
    )
    changed = jnp.any(codes != found.codes).astype(jnp.int32)
    return after, total(changed) > 0

  start = BalancedFit(
    codebook=centers,
    codes=jnp.full((x.shape[0],), -1, jnp.int32),
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

  With `slack` the balance is relaxed: no code has more than (1 + slack) N / K
  items, and every item the nearest code with room for it (`capped`).
  """

  hierarchical: ClassVar[bool] = True
  fits_on_mesh: ClassVar[bool] = True

  codebook_sizes: tuple[int, ...] = (256, 256, 256)
  max_iters: int = 20  # passes of Algorithm 1 per level
  order: str = "given"  # whose turn is first: given, random, demand
  init_kmeans: bool = False  # start from k-means++ seeds, not random rows
  slack: float | None = None  # how much more than N / K; None: Algorithm 1

  def __post_init__(self):
    """Refuses impossible options."""
    base.check_sizes(self.codebook_sizes)
    checks.check_known(self.order, ORDERS, "order")
    checks.check_at_least(1, max_iters=self.max_iters)
    if self.slack is not None:
      checks.check_at_least(0, slack=self.slack)
      if self.order != "given":
        raise checks.InputError(
          f"With slack={self.slack} no cluster's turn is first; leave "
          f"order={self.order!r} out."
        )

  def fit(
    self,
    x: Float[Array | np.ndarray, "N D"],
    *,
    key: jax.Array,
    init: CodebooksState | None = None,
    mesh: Mesh | None = None,
  ) -> tuple[CodebooksState, base.FitReport]:
    """Fits level after level; `init` gives each its first centers.

    Args:
      x: float32, one row an item.
      key: Random key.
      init: State of an earlier fit with the same configuration.
      mesh: Devices that share the rows; None for one.

    Returns:
      The codebooks and the balanced codes of the fitted rows in the report.

    Raises:
      InputError: See `base.check_fit`.
    """
    started = time.monotonic()
    template = self.abstract_state(x.shape[1])
    base.check_fit(x, self.codebook_sizes, init=init, template=template)
    split = None if mesh is None else RowSplit(mesh, x.shape[0])
    # A copy: it is donated below.
    residual = jnp.array(x) if split is None else split.place(x)
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
          draw_key, seed_key = jax.random.split(start_key)
          seeds = kmeans.SEED_ROWS_PER_CODE * size
          rows = kmeans.sample_rows(residual, seeds, draw_key, split=split)
          centers = kmeans.init(rows, num_codes=size, key=seed_key).codebook
        else:
          centers = kmeans.random_rows(residual, size, start_key, split=split)
        found = fit(
          residual,
          centers,
          key=pass_key,
          max_iters=self.max_iters,
          order=self.order,
          slack=self.slack,
          split=split,
        )
        residual = subtract(residual, found.codebook, found.codes)
        codebooks.append(jnp.asarray(np.asarray(found.codebook)))
        level_codes = (
          found.codes if split is None else split.to_host(found.codes)
        )
        codes.append(np.asarray(level_codes))
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
