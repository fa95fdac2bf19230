"""How good codes are: usage, balance, collisions, reconstruction, retrieval.

Pure functions of codes and embeddings; nothing here changes anything. Usage
and entropy are alarms, not targets: the recommendation metric decides.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int


def code_counts(
  codes: Int[np.ndarray, " N"], num_codes: int
) -> Int[np.ndarray, " K"]:
  """Counts the items of every code of one level."""
  return np.bincount(codes, minlength=num_codes)


def used_counts(codes: Int[np.ndarray, " N"]) -> Int[np.ndarray, " used"]:
  """Counts the items of every code in use: for levels of very many codes."""
  return _used_counts(codes, int(codes.max(initial=0)) + 1)


def _used_counts(ids: np.ndarray, size: int) -> np.ndarray:
  """Counts ids 0 <= id < size that occur, in their order."""
  if size <= max(4 * ids.size, 1 << 16):
    counts = np.bincount(ids, minlength=1)
    return counts[counts > 0]
  return np.unique(ids, return_counts=True)[1]


def utilization(
  counts: Int[np.ndarray, " K"], num_codes: int | None = None
) -> float:
  """Share of codes that some item has.

  Args:
    counts: Items per code.
    num_codes: K, when `counts` leaves out codes that no item has.
  """
  return float(np.sum(counts > 0) / (num_codes or counts.size))


def dead_codes(
  counts: Int[np.ndarray, " K"], num_codes: int | None = None
) -> int:
  """Number of codes that no item has; arguments as for `utilization`."""
  return int((num_codes or counts.size) - np.sum(counts > 0))


def entropy(counts: Int[np.ndarray, " K"]) -> float:
  """Token entropy H = -sum p log p, in nats.

  >>> round(entropy(np.array([2, 2, 0])) / np.log(2), 6)
  1.0
  """
  p = counts[counts > 0] / max(1, counts.sum())
  return float(-np.sum(p * np.log(p)) + 0.0)


def perplexity(counts: Int[np.ndarray, " K"]) -> float:
  """exp of the entropy: the number of equally used codes as diverse."""
  return float(np.exp(entropy(counts)))


def lorenz_curve(counts: Int[np.ndarray, " K"]) -> Float[np.ndarray, " K"]:
  """L(i): share of all items held by the i codes that hold fewest, i = 1..K."""
  return np.cumsum(np.sort(counts)) / max(1, counts.sum())


def gini(counts: Int[np.ndarray, " K"], num_codes: int | None = None) -> float:
  """Gini coefficient of items per code (or per ID).

  G = 2 / K * sum_i (i / K - L(i)), with L the Lorenz curve of the ascending
  counts: 0 when all are equal, (K - 1) / K when one holds everything.

  Args:
    counts: Items per code.
    num_codes: K, when `counts` leaves out codes that no item has; there L(i)
      is 0.
  """
  n = num_codes or counts.size
  return float(2.0 / n * ((n + 1) / 2 - np.sum(lorenz_curve(counts))))


def top_share(counts: Int[np.ndarray, " K"]) -> float:
  """Share of all items held by the most used code."""
  return float(counts.max() / max(1, counts.sum()))


def path_counts(codes: Int[np.ndarray, "N L"]) -> Int[np.ndarray, " paths"]:
  """Counts the items of every distinct row of codes, in sorted order."""
  sizes = [int(column.max(initial=0)) + 1 for column in codes.T]
  if math.prod(sizes) > np.iinfo(np.int64).max:
    return np.unique(codes, axis=0, return_counts=True)[1]
  # One number a row: whole rows compare some thirty times as slowly.
  ids = np.zeros(codes.shape[0], np.int64)
  for column, size in zip(codes.T, sizes, strict=True):
    ids = ids * size + column
  return _used_counts(ids, math.prod(sizes))


def conditional_branching(codes: Int[np.ndarray, "N L"], level: int) -> float:
  """exp H(c_l | c_<l): how many codes a prefix of length l really chooses from.

  Args:
    codes: Codes of all items.
    level: l, from 0; at level 0 this is the perplexity.
  """
  until = entropy(path_counts(codes[:, : level + 1]))
  before = entropy(path_counts(codes[:, :level])) if level else 0.0
  return float(np.exp(until - before))


def collision_rate(codes: Int[np.ndarray, "N L"]) -> float:
  """Share of items whose whole ID some other item has too."""
  counts = path_counts(codes)
  return float(counts[counts > 1].sum() / codes.shape[0])


def independent_coding_rate(codes: Int[np.ndarray, "N L"]) -> float:
  """ICR: share of items alone on their ID; 1 - `collision_rate`."""
  return float((path_counts(codes) == 1).sum() / codes.shape[0])


def bucket_sizes(codes: Int[np.ndarray, "N L"]) -> dict[int, int]:
  """How many IDs hold how many items: {1: 11000, 2: 300, ...}."""
  sizes, ids = np.unique(path_counts(codes), return_counts=True)
  return {int(s): int(n) for s, n in zip(sizes, ids, strict=True)}


def _counts_std(counts: np.ndarray, num_codes: int) -> float:
  """Standard deviation of items per code, codes without items included."""
  mean = counts.sum() / num_codes
  squares = np.sum(np.square(counts.astype(np.float64)))
  return float(np.sqrt(max(0.0, squares / num_codes - mean**2)))


def level_statistics(
  codes: Int[np.ndarray, "N L"], codebook_sizes: Sequence[int]
) -> list[dict[str, float | int]]:
  """Describes every level: usage, balance and the hourglass figures.

  The hourglass (Kuai et al. 2024, arXiv:2407.21488) is a middle level of low
  entropy and high Gini, spread and top share.

  Args:
    codes: Codes of all items.
    codebook_sizes: K of every level.

  Returns:
    One dict a level, keys the same for all.
  """
  levels = []
  possible = 1
  for level, size in enumerate(codebook_sizes):
    counts = used_counts(codes[:, level])
    possible *= size
    paths = path_counts(codes[:, : level + 1]).size
    levels.append(
      {
        "num_codes": size,
        "utilization": utilization(counts, size),
        "dead_codes": dead_codes(counts, size),
        "entropy": entropy(counts),
        "perplexity": perplexity(counts),
        "gini": gini(counts, size),
        "counts_std": _counts_std(counts, size),
        "top_share": top_share(counts),
        "distinct_paths": paths,
        "path_share": paths / possible,
        "branching": conditional_branching(codes, level),
      }
    )
  return levels


def id_statistics(codes: Int[np.ndarray, "N L"]) -> dict[str, float | int]:
  """Describes whole IDs: collisions and how unevenly IDs share the items."""
  counts = path_counts(codes)
  return {
    "num_items": codes.shape[0],
    "distinct_ids": counts.size,
    "collision_rate": collision_rate(codes),
    "independent_coding_rate": independent_coding_rate(codes),
    "largest_bucket": int(counts.max()),
    "entropy": entropy(counts),
    "perplexity": perplexity(counts),
    "gini": gini(counts),
  }


def reconstruction_mse(
  x: Float[np.ndarray, "N D"], decoded: Float[np.ndarray, "N D"]
) -> float:
  """Mean over items of the squared distance |x - x^|^2."""
  return float(np.mean(np.sum(np.square(x - decoded), axis=-1)))


def relative_mse(
  x: Float[np.ndarray, "N D"], decoded: Float[np.ndarray, "N D"]
) -> float:
  """`reconstruction_mse` over that of the mean row: 1 - explained variance."""
  mean = x.mean(axis=0, keepdims=True)
  total = np.mean(np.sum(np.square(x - mean), axis=-1))
  return reconstruction_mse(x, decoded) / float(max(total, 1e-30))


def reconstruction_cosine(
  x: Float[np.ndarray, "N D"], decoded: Float[np.ndarray, "N D"]
) -> float:
  """Mean cosine between items and what their codes decode to."""
  norms = np.linalg.norm(x, axis=-1) * np.linalg.norm(decoded, axis=-1)
  dots = np.sum(x * decoded, axis=-1)
  return float(np.mean(dots / np.maximum(norms, 1e-30)))


@functools.partial(jax.jit, static_argnames="chunk_size")
def _target_ranks(vectors, queries, targets, chunk_size):
  """Rank of each target among the neighbors of its query, from 0."""
  num_items = vectors.shape[0]
  items = jnp.arange(num_items, dtype=jnp.int32)

  def block(pair):
    query, target = pair  # [chunk]
    scores = jnp.matmul(
      vectors[query], vectors.T, precision=lax.Precision.HIGHEST
    )  # [chunk, N]
    own = items[None, :] == query[:, None]
    goal = jnp.take_along_axis(scores, target[:, None], axis=-1)  # [chunk, 1]
    ahead = (scores > goal) | (
      (scores == goal) & (items[None, :] < target[:, None])
    )
    return jnp.sum(ahead & ~own, axis=-1).astype(jnp.int32)  # [chunk]

  padding = -queries.shape[0] % chunk_size
  pair = tuple(
    jnp.pad(a, (0, padding)).reshape(-1, chunk_size) for a in (queries, targets)
  )
  return lax.map(block, pair).reshape(-1)[: queries.shape[0]]


def hit_rate(
  vectors: Float[np.ndarray, "N D"] | Float[Array, "N D"],
  queries: Int[np.ndarray, " Q"],
  targets: Int[np.ndarray, " Q"],
  *,
  at: Sequence[int] = (1, 10, 100),
  chunk_size: int = 512,
) -> dict[str, float]:
  """HR@k of item-to-item retrieval by cosine similarity (FORGE).

  Computed on embeddings and on decoded codes, it shows what quantization lost.
  The query itself is no candidate; ties go to the lowest item index.

  Args:
    vectors: One row an item: embeddings, or decoded codes.
    queries: Item indices that users chose.
    targets: The items that the same users chose next.
    at: Cut-offs k.
    chunk_size: Queries whose [chunk_size, N] scores are held at once.

  Returns:
    {"hit_rate@k": share of queries whose target is among the k nearest}.
  """
  norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
  unit = jnp.asarray(np.asarray(vectors) / np.maximum(norms, 1e-12))
  ranks = np.asarray(
    _target_ranks(
      unit,
      jnp.asarray(queries, jnp.int32),
      jnp.asarray(targets, jnp.int32),
      min(chunk_size, max(1, len(queries))),
    )
  )
  return {f"hit_rate@{k}": float(np.mean(ranks < k)) for k in at}
