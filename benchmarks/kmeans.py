"""Times balanced and plain k-means beside peers, and checks what they choose.

  python benchmarks/kmeans.py --output kmeans.json    # on an accelerator
  python benchmarks/kmeans.py --quick                 # seconds on a CPU
  python benchmarks/kmeans.py --only cpu              # beside CPU packages

Rows come in order of worth: the goals' shapes first. None starts after
--seconds. With --compile_only every program is compiled into JAX's cache
(JAX_COMPILATION_CACHE_DIR) and none runs, so that a later start measures at
once.

Needs jax and flax; PyTorch, flash-kmeans, flashlib, scikit-learn, faiss and
k-means-constrained are timed where they can be imported.
"""

import argparse
import collections
import concurrent.futures
import functools
import json
import os
import pathlib
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

# Peers share the device: JAX must not take all of its memory.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import kmeans_peers as peers
from benchmarks import kmeans_tools as tools
from gr_jax.core import precision
from gr_jax.tokenizers import balanced, kmeans, serial_choice
from gr_jax.tokenizers.serial_choice import Windows

Shape = tuple[int, int, int]  # rows, width, codes
LARGE, SMALL = (10_000_000, 64, 8192), (1_000_000, 64, 256)
EXACT = (60_003, 32, 150)  # small enough for NumPy's sorts

VARIANTS = {
  "window 32": Windows(window=32),
  "window 64": Windows(window=64),
  "bfloat16": Windows(precision="bfloat16"),
  "window 16": Windows(window=16),
  "window 64, reach 2": Windows(window=64, reach=2.0),
}
# Lloyd's shapes, in order of worth.
SHAPES: list[Shape] = [
  SMALL,
  LARGE,
  (1_000_000, 384, 1024),
  (1_000_000, 384, 8192),
  (1_000_000, 64, 1024),
  (1_000_000, 64, 8192),
  (1_000_000, 384, 256),
  (10_000_000, 64, 256),
  (10_000_000, 64, 1024),
  (10_000_000, 384, 8192),
  (10_000_000, 384, 1024),
  (10_000_000, 384, 256),
]


def lloyd_rows(shape: Shape) -> list[tuple[str, str, Shape]]:
  """Ours and the peers' at a shape; the peers' rows are stored as they run."""
  ours = ["bfloat16 rows, kernel", "bfloat16, kernel", "float32, kernel"]
  ours += ["float32", "bfloat16"]
  theirs = ["torch_lloyd float32", "flashlib bfloat16"]
  theirs += ["flash_kmeans bfloat16", "flashlib float32"]
  rows = [("peer", what, shape) for what in theirs[:2]]
  rows += [("lloyd", what, shape) for what in ours]
  return rows + [("peer", what, shape) for what in theirs[2:]]


# What runs, in order of worth: part, what of it, shape.
PLAN: list[tuple[str, str, Shape]] = [
  ("balanced", "window 32", LARGE),
  ("balanced", "window 64", LARGE),
  ("balanced", "window 32", SMALL),
  ("balanced", "window 64", SMALL),
  ("top-k", "torch", SMALL),
  ("top-k", "torch", LARGE),
  ("exact", "tfloat32", EXACT),
  *[row for shape in SHAPES[:3] for row in lloyd_rows(shape)],
  ("balanced", "bfloat16", SMALL),
  ("kernels", "window 32", SMALL),
  *[row for shape in SHAPES[3:6] for row in lloyd_rows(shape)],
  ("sums", "one-hot", LARGE),
  ("sums", "scatter", LARGE),
  ("sums", "sorted", LARGE),
  ("sums", "one-hot", SMALL),
  ("sums", "scatter", SMALL),
  ("sums", "sorted", SMALL),
  ("balanced", "window 16", SMALL),
  ("balanced", "window 64, reach 2", SMALL),
  ("balanced", "counting", SMALL),
  ("balanced", "bfloat16", LARGE),
  *[row for shape in SHAPES[6:] for row in lloyd_rows(shape)],
  ("balanced", "window 32", (10_000_000, 64, 1024)),
  ("exact", "bfloat16", EXACT),
  ("kernels", "window 32", LARGE),
]


