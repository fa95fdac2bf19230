"""T5X with semantic IDs: its network and trainer, this project's decoding.

For the gin files in `configs/gin/`. T5X is optional and not on the package
index; docs/t5x.md says how to install it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import core, traverse_util

from gr_jax.core import checks
from gr_jax.decoding import beam_search as beam_search_lib
from gr_jax.decoding import trie as trie_lib
from gr_jax.evaluation import evaluator
from gr_jax.models import EncoderDecoder
from gr_jax.models import config as config_lib
from gr_jax.sids.vocabulary import SidVocabulary

try:
  from t5x import decoding, models
  from t5x.examples.t5 import network
except ModuleNotFoundError as error:
  raise checks.InputError(
    f"T5X cannot be imported ({error}); install it with pip install --no-deps "
    "git+https://github.com/google-research/t5x and what docs/t5x.md lists."
  ) from error

# T5X's config fields that are this project's, by the same names.
_SHARED_FIELDS = (
  "vocab_size", "emb_dim", "num_heads", "num_encoder_layers",
  "num_decoder_layers", "head_dim", "mlp_dim", "mlp_activations",
  "dropout_rate", "logits_via_embedding",
)  # fmt: skip


def network_config(config: config_lib.T5Config) -> network.T5Config:
  """Returns T5X's config of the same network.

  Raises:
    InputError: The network has a relative-position bias that T5X's lacks.
  """
  if (config.relpos_buckets, config.relpos_max_distance) != (32, 128):
    raise checks.InputError(
      "T5X's network has relpos_buckets=32 and relpos_max_distance=128; got "
      f"{config.relpos_buckets} and {config.relpos_max_distance}."
    )
  shared = {name: getattr(config, name) for name in _SHARED_FIELDS}
  return network.T5Config(dtype=config.dtype, **shared)


def config_of(config: network.T5Config) -> config_lib.T5Config:
  """Returns this project's config of T5X's network."""
  shared = {name: getattr(config, name) for name in _SHARED_FIELDS}
  shared["mlp_activations"] = tuple(config.mlp_activations)
  return config_lib.T5Config(dtype=jnp.dtype(config.dtype).name, **shared)


class SidEncoderDecoderModel(models.EncoderDecoderModel):
  """T5X's encoder-decoder whose predictions are items of a catalog.

  Training and scoring are T5X's. Predictions are this project's: keys and
  values of the inputs are made once a user and shared by all beams, and the
  trie leaves nothing but the catalog's IDs.
  """

  def __init__(
    self, *args, trie: trie_lib.Trie, layout_index: int = 0, **kwargs
  ):
    """Holds the catalog's IDs.

    Args:
      *args: As `models.EncoderDecoderModel`.
      trie: The catalog's semantic IDs, those of the output vocabulary.
      layout_index: Which of the vocabulary's layouts is this catalog's.
      **kwargs: As `models.EncoderDecoderModel`.
    """
    super().__init__(*args, **kwargs)
    self._trie = trie
    self._layout_index = layout_index

  def predict_batch_with_aux(
    self,
    params: Any,
    batch: Mapping[str, jax.Array],
    rng: jax.Array | None = None,
    decoder_params: Mapping[str, Any] | None = None,
    return_all_decodes: bool | None = None,
    num_decodes: int | None = None,
    prompt_with_targets: bool = False,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the best IDs of each user, as T5X orders them: best last.

    Args:
      params: Parameters of `network.Transformer`.
      batch: Has `encoder_input_tokens` int32 [B, S] and
        `decoder_input_tokens`, read for its length.
      rng: Unused: the search draws nothing.
      decoder_params: Unused.
      return_all_decodes: Whether to return all beams or the best; None as
        `default_decoder_params` says.
      num_decodes: Beam width W; None as `default_decoder_params` says.
      prompt_with_targets: Must be False.

    Returns:
      Tokens int32 [B, W, T] or [B, T]; and, in the same order, `scores`
      float32 (log-likelihoods, -inf where IDs ran out) and `item_index` int32
      (-1 likewise), [B, W] or [B].

    Raises:
      InputError: Targets are given as a prompt.
    """
    del rng, decoder_params
    if prompt_with_targets:
      raise checks.InputError(
        "A semantic ID is decoded whole; set prompt_with_targets=False."
      )
    default = self._default_decoder_params
    if return_all_decodes is None:
      return_all_decodes = default.return_all_decodes
    layout = self.output_vocabulary.layouts[self._layout_index]
    recommend = evaluator.make_recommend_fn(
      EncoderDecoder(config_of(self.module.config)),
      layout,
      self._trie,
      beam_width=default.num_decodes if num_decodes is None else num_decodes,
    )
    params = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    result = recommend(
      core.unfreeze(params), batch["encoder_input_tokens"], None
    )
    decodes, scores, items = _best_last(
      result, layout, batch["decoder_input_tokens"].shape[1]
    )
    if not return_all_decodes:
      decodes, scores, items = decodes[:, -1], scores[:, -1], items[:, -1]
    return decodes, {"scores": scores, "item_index": items}


