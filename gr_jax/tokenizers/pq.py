"""Product quantization: one k-means per sub-space of the embedding."""

import dataclasses
import functools
import time
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Int32

from gr_jax.core import checks, nearest, progress
from gr_jax.core.row_split import RowSplit
from gr_jax.tokenizers import base, kmeans, reporting
from gr_jax.tokenizers.residual_kmeans import CodebooksState


def sub_dim(embedding_dim: int, num_subspaces: int) -> int:
  """Returns the width of a sub-space.

  Raises:
    InputError: The sub-spaces do not divide the embedding.
  """
  if embedding_dim % num_subspaces:
    raise checks.InputError(
      f"D={embedding_dim} is not divisible by {num_subspaces} sub-spaces; "
      "choose another number of codebooks or embedding width."
    )
  return embedding_dim // num_subspaces


def abstract_codebooks(
  codebook_sizes: tuple[int, ...], embedding_dim: int
) -> CodebooksState:
  """Returns the shapes of a codebook per sub-space."""
  width = sub_dim(embedding_dim, len(codebook_sizes))
  return CodebooksState(
    codebooks=tuple(
      jax.ShapeDtypeStruct((size, width), jnp.float32)
      for size in codebook_sizes
    )
  )


@functools.partial(jax.jit, static_argnames="num_subspaces")
def sub_vectors(x: Float[Array, "N D"], num_subspaces: int) -> list[jax.Array]:
  """Cuts rows into consecutive sub-vectors, [N, D / M] each."""
  return jnp.split(x, num_subspaces, axis=-1)


@jax.jit
def encode_subspaces(
  codebooks: tuple[jax.Array, ...], x: Float[Array | np.ndarray, "B D"]
) -> Int32[Array, "B L"]:
  """Returns the nearest code of every sub-vector."""
  parts = sub_vectors(jnp.asarray(x), len(codebooks))
  return jnp.stack(
    [
      nearest.nearest_code(part, codebook)
      for part, codebook in zip(parts, codebooks, strict=True)
    ],
    axis=-1,
  )


@jax.jit
def decode_subspaces(
  codebooks: tuple[jax.Array, ...], codes: Int[Array | np.ndarray, "B L"]
) -> Float[Array, "B D"]:
  """Concatenates the chosen sub-vectors."""
  codes = jnp.asarray(codes)
  return jnp.concatenate(
    [book[codes[:, level]] for level, book in enumerate(codebooks)], axis=-1
  )


@dataclasses.dataclass(frozen=True)
class SubspaceFit:
  """What `fit_subspaces` returns."""

  codebooks: tuple[jax.Array, ...]
  curves: dict[str, np.ndarray]  # inertia of each sub-space by iteration
  revived: list[int]


def fit_subspaces(
  x: Float[Array, "N D"],
  codebook_sizes: tuple[int, ...],
  *,
  key: jax.Array,
  max_iters: int,
  tol: float,
  init: tuple[jax.Array, ...] | None = None,
  split: RowSplit | None = None,
) -> SubspaceFit:
  """Fits one k-means per sub-space.

  Args:
    x: Rows.
    codebook_sizes: K of every sub-space.
    key: Random key.
    max_iters: Most Lloyd iterations.
    tol: Smallest relative fall of inertia that keeps one going.
    init: First codebooks; by default k-means++ seeds.
    split: How the rows lie on several devices.
  """
  codebooks, curves, revived = [], {}, []
  parts = sub_vectors(x, len(codebook_sizes))
  for level, (part, size) in enumerate(zip(parts, codebook_sizes, strict=True)):
    found = kmeans.fit(
      part,
      num_codes=size,
      key=jax.random.fold_in(key, level),
      max_iters=max_iters,
      tol=tol,
      codebook=None if init is None else init[level],
      split=split,
    )
    codebooks.append(jnp.asarray(np.asarray(found.state.codebook)))
    inertias = np.asarray(found.inertias)
    curves[f"inertia/level_{level}"] = inertias[: int(found.num_iters)]
    revived.append(int(found.revived))
  return SubspaceFit(tuple(codebooks), curves, revived)


@dataclasses.dataclass(frozen=True)
class PQ:
  """Product quantization (Jegou et al. 2011, doi:10.1109/TPAMI.2010.57).

  x = [x_1 .. x_M]; q(x) = [q_1(x_1) .. q_M(x_M)], each q_m a k-means of its
  own sub-space. Tokens are parallel: none refines another.
  """

  hierarchical: ClassVar[bool] = False
  fits_on_mesh: ClassVar[bool] = True

  codebook_sizes: tuple[int, ...] = (256, 256, 256)  # M sub-spaces
  max_iters: int = 100  # Lloyd iterations per sub-space
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
    """Fits every sub-space; `init` gives the first codebooks.

    Args:
      x: float32, one row an item.
      key: Random key.
      init: State of an earlier fit with the same configuration.
      mesh: Devices that share the rows; None for one.

    Returns:
      The codebooks; curves hold the inertia by iteration of each sub-space.

    Raises:
      InputError: See `base.check_fit`; M does not divide D.
    """
    started = time.monotonic()
    template = self.abstract_state(x.shape[1])
    base.check_fit(x, self.codebook_sizes, init=init, template=template)
    split = None if mesh is None else RowSplit(mesh, x.shape[0])
    with progress.bar("product quantization", total=1, unit="fit") as advance:
      found = fit_subspaces(
        jnp.asarray(x) if split is None else split.place(x),
        self.codebook_sizes,
        key=key,
        max_iters=self.max_iters,
        tol=self.tol,
        init=None if init is None else init.codebooks,
        split=split,
      )
      advance(1)
    state = CodebooksState(found.codebooks)
    return state, reporting.fit_report(
      self,
      state,
      x,
      started=started,
      revived=found.revived,
      curves=found.curves,
    )

  def encode(
    self, state: CodebooksState, x: Float[Array | np.ndarray, "B D"]
  ) -> Int32[Array, "B L"]:
    """Returns the nearest code of every sub-vector."""
    width = sum(codebook.shape[1] for codebook in state.codebooks)
    base.check_rows(x, width)
    return encode_subspaces(state.codebooks, x)

  def decode(
    self, state: CodebooksState, codes: Int[Array | np.ndarray, "B L"]
  ) -> Float[Array, "B D"]:
    """Returns the chosen sub-vectors, concatenated."""
    base.check_codes(codes, self.codebook_sizes)
    return decode_subspaces(state.codebooks, codes)

  def abstract_state(self, embedding_dim: int) -> CodebooksState:
    """Returns the state's shapes for rows of width `embedding_dim`."""
    return abstract_codebooks(self.codebook_sizes, embedding_dim)