class Run:
  """The clock, the ceilings, the rows so far and the data of one shape."""

  def __init__(self, args: argparse.Namespace):
    """Starts the clock."""
    self.args = args
    self.started = time.monotonic()
    self.rows: list[dict[str, Any]] = []
    self.rates: dict[str, float] = {}  # FLOP/s by precision
    self.bytes_per_s = float("nan")
    self.codes: dict[Shape, jax.Array] = {}  # a balanced pass's, to compare
    self.expected: np.ndarray | None = None  # NumPy's codes
    self.last = threading.local()  # a thread's seconds of compiling
    self._programs: dict[Any, Any] = {}
    self._locks: dict[Any, Any] = collections.defaultdict(threading.Lock)
    self._data: tuple[tuple[int, int], jax.Array] | None = None

  def add(self, part: str, name: str, **values: Any) -> None:
    """Prints and keeps one row, and writes all rows to the output."""
    clock = time.monotonic() - self.started
    self.rows.append({"part": part, "name": name, "at_s": clock, **values})
    shown = "  ".join(
      f"{k} {v:,.4g}" if isinstance(v, float) else f"{k} {v}"
      for k, v in values.items()
      if k != "kernels"
    )
    print(f"[{clock:5.1f}] {part:8s} {name:48s} {shown}", flush=True)
    if self.args.output:
      device = jax.devices()[0].device_kind
      report = {"jax": jax.__version__, "device": device, "rows": self.rows}
      pathlib.Path(self.args.output).write_text(json.dumps(report, indent=1))

  def attempt(self, part: str, name: str, measure: Callable[[], dict]) -> None:
    """Adds what `measure` returns; a failure is a row, not the end."""
    if time.monotonic() - self.started > self.args.seconds:
      self.add(part, name, skipped="out of time")
      return
    try:
      values = measure()
    except Exception as error:  # noqa: BLE001 a peer may be missing, or fail
      values = {"failed": f"{type(error).__name__}: {error}"[:300]}
    if values:
      self.add(part, name, **values)

  def program(self, function: Any, *shapes: Any, **static: Any) -> Any:
    """Compiles a jitted function for shapes, once."""
    started = time.monotonic()
    key = (function, shapes, tuple(static.items()))
    with self._locks[key]:
      if key not in self._programs:
        self._programs[key] = function.lower(*shapes, **static).compile()
    self.last.compile_s = time.monotonic() - started
    return self._programs[key]

  def data(self, shape: Shape) -> jax.Array:
    """Rows of a shape; those of one shape at a time are kept."""
    key = shape[:2]
    if self._data is None or self._data[0] != key:
      self._data = None
      make = self.program(tools.mixture, *key)
      self._data = (key, jax.block_until_ready(make()))
    return self._data[1]

  def limit(self, flops: float, kind: str, num_bytes: float) -> float:
    """Seconds below which a run cannot go: the larger of two ceilings."""
    rate = self.rates.get(kind, float("nan"))
    return max(flops / rate, num_bytes / self.bytes_per_s)


def floats(*shape: int) -> jax.ShapeDtypeStruct:
  """A float32 shape to compile for."""
  return jax.ShapeDtypeStruct(shape, jnp.float32)


def ints(*shape: int) -> jax.ShapeDtypeStruct:
  """An int32 shape to compile for."""
  return jax.ShapeDtypeStruct(shape, jnp.int32)


def measure_ceilings(run: Run) -> None:
  """Large matmuls at each precision, and a copy."""
  size, elements = (256, 1 << 20) if run.args.quick else (8192, 1 << 30)
  square = floats(size, size)
  for kind in precision.PRECISIONS:

    def matmul(kind=kind) -> dict:
      program = run.program(tools.one_matmul, square, kind=kind)
      if run.args.compile_only:
        return {"compile_s": run.last.compile_s}
      a = jax.random.normal(jax.random.key(0), (size, size))
      seconds, _ = tools.seconds_of(lambda: program(a), 3)
      run.rates[kind] = 2.0 * size**3 / seconds
      return {"tflops": run.rates[kind] / 1e12}

    run.attempt("ceilings", f"matmul {kind}", matmul)

  def copy() -> dict:
    program = run.program(tools.add_one, floats(elements))
    if run.args.compile_only:
      return {"compile_s": run.last.compile_s}
    x = jnp.zeros((elements,))
    seconds, _ = tools.seconds_of(lambda: program(x), 3)
    run.bytes_per_s = 8.0 * elements / seconds
    return {"tb_per_s": run.bytes_per_s / 1e12}

  run.attempt("ceilings", "copy", copy)


