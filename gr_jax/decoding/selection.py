"""The k best of n scores per row, as a set in ascending order of position.

Beam search needs no sorted beams, only the right set with ties to the lowest
position, and that is far cheaper than a sort where k and n are large. All
forms below return the same positions; they differ in speed alone:

- sort: `lax.top_k`, then its positions sorted. The reference; best on CPU.
- groups: the k best lie in the k groups of largest maximum (an element of
  another group has k maxima before it); select groups, then elements.
- kernel: one launch, see `select_kernel`; rows too long for it by groups.
  Asked for elsewhere than on a GPU it is interpreted: for tests, and slow.

"auto" takes the kernel on NVIDIA GPUs, sort on CPU, and elsewhere groups for
long rows, sort for short ones. The times of whole searches decided
(docs/decoding.md): selections timed alone have misled.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from gr_jax.core import pallas_gpu
from gr_jax.core.checks import check_known
from gr_jax.decoding import select_kernel

METHODS = ("auto", "sort", "groups", "kernel")

_PAIRS = 1_000_000  # compared at once, up to which counting beats sorting
_SHORT = 2048  # columns that a sort takes as fast as groups
_GROUP = 8


def best_in_order(
  scores: Float[Array, "B n"], k: int, *, method: str = "auto"
) -> Int[Array, "B k"]:
  """Returns positions of the k best of each row, ascending.

  >>> best_in_order(jnp.array([[1.0, 5.0, 5.0, 0.0, 9.0]]), 2).tolist()
  [[1, 4]]

  Args:
    scores: Float32, -inf allowed, NaN not.
    k: How many, at most n.
    method: One of METHODS.

  Returns:
    int32 [B, k]; among equal scores the lowest positions are chosen.

  Raises:
    InputError: Unknown method.
  """
  check_known(method, METHODS, "selection method")
  batch, n = scores.shape
  if k >= n:
    return jnp.broadcast_to(jnp.arange(n, dtype=jnp.int32)[None], (batch, n))
  scores = lax.stop_gradient(scores)  # positions have none
  sort = functools.partial(_by_sort, k=k)
  groups = functools.partial(_by_groups, k=k, size=_GROUP, form=_by_sort)
  kernel = functools.partial(_by_kernel, k=k, interpret=False)
  if method == "sort":
    return sort(scores)
  if method == "groups":
    return groups(scores)
  if method == "kernel":
    interpreted = functools.partial(_by_kernel, k=k, interpret=True)
    return lax.platform_dependent(scores, cuda=kernel, default=interpreted)
  # By the platform a program is lowered for, which may not be the backend.
  is_long = n > _SHORT and 2 * k * _GROUP <= n
  forms = {"cpu": sort, "default": groups if is_long else sort}
  if pallas_gpu.is_known_device():
    forms["cuda"] = kernel
  return lax.platform_dependent(scores, **forms)


def best_first(
  scores: Float[Array, "B n"], *, method: str = "auto"
) -> Int[Array, "B n"]:
  """Returns all positions, best score first; ties by lowest position.

  Args:
    scores: Float32, -inf allowed, NaN not.
    method: "sort", "count" (an element's rank is the number of elements before
      it, one fused pass of n^2 comparisons) or "auto".
  """
  batch, n = scores.shape
  scores = _one_zero(scores)
  if method == "auto":
    # The backend decides speed alone, whatever the placement.
    is_small = batch * n * n <= _PAIRS and jax.default_backend() != "cpu"
    method = "count" if is_small else "sort"
  if method == "sort":
    return lax.top_k(scores, n)[1]
  return _by_count(scores)


def _by_sort(scores, k):
  return jnp.sort(lax.top_k(_one_zero(scores), k)[1], axis=-1)


def _one_zero(scores):
  """Makes -0 and 0 one number: comparisons tie them, sorts do not."""
  return jnp.where(scores == 0, jnp.zeros_like(scores), scores)


def _by_groups(scores, k, size, form):
  """`form` selects groups, then elements of theirs."""
  batch, n = scores.shape
  if k >= -(-n // size):
    return form(scores, k)
  # Padding comes last in its group, and k groups hold k other elements: it is
  # never chosen.
  pad = ((0, 0), (0, -n % size))
  scores = jnp.pad(scores, pad, constant_values=-jnp.inf)
  grouped = scores.reshape(batch, -1, size)
  group = form(jnp.max(grouped, axis=-1), k)  # [B, k]
  inside = take(grouped, group[..., None])  # [B, k, size]
  chosen = form(inside.reshape(batch, -1), k)
  return take(group, chosen // size) * size + chosen % size


def _by_kernel(scores, k, interpret):
  n = scores.shape[1]
  if n <= select_kernel.MOST:
    return select_kernel.select(scores, k, interpret=interpret)
  size = 1 << (-(-n // select_kernel.MOST) - 1).bit_length()
  if 2 * k * size > n:  # too many are chosen for groups to help
    return _by_sort(scores, k)
  form = functools.partial(_by_kernel, interpret=interpret)
  return _by_groups(scores, k, size, form)


def _by_count(scores):
  n = scores.shape[1]
  index = jnp.arange(n, dtype=jnp.int32)
  mine, other = scores[:, None, :], scores[:, :, None]  # reduced: axis 1
  is_lower = (index[:, None] < index[None, :])[None]
  before = (other > mine) | ((other == mine) & is_lower)
  rank = jnp.sum(before, axis=1, dtype=jnp.int32)  # [B, n]
  # The inverse of a permutation: out[b, j] is the i of rank[b, i] == j.
  hit = rank[:, :, None] == index[None, None, :]
  return jnp.sum(jnp.where(hit, index[None, :, None], 0), axis=1)


def take(x: jax.Array, index: jax.Array) -> jax.Array:
  """Gathers along axis 1 with indices that are known to be in range."""
  return jnp.take_along_axis(x, index, axis=1, mode="promise_in_bounds")
