"""Residual k-means with Sinkhorn's relaxed balance, beside the exact one.

Optimal transport between items and codes of equal mass stands for Algorithm 1
(`balanced`): the plan is balanced, the codes read off it are only nearly so.
"""

import dataclasses
import functools
import time
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Int32

from gr_jax.core import checks, nearest, progress, row_split
from gr_jax.core.row_split import RowSplit
from gr_jax.tokenizers import base, estimators, kmeans, reporting
from gr_jax.tokenizers.residual_kmeans import (
  CodebooksState,
  abstract_codebooks,
  decode_sum,
  encode_residual,
  residual_distances,
  subtract,
)

_MAX_PLAN = 1 << 31  # entries of a device's [N, K] plan: 8 GB


@functools.partial(
  jax.jit, static_argnames=("max_iters", "epsilon", "sinkhorn_iters", "split")
)
def fit_level(
  x: Float[Array, "N D"],
  centers: Float[Array, "K D"],
  *,
  max_iters: int,
  epsilon: float,
  sinkhorn_iters: int,
  split: RowSplit | None = None,
) -> tuple[kmeans.KMeansFit, Int32[Array, " N"]]:
  """Alternates transport and means until no item changes its code.

  Args:
    x: Rows.
    centers: First centers.
    max_iters: Most passes, static.
    epsilon: Strength of the entropy, in mean distances.
    sinkhorn_iters: Normalizations of rows and columns a pass, static.
    split: How the rows lie on several devices.

  Returns:
    The fit, whose codes are means of what they hold (a code that holds
    nothing stays), and every row's code.
  """
  run = functools.partial(
    _fit_part,
    max_iters=max_iters,
    epsilon=epsilon,
    sinkhorn_iters=sinkhorn_iters,
    split=split,
  )
  if split is not None:
    run = split.run(run, takes_rows=(True, False), gives_rows=(False, True))
  return run(x, centers)


def _fit_part(
  x: jax.Array,
  centers: jax.Array,
  *,
  max_iters: int,
  epsilon: float,
  sinkhorn_iters: int,
  split: RowSplit | None,
) -> tuple[kmeans.KMeansFit, jax.Array]:
  """Implements `fit_level` on one device's rows."""
  num_codes = centers.shape[0]
  real = jnp.ones(x.shape[:1], bool) if split is None else split.is_row()
  total = functools.partial(row_split.total, split)

  def body(carry):
    fit, codes, _ = carry
    distances = nearest.squared_distances(x, fit.state.codebook)  # [N, K]
    found = estimators.sinkhorn_codes(
      distances, epsilon=epsilon, num_iters=sinkhorn_iters, split=split
    )
    chosen = jnp.take_along_axis(distances, found[:, None], axis=1)[:, 0]
    inertia = total(jnp.sum(jnp.where(real, chosen, 0.0)))
    found = jnp.where(real, found, num_codes)  # goes nowhere
    sums, counts = total(kmeans.sum_and_count(found, x, num_codes))
    means = sums / jnp.maximum(counts, 1.0)[:, None]
    state = kmeans.KMeansState(
      step=fit.state.step + 1,
      codebook=jnp.where(counts[:, None] > 0, means, fit.state.codebook),
      counts=counts,
      inertia=inertia,
    )
    fit = fit.replace(
      state=state,
      inertias=fit.inertias.at[fit.num_iters].set(inertia),
      num_iters=fit.num_iters + 1,
    )
    changed = jnp.any(found != codes).astype(jnp.int32)
    return fit, found, total(changed) > 0

  start = kmeans.KMeansFit(
    state=kmeans.from_codebook(centers),
    inertias=jnp.full((max_iters,), jnp.nan, jnp.float32),
    num_iters=jnp.int32(0),
    revived=jnp.int32(0),
    changed=jnp.float32(0.0),
  )
  carry = (start, jnp.full(x.shape[:1], -1, jnp.int32), jnp.bool_(True))
  fit, codes, _ = lax.while_loop(
    lambda c: c[2] & (c[0].num_iters < max_iters), body, carry
  )
  return fit, codes


@dataclasses.dataclass(frozen=True)
class SinkhornResidualKMeans:
  """Residual k-means whose passes assign by optimal transport.

  As LC-Rec (arXiv:2311.09049, section 3.2) balances a level, here in every
  pass over all items. The codes of the fitted items are `FitReport.codes`;
  `encode` gives any row its nearest codes. Holds an [N, K] plan.
  """

  hierarchical: ClassVar[bool] = True
  fits_on_mesh: ClassVar[bool] = True

  codebook_sizes: tuple[int, ...] = (256, 256, 256)
  max_iters: int = 20  # passes per level
  epsilon: float = 0.01  # entropy, in mean distances; smaller is harder
  sinkhorn_iters: int = 50  # normalizations a pass

  def __post_init__(self):
    """Refuses impossible options."""
    base.check_sizes(self.codebook_sizes)
    if self.epsilon <= 0 or min(self.max_iters, self.sinkhorn_iters) < 1:
      raise checks.InputError(
        "Want epsilon > 0, max_iters >= 1 and sinkhorn_iters >= 1; got "
        f"{self.epsilon=}, {self.max_iters=}, {self.sinkhorn_iters=}."
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
      mesh: Devices that share the rows and the plan; None for one.

    Returns:
      The codebooks and the assigned codes of the fitted rows in the report.

    Raises:
      InputError: See `base.check_fit`; or the plan would be too large.
    """
    started = time.monotonic()
    template = self.abstract_state(x.shape[1])
    base.check_fit(x, self.codebook_sizes, init=init, template=template)
    split = None if mesh is None else RowSplit(mesh, x.shape[0])
    num_rows = x.shape[0] if split is None else split.part_size
    if num_rows * max(self.codebook_sizes) > _MAX_PLAN:
      raise checks.InputError(
        f"A plan of {num_rows} x {max(self.codebook_sizes)} entries is too "
        "large for a device; use balanced_residual_kmeans."
      )
    # A copy: it is donated below.
    residual = jnp.array(x) if split is None else split.place(x)
    codebooks, codes, curves = [], [], {}
    total = len(self.codebook_sizes)
    with progress.bar("Sinkhorn k-means", total=total, unit="level") as done:
      for level, size in enumerate(self.codebook_sizes):
        if init is not None:
          centers = init.codebooks[level]
        else:
          level_key = jax.random.fold_in(key, level)
          centers = kmeans.init(
            residual, num_codes=size, key=level_key, split=split
          ).codebook
        if split is not None:
          centers = split.copy(centers)
        found, level_codes = fit_level(
          residual,
          centers,
          max_iters=self.max_iters,
          epsilon=self.epsilon,
          sinkhorn_iters=self.sinkhorn_iters,
          split=split,
        )
        codebook = found.state.codebook
        residual = subtract(residual, codebook, level_codes)
        codebooks.append(jnp.asarray(np.asarray(codebook)))
        if split is not None:
          level_codes = split.to_host(level_codes)
        codes.append(np.asarray(level_codes))
        inertias = np.asarray(found.inertias)
        curves[f"inertia/level_{level}"] = inertias[: int(found.num_iters)]
        done(1)
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
