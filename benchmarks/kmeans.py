"""Times balanced and plain k-means beside peers, and checks what they choose.

  python benchmarks/kmeans.py --output kmeans.json    # on an accelerator
  python benchmarks/kmeans.py --quick                 # seconds on a CPU
  python benchmarks/kmeans.py --only cpu              # peers that run on CPUs

Parts: `ceilings` (what the matmul units and the memory reach in this run),
`exact` (Algorithm 1 against NumPy), `balanced` (one pass of Algorithm 1),
`pieces` (where a pass spends its time), `lloyd` (assignment, center sums,
peers) and `cpu`. No measurement starts after --budget seconds.

Needs jax and flax; PyTorch, flash-kmeans, flashlib, scikit-learn, faiss and
k-means-constrained are timed where they can be imported.
"""

import argparse
import dataclasses
import functools
import json
import os
import pathlib
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
from jax import lax

from benchmarks import kmeans_peers as peers
from benchmarks.kmeans_tools import (
  compile_all,
  kernels_of,
  mixture,
  seconds_of,
  violations,
  whole_numbers,
)
from gr_jax.core import lookup, nearest, precision
from gr_jax.tokenizers import balanced, kmeans, serial_choice
from gr_jax.tokenizers.serial_choice import Windows

# Rows, width, codes; the goals' shapes first.
BALANCED = [
  (10_000_000, 64, 8192),
  (1_000_000, 64, 256),
  (10_000_000, 64, 1024),
]
LLOYD = [(1_000_000, 64, 256), (10_000_000, 64, 8192), (1_000_000, 768, 8192)]
QUICK = [(6000, 16, 48)]


class OutOfTimeError(Exception):
  """The budget is spent."""


@dataclasses.dataclass
class Run:
  """Rows measured so far, printed as they come; ceilings; the clock."""

  args: argparse.Namespace
  started: float = dataclasses.field(default_factory=time.monotonic)
  rows: list[dict[str, Any]] = dataclasses.field(default_factory=list)
  rates: dict[str, float] = dataclasses.field(default_factory=dict)
  bytes_per_s: float = 0.0

  def add(self, part: str, name: str, **values: Any) -> None:
    """Prints and keeps one row, and writes all rows to the output."""
    self.rows.append({"part": part, "name": name, **values})
    shown = "  ".join(
      f"{k} {v:,.4g}" if isinstance(v, float) else f"{k} {v}"
      for k, v in values.items()
      if k != "kernels"
    )
    clock = time.monotonic() - self.started
    print(f"[{clock:5.0f}] {part:8s} {name:44s} {shown}", flush=True)
    if self.args.output:
      device = jax.devices()[0].device_kind
      report = {"jax": jax.__version__, "device": device, "rows": self.rows}
      pathlib.Path(self.args.output).write_text(json.dumps(report, indent=1))

  def attempt(self, part: str, name: str, measure: Callable[[], dict]) -> None:
    """Adds what `measure` returns; a failure is a row, not the end."""
    if time.monotonic() - self.started > self.args.budget:
      raise OutOfTimeError
    try:
      values = measure()
    except Exception as error:  # noqa: BLE001 a peer may be missing, or fail
      values = {"failed": f"{type(error).__name__}: {error}"[:300]}
    self.add(part, name, **values)

  def limit(self, flops: float, kind: str, num_bytes: float) -> float:
    """Seconds below which a run cannot go: the larger of two ceilings."""
    rate = self.rates.get(kind, float("nan"))
    return max(flops / rate, num_bytes / self.bytes_per_s)


def measure_ceilings(run: Run) -> None:
  """Large matmuls at each precision, and a copy."""
  size = 256 if run.args.quick else 8192
  a = jax.random.normal(jax.random.key(0), (size, size))
  for kind in precision.PRECISIONS:
    dots = jax.jit(functools.partial(precision.row_dots, precision=kind))
    seconds, _ = seconds_of(functools.partial(dots, a, a))
    run.rates[kind] = 2.0 * size**3 / seconds
    run.add("ceilings", f"matmul {kind}", tflops=run.rates[kind] / 1e12)
  elements = 1 << (20 if run.args.quick else 30)
  x = jnp.zeros((elements,))
  add_one = jax.jit(lambda x: x + 1)
  seconds, _ = seconds_of(functools.partial(add_one, x))
  run.bytes_per_s = 8.0 * elements / seconds
  run.add("ceilings", "copy", tb_per_s=run.bytes_per_s / 1e12)