def trie_decode_fn(
  *,
  inputs: jax.Array,
  cache: Any,
  tokens_to_logits: Callable[..., Any],
  num_decodes: int,
  trie: trie_lib.Trie,
  vocabulary: Any,
  cache_offset: int = 0,
  **unused,
) -> tuple[jax.Array, jax.Array]:
  """Searches the trie with the network of T5X's stock model.

  A `decode_fn` for `models.EncoderDecoderModel`, whose logits it leaves
  unmasked: the trie removes candidates after the softmax, so scores are
  log-likelihoods. The stock model computes keys and values of the inputs anew
  for every beam and step; `SidEncoderDecoderModel` gives the same beams
  faster.

  Args:
    inputs: int32 [B, T], read for its shape.
    cache: T5X's cache of one beam a user.
    tokens_to_logits: `decoding.DecodingState` of B * K beams -> logits
      [B * K, V] and cache.
    num_decodes: Beam width K.
    trie: The catalog's semantic IDs.
    vocabulary: The task's `SidSeqioVocabulary`.
    cache_offset: Axes before the batch axis of the cache's arrays.
    **unused: What other decode functions read.

  Returns:
    Tokens int32 [B, K, T] and scores float32 [B, K], best last.
  """
  del unused
  batch_size, length = inputs.shape
  layout: SidVocabulary = vocabulary.layouts[0]
  flat = traverse_util.flatten_dict(core.unfreeze(cache))
  # Counters say how far the cache is filled: to the level, for every beam.
  counters = {k: v for k, v in flat.items() if k[-1].endswith("_index")}
  arrays = {
    k: jnp.moveaxis(v, cache_offset, 0)[:, None]  # [B, 1, ...]
    for k, v in flat.items()
    if k not in counters
  }

  def widen(x: jax.Array) -> jax.Array:
    """Returns K beams: those of x, then its first again."""
    index = np.arange(num_decodes)
    index = np.where(index < x.shape[1], index, 0)
    return x[:, index].reshape((-1, *x.shape[2:]))

  def step(tokens, arrays, level):
    num_beams = tokens.shape[1]
    current = {
      k: jnp.moveaxis(widen(x), 0, cache_offset) for k, x in arrays.items()
    }
    current |= {k: jnp.full_like(x, level) for k, x in counters.items()}
    state = decoding.DecodingState(
      cur_index=jnp.full((batch_size * num_decodes,), level, jnp.int32),
      sequences=jnp.zeros((batch_size * num_decodes, length), jnp.int32),
      cur_token=widen(tokens)[:, None],
      cache=traverse_util.unflatten_dict(current),
    )
    logits, new = tokens_to_logits(state)
    new = traverse_util.flatten_dict(core.unfreeze(new))

    def narrow(x):
      x = x.reshape((batch_size, num_decodes, *x.shape[1:]))
      return x[:, :num_beams]

    arrays = {k: narrow(jnp.moveaxis(new[k], cache_offset, 0)) for k in arrays}
    return narrow(logits), arrays

  result = beam_search_lib.beam_search(
    step,
    arrays,
    trie,
    layout,
    batch_size=batch_size,
    beam_width=num_decodes,
  )
  return _best_last(result, layout, length)[:2]


def make_decode_fn(trie: trie_lib.Trie, vocabulary: Any) -> Callable[..., Any]:
  """Returns `trie_decode_fn` for one catalog."""
  return functools.partial(trie_decode_fn, trie=trie, vocabulary=vocabulary)


def _best_last(
  result: beam_search_lib.BeamResult, layout: SidVocabulary, length: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns tokens [B, W, length], scores and items, the best beam last."""
  tokens = layout.tokens_from_codes(result.codes)  # [B, W, L]
  room = length - tokens.shape[-1]
  if room < 0:
    raise checks.InputError(
      f"Semantic IDs take {tokens.shape[-1]} tokens, the batch's targets "
      f"{length}; raise TASK_FEATURE_LENGTHS['targets']."
    )
  tokens = jnp.pad(tokens, ((0, 0), (0, 0), (0, room)))
  if layout.append_eos:
    used = jnp.sum(tokens != layout.pad_id, axis=-1, keepdims=True)
    places = jnp.arange(length)[None, None]
    ends = (places == used) & (used > 0)
    tokens = jnp.where(ends, layout.eos_id, tokens)
  best_first = (tokens, result.scores, result.item_index)
  return tuple(jnp.flip(x, axis=1) for x in best_first)
