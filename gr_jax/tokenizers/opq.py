"""Optimized product quantization: PQ after a learned rotation."""

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
from gr_jax.tokenizers import base, kmeans, pq, reporting

_HIGHEST = lax.Precision.HIGHEST


@no_type_check  # leaves may be shapes, or anything in a tree.map
@struct.dataclass
class OPQState:
  """Rotation and sub-space codebooks."""

  rotation: jax.Array  # float32 [D, D], orthogonal; rows x become x @ R^T
  codebooks: tuple[jax.Array, ...]  # float32 [K_m, D / M] each


def abstract_state(
  codebook_sizes: tuple[int, ...], embedding_dim: int
) -> OPQState:
  """Returns the shapes of an OPQState."""
  return OPQState(
    rotation=jax.ShapeDtypeStruct((embedding_dim, embedding_dim), jnp.float32),
    codebooks=pq.abstract_codebooks(codebook_sizes, embedding_dim).codebooks,
  )


@jax.jit
def rotate(
  rotation: Float[Array, "D D"], x: Float[Array | np.ndarray, "N D"]
) -> Float[Array, "N D"]:
  """Returns R x for every row x."""
  return jnp.matmul(x, rotation.T, precision=_HIGHEST)


def encode(
  state: OPQState, x: Float[Array | np.ndarray, "B D"]
) -> Int32[Array, "B L"]:
  """Returns the nearest code of every sub-vector of R x."""
  return pq.encode_subspaces(state.codebooks, rotate(state.rotation, x))


def decode(
  state: OPQState, codes: Int[Array | np.ndarray, "B L"]
) -> Float[Array, "B D"]:
  """Returns R^T q for the chosen sub-vectors q."""
  return rotate(state.rotation.T, pq.decode_subspaces(state.codebooks, codes))


@functools.partial(jax.jit, static_argnames="split")
def scatter(
  x: Float[Array, "N D"], *, split: RowSplit | None = None
) -> Float[Array, "D D"]:
  """Returns sum (x - mean) (x - mean)^T.

  Args:
    x: Rows.
    split: How they lie on several devices.
  """
  num_rows = x.shape[0] if split is None else split.num_rows

  def part(x):
    mean = row_split.total(split, jnp.sum(x, axis=0)) / num_rows
    off = x - mean[None, :]
    if split is not None:
      off = jnp.where(split.is_row()[:, None], off, 0.0)
    product = jnp.matmul(off.T, off, precision=_HIGHEST)
    return row_split.total(split, product)

  return (part if split is None else split.run(part, takes_rows=(True,)))(x)


def principal_rotation(
  x: Float[Array, "N D"],
  num_subspaces: int,
  *,
  split: RowSplit | None = None,
) -> Float[Array, "D D"]:
  """Spreads principal directions over sub-spaces of equal variance.

  Ge et al. 2013, section 3.2.3 (eigenvalue allocation): directions, largest
  variance first, go to the sub-space that is not full and whose product of
  variances is smallest.

  Args:
    x: Rows.
    num_subspaces: M, dividing D.
    split: How the rows lie on several devices.

  Returns:
    A rotation whose rows are the allotted directions.
  """
  covariance = np.asarray(scatter(x, split=split), np.float64)
  values, vectors = np.linalg.eigh(covariance)
  order = np.argsort(values)[::-1]
  values, vectors = np.maximum(values[order], 1e-12), vectors[:, order]
  capacity = x.shape[1] // num_subspaces
  buckets = [[] for _ in range(num_subspaces)]
  logs = np.zeros(num_subspaces)
  # Scaled so that no variance is below one: a sub-space's product then grows
  # with every direction.
  values = np.log(values / values[-1])
  for direction, value in enumerate(values):
    open_buckets = [
      m for m in range(num_subspaces) if len(buckets[m]) < capacity
    ]
    best = min(open_buckets, key=lambda m: logs[m])
    buckets[best].append(direction)
    logs[best] += value
  allotted = vectors[:, np.concatenate(buckets).astype(int)]
  return jnp.asarray(allotted.T, jnp.float32)


