"""Times a training step of the generator beside Hugging Face's T5.

  python benchmarks/train_generator.py                  # all, on one GPU
  python benchmarks/train_generator.py --list
  python benchmarks/train_generator.py --rows library,pallas --batches 1024
  python benchmarks/train_generator.py --tiny           # seconds on a CPU

4 + 4 layers, width 128, 6 heads of 64, gated MLP of 1024, dropout 0.1,
bfloat16 with float32 parameters, AdamW; every example is 82 tokens in and 4
out, none of them padding. Our rows time `gr_jax.training.step` as the trainer
runs it, batches cut on the device. Each row is a process of its own, so that
one that fails or sets XLA flags leaves the others alone. Prints one line a
row and the table at the end; writes it as JSON to --output.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

# Name -> parts for generator_variants.apply, or switches read here:
# rate, shared (dropout), flags (XLA_FLAGS), torch.
BEST = {"cross": "absorbed", "mlp": "saved"}
ROWS: dict[str, dict[str, Any]] = {
  "library": {},
  "no dropout": {"rate": 0.0},
  "element dropout": {"shared": False},
  "element, rbg 32": {"shared": False, "bits": 32},
  "element, rbg 16": {"shared": False, "bits": 16},
  "pad 8": {"pad": 8},
  "cross absorbed": {"cross": "absorbed"},
  "mlp fused": {"mlp": "fused"},
  "mlp saved": {"mlp": "saved"},
  "fused qkv": {**BEST, "attention": "fused", "pad": 8},
  "absorbed": {**BEST, "attention": "absorbed", "pad": 8},
  "cudnn": {**BEST, "attention": "cudnn", "pad": 8},
  "pallas": {**BEST, "attention": "pallas"},
  "pallas pad 8": {**BEST, "attention": "pallas", "pad": 8},
  "pallas 4 warps": {**BEST, "attention": "pallas", "pad": 8, "warps": 4},
  "pallas triton": {
    **BEST,
    "attention": "pallas",
    "pad": 8,
    "flags": "--xla_gpu_triton_gemm_any=true",
  },
  "pallas graphs": {
    **BEST,
    "attention": "pallas",
    "pad": 8,
    "flags": "--xla_gpu_enable_command_buffer="
    "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CONDITIONAL,WHILE",
  },
  "hf eager": {"torch": "eager"},
  "hf compile": {"torch": "compile"},
}
DEFAULT = (
  "library,no dropout,element dropout,mlp saved,fused qkv,absorbed,cudnn,"
  "pallas,pallas pad 8,hf eager,hf compile"
)
HISTORY, LEVELS, CODES, USERS, ITEMS = 20, 4, 256, 2000, 12_101
VOCAB = 3072  # 2 + 2000 user buckets + 4 x 256, padded


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


def worker(name: str, args: argparse.Namespace) -> dict[str, Any]:
  """Times one row; runs in its own process."""
  parts = dict(ROWS[name])
  if "torch" in parts:
    return torch_rows(parts["torch"], args)
  os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
  if "flags" in parts:
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} {parts.pop('flags')}"
  return jax_rows(parts, args)


def jax_rows(parts: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
  """Times our step at every batch size."""
  import generator_variants
  import jax
  import jax.numpy as jnp
  import numpy as np

  from gr_jax.core import mesh as mesh_lib
  from gr_jax.models import EncoderDecoder, T5Config
  from gr_jax.tasks import windows
  from gr_jax.training import loaders
  from gr_jax.training import optimizer as optimizer_lib
  from gr_jax.training import state as state_lib
  from gr_jax.training import step as step_lib

  generator_variants.INTERPRET = jax.default_backend() == "cpu"
  cfg = T5Config(
    **sizes(args.tiny),
    dtype="bfloat16",
    dropout_rate=parts.pop("rate", 0.1),
    dropout_shared=parts.pop("shared", True),
  )
  error = None
  if args.check and parts:
    error = gradient_error(parts)
  else:
    generator_variants.apply(**parts)
  generator = np.random.default_rng(0)
  num_users, per_user = 2000, 60
  offsets = np.arange(num_users)[:, None] * per_user
  start = (offsets + np.arange(per_user - HISTORY)[None]).reshape(-1)
  codes = generator.integers(0, CODES, (ITEMS, LEVELS))
  first = 2 + USERS + CODES * np.arange(LEVELS)
  mesh = mesh_lib.make_mesh(jax.devices()[:1])
  data = windows.TrainingData(
    items=jnp.asarray(
      generator.integers(0, ITEMS, num_users * per_user), jnp.int32
    ),
    item_tokens=jnp.asarray(codes + first, jnp.int32),
    user_tokens=jnp.asarray(2 + np.arange(num_users), jnp.int32),
    user_index=jnp.asarray(start // per_user, jnp.int32),
    history_start=jnp.asarray(start, jnp.int32),
    target_position=jnp.asarray(start + HISTORY, jnp.int32),
  )
  layout = windows.WindowLayout(
    max_history=HISTORY, num_levels=LEVELS, has_user_token=True
  )
  model = EncoderDecoder(cfg)
  optimizer = optimizer_lib.make_optimizer(
    optimizer_lib.OptimizerConfig(), 100_000
  )
  ones = jnp.ones((1, layout.input_length), jnp.int32)
  params = jax.jit(model.init)(
    jax.random.key(0), ones, ones[:, : layout.target_length]
  )["params"]
  params = jax.tree.map(lambda p: p[None], params)
  rates = {}
  for batch_size in args.batches:
    state = state_lib.init_state(jax.tree.map(jnp.copy, params), optimizer)
    # Placed as the step returns it, or the second call compiles again.
    state = jax.device_put(state, mesh_lib.replicated(mesh))
    loader = loaders.DeviceLoader.create(
      data, layout, mesh, batch_size=batch_size
    )
    run = step_lib.make_train_steps(
      model,
      optimizer,
      mesh,
      sampler=loader.sampler,
      num_steps=args.steps,
      learning_rates=[1e-3],
      dropout_rates=[cfg.dropout_rate],
    )
    keys = jax.random.key(1)[None]
    began = time.perf_counter()
    state, metrics = run(state, loader.data, keys)
    jax.block_until_ready(state)
    compile_s = time.perf_counter() - began
    times = []
    for _ in range(args.repeats):
      began = time.perf_counter()
      state, metrics = run(state, loader.data, keys)
      jax.block_until_ready(state)
      times.append((time.perf_counter() - began) / args.steps)
    rates[batch_size] = row(times, batch_size, float(metrics.loss[0]), args)
    rates[batch_size]["first_call_s"] = compile_s
  return {"rates": rates, "gradient_error": error}


def gradient_error(parts: dict[str, Any]) -> float:
  """Largest relative gradient error of a variant against the library."""
  import generator_variants
  import jax
  import jax.numpy as jnp
  import numpy as np

  from gr_jax.models import EncoderDecoder, T5Config

  cfg = T5Config(
    vocab_size=64, num_encoder_layers=2, num_decoder_layers=1, dtype="bfloat16"
  )
  generator = np.random.default_rng(0)
  inputs = generator.integers(1, 64, (8, 82))
  inputs[np.arange(82)[None] >= generator.integers(5, 83, (8, 1))] = 0
  inputs = jnp.asarray(inputs, jnp.int32)
  targets = jnp.asarray(generator.integers(1, 64, (8, 4)), jnp.int32)
  model = EncoderDecoder(cfg)
  params = jax.jit(model.init)(jax.random.key(0), inputs, targets)["params"]

  def gradients():
    # A fresh function: jit must not find the library's program.
    def loss(params):
      logits = EncoderDecoder(cfg).apply({"params": params}, inputs, targets)
      log_probs = jax.nn.log_softmax(logits)
      picked = jnp.take_along_axis(log_probs, targets[..., None], axis=-1)
      return -jnp.mean(picked)

    return jax.device_get(jax.jit(jax.grad(loss))(params))

  library = gradients()
  generator_variants.apply(**parts)
  errors = jax.tree.map(
    lambda a, b: float(np.linalg.norm(a - b) / np.linalg.norm(b)),
    gradients(),
    library,
  )
  return max(jax.tree.leaves(errors))


def torch_rows(mode: str, args: argparse.Namespace) -> dict[str, Any]:
  """Times Hugging Face's T5 of the same sizes, autocast to bfloat16."""
  import torch
  import transformers

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
    loss_of = torch.compile(loss_of)

  def synchronize():
    if device == "cuda":
      torch.cuda.synchronize()

  rates = {}
  for batch_size in args.batches:
    inputs = torch.randint(
      2, VOCAB, (batch_size, HISTORY * LEVELS + 2), device=device
    )
    targets = torch.randint(2, VOCAB, (batch_size, LEVELS), device=device)

    def step(inputs=inputs, targets=targets):
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
    for _ in range(args.repeats):
      began = time.perf_counter()
      for _ in range(args.steps):
        loss = step()
      synchronize()
      times.append((time.perf_counter() - began) / args.steps)
    rates[batch_size] = row(times, batch_size, float(loss), args)
    rates[batch_size]["first_call_s"] = compile_s
  return {"rates": rates, "gradient_error": None}