def measure_exact(run: Run) -> None:
  """All codes of a pass against NumPy's sorts, at two precisions."""
  shape = (3000, 8, 37) if run.args.quick else (100_003, 32, 250)
  num_rows, width, num_codes = shape
  x = whole_numbers(num_rows, width)
  rng = np.random.default_rng(1)
  centers = x[rng.permutation(num_rows)[:num_codes]]
  counts = balanced.capacities(num_rows, num_codes)
  order = rng.permutation(num_codes).astype(np.int32)
  started = time.perf_counter()
  expected = peers.numpy_pass(x, centers, counts, order)
  numpy_s = time.perf_counter() - started
  given = [jnp.asarray(a) for a in (x, centers, counts, order)]
  for kind in ("tfloat32", "bfloat16"):

    def compare(kind=kind) -> dict:
      windows = Windows(precision=kind, stages=2)
      found = serial_choice.choose(*given, windows=windows)
      wrong = int(np.sum(np.asarray(found.codes) != expected))
      slow = int(found.num_slow)
      return {"codes": num_rows, "wrong": wrong, "slow": slow}

    run.attempt("exact", f"{kind} against NumPy ({numpy_s:.1f} s)", compare)


VARIANTS = {
  "default": Windows(),
  "window 64": Windows(window=64),
  "reach 2": Windows(reach=2.0),
  "window 16": Windows(window=16),
  "bfloat16": Windows(precision="bfloat16"),
  "window 64, reach 2": Windows(window=64, reach=2.0),
  "float32": Windows(precision="float32"),
  "stages 8": Windows(stages=8),
  "sample 64": Windows(sample=64),
}