@functools.partial(jax.jit, static_argnames="split")
def alternate(
  state: OPQState, x: Float[Array, "N D"], *, split: RowSplit | None = None
) -> tuple[OPQState, Float[Array, ""]]:
  """One Lloyd update in every sub-space, then the best rotation for it.

  argmin_R sum |R x - q|^2 over orthogonal R is U V^T, with U S V^T the
  singular value decomposition of sum q x^T (orthogonal Procrustes).

  Args:
    state: Before.
    x: Rows.
    split: How they lie on several devices.

  Returns:
    The state after, and the objective sum |x - R^T q(R x)|^2 before.
  """
  run = functools.partial(_alternate, split=split)
  if split is not None:
    run = split.run(run, takes_rows=(False, True))
  return run(state, x)


def _alternate(
  state: OPQState, x: jax.Array, *, split: RowSplit | None
) -> tuple[OPQState, jax.Array]:
  """Implements `alternate` on one device's rows."""
  parts = pq.sub_vectors(rotate(state.rotation, x), len(state.codebooks))
  codebooks, chosen, objective = [], [], jnp.float32(0.0)
  for part, codebook in zip(parts, state.codebooks, strict=True):
    moved = kmeans.update(kmeans.from_codebook(codebook), part, split=split)
    objective += moved.inertia
    codebooks.append(moved.codebook)
    # The same choice again, moved: each code is now the mean of its rows.
    codes = nearest.nearest_code(part, codebook)
    chosen.append(moved.codebook[codes])
  quantized = jnp.concatenate(chosen, axis=-1)  # [N, D]
  # Rows that fill a part up are zeros and add nothing.
  product = row_split.total(
    split, jnp.matmul(quantized.T, x, precision=_HIGHEST)
  )  # [D, D]
  u, _, vt = jnp.linalg.svd(product, full_matrices=False)
  rotation = jnp.matmul(u, vt, precision=_HIGHEST)
  return OPQState(rotation, tuple(codebooks)), objective


@dataclasses.dataclass(frozen=True)
class OPQFit:
  """What `fit` returns."""

  state: OPQState
  objectives: np.ndarray  # by iteration; never rises
  revived: list[int]


def fit(
  x: Float[Array, "N D"],
  codebook_sizes: tuple[int, ...],
  *,
  key: jax.Array,
  num_iters: int,
  max_iters: int,
  tol: float,
  init: OPQState | None = None,
  split: RowSplit | None = None,
) -> OPQFit:
  """Alternates k-means and rotation from the better of two starts.

  The starts are plain PQ (R = I), which the result can therefore not be worse
  than, and principal directions spread over the sub-spaces.

  Args:
    x: Rows; those of zeros that fill parts up must be zeros still.
    codebook_sizes: K of every sub-space.
    key: Random key.
    num_iters: Alternations.
    max_iters: Lloyd iterations of each start.
    tol: Of each start.
    init: Warm start; replaces both.
    split: How the rows lie on several devices.
  """
  spread = (lambda tree: tree) if split is None else split.copy
  starts, revived = [], [0] * len(codebook_sizes)
  if init is None:
    rotations = (
      jnp.eye(x.shape[1]),
      principal_rotation(x, len(codebook_sizes), split=split),
    )
    for rotation in rotations:
      found = pq.fit_subspaces(
        rotate(spread(rotation), x),
        codebook_sizes,
        key=key,
        max_iters=max_iters,
        tol=tol,
        split=split,
      )
      state = spread(OPQState(rotation, found.codebooks))
      starts.append((objective(state, x, split=split), state, found.revived))
    _, state, revived = min(starts, key=lambda start: start[0])
  else:
    state = spread(init)
  objectives = []
  with progress.bar("OPQ", total=num_iters, unit="iteration") as advance:
    for _ in range(num_iters):
      state, before = alternate(state, x, split=split)
      objectives.append(float(before))
      advance(1)
  objectives.append(objective(state, x, split=split))
  if split is not None:
    state = split.whole(state)
  return OPQFit(state, np.array(objectives), revived)


