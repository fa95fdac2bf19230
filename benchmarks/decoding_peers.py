"""What benchmarks/decoding.py measures ours beside; see there."""

import importlib
import pathlib
import statistics
import sys
import time
import types
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from gr_jax.decoding import trie
from gr_jax.evaluation import evaluator
from gr_jax.models import EncoderDecoder, T5Config
from gr_jax.sids.vocabulary import SidVocabulary

MODEL = {
  "emb_dim": 128,
  "num_heads": 6,
  "num_encoder_layers": 4,
  "num_decoder_layers": 4,
  "head_dim": 64,
  "mlp_dim": 1024,
}
MODEL_TINY = {
  "emb_dim": 16,
  "num_heads": 2,
  "num_encoder_layers": 1,
  "num_decoder_layers": 1,
  "head_dim": 8,
  "mlp_dim": 32,
}
USER_BUCKETS, INPUT_LENGTH = 2000, 82


class Static:
  """A catalog in STATIC's index, and its beam search over given logits."""

  def __init__(
    self,
    checkout: str,
    codes: np.ndarray,
    num_codes: int,
    kept: Mapping[str, np.ndarray] | None = None,
  ):
    """Imports STATIC from a checkout; builds the index unless it was kept."""
    if checkout not in sys.path:
      sys.path.insert(0, checkout)
    builder = importlib.import_module("static_decoding.csr_utils")
    self._decoding = importlib.import_module("static_decoding.decoding_jax")
    self.num_codes, self.num_levels = num_codes, codes.shape[1]
    if kept is None:
      csr, starts, branches, *dense = builder.build_static_index(
        codes, num_codes, dense_lookup_layers=2
      )
      self.index = (csr, starts, *dense)
    else:
      branches = kept["branches"]
      self.index = tuple(kept[f"array_{i}"] for i in range(len(kept) - 1))
    self.branches = tuple(int(b) for b in branches)
    self.num_bytes = sum(array.nbytes for array in self.index)

  def to_arrays(self) -> dict[str, np.ndarray]:
    """Returns what `kept` takes."""
    arrays = {f"array_{i}": array for i, array in enumerate(self.index)}
    return {"branches": np.array(self.branches), **arrays}

  def search(
    self, batch: int, beam: int, candidates: int
  ) -> Callable[..., jax.Array]:
    """Returns the search, for `chained`; `candidates` are kept a beam."""
    # Without its jit: the given logits take the model's place.
    search = self._decoding.sparse_transition_jax.__wrapped__

    def run(index, logits, nudge):
      given = iter([logits[0] + nudge, *logits[1:]])

      def model(tokens, key):
        level = next(given)
        return level.reshape(tokens.shape[0], 1, -1), key

      return search(
        model,
        jax.random.key(0),
        batch,
        beam,
        min(candidates, self.num_codes),
        0,
        self.num_levels,
        self.num_codes,
        self.branches,
        *index,
      )

    return run


def t5x_search(
  checkout: str, batch: int, beam: int, num_levels: int
) -> Callable[..., jax.Array]:
  """Returns T5X's free beam search, for `chained`.

  Only its decoding module is loaded. It runs as a loop that asks for logits
  of the traced level; all levels get those of the last, which costs it less
  than a choice between them would.
  """
  if "t5x" not in sys.modules:
    package = types.ModuleType("t5x")  # its own __init__ needs TensorFlow
    package.__path__ = [f"{checkout}/t5x"]
    sys.modules["t5x"] = package
  decoding = importlib.import_module("t5x.decoding")

  def run(_, logits, nudge):
    last = logits[-1].reshape(batch * beam, -1)

    def tokens_to_logits(state):
      # Of the level, or the loop would compute the log-softmax once.
      level = jnp.max(state.cur_index).astype(jnp.float32)
      return last + nudge + 1e-6 * level, state.cache

    ids, scores = decoding.beam_search(
      jnp.zeros((batch, num_levels), jnp.int32),
      {"none": jnp.zeros((batch, 1), jnp.float32)},
      tokens_to_logits,
      eos_id=last.shape[1],  # never written
      num_decodes=beam,
      alpha=0.0,
    )
    return ids, scores

  return run


