"""Times every tokenizer's fit and encode, and the RQ-VAE step, beside peers.

  python benchmarks/tokenizers.py                     # all, on an accelerator
  python benchmarks/tokenizers.py --quick             # seconds on a CPU
  python benchmarks/tokenizers.py --only step,kmeans --output rows.json
  python benchmarks/tokenizers.py --only step --budget 120

Needs jax, flax, optax; PyTorch, scikit-learn and faiss are timed when they can
be imported. Prints a line a row, the most telling rows of a part first, and
rewrites --output after each. No new row starts after --budget seconds.
"""

import argparse
import dataclasses
import functools
import json
import os
import pathlib
import statistics
import subprocess
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

from benchmarks import tokenizer_peers
from gr_jax.tokenizers import TOKENIZERS, gradient_fit, kmeans

HIDDEN, CODE_DIM, SIZES = (512, 256, 128), 32, (256, 256, 256)
# Options of our step, then XLA flags: the rows of part "step".
VARIANTS: dict[str, tuple[dict[str, Any], str]] = {
  "bfloat16": ({"compute_dtype": "bfloat16"}, ""),
  "float32": ({}, ""),
  "float32, EMA": ({"ema_decay": 0.99}, ""),
  "bfloat16, concurrent graphs": (
    {"compute_dtype": "bfloat16"},
    "--xla_gpu_command_buffer_scheduling_mode=CONCURRENT",
  ),
  "bfloat16, loop in graph": (
    {"compute_dtype": "bfloat16"},
    "--xla_gpu_enable_command_buffer="
    "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CONDITIONAL,WHILE",
  ),
  "float32, concurrent graphs": (
    {},
    "--xla_gpu_command_buffer_scheduling_mode=CONCURRENT",
  ),
}
# (variant or "torch HOW DTYPE", batch size), the most telling first.
STEP_ROWS = [
  ("bfloat16", 2048),
  ("float32", 2048),
  ("torch eager tf32", 2048),
  ("torch compile tf32", 2048),
  ("bfloat16, concurrent graphs", 2048),
  ("bfloat16, loop in graph", 2048),
  ("torch eager bfloat16", 2048),
  ("bfloat16", 1024),
  ("float32", 1024),
  ("torch eager tf32", 1024),
  ("torch compile tf32", 1024),
  ("float32, concurrent graphs", 2048),
  ("torch compile bfloat16", 2048),
  ("torch compile-graphs tf32", 2048),
  ("float32, EMA", 2048),
]


@dataclasses.dataclass
class Results:
  """Rows measured so far, printed and written as they come."""

  output: str
  deadline: float
  header: dict[str, Any]
  rows: list[dict[str, Any]] = dataclasses.field(default_factory=list)

  def add(self, part: str, name: str, **values: Any) -> None:
    """Prints and keeps one row."""
    self.rows.append({"part": part, "name": name, **values})
    shown = "  ".join(
      f"{k} {v:,.4g}" if isinstance(v, float) else f"{k} {v}"
      for k, v in values.items()
    )
    print(f"{part:7s} {name:48s} {shown}", flush=True)
    if self.output:
      text = json.dumps({**self.header, "rows": self.rows}, indent=1)
      pathlib.Path(self.output).write_text(text)

  def late(self, part: str, name: str) -> bool:
    """Says whether the time is spent; a row left out is named."""
    if time.monotonic() < self.deadline:
      return False
    print(f"{part:7s} {name:48s} left out: the time is spent", flush=True)
    return True

  def attempt(self, part: str, name: str, run: Callable[[], Any]) -> None:
    """Adds the row that `run` returns; a peer that fails is a row, too."""
    if self.late(part, name):
      return
    try:
      self.add(part, name, **run())
    except Exception as error:  # noqa: BLE001 the other rows are still wanted
      self.add(part, name, failed=repr(error)[:300])


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
  state = gradient_fit.start_state(params, tokenizer.start_extra(params))
  count, times = jnp.int32(epochs), []
  for _ in range(rounds + 1):
    started = time.perf_counter()
    state, result = gradient_fit.train_round(
      state, x, jax.random.key(1), count, program=tokenizer
    )
    jax.block_until_ready(result)
    times.append(time.perf_counter() - started)
  if not np.isfinite(np.asarray(result[0]["loss"])).all():
    raise ValueError("the loss is not finite")
  return statistics.median(times[1:]) / (epochs * steps)


def step_row(name: str, batch_size: int, quick: bool) -> dict[str, Any]:
  """Times one variant of our step in this process."""
  dim = 64 if quick else 768
  x = rows_of(4096 if quick else 204_800, dim)
  epochs, rounds = (1, 1) if quick else (10, 5)
  seconds = jax_step_time(
    x, batch_size=batch_size, epochs=epochs, rounds=rounds, **VARIANTS[name][0]
  )
  tflops = step_flops(dim, batch_size) / seconds / 1e12
  return {"us": seconds * 1e6, "tflops": tflops}


