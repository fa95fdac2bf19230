"""Data, clocks and checks of `benchmarks/kmeans.py`."""

import functools
import glob
import gzip
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gr_jax.core import lookup, nearest
from gr_jax.tokenizers import balanced, kmeans

MIXTURE = 1000  # clusters that the rows are drawn from


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


def whole_numbers(num_rows: int, width: int) -> np.ndarray:
  """Rows whose squared distances float32 holds exactly."""
  rng = np.random.default_rng(0)
  centers = rng.integers(-40, 41, size=(64, width))
  rows = centers[rng.integers(0, 64, num_rows)]
  return (rows + rng.integers(-9, 10, size=rows.shape)).astype(np.float32)


@jax.jit
def check(
  x: jax.Array,
  centers: jax.Array,
  counts: jax.Array,
  codes: jax.Array,
  base: jax.Array,
  clusters: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Checks a pass in which clusters chose in turn by number.

  Returns:
    How many of `clusters` break Algorithm 1's invariant (no item that chose
    later may be nearer than an item that the cluster took, nor as near with
    a lower index), how many of all have a wrong size, and how many codes
    differ from `base`.
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

  sizes = jnp.bincount(codes, length=centers.shape[0])
  return (
    jnp.sum(lax.map(broken, clusters)),
    jnp.sum(sizes != counts),
    jnp.sum(codes != base),
  )


@functools.partial(jax.jit, static_argnames="kind")
def one_matmul(a: jax.Array, kind: str) -> jax.Array:
  """A square matmul at a precision, by the hardware's own form."""
  how = {
    "float32": lax.Precision.HIGHEST,
    "tfloat32": lax.Precision.DEFAULT,
    "bfloat16": None,
  }[kind]
  a = a.astype(jnp.bfloat16) if kind == "bfloat16" else a
  return jnp.matmul(a, a, precision=how, preferred_element_type=jnp.float32)


@jax.jit
def add_one(x: jax.Array) -> jax.Array:
  """Reads and writes everything once."""
  return x + 1


@jax.jit
def counting(
  x: jax.Array, centers: jax.Array, counts: jax.Array, order: jax.Array
) -> jax.Array:
  """Algorithm 1 one cluster after the other."""
  return balanced.assign_by_counting(x, centers, counts, order)


def as_options(kind: str) -> tuple[str, bool]:
  """The precision and whether the kernel is asked for."""
  return kind.split(",")[0].removesuffix(" rows"), kind.endswith(", kernel")


def stored(kind: str) -> jnp.dtype:
  """How rows are stored: "bfloat16 rows" are so, others in float32."""
  is_short = kind.startswith("bfloat16 rows")
  return jnp.dtype(jnp.bfloat16 if is_short else jnp.float32)


@functools.partial(jax.jit, static_argnames=("kind", "steps"))
def updates(
  x: jax.Array, centers: jax.Array, kind: str, steps: int
) -> kmeans.KMeansState:
  """Lloyd updates, one after the other."""
  kind, fused = as_options(kind)
  return lax.fori_loop(
    0,
    steps,
    lambda _, state: kmeans.update(state, x, kind, fused),
    kmeans.from_codebook(centers),
  )


@functools.partial(jax.jit, static_argnames="kind")
def assign(x: jax.Array, centers: jax.Array, kind: str) -> jax.Array:
  """Nearest codes."""
  kind, fused = as_options(kind)
  return nearest.nearest_code(x, centers, precision=kind, fused=fused)


@functools.partial(jax.jit, static_argnames=("num_codes", "form"))
def sums(
  codes: jax.Array, x: jax.Array, num_codes: int, form: str
) -> jax.Array:
  """Sums of the rows of every code, by one form."""
  if form == "scatter":
    return lookup.scatter_sum(codes, x, num_rows=num_codes)
  if form == "one-hot":
    return lookup.one_hot_sum(
      codes, x, num_rows=num_codes, precision=lax.Precision.HIGHEST
    )
  order = jnp.argsort(codes)
  return jax.ops.segment_sum(
    x[order], codes[order], num_codes, indices_are_sorted=True
  )


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