class OurModel:
  """This project's network, trie and compiled search."""

  def __init__(
    self,
    sizes: dict[str, int],
    codes: np.ndarray,
    num_codes: int,
    beam: int,
  ):
    """Draws the parameters."""
    self.codes, self.beam = codes, beam
    self.vocabulary = SidVocabulary(
      (num_codes,) * codes.shape[1], num_user_buckets=USER_BUCKETS
    )
    self.vocab_size = self.vocabulary.padded_size(128)
    config = T5Config(vocab_size=self.vocab_size, **sizes, dtype="bfloat16")
    self.model = EncoderDecoder(config)
    ones = jnp.ones((1, INPUT_LENGTH), jnp.int32)
    self.params = jax.jit(self.model.init)(
      jax.random.key(0), ones, ones[:, : codes.shape[1]]
    )["params"]
    self.tree = trie.build_trie(codes, self.vocabulary.codebook_sizes)

  def inputs(self, batch: int) -> np.ndarray:
    """Random histories, none padded."""
    rng = np.random.default_rng(batch)
    shape = (batch, INPUT_LENGTH)
    return rng.integers(2, self.vocabulary.vocab_size, shape).astype(np.int32)

  def time(self, batch: int, constrained: bool, tiny: bool) -> dict[str, float]:
    """Times calls from inputs on the device to results there."""
    run = evaluator.make_recommend_fn(
      self.model,
      self.vocabulary,
      self.tree,
      beam_width=self.beam,
      constrained=constrained,
    )
    inputs = jnp.asarray(self.inputs(batch))
    began = time.perf_counter()
    jax.block_until_ready(run(self.params, inputs))
    compile_s = time.perf_counter() - began
    valid = float(np.mean(np.asarray(run(self.params, inputs).valid)))
    times, together = [], 2 if tiny else 20
    for _ in range(3 if tiny else 30):
      began = time.perf_counter()
      jax.block_until_ready(run(self.params, inputs))
      times.append(time.perf_counter() - began)
    began = time.perf_counter()
    for _ in range(together):
      result = None  # as in `decoding_steps.time_calls`
      result = run(self.params, inputs)
    jax.block_until_ready(result)
    each = (time.perf_counter() - began) / together
    return {
      "ms": statistics.median(times) * 1e3,
      "users_per_s": batch / each,
      "first_call_s": compile_s,
      "valid": valid,
    }


def hugging_face(
  sizes: dict[str, int],
  ours: OurModel,
  batch: int,
  beam: int,
  tiny: bool,
) -> dict[str, float]:
  """Times `generate` of a T5 of the same sizes on the same inputs.

  Raises:
    ImportError: No torch or no transformers.
  """
  # The benchmark of this project's tokenizers hides a library of that name.
  here = pathlib.Path(__file__).resolve().parent
  sys.path[:] = [p for p in sys.path if pathlib.Path(p).resolve() != here]
  import torch
  import transformers

  device = "cuda" if torch.cuda.is_available() else "cpu"
  torch.manual_seed(0)
  torch.set_float32_matmul_precision("high")
  model = transformers.T5ForConditionalGeneration(
    transformers.T5Config(
      vocab_size=ours.vocab_size,
      d_model=sizes["emb_dim"],
      d_kv=sizes["head_dim"],
      d_ff=sizes["mlp_dim"],
      num_layers=sizes["num_encoder_layers"],
      num_decoder_layers=sizes["num_decoder_layers"],
      num_heads=sizes["num_heads"],
      feed_forward_proj="gated-gelu",
      tie_word_embeddings=False,
      decoder_start_token_id=0,
      pad_token_id=0,
      eos_token_id=1,
    )
  )
  model = model.to(device, torch.bfloat16 if device == "cuda" else None).eval()
  tokens = ours.vocabulary.tokens_from_codes(ours.codes)
  following: dict[tuple[int, ...], set[int]] = {}
  for row in tokens.tolist():
    for l, token in enumerate(row):
      following.setdefault(tuple(row[:l]), set()).add(token)
  following = {k: sorted(v) for k, v in following.items()}
  ids = torch.as_tensor(ours.inputs(batch), dtype=torch.long, device=device)

  def run():
    return model.generate(
      input_ids=ids,
      attention_mask=torch.ones_like(ids),
      num_beams=beam,
      num_return_sequences=beam,
      do_sample=False,
      max_new_tokens=tokens.shape[1],
      # Beams that hold the start symbol alone share a prefix; a dead beam's
      # prefix is no key, and anything may follow it.
      prefix_allowed_tokens_fn=lambda _, prefix: following.get(
        tuple(prefix.tolist()[1:]), [1]
      ),
    ).cpu()

  with torch.inference_mode():
    found = run()
    times = []
    for _ in range(2 if tiny else 3):
      began = time.perf_counter()
      found = run()
      times.append(time.perf_counter() - began)
  rows = {tuple(row) for row in tokens.tolist()}
  found = [tuple(row[1 : tokens.shape[1] + 1]) for row in found.tolist()]
  seconds = statistics.median(times)
  return {
    "ms": seconds * 1e3,
    "users_per_s": batch / seconds,
    "valid": sum(row in rows for row in found) / len(found),
    "torch": torch.__version__,
    "transformers": transformers.__version__,
  }