def exact_codes(run: Run, kind: str, shape: Shape) -> dict:
  """All codes of a pass against NumPy's sorts."""
  num_rows, width, num_codes = shape
  spec = (floats(num_rows, width), floats(num_codes, width))
  spec += (ints(num_codes), ints(num_codes))
  windows = Windows(precision=kind, stages=2)
  program = run.program(serial_choice.choose, *spec, windows=windows)
  if run.args.compile_only:
    return {"compile_s": run.last.compile_s}
  x = tools.whole_numbers(num_rows, width)
  rng = np.random.default_rng(1)
  centers = x[rng.permutation(num_rows)[:num_codes]]
  counts = balanced.capacities(num_rows, num_codes)
  order = rng.permutation(num_codes).astype(np.int32)
  if run.expected is None:
    run.expected = peers.numpy_pass(x, centers, counts, order)
  found = program(*map(jnp.asarray, (x, centers, counts, order)))
  wrong = int(np.sum(np.asarray(found.codes) != run.expected))
  return {"codes": num_rows, "wrong": wrong, "slow": int(found.num_slow)}


def balanced_pass(run: Run, what: str, shape: Shape) -> dict:
  """One pass of Algorithm 1 by windows, or by counting for each cluster."""
  num_rows, width, num_codes = shape
  spec = (floats(num_rows, width), floats(num_codes, width))
  spec += (ints(num_codes), ints(num_codes))
  windows = VARIANTS.get(what)
  if windows is None:
    program = run.program(tools.counting, *spec)
  else:
    program = run.program(serial_choice.choose, *spec, windows=windows)
  compile_s = run.last.compile_s
  tested = min(32, num_codes)
  check = run.program(
    tools.check, *spec[:3], ints(num_rows), ints(num_rows), ints(tested)
  )
  if run.args.compile_only:
    return {"compile_s": compile_s}
  x = run.data(shape)
  given = balanced_inputs(x, num_codes)
  seconds, _ = tools.seconds_of(lambda: program(*given), 3)
  found = program(*given)
  codes = found if windows is None else found.codes
  base = run.codes.setdefault(shape, codes)
  clusters = jnp.asarray(np.linspace(0, num_codes - 1, tested).astype(np.int32))
  checked = check(*given[:3], codes, base, clusters)
  values = {"ms": seconds * 1e3, "compile_s": compile_s}
  if windows is not None:
    part = (windows.stages + 1) / (2 * windows.stages)
    pairs = part * num_rows * num_codes  # scored: each written and read once
    kind = "tfloat32" if windows.precision == "auto" else windows.precision
    limit = run.limit(2 * pairs * width, kind, 8 * pairs)
    values |= {
      "limit_ms": limit * 1e3,
      "windows": int(found.num_windows),
      "rounds": int(found.num_rounds),
      "slow": int(found.num_slow),
    }
  names = ("violations", "uneven", "differ")
  return values | dict(zip(names, map(int, checked), strict=True))


