"""Times every tokenizer's fit and encode, and the RQ-VAE step, beside peers.

  python benchmarks/tokenizers.py                     # all, on an accelerator
  python benchmarks/tokenizers.py --quick             # seconds on a CPU
  python benchmarks/tokenizers.py --only step,kmeans  # some parts

Needs jax, flax, optax; PyTorch, scikit-learn and faiss are timed when they can
be imported. Prints one table a part and writes all rows as JSON to --output.
"""

import argparse
import dataclasses
import functools
import json
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

# Peers share the device: JAX must not take all of its memory.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np

from gr_jax.tokenizers import TOKENIZERS, gradient_fit, kmeans

HIDDEN, CODE_DIM, SIZES = (512, 256, 128), 32, (256, 256, 256)


@dataclasses.dataclass
class Results:
  """Rows measured so far, printed as they come."""

  rows: list[dict[str, Any]] = dataclasses.field(default_factory=list)

  def add(self, part: str, name: str, **values: Any) -> None:
    """Prints and keeps one row."""
    self.rows.append({"part": part, "name": name, **values})
    shown = "  ".join(
      f"{k} {v:,.4g}" if isinstance(v, float) else f"{k} {v}"
      for k, v in values.items()
    )
    print(f"{part:8s} {name:34s} {shown}", flush=True)


def rows_of(num_rows: int, dim: int, seed: int = 0) -> jax.Array:
  """Clustered rows on the device: codes have something to find."""
  keys = jax.random.split(jax.random.key(seed), 3)
  centers = jax.random.normal(keys[0], (1000, dim))
  of = jax.random.randint(keys[1], (num_rows,), 0, 1000)
  x = centers[of] + jax.random.normal(keys[2], (num_rows, dim))
  return jax.block_until_ready(x)


def median_time(run: Callable[[], Any], repeats: int) -> float:
  """Median wall seconds of a call that returns device arrays; one warm-up."""
  jax.block_until_ready(run())
  times = []
  for _ in range(repeats):
    started = time.perf_counter()
    jax.block_until_ready(run())
    times.append(time.perf_counter() - started)
  return statistics.median(times)


def step_flops(dim: int, batch_size: int) -> float:
  """Matmul FLOPs of one RQ-VAE training step, networks and distances."""
  widths = [dim, *HIDDEN, CODE_DIM]
  weights = sum(a * b for a, b in zip(widths[:-1], widths[1:], strict=True))
  distances = 2 * batch_size * sum(SIZES) * CODE_DIM
  return 6.0 * batch_size * 2 * weights + distances


def jax_step_time(
  x: jax.Array, *, batch_size: int, epochs: int, rounds: int, **options: Any
) -> float:
  """Seconds per step of the library's own loop.

  A round is `epochs` epochs with all metrics, then codes of all rows, their
  usage, and revival: everything that a fit does, divided by its steps.
  """
  tokenizer = TOKENIZERS["rq_vae"](
    codebook_sizes=SIZES,
    hidden_dims=HIDDEN,
    code_dim=CODE_DIM,
    batch_size=batch_size,
    num_epochs=epochs * (rounds + 1),
    check_every_epochs=epochs,
    codebook_init="from_data",
    **options,
  )
  _, steps = gradient_fit.num_steps(tokenizer, x.shape[0])
  params = tokenizer.init_params(x, key=jax.random.key(0))
  state = gradient_fit.FitState(
    step=jnp.int32(0),
    params=params,
    opt_state=gradient_fit.init_optimizer(tokenizer, params, num_steps=steps),
    extra=tokenizer.start_extra(params),
  )
  count, times = jnp.int32(epochs), []
  for _ in range(rounds + 1):
    started = time.perf_counter()
    state, result = gradient_fit.train_round(
      state, x, jax.random.key(1), count, program=tokenizer
    )
    jax.block_until_ready(result)
    times.append(time.perf_counter() - started)
  return statistics.median(times[1:]) / (epochs * steps)