def objective(
  state: OPQState, x: Float[Array, "N D"], *, split: RowSplit | None = None
) -> float:
  """Returns sum |x - R^T q(R x)|^2.

  Args:
    state: Rotation and codebooks.
    x: Rows.
    split: How they lie on several devices.
  """
  return float(_objective(state, x, split=split))


@functools.partial(jax.jit, static_argnames="split")
def _objective(
  state: OPQState, x: jax.Array, *, split: RowSplit | None
) -> jax.Array:
  def part(state, x):
    parts = pq.sub_vectors(rotate(state.rotation, x), len(state.codebooks))
    distance = sum(
      nearest.nearest(part, codebook).squared_distance
      for part, codebook in zip(parts, state.codebooks, strict=True)
    )  # [N]
    if split is not None:
      distance = jnp.where(split.is_row(), distance, 0.0)
    return row_split.total(split, jnp.sum(distance))

  if split is not None:
    part = split.run(part, takes_rows=(False, True))
  return part(state, x)


@dataclasses.dataclass(frozen=True)
class OPQ:
  """Optimized product quantization (Ge et al. 2013, CVPR; non-parametric).

  Minimizes sum |x - R^T q(R x)|^2 over orthogonal R and sub-space codebooks
  by alternating one Lloyd update with orthogonal Procrustes.
  """

  hierarchical: ClassVar[bool] = False
  fits_on_mesh: ClassVar[bool] = True

  codebook_sizes: tuple[int, ...] = (256, 256, 256)  # M sub-spaces
  num_iters: int = 50  # alternations
  max_iters: int = 30  # Lloyd iterations of each start
  tol: float = 1e-4

  def __post_init__(self):
    """Refuses impossible options."""
    base.check_sizes(self.codebook_sizes)
    checks.check_at_least(1, max_iters=self.max_iters, num_iters=self.num_iters)
    checks.check_at_least(0, tol=self.tol)

  def fit(
    self,
    x: Float[Array | np.ndarray, "N D"],
    *,
    key: jax.Array,
    init: OPQState | None = None,
    mesh: Mesh | None = None,
  ) -> tuple[OPQState, base.FitReport]:
    """Fits rotation and codebooks; `init` gives their first values.

    Args:
      x: float32, one row an item.
      key: Random key.
      init: State of an earlier fit with the same configuration.
      mesh: Devices that share the rows; None for one.

    Returns:
      The state; curves hold the objective by alternation.

    Raises:
      InputError: See `base.check_fit`; M does not divide D.
    """
    started = time.monotonic()
    template = self.abstract_state(x.shape[1])
    base.check_fit(x, self.codebook_sizes, init=init, template=template)
    split = None if mesh is None else RowSplit(mesh, x.shape[0])
    found = fit(
      jnp.asarray(x) if split is None else split.place(x),
      self.codebook_sizes,
      key=key,
      num_iters=self.num_iters,
      max_iters=self.max_iters,
      tol=self.tol,
      init=init,
      split=split,
    )
    return found.state, reporting.fit_report(
      self,
      found.state,
      x,
      started=started,
      revived=found.revived,
      curves={"objective": found.objectives},
    )

  def encode(
    self, state: OPQState, x: Float[Array | np.ndarray, "B D"]
  ) -> Int32[Array, "B L"]:
    """Returns the nearest code of every sub-vector of R x."""
    base.check_rows(x, state.rotation.shape[0])
    return encode(state, x)

  def decode(
    self, state: OPQState, codes: Int[Array | np.ndarray, "B L"]
  ) -> Float[Array, "B D"]:
    """Returns R^T q for the chosen sub-vectors q."""
    base.check_codes(codes, self.codebook_sizes)
    return decode(state, codes)

  def abstract_state(self, embedding_dim: int) -> OPQState:
    """Returns the state's shapes for rows of width `embedding_dim`."""
    return abstract_state(self.codebook_sizes, embedding_dim)
