"""Streams a catalog larger than wanted in memory: fit, codes, report.

  python benchmarks/stream_catalog.py --output stream.json  # 10^7 x 64
  python benchmarks/stream_catalog.py --num_items=100_000   # seconds on a CPU

Writes clustered float32 rows as `.npy` shards, reads them once from disk, and
from then on memory-maps them: mini-batch residual k-means with one pass a
level, codes of all items into shards, the report of the fit. Later reads come
from the system's cache where memory has room; only `read` says how fast the
disk is. `compile` is a run over the first shard.

Prints seconds, GB/s of rows, items/s and the process's highest memory without
mapped files (sampled) by part, and JAX's on its device. The first `compile`
holds the runtime, the compiler and one shard.
"""

import argparse
import json
import os
import pathlib
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent import futures
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax
import numpy as np

from gr_jax.tokenizers import base, minibatch, reporting

ROWS_PER_SHARD = 500_000
BATCH_SIZE = 62_500  # divides a shard: one shape to compile


class PeakMemory:
  """Highest resident memory of this process, mapped files left out."""

  def __init__(self) -> None:
    """Looks twenty times a second from now on."""
    self._most = self._now()
    threading.Thread(target=self._watch, daemon=True).start()

  def _now(self) -> int:
    """Returns bytes of anonymous memory."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
      if line.startswith("RssAnon:"):
        return int(line.split()[1]) * 1024
    return 0

  def _watch(self) -> None:
    while True:
      self._most = max(self._most, self._now())
      time.sleep(0.05)

  def restart(self) -> int:
    """Returns the highest since the last call."""
    most, self._most = max(self._most, self._now()), 0
    return most


def write_shards(folder: pathlib.Path, num_items: int, dim: int) -> None:
  """Writes rows around 4096 centers and drops them from the system's cache."""
  centers = np.random.default_rng(0).standard_normal((4096, dim), np.float32)

  def write(number: int) -> None:
    generator = np.random.default_rng((1, number))
    count = min(ROWS_PER_SHARD, num_items - number * ROWS_PER_SHARD)
    rows = generator.standard_normal((count, dim), np.float32)
    rows *= np.float32(0.5)
    rows += centers[generator.integers(0, len(centers), count)]
    with open(folder / f"rows_{number:05d}.npy", "wb") as out:
      np.save(out, rows)
      out.flush()
      os.fsync(out.fileno())
      os.posix_fadvise(out.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

  # Few at a time: each holds a shard.
  with futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
    list(pool.map(write, range(-(-num_items // ROWS_PER_SHARD))))


def open_shards(folder: pathlib.Path) -> list[np.ndarray]:
  """Memory-maps the shards."""
  paths = sorted(folder.glob("rows_*.npy"))
  return [np.load(path, mmap_mode="r") for path in paths]


def read_once(folder: pathlib.Path) -> None:
  """Reads all shards in order, 16 MB at a time."""
  for path in sorted(folder.glob("rows_*.npy")):
    with open(path, "rb", buffering=0) as file:
      while file.read(1 << 24):
        pass


def write_codes(
  tokenizer: Any, state: Any, shards: list[np.ndarray], folder: pathlib.Path
) -> np.ndarray:
  """Encodes shard by shard into `.npy` files; returns all codes."""
  parts = []
  for number, shard in enumerate(shards):
    codes = base.encode_in_chunks(
      tokenizer, state, shard, chunk_size=BATCH_SIZE
    )
    np.save(folder / f"codes_{number:05d}.npy", codes.astype(np.uint16))
    parts.append(codes)
  return np.concatenate(parts)


class Timer:
  """Times parts, prints them, collects them."""

  def __init__(self, num_items: int, dim: int) -> None:
    """Starts with none."""
    self.num_items, self.num_bytes = num_items, num_items * dim * 4
    self.parts: dict[str, dict[str, float]] = {}
    self._memory = PeakMemory()

  def __call__(
    self, name: str, work: Callable[[], Any], *, passes: int = 1
  ) -> Any:
    """Runs a part that goes over all rows `passes` times; 0 for another."""
    self._memory.restart()
    start = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - start
    row = {"seconds": seconds, "host_bytes": self._memory.restart()}
    text = f"{name:20} {seconds:7.2f} s {row['host_bytes'] / 1e9:6.2f} GB held"
    if passes:
      row["gb_per_second"] = passes * self.num_bytes / seconds / 1e9
      row["items_per_second"] = passes * self.num_items / seconds
      text += f" {row['gb_per_second']:7.2f} GB/s"
      text += f" {row['items_per_second'] / 1e6:8.2f} M items/s"
    self.parts[name] = row
    print(text, flush=True)
    return result


def stream(
  timed: Timer,
  shards: list[np.ndarray],
  folder: pathlib.Path,
  sizes: tuple[int, ...],
) -> dict[str, float]:
  """Fits, encodes and measures one list of codebook sizes."""
  name = f"{len(sizes)} x {sizes[0]}"
  tokenizer = minibatch.MiniBatchResidualKMeans(
    codebook_sizes=sizes, batch_size=BATCH_SIZE, num_passes=1
  )
  key = jax.random.key(0)

  def fit(shards: list[np.ndarray]) -> minibatch.Learned:
    learned = tokenizer.learn_shards(shards, key=key)
    return jax.block_until_ready(learned.state), learned

  def warm_up() -> None:
    codes = write_codes(tokenizer, fit(shards[:1])[0], shards[:1], folder)
    assert codes.shape == (shards[0].shape[0], len(sizes))

  timed(f"{name}: compile", warm_up, passes=0)
  state, learned = timed(f"{name}: fit", lambda: fit(shards), passes=len(sizes))
  codes = timed(
    f"{name}: codes", lambda: write_codes(tokenizer, state, shards, folder)
  )
  report = timed(
    f"{name}: report",
    lambda: reporting.fit_report(
      tokenizer,
      state,
      shards,
      started=time.monotonic(),
      codes=codes,
      revived=learned.revived,
    ),
  )
  return {
    "relative_mse": report.relative_mse,
    "utilization": min(report.utilization),
    "collision_rate": report.collision_rate,
  }


def run(args: argparse.Namespace, folder: pathlib.Path) -> dict[str, Any]:
  """Runs every part in a folder that is empty."""
  started = time.perf_counter()
  timed = Timer(args.num_items, args.dim)
  print(
    f"{args.num_items:,} x {args.dim} float32, {timed.num_bytes / 1e9:.2f} GB, "
    f"{jax.devices()[0].device_kind}, jax {jax.__version__}",
    flush=True,
  )
  timed("write", lambda: write_shards(folder, args.num_items, args.dim))
  timed("read", lambda: read_once(folder))
  shards = open_shards(folder)
  timed("check", lambda: minibatch.check_shards(shards, args.codes[0][0]))
  quality = {}
  for sizes in args.codes:
    if time.perf_counter() - started > args.seconds:
      print(f"{len(sizes)} x {sizes[0]}: no time left")
      break
    quality[f"{len(sizes)} x {sizes[0]}"] = stream(timed, shards, folder, sizes)
  device = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
  text = "not known" if device is None else f"{device / 1e9:.2f} GB"
  print(f"peak memory of the device: {text}")
  for name, figures in quality.items():
    print(name, {k: round(v, 4) for k, v in figures.items()})
  return {
    "num_items": args.num_items,
    "dim": args.dim,
    "device": jax.devices()[0].device_kind,
    "jax": jax.__version__,
    "parts": timed.parts,
    "device_bytes": device,
    "quality": quality,
    "seconds": time.perf_counter() - started,
  }


def main() -> None:
  """Prints every part; see the file."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--num_items", type=int, default=10_000_000)
  parser.add_argument("--dim", type=int, default=64)
  parser.add_argument(
    "--codes",
    type=lambda text: tuple(map(int, text.split(","))),
    nargs="+",
    default=[(256, 256, 256), (8192,)],
    help="codebook sizes of each fit, as 256,256,256 8192",
  )
  parser.add_argument("--folder", help="where shards lie a while; default /tmp")
  parser.add_argument(
    "--seconds", type=float, default=40, help="after these no fit starts"
  )
  parser.add_argument("--output", help="a JSON file of all numbers")
  args = parser.parse_args()
  with tempfile.TemporaryDirectory(dir=args.folder) as folder:
    result = run(args, pathlib.Path(folder))
  if args.output:
    pathlib.Path(args.output).write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
  main()
