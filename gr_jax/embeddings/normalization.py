"""Normalization: fitted once on a catalog, frozen for items that come later."""

import dataclasses
from collections.abc import Mapping

import numpy as np
from absl import logging
from jaxtyping import Float32

from gr_jax.core import artifact, checks
from gr_jax.core.checks import InputError

KINDS = ("none", "l2", "center", "standardize", "pca", "whiten")
_PROJECTIONS = ("pca", "whiten")
_CHUNK_ROWS = 1 << 16
# Shares of the largest variance below which a direction counts as constant:
# about what float32 rounding of the input leaves.
_RANK_TOLERANCE = 1e-10


def unit_rows(
  vectors: Float32[np.ndarray, "N D"],
) -> Float32[np.ndarray, "N D"]:
  """Scales rows to length 1; a row of zeros stays."""
  norm = np.linalg.norm(vectors, axis=1, keepdims=True)
  return (vectors / np.maximum(norm, np.float32(1e-12))).astype(np.float32)


@dataclasses.dataclass(frozen=True, eq=False)
class Normalization:
  """A fitted map of embeddings: y = ((x - mean) @ projection) * scale.

  What a kind does not use is an empty array.

  kind         y
  none         x
  l2           x / |x|
  center       x - mean
  standardize  the same over each column's standard deviation
  pca          coordinates along the main directions, largest variance first
  whiten       the same, each scaled to variance 1: covariance = identity
  """

  kind: str
  mean: np.ndarray  # float32 [D]
  projection: np.ndarray  # float32 [D, D']
  scale: np.ndarray  # float32 [D']

  def apply(
    self, x: Float32[np.ndarray, "N D"]
  ) -> Float32[np.ndarray, "N out"]:
    """Maps rows with the fitted statistics; rows do not affect one another.

    Args:
      x: Embeddings as the embedder made them.

    Raises:
      InputError: Another width than at fit; a zero row under "l2".
    """
    if self.kind == "none":
      return x
    if self.kind == "l2":
      norms = np.linalg.norm(x, axis=1)
      zero = np.flatnonzero(norms == 0)
      if zero.size:
        raise InputError(
          f"{zero.size} of {len(x)} embeddings are zero, the first in row "
          f"{zero[0]}; they have no direction. Mend those items' texts or use "
          "normalization='standardize'."
        )
      return x / norms[:, None]
    if x.shape[1] != self.mean.size:
      raise InputError(
        f"Embeddings have width {x.shape[1]}, the normalization was fitted on "
        f"width {self.mean.size}; embed new items as the old ones were."
      )
    width = self.projection.shape[1] if self.projection.size else x.shape[1]
    out = np.empty((len(x), width), np.float32)
    for start in range(0, len(x), _CHUNK_ROWS):
      rows = x[start : start + _CHUNK_ROWS] - self.mean[None, :]
      if self.projection.size:
        rows = rows @ self.projection
      if self.scale.size:
        rows = rows * self.scale[None, :]
      out[start : start + _CHUNK_ROWS] = rows
    return out

  def to_arrays(self) -> dict[str, np.ndarray]:
    """Returns the statistics as numeric arrays for an artifact."""
    return {
      "mean": self.mean,
      "projection": self.projection,
      "scale": self.scale,
      **artifact.prefixed(artifact.pack_strings([self.kind]), "kind"),
    }

  @classmethod
  def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "Normalization":
    """Returns the normalization that `to_arrays` wrote."""
    (kind,) = artifact.unpack_strings(artifact.group(arrays, "kind"))
    return cls(kind, arrays["mean"], arrays["projection"], arrays["scale"])


def check_options(kind: str, output_dim: int) -> None:
  """Refuses settings that no data could meet.

  Args:
    kind: One of `KINDS`.
    output_dim: Width wanted of "pca" or "whiten", 0 for the widest.

  Raises:
    InputError: Unknown kind, or an output_dim that it cannot have.
  """
  checks.check_known(kind, KINDS, "normalization")
  if output_dim < 0:
    raise InputError(f"Need output_dim >= 0; got {output_dim=}.")
  if output_dim and kind not in _PROJECTIONS:
    raise InputError(
      f"output_dim={output_dim} needs normalization='pca' or 'whiten'; got "
      f"{kind!r}. Set output_dim=0 or another normalization."
    )


