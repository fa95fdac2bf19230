"""Residual k-means: one k-means per level, each on what the last level left."""

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

from gr_jax.core import checks, nearest, progress
from gr_jax.core.row_split import RowSplit
from gr_jax.tokenizers import base, kmeans, reporting


@no_type_check  # leaves may be shapes, or anything in a tree.map
@struct.dataclass
class CodebooksState:
  """One codebook per level."""

  codebooks: tuple[jax.Array, ...]  # float32 [K_l, D] each


def abstract_codebooks(
  codebook_sizes: tuple[int, ...], embedding_dim: int
) -> CodebooksState:
  """Returns the shapes of a codebook per level."""
  return CodebooksState(
    codebooks=tuple(
      jax.ShapeDtypeStruct((size, embedding_dim), jnp.float32)
      for size in codebook_sizes
    )
  )


@jax.jit
def encode_residual(
  state: CodebooksState, x: Float[Array | np.ndarray, "B D"]
) -> Int32[Array, "B L"]:
  """Chooses codes level by level: s = argmin_k |r - c_k|^2, r' = r - c_s."""
  residual, codes = jnp.asarray(x), []
  for codebook in state.codebooks:
    codes.append(nearest.nearest_code(residual, codebook))  # [B]
    residual = residual - codebook[codes[-1]]  # [B, D]
  return jnp.stack(codes, axis=-1)  # [B, L]


@jax.jit
def decode_sum(
  state: CodebooksState, codes: Int[Array | np.ndarray, "B L"]
) -> Float[Array, "B D"]:
  """Sums the chosen code vectors of all levels."""
  return sum(
    codebook[jnp.asarray(codes)[:, level]]
    for level, codebook in enumerate(state.codebooks)
  )


@jax.jit
def residual_distances(
  state: CodebooksState,
  x: Float[Array | np.ndarray, "B D"],
  codes: Int[Array | np.ndarray, "B L"],
) -> Float[Array, "B K"]:
  """Computes squared distances of last residuals to the last level's codes.

  The residuals are those that the codes before the last leave, which in a
  balanced fit are not always the nearest.
  """
  residual = jnp.asarray(x)
  for level, codebook in enumerate(state.codebooks[:-1]):
    residual = residual - codebook[jnp.asarray(codes)[:, level]]
  return nearest.squared_distances(residual, state.codebooks[-1])


@functools.partial(jax.jit, donate_argnames="residual")
def subtract(
  residual: Float[Array, "N D"],
  codebook: Float[Array, "K D"],
  codes: Int32[Array, " N"],
) -> Float[Array, "N D"]:
  """Returns what this level leaves: r' = r - c_s."""
  return residual - codebook[codes]


@functools.partial(jax.jit, static_argnames="split", donate_argnames="residual")
def leave(
  residual: Float[Array, "N D"],
  codebook: Float[Array, "K D"],
  *,
  split: RowSplit | None = None,
) -> Float[Array, "N D"]:
  """Returns what each row's nearest code leaves of it.

  Args:
    residual: Rows; donated.
    codebook: Codes.
    split: How the rows lie on several devices.
  """

  def part(rows, codebook):
    return rows - codebook[nearest.nearest_code(rows, codebook)]

  if split is not None:
    part = split.run(part, takes_rows=(True, False), gives_rows=True)
  return part(residual, codebook)


@dataclasses.dataclass(frozen=True)
class ResidualKMeans:
  """Residual k-means (OneRec's RQ-KMeans, GRID's RK-Means).

  Per level: k-means on the residuals, s = argmin_k |r - c_k|^2, then
  r' = r - c_s. Inertia never rises within a level, nor with more levels.
  """

  hierarchical: ClassVar[bool] = True
  fits_on_mesh: ClassVar[bool] = True

  codebook_sizes: tuple[int, ...] = (256, 256, 256)
  max_iters: int = 100  # Lloyd iterations per level
  tol: float = 1e-4  # stop when inertia falls by less than this share

  def __post_init__(self):
    """Refuses impossible options."""
    base.check_sizes(self.codebook_sizes)
    checks.check_at_least(1, max_iters=self.max_iters)
    checks.check_at_least(0, tol=self.tol)

  def fit(
    self,
    x: Float[Array | np.ndarray, "N D"],
    *,
    key: jax.Array,
    init: CodebooksState | None = None,
    mesh: Mesh | None = None,
  ) -> tuple[CodebooksState, base.FitReport]:
    """Fits level after level; `init` gives each its first codebook.

    Args:
      x: float32, one row an item.
      key: Random key.
      init: State of an earlier fit with the same configuration.
      mesh: Devices that share the rows; None for one.

    Returns:
      The codebooks; curves hold the inertia by Lloyd iteration of each level.

    Raises:
      InputError: See `base.check_fit`.
    """
    started = time.monotonic()
    base.check_fit(
      x,
      self.codebook_sizes,
      init=init,
      template=self.abstract_state(x.shape[1]),
    )
    split = None if mesh is None else RowSplit(mesh, x.shape[0])
    # A copy: it is donated below.
    residual = jnp.array(x) if split is None else split.place(x)
    codebooks, curves, revived = [], {}, []
    num_levels = len(self.codebook_sizes)
    with progress.bar(
      "residual k-means", total=num_levels, unit="level"
    ) as advance:
      for level, size in enumerate(self.codebook_sizes):
        found = kmeans.fit(
          residual,
          num_codes=size,
          key=jax.random.fold_in(key, level),
          max_iters=self.max_iters,
          tol=self.tol,
          codebook=None if init is None else init.codebooks[level],
          split=split,
        )
        codebook = found.state.codebook
        residual = leave(residual, codebook, split=split)
        codebooks.append(jnp.asarray(np.asarray(codebook)))
        inertias = np.asarray(found.inertias)
        curves[f"inertia/level_{level}"] = inertias[: int(found.num_iters)]
        revived.append(int(found.revived))
        advance(1)
    state = CodebooksState(codebooks=tuple(codebooks))
    return state, reporting.fit_report(
      self, state, x, started=started, revived=revived, curves=curves
    )

  def encode(
    self, state: CodebooksState, x: Float[Array | np.ndarray, "B D"]
  ) -> Int32[Array, "B L"]:
    """Returns the codes of rows, nearest code level by level."""
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
