"""What benchmarks/tokenizers.py is timed beside: PyTorch, scikit-learn, faiss.

Each is left out, with a line, when it cannot be imported.
"""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

Row = Callable[[], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class TorchPeer:
  """PyTorch and what is written in it here."""

  torch: Any
  rqvae: Any

  def from_jax(self, x: jax.Array) -> Any:
    """Copies rows to PyTorch's device."""
    device = "cuda" if self.torch.cuda.is_available() else "cpu"
    return self.torch.tensor(np.asarray(x), device=device)

  def median_time(self, run: Callable[[], Any], repeats: int = 5) -> float:
    """Median wall seconds of a call, device included; one warm-up."""

    def wait() -> None:
      if self.torch.cuda.is_available():
        self.torch.cuda.synchronize()

    run()
    times = []
    for _ in range(repeats):
      wait()
      started = time.perf_counter()
      run()
      wait()
      times.append(time.perf_counter() - started)
    return statistics.median(times)


@functools.cache
def find(name: str) -> Any:
  """Imports a peer, or returns None."""
  try:
    if name == "torch":
      import torch

      from benchmarks import rqvae_torch

      return TorchPeer(torch, rqvae_torch)
    if name == "sklearn":
      import sklearn.cluster

      return sklearn.cluster
    import faiss

    return faiss
  except ImportError as error:
    print(f"{name} is not timed: {error}", flush=True)
    return None


def kmeans_iterations(
  x: jax.Array, host: np.ndarray, num_codes: int, iterations: int
) -> dict[str, Callable[[], float]]:
  """Seconds of one Lloyd iteration over all rows, by peer.

  Args:
    x: All rows, on JAX's device.
    host: Some of them: CPU peers read these, their time is scaled to all.
    num_codes: K.
    iterations: Timed on PyTorch.
  """
  scale, runs = x.shape[0] / len(host), {}
  torch_peer, sklearn, faiss = map(find, ("torch", "sklearn", "faiss"))

  def by_sklearn() -> float:
    started = time.perf_counter()
    sklearn.KMeans(
      num_codes, init=host[:num_codes], n_init=1, max_iter=3, tol=0.0
    ).fit(host)
    return (time.perf_counter() - started) / 3 * scale

  def by_faiss() -> float:
    clustering = faiss.Clustering(host.shape[1], num_codes)
    clustering.niter, clustering.max_points_per_centroid = 3, len(host)
    started = time.perf_counter()
    clustering.train(host, faiss.IndexFlatL2(host.shape[1]))
    return (time.perf_counter() - started) / 3 * scale

  if torch_peer is not None:
    runs["torch float32"] = lambda: torch_peer.rqvae.kmeans_time(
      torch_peer.from_jax(x), num_codes, iterations
    )
  if sklearn is not None:
    runs["scikit-learn CPU"] = by_sklearn
  if faiss is not None:
    runs["faiss CPU"] = by_faiss
  return runs


def fits(
  name: str, x: jax.Array, options: dict[str, Any], quick: bool
) -> dict[str, Row]:
  """Fit and encode of the same method elsewhere, by peer; {} when none has it.

  Args:
    name: Our tokenizer.
    x: Rows it is fitted on.
    options: Its options.
    quick: Fewer rows for CPU peers.
  """
  runs: dict[str, Row] = {}
  if name == "residual_kmeans" and find("sklearn") is not None:
    runs["scikit-learn CPU"] = functools.partial(_sklearn_row, x, options)
  if name in ("residual_kmeans", "pq", "opq") and find("faiss") is not None:
    runs["faiss CPU"] = functools.partial(_faiss_row, name, x, options)
  on_torch = {
    "residual_kmeans": "encode_residual",
    "pq": "encode_subspaces",
    "lsh": "encode_lsh",
    "rq_vae": "encode_rqvae",
  }
  if name in on_torch and find("torch") is not None:
    runs["torch"] = functools.partial(_torch_row, on_torch[name], x, options)
  del quick
  return runs


def _rates(num_rows: int, passes: int, fit_s: float, encode_s: float):
  return {
    "fit_s": fit_s,
    "passes": passes,
    "fit_rows_per_s": num_rows * passes / fit_s,
    "encode_rows_per_s": num_rows / encode_s,
  }


def _sklearn_row(x: jax.Array, options: dict[str, Any]) -> dict[str, Any]:
  """Residual k-means by one KMeans a level, 3 iterations each."""
  sizes = options["codebook_sizes"]
  residual, models = np.array(x), []
  started = time.perf_counter()
  for size in sizes:
    model = (
      find("sklearn")
      .KMeans(size, init=residual[:size], n_init=1, max_iter=3, tol=0.0)
      .fit(residual)
    )
    residual = residual - model.cluster_centers_[model.labels_]
    models.append(model)
  fit_s = time.perf_counter() - started
  started, residual = time.perf_counter(), np.array(x)
  for model in models:
    residual = residual - model.cluster_centers_[model.predict(residual)]
  encode_s = time.perf_counter() - started
  return _rates(len(residual), 3 * len(sizes), fit_s, encode_s)


def _faiss_row(name: str, x: jax.Array, options: dict[str, Any]):
  """faiss's quantizer of the same kind and size, few iterations."""
  faiss, host = find("faiss"), np.asarray(x)
  sizes = options["codebook_sizes"]
  dim, bits = host.shape[1], (sizes[0] - 1).bit_length()
  started = time.perf_counter()
  if name == "residual_kmeans":
    coder = faiss.ResidualQuantizer(dim, len(sizes), bits)
    coder.max_beam_size = 1
    coder.train_type = faiss.ResidualQuantizer.Train_default
    passes = coder.cp.niter * len(sizes)
  else:
    coder = faiss.ProductQuantizer(dim, len(sizes), bits)
    coder.cp.niter = 5
    passes = coder.cp.niter * len(sizes)
  coder.cp.max_points_per_centroid = len(host)
  if name == "opq":
    rotation = faiss.OPQMatrix(dim, len(sizes))
    rotation.niter = 5
    rotation.train(host)
    host = rotation.apply(host)
    passes += rotation.niter * len(sizes)
  coder.train(host)
  fit_s = time.perf_counter() - started
  started = time.perf_counter()
  coder.compute_codes(host)
  return _rates(len(host), passes, fit_s, time.perf_counter() - started)


def _torch_row(method: str, x: jax.Array, options: dict[str, Any]):
  """Encode on PyTorch's device, random parameters of the same shapes."""
  peer = find("torch")
  rows = peer.from_jax(x)
  run = getattr(peer.rqvae, method)(rows, options.get("codebook_sizes"))
  return {"encode_rows_per_s": rows.shape[0] / peer.median_time(run)}