def balanced_inputs(x: jax.Array, num_codes: int) -> tuple[jax.Array, ...]:
  """Centers spread over the rows, sizes, and clusters in turn by number."""
  centers = x[:: x.shape[0] // num_codes][:num_codes]
  counts = jnp.asarray(balanced.capacities(x.shape[0], num_codes))
  return x, centers, counts, jnp.arange(num_codes, dtype=jnp.int32)


def top_k_loop(run: Run, _: str, shape: Shape) -> dict:
  """A top-k a cluster in PyTorch, over the first clusters."""
  if run.args.compile_only:
    return {}
  x, centers, *_ = balanced_inputs(run.data(shape), shape[2])
  clusters = min(64, shape[2])
  seconds, codes = peers.torch_top_k_pass(
    peers.to_torch(x), peers.to_torch(centers), num_clusters=clusters
  )
  theirs = codes.cpu().numpy()
  ours = np.asarray(run.codes[shape])
  differ = int(np.sum((theirs >= 0) & (theirs != ours)))
  return {"ms": seconds * 1e3, "clusters_run": clusters, "differ": differ}


def lloyd_iteration(run: Run, kind: str, shape: Shape) -> dict:
  """A Lloyd update, without what a fit does once; its assignment alone."""
  num_rows, width, num_codes = shape
  codes = floats(num_codes, width)
  spec = (jax.ShapeDtypeStruct(shape[:2], tools.stored(kind)), codes)
  few, many = (
    run.program(tools.updates, *spec, kind=kind, steps=n) for n in (1, 6)
  )
  compile_s = run.last.compile_s
  assign = run.program(tools.assign, *spec, kind=kind)
  exact = run.program(
    tools.assign, floats(num_rows, width), codes, kind="float32"
  )
  if run.args.compile_only:
    return {"compile_s": compile_s}
  whole = run.data(shape)
  centers = balanced_inputs(whole, num_codes)[1]
  x = whole.astype(spec[0].dtype)
  few, many = (
    tools.seconds_of(lambda p=p: p(x, centers), 3)[0] for p in (few, many)
  )
  seconds = (many - few) / 5
  assigning, _ = tools.seconds_of(lambda: assign(x, centers), 3)
  changed = jnp.mean(assign(x, centers) != exact(whole, centers))
  return {
    **lloyd_row(run, seconds, kind, shape),
    "assign_ms": assigning * 1e3,
    "changed": float(changed),
    "compile_s": compile_s,
  }


def lloyd_row(run: Run, seconds: float, kind: str, shape: Shape) -> dict:
  """The figures of an iteration: all FLOPs are the distances'."""
  num_rows, width, num_codes = shape
  flops = 2.0 * num_rows * width * num_codes
  num_bytes = tools.stored(kind).itemsize * num_rows * width
  limit = run.limit(flops, tools.as_options(kind)[0], num_bytes)
  return {
    "ms": seconds * 1e3,
    "tflops": flops / seconds / 1e12,
    "of_limit": limit / seconds,
  }


def peer_iteration(run: Run, what: str, shape: Shape) -> dict:
  """A Lloyd iteration of a peer."""
  name, kind = what.split()
  measure = getattr(peers, name)
  if run.args.compile_only:  # their kernels' cache, on few rows
    rows = tools.mixture(1 << 17, shape[1])
    given = map(peers.to_torch, (rows, rows[: shape[2]]))
    return {"s": measure(*given, dtype=kind, repeats=1)}
  x, centers, *_ = balanced_inputs(run.data(shape), shape[2])
  seconds = measure(
    peers.to_torch(x), peers.to_torch(centers), dtype=kind, repeats=3
  )
  return lloyd_row(run, seconds, f"{kind} rows", shape)


def center_sums(run: Run, form: str, shape: Shape) -> dict:
  """Sums of the rows of every code, by one form."""
  num_rows, width, num_codes = shape
  program = run.program(
    tools.sums,
    ints(num_rows),
    floats(num_rows, width),
    num_codes=num_codes,
    form=form,
  )
  if run.args.compile_only:
    return {"compile_s": run.last.compile_s}
  x = run.data(shape)
  codes = jnp.arange(num_rows, dtype=jnp.int32) * 7919 % num_codes
  seconds, _ = tools.seconds_of(lambda: program(codes, x), 3)
  return {"ms": seconds * 1e3}


def pass_kernels(run: Run, what: str, shape: Shape) -> dict:
  """The kernels of a pass, from a trace."""
  if run.args.compile_only:
    return {}
  given = balanced_inputs(run.data(shape), shape[2])
  spec = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in given]
  program = run.program(serial_choice.choose, *spec, windows=VARIANTS[what])
  jax.block_until_ready(program(*given))
  return tools.kernels_of(lambda: program(*given))


