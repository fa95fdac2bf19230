r"""Times training of the generator beside Hugging Face's T5.

  export JAX_COMPILATION_CACHE_DIR=/tmp/jax_cache
  python benchmarks/train_generator.py --compile_only   # fills the cache
  python benchmarks/train_generator.py                  # all, on one GPU
  python benchmarks/train_generator.py --library "full windows" --peers ""
  python benchmarks/train_generator.py --tiny           # seconds on a CPU
  python benchmarks/train_generator.py --compile_only --batch 64 \
    --library items,"all logits" --peers ""  # FLOPs and bytes, on a CPU

4 + 4 layers, width 128, 6 heads of 64, gated MLP of 1024, dropout 0.1,
bfloat16 with float32 parameters, AdamW. Full windows are 82 tokens in and 4
out, none of them padding, which packing cannot shorten; mixed windows are as
long as Amazon Beauty's. "items" is `configs/beauty.py:best`'s RQ-Transformer on
full sequences, an item's number its last code, beside the same with logits of
all tokens at every level. Our rows time `gr_jax.training.step` as the trainer
runs it, batches cut on the device, all replicas' examples counted. The rows
of the library share a process, each peer has its own. Prints a line as soon
as a row is measured; writes all so far as JSON to --output.
"""

import argparse
import concurrent.futures
import contextlib
import fcntl
import functools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

# Of the library, in order of worth: windows, packing, replicas, batch.
ROWS: dict[str, dict[str, Any]] = {
  "full windows": {"batch": 1024},
  "full at 4096": {"batch": 4096},
  "mixed x 3 replicas": {"mixed": True, "replicas": 3, "batch": 1024},
  "mixed windows": {"mixed": True, "batch": 1024},
  "mixed unpacked": {"mixed": True, "packs": False, "batch": 1024},
  "full x 3 replicas": {"replicas": 3, "batch": 1024},
  "items": {"items": True, "batch": 1024},
  "all logits": {"items": True, "all_logits": True, "batch": 1024},
}
PEERS = {
  "hf compile": ("compile", 1024),
  "hf compile 4096": ("compile", 4096),
  "hf eager": ("eager", 1024),
}
HISTORY, LEVELS, CODES, USERS, ITEMS = 20, 4, 256, 2000, 12_101
VOCAB = 3072  # 2 + 2000 user buckets + 4 x 256, padded
ITEM_VOCAB = 12_928  # 2 + 3 x 256 + 12,101, padded
# Percent of Amazon Beauty's training windows that hold 1, 2, ... 20 items.
LENGTHS = (
  17.0, 17.0, 11.6, 8.4, 6.3, 4.9, 3.9, 3.2, 2.7, 2.3,
  1.9, 1.7, 1.5, 1.3, 1.1, 1.0, 1.0, 0.9, 0.7, 11.6,
)  # fmt: skip


def sizes(tiny: bool) -> dict[str, int]:
  """The network's sizes, shared by all rows."""
  return {
    "vocab_size": VOCAB,
    "emb_dim": 32 if tiny else 128,
    "num_heads": 2 if tiny else 6,
    "num_encoder_layers": 1 if tiny else 4,
    "num_decoder_layers": 1 if tiny else 4,
    "head_dim": 16 if tiny else 64,
    "mlp_dim": 64 if tiny else 1024,
  }


def flops_per_example(cfg: dict[str, int]) -> float:
  """Matmul FLOPs of one example, forward and backward (3 x forward)."""
  s, t = HISTORY * LEVELS + 2, LEVELS
  e, heads = cfg["emb_dim"], cfg["num_heads"] * cfg["head_dim"]
  mlp = 3 * e * cfg["mlp_dim"]
  encoder = s * (4 * e * heads + mlp) + 2 * s * s * heads
  decoder = t * (6 * e * heads + mlp) + 2 * s * e * heads
  decoder += 2 * t * (t + s) * heads
  total = cfg["num_encoder_layers"] * encoder
  total += cfg["num_decoder_layers"] * decoder + t * e * cfg["vocab_size"]
  return 3.0 * 2.0 * total