def measure_steps(results: Results, args: argparse.Namespace) -> None:
  """The RQ-VAE step: ours in several forms, PyTorch eager and compiled."""
  dim = 64 if args.quick else 768
  x = rows_of(4096 if args.quick else 204_800, dim)
  epochs, rounds = (1, 1) if args.quick else (5, 5)
  for batch_size in (512,) if args.quick else (1024, 2048):
    flops = step_flops(dim, batch_size)

    def add(name: str, seconds: float, flops=flops, b=batch_size) -> None:
      results.add(
        "step",
        f"{name}, batch {b}",
        us=seconds * 1e6,
        tflops=flops / seconds / 1e12,
      )

    for dtype in ("float32", "bfloat16"):
      for unroll in (1,) if args.quick else (1, 4, 8):
        seconds = jax_step_time(
          x,
          batch_size=batch_size,
          epochs=epochs,
          rounds=rounds,
          compute_dtype=dtype,
          unroll=unroll,
        )
        add(f"gr_jax {dtype}, unroll {unroll}", seconds)
    seconds = jax_step_time(
      x, batch_size=batch_size, epochs=epochs, rounds=rounds, ema_decay=0.99
    )
    add("gr_jax float32, EMA codebooks", seconds)
    torch_step = peer("torch")
    if torch_step is None:
      continue
    on_device = torch_step.from_jax(x)
    for autocast in (False, True):
      for how in ("eager", "compile", "compile-graphs"):
        if how == "compile-graphs" and on_device.device.type != "cuda":
          continue
        try:
          seconds = torch_step.rqvae.step_time(
            on_device,
            hidden=list(HIDDEN),
            code_dim=CODE_DIM,
            sizes=SIZES,
            batch_size=batch_size,
            steps=10 if args.quick else 300,
            how=how,
            autocast=autocast,
          )
        except Exception as error:  # noqa: BLE001 a peer that fails is a row
          results.add("step", f"torch {how}", failed=repr(error)[:200])
          continue
        dtype = "bfloat16" if autocast else "tf32"
        add(f"torch {how}, {dtype}", seconds)


def measure_kmeans(results: Results, args: argparse.Namespace) -> None:
  """One Lloyd iteration: ours, PyTorch, scikit-learn, faiss."""
  shapes = [(4096, 32, 64)] if args.quick else SHAPES
  for num_rows, dim, num_codes in shapes:
    x = rows_of(num_rows, dim)
    flops = 2.0 * num_rows * dim * num_codes
    iterations = 10
    start = kmeans.from_codebook(x[:num_codes])

    def add(
      name: str, seconds: float, shape=(num_rows, dim), k=num_codes, f=flops
    ):
      results.add(
        "kmeans",
        f"{name}, {shape[0]:,} x {shape[1]}, K {k}",
        ms=seconds * 1e3,
        tflops=f / seconds / 1e12,
      )

    run = functools.partial(
      kmeans.lloyd, start, x, max_iters=iterations, tol=-1.0
    )
    seconds = median_time(lambda run=run: run().state, 3) / iterations
    add("gr_jax float32", seconds)
    torch_peer = peer("torch")
    if torch_peer is not None:
      seconds = torch_peer.rqvae.kmeans_time(
        torch_peer.from_jax(x), num_codes, iterations
      )
      add("torch float32", seconds)
    host = np.asarray(x[:200_000])
    scale = num_rows / len(host)  # linear in rows
    sklearn = peer("sklearn")
    if sklearn is not None:
      started = time.perf_counter()
      sklearn.KMeans(
        num_codes, init=host[:num_codes], n_init=1, max_iter=3, tol=0.0
      ).fit(host)
      add("scikit-learn CPU", (time.perf_counter() - started) / 3 * scale)
    faiss = peer("faiss")
    if faiss is not None:
      clustering = faiss.Clustering(dim, num_codes)
      clustering.niter, clustering.max_points_per_centroid = 3, len(host)
      started = time.perf_counter()
      clustering.train(host, faiss.IndexFlatL2(dim))
      add("faiss CPU", (time.perf_counter() - started) / 3 * scale)


