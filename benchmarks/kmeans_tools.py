"""Data, clocks and checks of `benchmarks/kmeans.py`."""

import functools
import glob
import gzip
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent import futures
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

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


def compile_all(
  lowered: dict[str, Callable[[], Any]],
) -> dict[str, Callable[..., Any]]:
  """Compiles many programs at once: on a GPU that takes long, on one core.

  Args:
    lowered: By name, functions that return what `jit(f).lower(...)` does.

  Returns:
    By name, the programs; one that does not compile raises when it is called.
  """

  def compile_one(lower: Callable[[], Any]) -> Callable[..., Any]:
    try:
      return lower().compile()
    except Exception as error:  # noqa: BLE001 becomes a row when called
      failure = error

      def fail(*_: Any) -> Any:
        raise failure

      return fail

  with futures.ThreadPoolExecutor(len(lowered)) as pool:
    programs = pool.map(compile_one, lowered.values())
    return dict(zip(lowered, programs, strict=True))


def whole_numbers(num_rows: int, width: int) -> np.ndarray:
  """Rows whose squared distances float32 holds exactly."""
  rng = np.random.default_rng(0)
  centers = rng.integers(-40, 41, size=(64, width))
  rows = centers[rng.integers(0, 64, num_rows)]
  return (rows + rng.integers(-9, 10, size=rows.shape)).astype(np.float32)


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