def library_rows(args: argparse.Namespace) -> None:
  """Times the rows of the library, printing each as JSON at once."""
  import jax

  os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
  pool = concurrent.futures.ThreadPoolExecutor()
  made = {name: pool.submit(compile_row, name, args) for name in args.library}
  if args.compile_only:
    for future in concurrent.futures.as_completed(made.values()):
      print(json.dumps(future.result()[0]), flush=True)
    return
  # Compiling tries kernels on the device: not while a row is timed.
  concurrent.futures.wait(made.values(), timeout=args.patience)
  done = [name for name in made if made[name].done()]
  for name in [*done, *(set(made) - set(done))]:
    row = ROWS[name]
    compiled, *program = made[name].result()
    with alone(args.lock):
      seconds, loss = time_program(*program, args)
    per_step = rows_of(row, args) * row.get("replicas", 1)
    compile_s = compiled[name]["compile_s"]
    found = summary(seconds, per_step, loss, compile_s, args)
    if row.get("mixed") or row.get("items"):
      del found["mfu"]  # it counts full windows
    print(json.dumps({name: found}), flush=True)


def rows_of(row: dict[str, Any], args: argparse.Namespace) -> int:
  """Examples in one replica's batch."""
  return 32 if args.tiny else args.batch or row["batch"]


@contextlib.contextmanager
def alone(path: str) -> Iterator[None]:
  """Holds a file's lock: processes that share one compile side by side."""
  if not path:
    yield
    return
  with open(path, "w") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    yield


def compile_row(name: str, args: argparse.Namespace) -> Any:
  """Compiles a row; returns its cost, the program and its arguments."""
  began = time.perf_counter()
  traced, start, data, keys = make_program(
    ROWS[name], rows_of(ROWS[name], args), args
  )
  program, start = traced.compile(), start.lower().compile()
  found = {"compile_s": time.perf_counter() - began}
  # Of one step: a loop's body is counted once.
  cost, memory = program.cost_analysis(), program.memory_analysis()
  found |= {"gflop": cost["flops"] / 1e9, "gb": cost["bytes accessed"] / 1e9}
  found["temp_gb"] = memory.temp_size_in_bytes / 1e9
  return {name: found}, program, start, data, keys


def make_program(
  row: dict[str, Any], batch_size: int, args: argparse.Namespace
) -> Any:
  """Returns a traced program and what it is called with."""
  import jax
  import jax.numpy as jnp
  import numpy as np

  from gr_jax.core import mesh as mesh_lib
  from gr_jax.sids.vocabulary import SidVocabulary
  from gr_jax.tasks import windows
  from gr_jax.training import loaders, loop
  from gr_jax.training import optimizer as optimizer_lib
  from gr_jax.training import state as state_lib
  from gr_jax.training import step as step_lib

  replicas = row.get("replicas", 1)
  draw = np.random.default_rng(0)
  num_users, per_user = 2000, 60
  offsets = np.arange(num_users)[:, None] * per_user
  target = (offsets + np.arange(HISTORY, per_user)[None]).reshape(-1)
  lengths = np.full(target.size, HISTORY)
  if row.get("mixed"):
    shares = np.array(LENGTHS) / sum(LENGTHS)
    lengths = draw.choice(HISTORY, target.size, p=shares) + 1
  codes = draw.integers(0, CODES, (ITEMS, LEVELS)).astype(np.int32)
  vocabulary = SidVocabulary((CODES,) * LEVELS, num_user_buckets=USERS)
  if row.get("items"):
    codes[:, -1] = np.arange(ITEMS)
    vocabulary = SidVocabulary((*[CODES] * (LEVELS - 1), ITEMS))
  data = windows.TrainingData(
    items=jnp.asarray(draw.integers(0, ITEMS, num_users * per_user), jnp.int32),
    item_tokens=jnp.asarray(vocabulary.tokens_from_codes(codes)),
    user_tokens=jnp.asarray(2 + np.arange(num_users), jnp.int32),
    user_index=jnp.asarray(target // per_user, jnp.int32),
    history_start=jnp.asarray(target - lengths, jnp.int32),
    target_position=jnp.asarray(target, jnp.int32),
  )
  layout = windows.WindowLayout(
    max_history=HISTORY,
    num_levels=LEVELS,
    has_user_token=not row.get("items"),
    every_item=bool(row.get("items")),
  )
  model = make_model(row, vocabulary.code_ranges, args)
  optimizer = optimizer_lib.make_optimizer(
    optimizer_lib.OptimizerConfig(), 100_000
  )
  mesh = mesh_lib.make_mesh(jax.devices()[:1])
  loader = loaders.DeviceLoader(
    data, layout, mesh, batch_size=batch_size, packs=row.get("packs", True)
  )
  run = step_lib.make_train_steps(
    model,
    optimizer,
    mesh,
    sampler=loader.sampler,
    num_steps=args.steps,
    learning_rates=[1e-3] * replicas,
    dropout_rates=[0.1] * replicas,
  )
  keys = jax.random.split(jax.random.key(1), replicas)

  @functools.partial(jax.jit, out_shardings=mesh_lib.replicated(mesh))
  def start():
    params = loop.init_params(model, layout, keys=keys)
    return state_lib.init_state(params, optimizer)

  shapes = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=mesh_lib.replicated(mesh)
    ),
    jax.eval_shape(start),
  )
  return run.lower(shapes, loader.data, keys), start, loader.data, keys