def step_row_with_flags(name: str, batch_size: int, quick: bool):
  """Times one variant in a process of its own: XLA reads flags once."""
  flags = f"{os.environ.get('XLA_FLAGS', '')} {VARIANTS[name][1]}"
  command = [sys.executable, __file__, "--step", f"{name}/{batch_size}"]
  done = subprocess.run(
    command + (["--quick"] if quick else []),
    env={**os.environ, "XLA_FLAGS": flags},
    capture_output=True,
    text=True,
    timeout=120,
    check=False,
  )
  if done.returncode:
    raise RuntimeError(done.stderr.strip()[-250:])
  return json.loads(done.stdout.splitlines()[-1])


def torch_step_row(how: str, dtype: str, batch_size: int, quick: bool):
  """Times PyTorch's step."""
  dim = 64 if quick else 768
  torch_peer = tokenizer_peers.find("torch")
  if torch_peer is None:
    return {"failed": "torch is not installed"}
  x = torch_peer.from_jax(rows_of(4096 if quick else 204_800, dim))
  if how == "compile-graphs" and x.device.type != "cuda":
    return {"failed": "CUDA graphs need a GPU"}
  seconds = torch_peer.rqvae.step_time(
    x,
    hidden=list(HIDDEN),
    code_dim=CODE_DIM,
    sizes=SIZES,
    batch_size=batch_size,
    steps=5 if quick else 300,
    how=how,
    autocast=dtype == "bfloat16",
  )
  tflops = step_flops(dim, batch_size) / seconds / 1e12
  return {"us": seconds * 1e6, "tflops": tflops}


def measure_steps(results: Results, args: argparse.Namespace) -> None:
  """The RQ-VAE step: ours in several forms, PyTorch eager and compiled."""
  for name, batch_size in STEP_ROWS:
    if args.quick:
      batch_size //= 4
    if name.startswith("torch"):
      _, how, dtype = name.split()
      run = functools.partial(torch_step_row, how, dtype)
    elif VARIANTS[name][1]:
      if jax.default_backend() != "gpu":
        continue  # other backends refuse these flags
      run = functools.partial(step_row_with_flags, name)
    else:
      run = functools.partial(step_row, name)
    title = name if name.startswith("torch") else f"gr_jax {name}"
    results.attempt(
      "step",
      f"{title}, batch {batch_size}",
      functools.partial(run, batch_size, args.quick),
    )


ITERATIONS = 10  # of Lloyd's, timed together
SHAPES = [(200_000, 384, 256), (1_000_000, 64, 256), (1_000_000, 384, 1024)]


def measure_kmeans(results: Results, args: argparse.Namespace) -> None:
  """One Lloyd iteration: ours, PyTorch, scikit-learn, faiss."""
  shapes = [(4096, 32, 64)] if args.quick else SHAPES
  for num_rows, dim, num_codes in shapes:
    x = rows_of(num_rows, dim)
    flops = 2.0 * num_rows * dim * num_codes
    start = kmeans.from_codebook(x[:num_codes])
    host = np.asarray(x[:100_000])

    def ours(start=start, x=x) -> float:
      run = functools.partial(
        kmeans.lloyd, start, x, max_iters=ITERATIONS, tol=-1.0
      )
      return median_time(lambda: run().state, 3) / ITERATIONS

    runs = {"gr_jax float32": ours}
    for peer, time_of in tokenizer_peers.kmeans_iterations(
      x, host, num_codes, ITERATIONS
    ).items():
      runs[peer] = time_of
    for name, time_of in runs.items():

      def row(time_of=time_of, flops=flops) -> dict[str, Any]:
        seconds = time_of()
        return {"ms": seconds * 1e3, "tflops": flops / seconds / 1e12}

      title = f"{name}, {num_rows:,} x {dim}, K {num_codes}"
      results.attempt("kmeans", title, row)


def matmul_flops(tokenizer: Any, dim: int) -> tuple[float, float]:
  """Matmul FLOPs per row: of one pass of a fit, and of encode.

  Args:
    tokenizer: Any.
    dim: D.

  Returns:
    (fit, encode); NaN where a pass is not one thing.
  """
  sizes = tokenizer.codebook_sizes
  name, nan = type(tokenizer).__name__, float("nan")
  if isinstance(tokenizer, gradient_fit.GradientOptions):
    state = tokenizer.abstract_state(dim)
    networks = getattr(state, "reducer", state)
    named, _ = jax.tree_util.tree_flatten_with_path(networks.params)
    kernels = {
      jax.tree_util.keystr(path): leaf.size
      for path, leaf in named
      if "kernel" in jax.tree_util.keystr(path)
    }
    before = sum(n for path, n in kernels.items() if "decoder" not in path)
    width = getattr(tokenizer, "code_dim", dim)
    search = 0 if name == "FSQ" else 2 * width * sum(sizes)
    # What an autoencoder's bottleneck is coded by is no part of its passes.
    in_fit = 0 if networks is not state else search
    return 6.0 * sum(kernels.values()) + in_fit, 2.0 * before + search
  if name == "LSH":
    return nan, 2.0 * dim * tokenizer.num_bits * tokenizer.num_tokens
  if name == "RandomCodes":
    return nan, nan
  search = 2.0 * dim * sum(sizes)
  if name in ("PQ", "OPQ"):
    rotation = 2.0 * dim * dim if name == "OPQ" else 0.0
    # A pass of PQ's fit is over one sub-space, D / M wide.
    one_pass = search / len(sizes) ** 2 if name == "PQ" else nan
    return one_pass, search / len(sizes) + rotation
  if name == "RQOPQ":
    first = 2.0 * dim * sum(tokenizer.residual_sizes)
    last = 2.0 * dim * tokenizer.subspace_sizes[0] + 2.0 * dim * dim
    return nan, first + last
  return search / len(sizes), search