def fit(
  x: Float32[np.ndarray, "N D"], *, kind: str, output_dim: int = 0
) -> Normalization:
  """Takes the statistics of `x`, summed in float64 by chunks of rows.

  Args:
    x: Embeddings, finite.
    kind: One of `KINDS`.
    output_dim: Width of "pca" and "whiten"; 0 takes every direction of "pca"
      and those with any variance of "whiten".

  Raises:
    InputError: Unknown kind, an output_dim that it cannot have, or fewer
      directions with variance than "whiten" is to scale.
  """
  check_options(kind, output_dim)
  empty = np.zeros(0, np.float32)
  no_projection = np.zeros((0, 0), np.float32)
  if kind in ("none", "l2"):
    return Normalization(kind, empty, no_projection, empty)
  mean = _mean(x)
  if kind == "center":
    return Normalization(kind, mean.astype(np.float32), no_projection, empty)
  if kind == "standardize":
    std = np.sqrt(_variance(x, mean))
    constant = std <= np.sqrt(_RANK_TOLERANCE) * max(std.max(), 1e-30)
    if constant.any():
      logging.warning(
        "%d of %d embedding columns are constant; they become 0.",
        constant.sum(),
        std.size,
      )
    scale = np.where(constant, 1.0, 1.0 / np.where(constant, 1.0, std))
    return Normalization(
      kind,
      mean.astype(np.float32),
      no_projection,
      scale.astype(np.float32),
    )
  return _fit_projection(x, mean, kind, output_dim)


def _chunks(x: np.ndarray):
  for start in range(0, len(x), _CHUNK_ROWS):
    yield x[start : start + _CHUNK_ROWS].astype(np.float64)


def _mean(x: np.ndarray) -> np.ndarray:
  return sum(chunk.sum(axis=0) for chunk in _chunks(x)) / len(x)


def _variance(x: np.ndarray, mean: np.ndarray) -> np.ndarray:
  squares = (np.square(chunk - mean[None, :]) for chunk in _chunks(x))
  return sum(square.sum(axis=0) for square in squares) / len(x)


def _fit_projection(
  x: np.ndarray, mean: np.ndarray, kind: str, output_dim: int
) -> Normalization:
  """PCA by the covariance's eigenvectors, signs fixed."""
  centered = (chunk - mean[None, :] for chunk in _chunks(x))
  covariance = sum(rows.T @ rows for rows in centered) / len(x)  # [D, D]
  variances, vectors = np.linalg.eigh(covariance)
  variances, vectors = variances[::-1], vectors[:, ::-1]
  limit = x.shape[1]
  if kind == "whiten":
    floor = _RANK_TOLERANCE * max(variances[0], 1e-30)
    limit = int(np.sum(variances > floor))
    if not limit:
      raise InputError(
        f"All {len(x)} embeddings are equal; there is nothing to whiten."
      )
  if output_dim > limit:
    raise InputError(
      f"{kind!r} finds {limit} directions in {len(x)} embeddings of width "
      f"{x.shape[1]}; got {output_dim=}. Set {limit} or less."
    )
  width = output_dim or limit
  vectors = vectors[:, :width]
  # An eigenvector's sign is arbitrary: its largest entry becomes positive.
  largest = np.argmax(np.abs(vectors), axis=0)
  signs = np.sign(vectors[largest, np.arange(width)])
  scale = np.zeros(0)
  if kind == "whiten":
    scale = 1.0 / np.sqrt(variances[:width])
  return Normalization(
    kind,
    mean.astype(np.float32),
    (vectors * signs[None, :]).astype(np.float32),
    scale.astype(np.float32),
  )