def make_model(
  row: dict[str, Any],
  code_ranges: tuple[tuple[int, int], ...],
  args: argparse.Namespace,
) -> Any:
  """Returns a row's network."""
  from gr_jax.models import EncoderDecoder, RQTransformer, T5Config

  shape = sizes(args.tiny)
  if not row.get("items"):
    return EncoderDecoder(T5Config(**shape, dtype="bfloat16"))
  shape["vocab_size"] = ITEM_VOCAB
  if not args.tiny:
    shape |= {"emb_dim": 256, "num_heads": 4, "num_decoder_layers": 2}
  if row.get("all_logits"):
    code_ranges = ((0, ITEM_VOCAB),) * LEVELS
  return RQTransformer(T5Config(**shape, dtype="bfloat16"), code_ranges)


def time_program(
  run: Any, start: Any, data: Any, keys: Any, args: argparse.Namespace
) -> tuple[list[float], float]:
  """Returns the seconds a step of each repeat, after one call to warm up."""
  import jax

  state, times = start(), []
  for _ in range(args.repeats + 1):
    began = time.perf_counter()
    state, metrics = run(state, data, keys)
    jax.block_until_ready(state)
    times.append((time.perf_counter() - began) / args.steps)
  return times[1:], float(metrics.loss.mean())


def torch_row(name: str, args: argparse.Namespace) -> None:
  """Times Hugging Face's T5 of the same sizes, autocast to bfloat16."""
  # transformers imports a library named as a file of this folder.
  sys.path = [path for path in sys.path if path != str(ROOT / "benchmarks")]
  import torch
  import transformers

  mode, batch_size = PEERS[name]
  batch_size = 32 if args.tiny else args.batch or batch_size
  cfg = sizes(args.tiny)
  device = "cuda" if torch.cuda.is_available() else "cpu"
  torch.manual_seed(0)
  model = transformers.T5ForConditionalGeneration(
    transformers.T5Config(
      vocab_size=cfg["vocab_size"],
      d_model=cfg["emb_dim"],
      d_kv=cfg["head_dim"],
      d_ff=cfg["mlp_dim"],
      num_layers=cfg["num_encoder_layers"],
      num_decoder_layers=cfg["num_decoder_layers"],
      num_heads=cfg["num_heads"],
      dropout_rate=0.1,
      feed_forward_proj="gated-gelu",
      tie_word_embeddings=False,
      decoder_start_token_id=0,
      use_cache=False,
    )
  ).to(device)
  model.train()
  optimizer = torch.optim.AdamW(
    model.parameters(), lr=1e-3, weight_decay=1e-2, fused=device == "cuda"
  )
  torch.set_float32_matmul_precision("high")

  def loss_of(inputs, targets):
    with torch.autocast(device, torch.bfloat16):
      return model(
        input_ids=inputs, attention_mask=torch.ones_like(inputs), labels=targets
      ).loss

  if mode == "compile":
    loss_of = torch.compile(loss_of, dynamic=False)

  def synchronize():
    if device == "cuda":
      torch.cuda.synchronize()

  inputs = torch.randint(
    2, VOCAB, (batch_size, HISTORY * LEVELS + 2), device=device
  )
  targets = torch.randint(2, VOCAB, (batch_size, LEVELS), device=device)

  def step():
    loss = loss_of(inputs, targets)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss

  began = time.perf_counter()
  for _ in range(3):
    loss = step()
  synchronize()
  compile_s = time.perf_counter() - began
  times = []
  with alone(args.lock):
    for _ in range(args.repeats):
      began = time.perf_counter()
      for _ in range(args.steps):
        loss = step()
      synchronize()
      times.append((time.perf_counter() - began) / args.steps)
  found = summary(times, batch_size, float(loss), compile_s, args)
  print(json.dumps({name: found}), flush=True)