def fit_settings(quick: bool) -> dict[str, dict[str, Any]]:
  """Options of every tokenizer: 24 bits an item where it can have them."""
  k = 16 if quick else 256
  trained = {
    "num_epochs": 2 if quick else 20,
    "check_every_epochs": 1 if quick else 10,
    "batch_size": 256 if quick else 2048,
  }
  sizes = {"codebook_sizes": (k, k, k)}
  behind = TOKENIZERS["residual_kmeans"](**sizes, max_iters=20)
  return {
    "rq_vae": {**sizes, **trained},
    "residual_kmeans": {**sizes, "max_iters": 20},
    "lsh": {},
    "pq": {**sizes, "max_iters": 20},
    "opq": {**sizes, "num_iters": 5, "max_iters": 10},
    "fsq": trained,
    "opmq": {**sizes, **trained},
    "rvq": {**sizes, **trained},
    "vq_vae": {"codebook_sizes": (k,), **trained},
    "rq_opq": {
      "residual_sizes": (k, k),
      "subspace_sizes": (16, 16),
      "num_iters": 5,
      "max_iters": 10,
    },
    "balanced_residual_kmeans": {**sizes, "max_iters": 3},
    "minibatch_residual_kmeans": {**sizes, "num_passes": 5},
    "sinkhorn_residual_kmeans": {**sizes, "max_iters": 3},
    "autoencoder": {**trained, "quantizer": behind},
    "vae": {**trained, "quantizer": behind},
    "random": sizes,
  }


def measure_tokenizers(results: Results, args: argparse.Namespace) -> None:
  """Rows/s of every tokenizer's second fit (compiled), of encode and decode."""
  num_rows, dim = (1024, 48) if args.quick else (102_400, 384)
  x = rows_of(num_rows, dim)
  for name, options in fit_settings(args.quick).items():
    if args.tokenizers and name not in args.tokenizers:
      continue

    def ours(name=name, options=options) -> dict[str, Any]:
      tokenizer = TOKENIZERS[name](**options)
      tokenizer.fit(x, key=jax.random.key(0))
      state, report = tokenizer.fit(x, key=jax.random.key(0))
      # jit: what a caller who encodes many rows runs, checks left out.
      encode = jax.jit(tokenizer.encode)
      codes = encode(state, x)
      encoded = num_rows / median_time(lambda: encode(state, x), 5)
      decode = jax.jit(tokenizer.decode)
      decoded = num_rows / median_time(lambda: decode(state, codes), 5)
      passes = options.get("num_epochs") or max(
        1,
        sum(
          len(curve)
          for n, curve in report.curves.items()
          if n.startswith("inertia")
        ),
      )
      fitted = num_rows * passes / report.seconds
      fit_flops, encode_flops = matmul_flops(tokenizer, dim)
      row = {
        "fit_s": report.seconds,
        "passes": passes,
        "fit_rows_per_s": fitted,
        "fit_tflops": fit_flops * fitted / 1e12,
        "encode_rows_per_s": encoded,
        "encode_tflops": encode_flops * encoded / 1e12,
        "decode_rows_per_s": decoded,
        "relative_mse": report.relative_mse,
      }
      return {key: value for key, value in row.items() if value == value}

    results.attempt("fit", name, ours)
    for peer, run in tokenizer_peers.fits(name, x, options, args.quick).items():
      results.attempt("fit", f"{name}: {peer}", run)


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
  parser.add_argument("--budget", type=float, default=1e9, help="seconds")
  parser.add_argument("--step", default="", help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.step:  # a row of its own process
    name, batch_size = args.step.rsplit("/", 1)
    print(json.dumps(step_row(name, int(batch_size), args.quick)))
    return
  args.tokenizers = [n for n in args.tokenizers.split(",") if n]
  for part in args.only.split(","):
    if part not in PARTS:
      parser.error(f"unknown part {part!r}; want some of {', '.join(PARTS)}")
  device = jax.devices()[0].device_kind
  print(f"jax {jax.__version__}, {device}, {os.cpu_count()} CPUs", flush=True)
  header = {"jax": jax.__version__, "device": device}
  results = Results(args.output, time.monotonic() + args.budget, header)
  for part in args.only.split(","):
    PARTS[part](results, args)


if __name__ == "__main__":
  main()