def measure_balanced(run: Run) -> None:
  """One pass of Algorithm 1 by every variant, and a top-k loop in PyTorch."""
  shapes = QUICK if run.args.quick else BALANCED
  for number, (num_rows, width, num_codes) in enumerate(shapes):
    x = mixture(num_rows, width)
    centers = x[:: num_rows // num_codes][:num_codes]
    counts = jnp.asarray(balanced.capacities(num_rows, num_codes))
    order = jnp.arange(num_codes, dtype=jnp.int32)
    shape = f"{num_rows:,} x {width}, K {num_codes}"
    first: dict[str, jax.Array] = {}

    given = (x, centers, counts, order)
    names = run.args.variants or list(VARIANTS)
    names = names if number < 2 else names[:1]
    started = time.perf_counter()
    programs = compile_all(
      {
        name: functools.partial(
          serial_choice.choose.lower, *given, windows=VARIANTS[name]
        )
        for name in names
      }
    )
    compile_s = time.perf_counter() - started
    run.add("balanced", f"compiled {len(names)}: {shape}", s=compile_s)

    def one(name: str, given=given, programs=programs, first=first) -> dict:
      x, centers, counts, _ = given
      windows = VARIANTS[name]
      choose = functools.partial(programs[name], *given)
      seconds, _ = seconds_of(choose, 3)
      found = choose()
      base = first.setdefault("codes", found.codes)
      stages = windows.stages
      part = (stages + 1) / (2 * stages)  # of all distances, with stages
      pairs = part * x.shape[0] * centers.shape[0]
      kind = windows.precision if windows.precision != "auto" else "tfloat32"
      # Each score is written once and read once.
      limit = run.limit(2 * pairs * x.shape[1], kind, 8 * pairs)
      tested = jnp.arange(0, centers.shape[0], max(1, centers.shape[0] // 32))
      sizes = jnp.bincount(found.codes, length=centers.shape[0])
      return {
        "ms": seconds * 1e3,
        "limit_ms": limit * 1e3,
        "windows": int(found.num_windows),
        "rounds": int(found.num_rounds),
        "slow": int(found.num_slow),
        "differ": int(jnp.sum(found.codes != base)),
        "violations": int(violations(x, centers, found.codes, tested)),
        "tested": len(tested),
        "uneven": int(jnp.sum(sizes != counts)),
      }

    for name in names:
      run.attempt("balanced", f"{name}: {shape}", functools.partial(one, name))

    def sums(x=x, k=num_codes, counts=counts, first=first) -> dict:
      codes = first["codes"]
      forms = {
        "scatter_ms": lambda c, x: lookup.scatter_sum(c, x, num_rows=k),
        "one_hot_ms": lambda c, x: lookup.one_hot_sum(
          c, x, num_rows=k, precision=lax.Precision.HIGHEST
        ),
        "sorted_ms": lambda c, x: sorted_sum(c, x, k),
      }
      return {
        name: seconds_of(functools.partial(jax.jit(form), codes, x))[0] * 1e3
        for name, form in forms.items()
      }

    run.attempt("balanced", f"center sums: {shape}", sums)

    def counting(
      x=x, centers=centers, counts=counts, order=order, first=first
    ) -> dict:
      assign = jax.jit(balanced.assign_by_counting)
      seconds, _ = seconds_of(lambda: assign(x, centers, counts, order), 1)
      codes = assign(x, centers, counts, order)
      differ = int(jnp.sum(codes != first["codes"]))
      return {"ms": seconds * 1e3, "differ": differ}

    if num_codes < 1024:
      run.attempt("balanced", f"counting, no windows: {shape}", counting)

    def top_k(x=x, centers=centers, first=first) -> dict:
      clusters = min(64, centers.shape[0])
      seconds, codes = peers.torch_top_k_pass(
        peers.to_torch(x), peers.to_torch(centers), num_clusters=clusters
      )
      ours = np.asarray(first["codes"])
      theirs = codes.cpu().numpy()
      differ = int(np.sum((theirs >= 0) & (theirs != ours)))
      return {"ms": seconds * 1e3, "clusters_run": clusters, "differ": differ}

    run.attempt("balanced", f"torch top-k loop: {shape}", top_k)


def sorted_sum(codes: jax.Array, x: jax.Array, num_codes: int) -> jax.Array:
  """Sums rows by code after sorting them by it."""
  order = jnp.argsort(codes)
  return jax.ops.segment_sum(
    x[order], codes[order], num_codes, indices_are_sorted=True
  )


def measure_pieces(run: Run) -> None:
  """The kernels of one pass, from a trace: total microseconds by name."""
  shapes = QUICK if run.args.quick else [BALANCED[1], BALANCED[0]]
  for num_rows, width, num_codes in shapes:
    x = mixture(num_rows, width)
    centers = x[:: num_rows // num_codes][:num_codes]
    counts = jnp.asarray(balanced.capacities(num_rows, num_codes))
    order = jnp.arange(num_codes, dtype=jnp.int32)

    def trace(x=x, centers=centers, counts=counts, order=order) -> dict:
      def choose() -> Any:
        return serial_choice.choose(
          x, centers, counts, order, windows=Windows()
        )

      jax.block_until_ready(choose())
      return kernels_of(choose)

    run.attempt("pieces", f"{num_rows:,} x {width}, K {num_codes}", trace)


@functools.partial(jax.jit, static_argnames=("kind", "block"))
def find_codes(
  x: jax.Array, centers: jax.Array, kind: str, block: int
) -> jax.Array:
  """Nearest codes with scores of about `block` elements held at once."""
  rows = max(8, block // centers.shape[0])
  return nearest.nearest(x, centers, precision=kind, chunk_size=rows).codes


def measure_lloyd(run: Run) -> None:
  """Assignment at each precision, center sums, whole iterations, peers."""
  shapes = QUICK if run.args.quick else LLOYD
  for num_rows, width, num_codes in shapes:
    x = mixture(num_rows, width)
    centers = x[:: num_rows // num_codes][:num_codes]
    shape = f"{num_rows:,} x {width}, K {num_codes}"
    flops = 2.0 * num_rows * width * num_codes
    first: dict[str, jax.Array] = {}

    def row(seconds: float, kind: str, x=x, flops=flops) -> dict:
      limit = run.limit(flops, kind, 4.0 * x.size)
      return {
        "ms": seconds * 1e3,
        "tflops": flops / seconds / 1e12,
        "of_limit": limit / seconds,
      }

    choices = {
      f"{kind}, block {block >> 20} M": (kind, block)
      for kind in precision.PRECISIONS
      for block in (1 << 22, 1 << 26, 1 << 29)
    }
    programs = compile_all(
      {
        name: functools.partial(find_codes.lower, x, centers, *choice)
        for name, choice in choices.items()
      }
    )

    def assign(
      name: str,
      given=(x, centers),
      row=row,
      first=first,
      programs=programs,
      choices=choices,
    ) -> dict:
      run_once = functools.partial(programs[name], *given)
      seconds, _ = seconds_of(run_once, 3)
      codes = run_once()
      base = first.setdefault("codes", codes)
      changed = float(jnp.mean(codes != base))
      return {**row(seconds, choices[name][0]), "changed": changed}

    for name in choices:
      run.attempt(
        "lloyd", f"assign {name}: {shape}", functools.partial(assign, name)
      )

    def sums(x=x, k=num_codes, first=first) -> dict:
      codes = first["codes"]
      forms = {
        "scatter_ms": lambda c, x: lookup.scatter_sum(c, x, num_rows=k),
        "one_hot_ms": lambda c, x: lookup.one_hot_sum(
          c, x, num_rows=k, precision=lax.Precision.HIGHEST
        ),
        "sorted_ms": lambda c, x: sorted_sum(c, x, k),
      }
      return {
        name: seconds_of(functools.partial(jax.jit(form), codes, x))[0] * 1e3
        for name, form in forms.items()
      }

    run.attempt("lloyd", f"center sums: {shape}", sums)

    def iteration(x=x, centers=centers, row=row) -> dict:
      state = kmeans.from_codebook(centers)
      seconds, _ = seconds_of(lambda: kmeans.update(state, x), 3)
      return row(seconds, "float32")

    run.attempt("lloyd", f"update float32: {shape}", iteration)

    def peer(form: Callable, kind: str, x=x, centers=centers, row=row) -> dict:
      rows, codes = peers.to_torch(x), peers.to_torch(centers)
      return row(form(rows, codes, dtype=kind, repeats=3), kind)

    for form in (peers.torch_lloyd, peers.flash_kmeans, peers.flashlib):
      for kind in ("float32", "bfloat16"):
        run.attempt(
          "lloyd",
          f"{form.__name__} {kind}: {shape}",
          functools.partial(peer, form, kind),
        )


def measure_cpu(run: Run) -> None:
  """A pass and an iteration on the CPU, beside packages that run there."""
  shape = (3000, 16, 32) if run.args.quick else (102_400, 64, 256)
  num_rows, width, num_codes = shape
  x = mixture(num_rows, width)
  centers = x[:: num_rows // num_codes][:num_codes]
  counts = jnp.asarray(balanced.capacities(num_rows, num_codes))
  order = jnp.arange(num_codes, dtype=jnp.int32)
  host, host_centers = np.asarray(x), np.asarray(centers)
  found: dict[str, Any] = {}

  def ours() -> dict:
    def assign() -> jax.Array:
      return balanced.balanced_assign(x, centers, counts, order)

    seconds, compile_s = seconds_of(assign, 3)
    found["codes"] = np.asarray(assign())
    return {"s": seconds, "compile_s": compile_s}

  def printed() -> dict:
    started = time.perf_counter()
    codes = peers.numpy_pass(
      host, host_centers, np.asarray(counts), np.asarray(order)
    )
    seconds = time.perf_counter() - started
    return {"s": seconds, "differ": int(np.sum(codes != found["codes"]))}

  def update() -> dict:
    state = kmeans.from_codebook(centers)
    return {"s": seconds_of(lambda: kmeans.update(state, x), 3)[0]}

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
      "cpu", f"{label}: {name}", lambda f=form: {"s": f(host, host_centers)}
    )


PARTS = {
  "ceilings": measure_ceilings,
  "exact": measure_exact,
  "balanced": measure_balanced,
  "pieces": measure_pieces,
  "lloyd": measure_lloyd,
  "cpu": measure_cpu,
}


def main() -> None:
  """Measures the parts asked for."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--quick", action="store_true", help="tiny sizes")
  parser.add_argument(
    "--only", default="ceilings,exact,balanced,pieces,lloyd", help="parts"
  )
  parser.add_argument("--variants", default="", help="of a pass, by ';'")
  parser.add_argument("--budget", type=float, default=1e9, help="seconds")
  parser.add_argument("--output", default="", help="JSON file")
  args = parser.parse_args()
  args.variants = [v for v in args.variants.split(";") if v]
  run = Run(args)
  print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}", flush=True)
  for part in args.only.split(","):
    try:
      PARTS[part](run)
    except OutOfTimeError:
      run.add(part, "out of time")


if __name__ == "__main__":
  main()