SHAPES = [(200_000, 384, 256), (1_000_000, 64, 256), (1_000_000, 384, 1024)]


def measure_tokenizers(results: Results, args: argparse.Namespace) -> None:
  """Rows/s of every tokenizer's second fit (compiled) and of its encode."""
  num_rows, dim = (1024, 48) if args.quick else (102_400, 384)
  x = rows_of(num_rows, dim)
  k = 16 if args.quick else 256
  trained = {
    "num_epochs": 2 if args.quick else 20,
    "check_every_epochs": 1 if args.quick else 10,
    "batch_size": 256 if args.quick else 2048,
  }
  sizes = {"codebook_sizes": (k, k, k)}
  settings = {
    "balanced_residual_kmeans": {**sizes, "max_iters": 3},
    "fsq": trained,
    "lsh": {},
    "minibatch_residual_kmeans": {**sizes, "num_passes": 5},
    "opmq": {**sizes, **trained},
    "opq": {**sizes, "num_iters": 5, "max_iters": 10},
    "pq": {**sizes, "max_iters": 20},
    "random": sizes,
    "residual_kmeans": {**sizes, "max_iters": 20},
    "rq_opq": {
      "residual_sizes": (k, k),
      "subspace_sizes": (16, 16),
      "num_iters": 5,
      "max_iters": 10,
    },
    "rq_vae": {**sizes, **trained},
    "rvq": {**sizes, **trained},
    "vq_vae": {"codebook_sizes": (k,), **trained},
  }
  for name, options in settings.items():
    if args.tokenizers and name not in args.tokenizers:
      continue
    tokenizer = TOKENIZERS[name](**options)
    tokenizer.fit(x, key=jax.random.key(0))
    state, report = tokenizer.fit(x, key=jax.random.key(0))
    encode = functools.partial(tokenizer.encode, state, x)
    seconds = median_time(encode, 5)
    codes = encode()
    decode = median_time(
      lambda s=state, c=codes, t=tokenizer: t.decode(s, c), 5
    )
    passes = sum(
      len(curve)
      for n, curve in report.curves.items()
      if n.startswith("inertia")
    ) or options.get("num_epochs", 1)
    results.add(
      "fit",
      name,
      fit_s=report.seconds,
      passes=passes,
      rows_per_s=num_rows * passes / report.seconds,
      encode_rows_per_s=num_rows / seconds,
      decode_rows_per_s=num_rows / decode,
      relative_mse=report.relative_mse,
    )


@dataclasses.dataclass(frozen=True)
class TorchPeer:
  """PyTorch and our code in it."""

  torch: Any
  rqvae: Any

  def from_jax(self, x: jax.Array) -> Any:
    """Copies rows to PyTorch's device."""
    device = "cuda" if self.torch.cuda.is_available() else "cpu"
    return self.torch.tensor(np.asarray(x), device=device)


@functools.cache
def peer(name: str) -> Any:
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


PARTS = {
  "step": measure_steps,
  "kmeans": measure_kmeans,
  "fit": measure_tokenizers,
}


def main() -> None:
  """Measures the parts asked for."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--quick", action="store_true", help="tiny sizes")
  parser.add_argument("--only", default=",".join(PARTS), help="parts")
  parser.add_argument("--tokenizers", default="", help="names, for part fit")
  parser.add_argument("--output", default="", help="JSON file")
  args = parser.parse_args()
  args.tokenizers = [n for n in args.tokenizers.split(",") if n]
  device = jax.devices()[0]
  print(f"jax {jax.__version__}, {device.device_kind}", flush=True)
  results = Results()
  for part in args.only.split(","):
    PARTS[part](results, args)
  if args.output:
    with open(args.output, "w") as file:
      json.dump(
        {
          "jax": jax.__version__,
          "device": device.device_kind,
          "rows": results.rows,
        },
        file,
        indent=1,
      )


if __name__ == "__main__":
  main()