PARTS = {
  "exact": exact_codes,
  "balanced": balanced_pass,
  "top-k": top_k_loop,
  "lloyd": lloyd_iteration,
  "peer": peer_iteration,
  "sums": center_sums,
  "kernels": pass_kernels,
}


def measure_cpu(run: Run) -> None:
  """A pass and an iteration on the CPU, beside packages that run there."""
  shape = (3000, 16, 32) if run.args.quick else (102_400, 64, 256)
  num_rows, width, num_codes = shape
  given = balanced_inputs(tools.mixture(num_rows, width), num_codes)
  host = [np.asarray(a) for a in given]
  codes = None

  def ours() -> dict:
    nonlocal codes
    seconds, compile_s = tools.seconds_of(
      lambda: balanced.balanced_assign(*given), 3
    )
    codes = np.asarray(balanced.balanced_assign(*given))
    return {"s": seconds, "compile_s": compile_s}

  def printed() -> dict:
    started = time.perf_counter()
    expected = peers.numpy_pass(*host)
    seconds = time.perf_counter() - started
    return {"s": seconds, "differ": int(np.sum(codes != expected))}

  def update() -> dict:
    state = kmeans.from_codebook(given[1])
    return {"s": tools.seconds_of(lambda: kmeans.update(state, given[0]), 3)[0]}

  name = f"{num_rows:,} x {width}, K {num_codes}"
  run.attempt("cpu", f"balanced pass, gr_jax: {name}", ours)
  run.attempt("cpu", f"balanced pass, NumPy float64: {name}", printed)
  run.attempt("cpu", f"Lloyd iteration, gr_jax: {name}", update)
  for form, label in (
    (peers.scikit_learn, "Lloyd iteration, scikit-learn"),
    (peers.faiss, "Lloyd iteration, faiss-cpu"),
    (peers.k_means_constrained, "balanced iteration, k-means-constrained"),
  ):
    run.attempt(
      "cpu", f"{label}: {name}", lambda form=form: {"s": form(*host[:2])}
    )


def main() -> None:
  """Measures what is asked for."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--quick", action="store_true", help="tiny sizes")
  parser.add_argument(
    "--only",
    default="",
    help="parts: ceilings, cpu, " + ", ".join(PARTS),
  )
  parser.add_argument("--compile_only", action="store_true", help="run nothing")
  parser.add_argument("--seconds", type=float, default=1e9, help="budget")
  parser.add_argument("--output", default="", help="JSON file")
  args = parser.parse_args()
  run = Run(args)
  only = args.only.split(",") if args.only else ["ceilings", *PARTS]
  print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}", flush=True)
  if "ceilings" in only:
    measure_ceilings(run)
  rows = [row for row in PLAN if row[0] in only]
  if args.quick:
    rows = [(*row[:2], (6000, 16, 48)) for row in rows]
  rows = list(dict.fromkeys(rows))
  if args.compile_only:
    compile_rows(run, rows)
    return
  for row in rows:
    measure_row(run, row)
  if "cpu" in only:
    measure_cpu(run)


def measure_row(run: Run, row: tuple[str, str, Shape]) -> None:
  """Adds one row of the plan."""
  part, what, shape = row
  name = f"{what}: {shape[0]:,} x {shape[1]}, K {shape[2]}"
  run.attempt(part, name, functools.partial(PARTS[part], run, what, shape))


def compile_rows(run: Run, rows: list[tuple[str, str, Shape]]) -> None:
  """Compiles programs on many cores, then what the peers compile."""
  ours = [row for row in rows if row[0] != "peer"]
  with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool:
    made = [
      pool.submit(run.program, tools.mixture, *size)
      for size in dict.fromkeys(shape[:2] for _, _, shape in ours)
    ]
    made += [pool.submit(measure_row, run, row) for row in ours]
    for row in rows:
      if row[0] == "peer":
        measure_row(run, row)
    for future in made:
      future.result()


if __name__ == "__main__":
  main()
