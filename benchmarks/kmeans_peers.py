"""Peers of `benchmarks/kmeans.py`: what others take for the same work.

Every function returns seconds, or raises when its package or device is not
there. The PyTorch forms are what one writes first; the other packages are
called as their own documentation does.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np


def cuda_time(run: Callable[[], Any], repeats: int) -> float:
  """Mean seconds of a call on the current CUDA device, after one warm-up."""
  import torch

  run()
  torch.cuda.synchronize()
  started = time.perf_counter()
  for _ in range(repeats):
    run()
  torch.cuda.synchronize()
  return (time.perf_counter() - started) / repeats


def to_torch(x: Any) -> Any:
  """Shares a JAX array with PyTorch on a GPU, copies it elsewhere."""
  import torch

  if torch.cuda.is_available():
    return torch.from_dlpack(x)
  return torch.tensor(np.asarray(x))


def torch_lloyd(x: Any, centers: Any, *, dtype: str, repeats: int) -> float:
  """One Lloyd iteration by chunked matmul, argmin and index_add."""
  import torch

  torch.backends.cuda.matmul.allow_tf32 = dtype == "tfloat32"
  kind = torch.bfloat16 if dtype == "bfloat16" else torch.float32
  cast = x.to(kind)
  num_codes = centers.shape[0]
  rows = max(1, (1 << 29) // num_codes)

  def iteration() -> Any:
    norms = centers.square().sum(1)
    right = centers.to(kind).T
    codes = torch.cat(
      [
        (norms - 2 * (piece @ right).float()).argmin(1)
        for piece in cast.split(rows)
      ]
    )
    sums = torch.zeros_like(centers).index_add_(0, codes, x)
    counts = torch.bincount(codes, minlength=num_codes)
    return sums / counts.clamp(min=1)[:, None]

  return cuda_time(iteration, repeats)


def flash_kmeans(x: Any, centers: Any, *, dtype: str, repeats: int) -> float:
  """One iteration of flash-kmeans (Triton)."""
  import flash_kmeans as package
  import torch

  kind = torch.bfloat16 if dtype == "bfloat16" else torch.float32
  x, centers = x.to(kind)[None], centers.to(kind)[None]

  def fit(iterations: int) -> None:
    package.batch_kmeans_Euclid(
      x,
      centers.shape[1],
      max_iters=iterations,
      init_centroids=centers,
      tol=-1.0,
    )

  return _one_iteration(fit, repeats)


def flashlib(x: Any, centers: Any, *, dtype: str, repeats: int) -> float:
  """One iteration of flashlib's k-means, as it routes itself."""
  import torch
  from flashlib import flash_kmeans as fit_kmeans

  kind = torch.bfloat16 if dtype == "bfloat16" else torch.float32
  x, centers = x.to(kind), centers.to(kind)

  def fit(iterations: int) -> None:
    fit_kmeans(
      x[None],
      centers.shape[0],
      max_iters=iterations,
      init_centroids=centers[None].clone(),
      tol=0.0,
    )

  return _one_iteration(fit, repeats)


def _one_iteration(fit: Callable[[int], None], repeats: int) -> float:
  """Seconds an iteration, without what a fit does once."""
  few = cuda_time(lambda: fit(1), repeats)
  many = cuda_time(lambda: fit(6), repeats)
  return (many - few) / 5


def torch_top_k_pass(
  x: Any, centers: Any, *, num_clusters: int
) -> tuple[float, Any]:
  """Algorithm 1 with one top-k a cluster, over the first clusters.

  The work of a cluster does not depend on how many came before.

  Returns:
    Seconds for all clusters, extrapolated from those that ran, and the codes.
  """
  import torch

  torch.backends.cuda.matmul.allow_tf32 = False
  share = x.shape[0] // centers.shape[0]
  norms = x.square().sum(1)

  def one_pass() -> Any:
    taken = torch.zeros_like(norms, dtype=torch.bool)
    codes = torch.full_like(norms, -1, dtype=torch.int32)
    for k in range(num_clusters):
      distance = norms - 2 * (x @ centers[k])
      distance.masked_fill_(taken, float("inf"))
      found = distance.topk(share, largest=False).indices
      codes[found], taken[found] = k, True
    return codes

  seconds = cuda_time(one_pass, 1)
  return seconds * centers.shape[0] / num_clusters, one_pass()


def numpy_pass(
  x: np.ndarray, centers: np.ndarray, counts: np.ndarray, order: np.ndarray
) -> np.ndarray:
  """Algorithm 1 as printed: a float64 sort of the free items per cluster."""
  x, centers = x.astype(np.float64), centers.astype(np.float64)
  codes = np.full(len(x), -1, np.int32)
  free = np.arange(len(x))
  for cluster in order:
    distance = np.square(x[free] - centers[cluster]).sum(-1)
    ranked = np.argsort(distance, kind="stable")  # ties: lowest index
    codes[free[ranked[: counts[cluster]]]] = cluster
    free = free[codes[free] < 0]
  return codes


def k_means_constrained(x: np.ndarray, centers: np.ndarray) -> float:
  """Seconds of a k-means-constrained fit of one iteration, equal sizes."""
  from k_means_constrained import KMeansConstrained

  share = len(x) // len(centers)
  model = KMeansConstrained(
    n_clusters=len(centers),
    size_min=share,
    size_max=share + 1,
    init=centers,
    n_init=1,
    max_iter=1,
    random_state=0,
  )
  started = time.perf_counter()
  model.fit(x)
  return time.perf_counter() - started


def scikit_learn(x: np.ndarray, centers: np.ndarray) -> float:
  """Seconds of one scikit-learn Lloyd iteration."""
  from sklearn.cluster import KMeans

  def fit(iterations: int) -> float:
    model = KMeans(
      len(centers), init=centers, n_init=1, max_iter=iterations, tol=0.0
    )
    started = time.perf_counter()
    model.fit(x)
    return time.perf_counter() - started

  fit(1)
  return (fit(6) - fit(1)) / 5


def faiss(x: np.ndarray, centers: np.ndarray) -> float:
  """Seconds of one faiss-cpu iteration on all rows."""
  import faiss as package

  def fit(iterations: int) -> float:
    clustering = package.Clustering(x.shape[1], len(centers))
    clustering.niter = iterations
    clustering.max_points_per_centroid = len(x)
    index = package.IndexFlatL2(x.shape[1])
    started = time.perf_counter()
    clustering.train(x, index)
    return time.perf_counter() - started

  fit(1)
  return (fit(6) - fit(1)) / 5
