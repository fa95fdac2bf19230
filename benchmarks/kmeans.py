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
import glob
import gzip
import json
import os
import pathlib
import statistics
import sys
import tempfile
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
MIXTURE = 1000  # clusters that the rows are drawn from


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


@functools.partial(jax.jit, static_argnums=(0, 1))
def mixture(num_rows: int, width: int) -> jax.Array:
  """Clustered rows on the device: codes have something to find."""
  keys = jax.random.split(jax.random.key(0), 3)
  centers = jax.random.normal(keys[0], (MIXTURE, width))
  of = jax.random.randint(keys[1], (num_rows,), 0, MIXTURE)
  return centers[of] + jax.random.normal(keys[2], (num_rows, width))


def seconds_of(run: Callable[[], Any], repeats: int = 5) -> tuple[float, float]:
  """Median seconds of a call, and those that its first one took more."""
  times = []
  for _ in range(repeats + 1):
    started = time.perf_counter()
    jax.block_until_ready(run())
    times.append(time.perf_counter() - started)
  middle = statistics.median(times[1:])
  return middle, times[0] - middle


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


def whole_numbers(num_rows: int, width: int) -> np.ndarray:
  """Rows whose squared distances float32 holds exactly."""
  rng = np.random.default_rng(0)
  centers = rng.integers(-40, 41, size=(64, width))
  rows = centers[rng.integers(0, 64, num_rows)]
  return (rows + rng.integers(-9, 10, size=rows.shape)).astype(np.float32)


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


@jax.jit
def violations(
  x: jax.Array, centers: jax.Array, codes: jax.Array, clusters: jax.Array
) -> jax.Array:
  """Counts clusters of `clusters` that break Algorithm 1's invariant.

  No item that chose later (clusters in turn by number) may be nearer than an
  item that the cluster took, nor as near with a lower index.
  """
  index = jnp.arange(x.shape[0], dtype=jnp.int32)

  def broken(cluster: jax.Array) -> jax.Array:
    distance = jnp.sum(jnp.square(x - centers[cluster][None, :]), axis=1)
    own, later = codes == cluster, codes > cluster
    far = jnp.max(jnp.where(own, distance, -jnp.inf))
    near = jnp.min(jnp.where(later, distance, jnp.inf))
    last = jnp.max(jnp.where(own & (distance == far), index, -1))
    first = jnp.min(jnp.where(later & (distance == near), index, x.shape[0]))
    return (far > near) | ((far == near) & (last > first))

  return jnp.sum(lax.map(broken, clusters))


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

    def one(
      windows: Windows,
      x=x,
      centers=centers,
      counts=counts,
      order=order,
      first=first,
    ) -> dict:
      choose = functools.partial(
        serial_choice.choose, x, centers, counts, order, windows=windows
      )
      seconds, compile_s = seconds_of(choose, 3)
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
        "compile_s": compile_s,
        "limit_ms": limit * 1e3,
        "windows": int(found.num_windows),
        "rounds": int(found.num_rounds),
        "slow": int(found.num_slow),
        "differ": int(jnp.sum(found.codes != base)),
        "violations": int(violations(x, centers, found.codes, tested)),
        "tested": len(tested),
        "uneven": int(jnp.sum(sizes != counts)),
      }

    names = run.args.variants or list(VARIANTS)
    for name in names if number < 2 else names[:1]:
      run.attempt(
        "balanced", f"{name}: {shape}", functools.partial(one, VARIANTS[name])
      )

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


def kernels_of(call: Callable[[], Any]) -> dict:
  """Traces a call; sums the durations of device events by name."""
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      jax.block_until_ready(call())
    paths = glob.glob(f"{folder}/**/*.trace.json.gz", recursive=True)
    with gzip.open(paths[0]) as file:
      events = json.load(file)["traceEvents"]
  names = {
    e["pid"]: e["args"]["name"]
    for e in events
    if e.get("name") == "process_name"
  }
  totals: dict[str, list[float]] = {}
  for event in events:
    on_device = "/device:" in names.get(event.get("pid"), "")
    if event.get("ph") == "X" and (on_device or "GPU" not in str(names)):
      entry = totals.setdefault(event["name"], [0.0, 0])
      entry[0] += event.get("dur", 0.0)
      entry[1] += 1
  top = sorted(totals.items(), key=lambda item: -item[1][0])[:60]
  return {
    "events": sum(n for _, n in totals.values()),
    "total_ms": sum(us for us, _ in totals.values()) / 1e3,
    "kernels": [[name[:80], round(us), n] for name, (us, n) in top],
  }


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

    def assign(
      kind: str, block: int, x=x, centers=centers, row=row, first=first
    ) -> dict:
      find = jax.jit(
        lambda x, c: (
          nearest.nearest(
            x, c, precision=kind, chunk_size=max(8, block // c.shape[0])
          ).codes
        )
      )
      seconds, compile_s = seconds_of(functools.partial(find, x, centers), 3)
      codes = find(x, centers)
      base = first.setdefault("codes", codes)
      changed = float(jnp.mean(codes != base))
      return {**row(seconds, kind), "compile_s": compile_s, "changed": changed}

    for kind in precision.PRECISIONS:
      for block in (1 << 22, 1 << 26, 1 << 29):
        run.attempt(
          "lloyd",
          f"assign {kind}, block {block >> 20} M: {shape}",
          functools.partial(assign, kind, block),
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
