"""First values of learned codebooks, level by level on latent residuals."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gr_jax.core import nearest
from gr_jax.tokenizers import kmeans

_KMEANS_ITERS = 20
_LARGE = 4.0  # times the data's standard deviation


def random_normal(
  rows: Float[Array, "N C"], *, num_codes: int, key: jax.Array
) -> Float[Array, "K C"]:
  """Normal codes with the rows' mean and standard deviation."""
  return _normal(rows, num_codes, key, 1.0)


def large_variance_normal(
  rows: Float[Array, "N C"], *, num_codes: int, key: jax.Array
) -> Float[Array, "K C"]:
  """Normal codes four times as wide as the rows.

  The heuristic against dead codes: few codes start near the center, where all
  rows would choose the same ones.
  """
  return _normal(rows, num_codes, key, _LARGE)


def _normal(rows, num_codes, key, width):
  noise = jax.random.normal(key, (num_codes, rows.shape[1]))
  mean = jnp.mean(rows, axis=0, keepdims=True)
  std = jnp.std(rows, axis=0, keepdims=True)
  return mean + width * std * noise


def first_batch_kmeans(
  rows: Float[Array, "N C"], *, num_codes: int, key: jax.Array
) -> Float[Array, "K C"]:
  """k-means on the rows (TIGER, arXiv:2305.05065, section 3.1)."""
  found = kmeans.fit(
    rows, num_codes=num_codes, key=key, max_iters=_KMEANS_ITERS
  )
  return found.state.codebook


def kmeans_plus_plus(
  rows: Float[Array, "N C"], *, num_codes: int, key: jax.Array
) -> Float[Array, "K C"]:
  """k-means++ seeds: rows far from each other, no Lloyd iteration."""
  return kmeans.init(rows, num_codes=num_codes, key=key).codebook


def from_data(
  rows: Float[Array, "N C"], *, num_codes: int, key: jax.Array
) -> Float[Array, "K C"]:
  """Distinct rows, drawn at random."""
  return kmeans.random_rows(rows, num_codes, key)


CODEBOOK_INITS: dict[str, Callable[..., jax.Array]] = {
  "random_normal": random_normal,
  "large_variance_normal": large_variance_normal,
  "first_batch_kmeans": first_batch_kmeans,
  "kmeans_plus_plus": kmeans_plus_plus,
  "from_data": from_data,
}


def init_codebooks(
  latents: Float[Array, "N C"],
  codebook_sizes: tuple[int, ...],
  *,
  name: str,
  key: jax.Array,
) -> list[jax.Array]:
  """Fills every level from what the levels before it left of the latents.

  Args:
    latents: Encoder outputs of many rows.
    codebook_sizes: K of every level.
    name: Entry of CODEBOOK_INITS.
    key: Random key.

  Returns:
    float32 [K_l, C] for every level.
  """
  residual, codebooks = latents, []
  for level, size in enumerate(codebook_sizes):
    codebook = CODEBOOK_INITS[name](
      residual, num_codes=size, key=jax.random.fold_in(key, level)
    )
    codes = nearest.nearest_code(residual, codebook)
    residual = residual - codebook[codes]
    codebooks.append(codebook)
  return codebooks
