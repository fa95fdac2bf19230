"""The k best of n scores per row, as a set in ascending order of position.

Beam search needs no sorted beams, only the right set with ties to the lowest
position, and that is far cheaper than a sort where k and n are large. All
forms below return the same positions; they differ in speed alone:

- sort: `lax.top_k`, then its positions sorted. The reference; best on CPU.
- count: an element's rank is the number of elements before it, one fused pass
  of n^2 comparisons. Best for few and short rows.
- digits: the k-th largest score, found by its bits in 8 counting passes of 15
  thresholds or 4 of 255, then the chosen are squeezed together by prefix sums.
- groups: the k best lie in the k groups of largest maximum (an element of
  another group has k maxima before it); select groups, then elements.

"auto" takes sort on CPU and elsewhere what measured best (docs/decoding.md).
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt32

from gr_jax.core.checks import check_known

METHODS = ("auto", "sort", "count", "digits", "groups")

# Limits of the forms on one H200: pairs that are compared at once, and elements
# up to which a launch costs more than the work.
_PAIRS = 1_000_000
_FEW = 10_000
_MANY = 1_200_000
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
  scores = _one_zero(scores)
  if method == "auto":
    return _run_plan(scores, k, _auto_plan(batch, n, k))
  if method == "groups":
    size = max(2, math.isqrt(n // k))
    return _by_groups(scores, k, size, ("count",), ("count",))
  return _run_plan(scores, k, (method,))


def best_first(
  scores: Float[Array, "B n"], *, method: str = "auto"
) -> Int[Array, "B n"]:
  """Returns all positions, best score first; ties by lowest position."""
  batch, n = scores.shape
  scores = _one_zero(scores)
  on_cpu = method == "auto" and jax.default_backend() == "cpu"
  if method == "sort" or on_cpu or batch * n * n > _PAIRS:
    return jax.lax.top_k(scores, n)[1]
  return _where_equal(_ranks(scores), n)


def _run_plan(scores, k, plan):
  name, *rest = plan
  if k >= scores.shape[1]:
    return best_in_order(scores, k)
  if name == "sort":
    return _by_sort(scores, k)
  if name == "count":
    return _by_count(scores, k)
  if name == "digits":
    return _by_digits(scores, k, *(rest or (4,)))
  return _by_groups(scores, k, *rest)


def _auto_plan(batch, n, k):
  # The backend decides speed alone, so a guess that a device placement
  # contradicts is harmless.
  if jax.default_backend() == "cpu":
    return ("sort",)
  return _plan(batch, n, k)


def _plan(batch, n, k):
  """Returns the way that measured best for a size, or for those beside it."""
  if k >= n:
    return ("sort",)  # never run: all positions are chosen
  if batch * n * n <= _PAIRS:
    return ("count",)
  is_small = batch * n <= _FEW
  if n <= (1024 if is_small else 2048):
    return ("sort",)
  if batch * n > _MANY and 2 * k * _GROUP <= n:
    outer = _plan(batch, -(-n // _GROUP), k)
    return ("groups", _GROUP, outer, _plan(batch, k * _GROUP, k))
  return ("digits", 8 if is_small else 4)


def _by_sort(scores, k):
  return jnp.sort(jax.lax.top_k(scores, k)[1], axis=-1)


def _one_zero(scores):
  """Makes -0 and 0 one number: comparisons tie them, sorts do not."""
  return jnp.where(scores == 0, jnp.zeros_like(scores), scores)


def _ranks(scores):
  """Number of elements that come before each, [B, n]."""
  index = jnp.arange(scores.shape[1], dtype=jnp.int32)
  mine, other = scores[:, None, :], scores[:, :, None]  # reduced: axis 1
  is_lower = (index[:, None] < index[None, :])[None]
  before = (other > mine) | ((other == mine) & is_lower)
  return jnp.sum(before, axis=1, dtype=jnp.int32)


def _where_equal(place, k):
  """Inverts distinct places: out[b, j] is the i with place[b, i] == j."""
  n = place.shape[1]
  slot = jnp.arange(k, dtype=jnp.int32)[None, None, :]
  index = jnp.arange(n, dtype=jnp.int32)[None, :, None]
  hit = place[:, :, None] == slot  # [B, n, k]
  return jnp.sum(jnp.where(hit, index, 0), axis=1, dtype=jnp.int32)


def _by_count(scores, k):
  kept = _ranks(scores) < k  # [B, n]
  index = jnp.arange(scores.shape[1], dtype=jnp.int32)
  is_lower = (index[:, None] < index[None, :])[None]
  place = jnp.sum(kept[:, :, None] & is_lower, axis=1, dtype=jnp.int32)
  return _where_equal(jnp.where(kept, place, -1), k)


def _by_groups(scores, k, size, outer_plan, inner_plan):
  batch, n = scores.shape
  pad = -n % size
  if pad:
    scores = jnp.pad(scores, ((0, 0), (0, pad)), constant_values=-jnp.inf)
  grouped = scores.reshape(batch, -1, size)
  group = _run_plan(jnp.max(grouped, axis=-1), k, outer_plan)  # [B, k']
  inside = take(grouped, group[..., None])  # [B, k', size]
  chosen = _run_plan(inside.reshape(batch, -1), k, inner_plan)
  position = take(group, chosen // size) * size + chosen % size
  # A row of few finite scores may choose padding; any position will do there.
  return jnp.minimum(position, n - 1) if pad else position


def _by_digits(scores, k, bits):
  key = _ordered_bits(scores)
  low = jnp.zeros((scores.shape[0],), jnp.uint32)
  digits = jnp.arange(1, 1 << bits, dtype=jnp.uint32)
  # Invariant: at least k keys are >= low, and low's lower bits are zero.
  for shift in range(32 - bits, -1, -bits):
    steps = low[:, None] + (digits << shift)[None]  # [B, thresholds]
    # One reduction of one array: XLA compiles one with a result a threshold
    # for minutes, and writes out what it adds.
    is_above = key[:, None, :] >= steps[:, :, None]
    counts = jnp.sum(is_above, axis=2, dtype=jnp.int32)
    digit = jnp.sum(counts >= k, axis=1, dtype=jnp.uint32)
    low = low + (digit << shift)
  return _squeeze(key > low[:, None], key == low[:, None], k)


def _ordered_bits(scores):
  """Maps float32 to uint32 in the same order."""
  bits = jax.lax.bitcast_convert_type(scores, jnp.uint32)
  sign = jnp.uint32(1 << 31)
  return jnp.where(bits >= sign, ~bits, bits | sign)


def _squeeze(above, equal, k):
  """Returns positions of `above` and of the first `equal`, k in all."""
  batch, n = above.shape
  above, equal = _pack(above), _pack(equal)  # uint32 [B, words]
  num_above = jax.lax.population_count(above).astype(jnp.int32)
  num_equal = jax.lax.population_count(equal).astype(jnp.int32)
  before_above, before_equal = _sums_before(num_above), _sums_before(num_equal)
  need = k - jnp.sum(num_above, axis=1, keepdims=True)  # of the equal ones
  before = before_above + jnp.minimum(before_equal, need)
  # Word of each place: the last one with at most `slot` chosen before it. Of
  # words with the same number before them only the last holds any.
  slot = jnp.arange(k, dtype=jnp.int32)
  is_past = before[:, :, None] <= slot[None, None, :]  # [B, words, k]
  word = jnp.sum(is_past, axis=1, dtype=jnp.int32) - 1  # [B, k]
  rank = slot[None] - take(before, word)
  room = jnp.maximum(need - take(before_equal, word), 0)
  bit = _nth_kept_bit(take(above, word), take(equal, word), room, rank)
  return jnp.minimum(word * 32 + bit, n - 1)


def _sums_before(counts):
  """Exclusive prefix sums along axis 1."""
  index = jnp.arange(counts.shape[1], dtype=jnp.int32)
  is_before = (index[:, None] < index[None, :])[None]
  return jnp.sum(jnp.where(is_before, counts[:, :, None], 0), axis=1)


def _nth_kept_bit(above, equal, room, rank):
  """Returns the bit numbered `rank` among `above` and the first `equal`."""
  bit = jnp.arange(32, dtype=jnp.uint32)[None, None]
  below = (jnp.uint32(1) << bit) - jnp.uint32(1)
  above, equal = above[..., None], equal[..., None]
  room, rank = room[..., None], rank[..., None]

  def count(words):
    return jax.lax.population_count(words & below).astype(jnp.int32)

  equal_before = count(equal)
  kept = ((above >> bit) & 1) | (
    ((equal >> bit) & 1) & (equal_before < room).astype(jnp.uint32)
  )
  place = count(above) + jnp.minimum(equal_before, room)
  hit = (kept == 1) & (place == rank)
  index = jnp.arange(32, dtype=jnp.int32)[None, None]
  return jnp.sum(jnp.where(hit, index, 0), axis=-1, dtype=jnp.int32)


def _pack(mask) -> UInt32[Array, "B words"]:
  """Packs bools [B, n] into words, lowest bit first."""
  mask = jnp.pad(mask, ((0, 0), (0, -mask.shape[1] % 32)))
  bits = mask.reshape(mask.shape[0], -1, 32).astype(jnp.uint32)
  shift = jnp.arange(32, dtype=jnp.uint32)[None, None]
  return jnp.sum(bits << shift, axis=-1, dtype=jnp.uint32)


def take(x: jax.Array, index: jax.Array) -> jax.Array:
  """Gathers along axis 1 with indices that are known to be in range."""
  return jnp.take_along_axis(x, index, axis=1, mode="promise_in_bounds")
