"""RQ-OPQ: residual k-means levels, then OPQ on what they leave."""

import dataclasses
import functools
import time
from typing import ClassVar, no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Int32

from gr_jax.core import checks, rng
from gr_jax.core.row_split import RowSplit
from gr_jax.tokenizers import balanced, base, opq, reporting, residual_kmeans
from gr_jax.tokenizers.residual_kmeans import CodebooksState


@no_type_check  # leaves may be shapes, or anything in a tree.map
@struct.dataclass
class RQOPQState:
  """States of both parts."""

  residual: CodebooksState
  opq: opq.OPQState


@functools.partial(jax.jit, static_argnames="split")
def _leave(
  state: CodebooksState,
  x: jax.Array,
  codes: jax.Array,
  *,
  split: RowSplit | None = None,
) -> jax.Array:
  """Returns what the residual levels leave of rows; zeros stay zeros."""

  def part(state, x, codes):
    left = x - residual_kmeans.decode_sum(state, codes)
    if split is not None:
      left = jnp.where(split.is_row()[:, None], left, 0.0)
    return left

  if split is not None:
    part = split.run(part, takes_rows=(False, True, True), gives_rows=True)
  return part(state, x, codes)


def _encode_left(
  state: opq.OPQState, left: jax.Array, *, split: RowSplit | None
) -> Int32[np.ndarray, "N M"]:
  """Returns the sub-space codes of all rows on the host."""
  if split is None:
    return np.asarray(opq.encode(state, left))
  encode = split.run(opq.encode, takes_rows=(False, True), gives_rows=True)
  return split.to_host(jax.jit(encode)(split.copy(state), left))


@dataclasses.dataclass(frozen=True)
class RQOPQ:
  """Residual levels for what items share, OPQ for what tells them apart.

  The first L_r levels are (balanced) residual k-means; the residual they leave
  is product-quantized after a learned rotation, one token per sub-space
  (OneSearch, arXiv:2509.03236, section 3.2). L = L_r + M. The defaults have
  the bits of three levels of 256.
  """

  # The OPQ tokens are parallel to each other, but refine the residual levels.
  hierarchical: ClassVar[bool] = True
  fits_on_mesh: ClassVar[bool] = True

  residual_sizes: tuple[int, ...] = (256, 256)  # K of the L_r levels
  subspace_sizes: tuple[int, ...] = (16, 16)  # K of the M sub-spaces
  balanced: bool = False  # Algorithm 1 for the residual levels
  max_iters: int = 100  # Lloyd iterations; 20 passes when balanced
  tol: float = 1e-4
  num_iters: int = 50  # OPQ's alternations

  def __post_init__(self):
    """Refuses impossible options."""
    base.check_sizes(self.residual_sizes)
    base.check_sizes(self.subspace_sizes)
    checks.check_at_least(1, max_iters=self.max_iters, num_iters=self.num_iters)
    checks.check_at_least(0, tol=self.tol)

  @property
  def codebook_sizes(self) -> tuple[int, ...]:
    """K of the residual levels, then of the sub-spaces."""
    return (*self.residual_sizes, *self.subspace_sizes)

  def _residual_part(self):
    if self.balanced:
      return balanced.BalancedResidualKMeans(
        codebook_sizes=self.residual_sizes, max_iters=min(20, self.max_iters)
      )
    return residual_kmeans.ResidualKMeans(
      codebook_sizes=self.residual_sizes, max_iters=self.max_iters, tol=self.tol
    )

  def fit(
    self,
    x: Float[Array | np.ndarray, "N D"],
    *,
    key: jax.Array,
    init: RQOPQState | None = None,
    mesh: Mesh | None = None,
  ) -> tuple[RQOPQState, base.FitReport]:
    """Fits the residual levels, then rotation and sub-space codebooks.

    Args:
      x: float32, one row an item.
      key: Random key.
      init: State of an earlier fit with the same configuration.
      mesh: Devices that share the rows; None for one.

    Returns:
      The state; curves are those of both parts.

    Raises:
      InputError: See `base.check_fit`; M does not divide D.
    """
    started = time.monotonic()
    template = self.abstract_state(x.shape[1])
    base.check_fit(x, self.codebook_sizes, init=init, template=template)
    first, first_report = self._residual_part().fit(
      x,
      key=rng.stream(key, "residual"),
      init=None if init is None else init.residual,
      mesh=mesh,
    )
    split = None if mesh is None else RowSplit(mesh, x.shape[0])
    if split is None:
      left = _leave(first, jnp.asarray(x), jnp.asarray(first_report.codes))
    else:
      left = _leave(
        split.copy(first),
        split.place(x),
        split.place(first_report.codes),
        split=split,
      )
    second = opq.fit(
      left,
      self.subspace_sizes,
      key=rng.stream(key, "opq"),
      num_iters=self.num_iters,
      max_iters=self.max_iters,
      tol=self.tol,
      init=None if init is None else init.opq,
      split=split,
    )
    state = RQOPQState(residual=first, opq=second.state)
    codes = [first_report.codes, _encode_left(second.state, left, split=split)]
    return state, reporting.fit_report(
      self,
      state,
      x,
      started=started,
      codes=np.concatenate(codes, axis=-1),
      revived=[*first_report.revived, *second.revived],
      curves={**first_report.curves, "opq_objective": second.objectives},
    )

  def encode(
    self, state: RQOPQState, x: Float[Array | np.ndarray, "B D"]
  ) -> Int32[Array, "B L"]:
    """Returns residual codes, then the sub-space codes of what is left."""
    base.check_rows(x, state.opq.rotation.shape[0])
    codes = residual_kmeans.encode_residual(state.residual, x)
    left = jnp.asarray(x) - residual_kmeans.decode_sum(state.residual, codes)
    return jnp.concatenate([codes, opq.encode(state.opq, left)], axis=-1)

  def decode(
    self, state: RQOPQState, codes: Int[Array | np.ndarray, "B L"]
  ) -> Float[Array, "B D"]:
    """Returns the sum of what both parts decode to."""
    base.check_codes(codes, self.codebook_sizes)
    num_levels = len(self.residual_sizes)
    return residual_kmeans.decode_sum(
      state.residual, codes[:, :num_levels]
    ) + opq.decode(state.opq, codes[:, num_levels:])

  def abstract_state(self, embedding_dim: int) -> RQOPQState:
    """Returns the state's shapes for rows of width `embedding_dim`."""
    return RQOPQState(
      residual=residual_kmeans.abstract_codebooks(
        self.residual_sizes, embedding_dim
      ),
      opq=opq.abstract_state(self.subspace_sizes, embedding_dim),
    )