def row(
  times: list[float], batch_size: int, loss: float, args: argparse.Namespace
) -> dict[str, float]:
  """Summarizes the times of one batch size."""
  seconds = statistics.median(times)
  flops = flops_per_example(sizes(args.tiny)) * batch_size
  return {
    "step_ms": seconds * 1e3,
    "spread_ms": (max(times) - min(times)) * 1e3,
    "examples_per_s": batch_size / seconds,
    "mfu": flops / seconds / args.peak_flops,
    "loss": loss,
  }


def show(name: str, result: dict[str, Any]) -> str:
  """One line of the table."""
  if "failed" in result:
    return f"{name:18s} failed: {result['failed']}"
  cells = [
    f"B {batch:>5s}: {r['examples_per_s']:>9,.0f} ex/s {r['step_ms']:7.2f} ms "
    f"mfu {r['mfu']:.3f} loss {r['loss']:.2f} first {r['first_call_s']:.0f} s"
    for batch, r in result["rates"].items()
  ]
  error = result.get("gradient_error")
  if error is not None:
    cells.append(f"gradient error {error:.1e}")
  return f"{name:18s} " + " | ".join(cells)


def main() -> None:
  """Runs every row in a process and prints the table."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--rows", default=DEFAULT, help="names, or 'all'")
  parser.add_argument("--batches", default="1024,4096")
  parser.add_argument("--steps", type=int, default=20, help="per dispatch")
  parser.add_argument("--repeats", type=int, default=5)
  parser.add_argument("--peak_flops", type=float, default=803e12)
  parser.add_argument("--seconds", type=float, default=570, help="in all")
  parser.add_argument("--no-check", dest="check", action="store_false")
  parser.add_argument("--tiny", action="store_true", help="a CPU smoke run")
  parser.add_argument("--list", action="store_true")
  parser.add_argument("--output", default="")
  parser.add_argument("--worker", default="", help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.list:
    print("\n".join(f"{name:18s} {parts}" for name, parts in ROWS.items()))
    return
  if args.tiny:
    args.batches, args.steps, args.repeats = "8", 2, 2
  if args.worker:
    args.batches = [int(size) for size in args.batches.split(",")]
    print(json.dumps(worker(args.worker, args)))
    return
  names = list(ROWS) if args.rows == "all" else args.rows.split(",")
  unknown = [name for name in names if name not in ROWS]
  if unknown:
    parser.error(f"unknown rows {unknown}; see --list")
  began, results = time.monotonic(), {}
  for name in names:
    left = args.seconds - (time.monotonic() - began)
    if left < 20:
      results[name] = {"failed": "no time left"}
      continue
    results[name] = run_row(name, left)
    print(show(name, results[name]), flush=True)
    if args.output:
      pathlib.Path(args.output).write_text(json.dumps(results, indent=1))
  print("\n" + "\n".join(show(name, r) for name, r in results.items()))


def run_row(name: str, seconds: float) -> dict[str, Any]:
  """Runs one row as a process; a failure becomes a line of the table."""
  command = [sys.executable, __file__, *sys.argv[1:], "--worker", name]
  try:
    done = subprocess.run(
      command, capture_output=True, text=True, timeout=seconds, check=False
    )
  except subprocess.TimeoutExpired:
    return {"failed": f"still running after {seconds:.0f} s"}
  if done.returncode:
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line or "error" in line]
    return {"failed": " / ".join((errors or lines)[-3:])[:400]}
  return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
  main()