def summary(
  times: list[float],
  batch_size: int,
  loss: float,
  compile_s: float,
  args: argparse.Namespace,
) -> dict[str, float]:
  """Summarizes the times of one batch size, all replicas together."""
  seconds = statistics.median(times)
  flops = flops_per_example(sizes(args.tiny)) * batch_size
  return {
    "step_ms": seconds * 1e3,
    "spread_ms": (max(times) - min(times)) * 1e3,
    "examples_per_s": batch_size / seconds,
    "mfu": flops / seconds / args.peak_flops,
    "loss": loss,
    "compile_s": compile_s,
  }


def show(name: str, found: dict[str, Any]) -> str:
  """One line of the table."""
  if "failed" in found:
    return f"{name:20s} failed: {found['failed']}"
  if "step_ms" not in found:
    return (
      f"{name:20s} {found['gflop']:,.0f} GFLOP, {found['gb']:.2f} GB a step, "
      f"{found['temp_gb']:.2f} GB held, compile {found['compile_s']:.0f} s"
    )
  mfu = f"mfu {found['mfu']:.3f}" if "mfu" in found else " " * 9
  return (
    f"{name:20s} {found['examples_per_s']:>9,.0f} ex/s "
    f"{found['step_ms']:7.2f} ± {found['spread_ms']:.2f} ms {mfu} "
    f"loss {found['loss']:.2f} compile {found['compile_s']:.0f} s"
  )


def main() -> None:
  """Runs the rows and prints a line each."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--library", default=",".join(ROWS), help="rows, or ''")
  parser.add_argument("--peers", default="hf compile", help="rows, or ''")
  parser.add_argument("--batch", type=int, default=0, help="0: each row's own")
  parser.add_argument("--steps", type=int, default=20, help="per dispatch")
  parser.add_argument("--repeats", type=int, default=3)
  parser.add_argument("--peak_flops", type=float, default=803e12)
  parser.add_argument("--compile_only", action="store_true")
  parser.add_argument("--tiny", action="store_true", help="a CPU smoke run")
  parser.add_argument("--output", default="")
  parser.add_argument("--lock", default="", help="held while a row is timed")
  parser.add_argument(
    "--patience", type=float, default=600, help="seconds for compiling"
  )
  parser.add_argument("--worker", default="", help=argparse.SUPPRESS)
  args = parser.parse_args()
  args.library = [name for name in args.library.split(",") if name]
  peers = [name for name in args.peers.split(",") if name]
  for name in (*args.library, *peers):
    if name not in (ROWS if name in args.library else PEERS):
      parser.error(f"unknown row {name!r}; known: {[*ROWS, *PEERS]}")
  if args.tiny:
    args.steps, args.repeats = 2, 2
  if args.worker == "library":
    library_rows(args)
    return
  if args.worker:
    torch_row(args.worker, args)
    return
  results: dict[str, Any] = {}
  workers = ["library"] if args.library else []
  for worker in workers + ([] if args.compile_only else peers):
    for found in run_worker(worker):
      results |= found
      for name, result in found.items():
        print(show(name, result), flush=True)
      if args.output:
        pathlib.Path(args.output).write_text(json.dumps(results, indent=1))


def run_worker(name: str) -> Iterator[dict[str, Any]]:
  """Yields rows as a process measures them; a failure is a row, too."""
  command = [sys.executable, __file__, *sys.argv[1:], "--worker", name]
  with (
    tempfile.TemporaryFile("w+") as errors,
    subprocess.Popen(
      command, stdout=subprocess.PIPE, stderr=errors, text=True
    ) as process,
  ):
    for line in process.stdout:
      if line.startswith("{"):
        yield json.loads(line)
    if process.wait():
      errors.seek(0)
      lines = [line.strip() for line in errors if "rror" in line]
      yield {name: {"failed": " / ".join(lines[-3:])[:400]}}


if __name__ == "__main__":
  main()
