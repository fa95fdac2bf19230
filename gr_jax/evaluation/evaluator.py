"""Model + decoder + examples -> predictions. Knows no files."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh
from jaxtyping import Bool, Float32, Int, Int32

from gr_jax.core import mesh as mesh_lib
from gr_jax.core import progress
from gr_jax.data.interactions import Interactions
from gr_jax.data.splits import Examples
from gr_jax.decoding.beam_search import (
  BeamResult,
  TokensToLogits,
  beam_search,
)
from gr_jax.decoding.exact import exact_scores
from gr_jax.decoding.trie import Trie
from gr_jax.models import RQTransformer
from gr_jax.sids.vocabulary import SidVocabulary
from gr_jax.tasks import windows

Recommend = Callable[..., BeamResult]


@dataclasses.dataclass(frozen=True, eq=False)
class Predictions:
  """Ranked lists of some users, best first; -1 names no item.

  Attributes:
    item_index: Returned items.
    codes: Their semantic IDs, -1 after an ID's end.
    scores: Log-likelihoods, -inf where nothing was returned.
  """

  item_index: Int32[np.ndarray, "U W"]
  codes: Int32[np.ndarray, "U W L"]
  scores: Float32[np.ndarray, "U W"]

  @classmethod
  def of(cls, result: BeamResult) -> "Predictions":
    """Copies what a search returned to the host."""
    return cls(
      *mesh_lib.to_host((result.item_index, result.codes, result.scores))
    )

  @property
  def returned(self) -> Bool[np.ndarray, "U W"]:
    """Where the search returned an ID, of an item or not."""
    return np.isfinite(self.scores)


def make_recommend_fn(
  model: nn.Module,
  vocabulary: SidVocabulary,
  trie: Trie,
  *,
  beam_width: int | Sequence[int],
  constrained: bool = True,
  mesh: Mesh | None = None,
) -> Recommend:
  """Returns a compiled function from inputs to ranked items.

  Encoder and cross-attention keys and values are computed once a user; beams
  are further queries against them.

  Args:
    model: The network.
    vocabulary: Token layout of the catalog.
    trie: The catalog's semantic IDs.
    beam_width: W, the length of the lists; or one width a level, W last.
    constrained: Whether only IDs of the catalog may be written.
    mesh: The devices that hold the trie; None for one.

  Returns:
    (params, inputs int32 [B, S], denied_items=None, item_mask=None) ->
    BeamResult of width W. Of `denied_items` int32 [B, R], -1 filling the
    rows, or of those that are False in `item_mask` bool [B, N], it is as if
    the catalog did not hold them. It compiles once a shape of its arguments.
  """

  @jax.jit
  def recommend(params, trie, inputs, denied_items, item_mask):
    search = _start(model, vocabulary, params, inputs)
    return beam_search(
      search.tokens_to_logits,
      search.cache,
      trie,
      vocabulary,
      batch_size=inputs.shape[0],
      beam_width=beam_width,
      constrained=constrained,
      denied_items=denied_items,
      item_mask=item_mask,
      direct=search.direct,
    )

  if mesh is None:
    trie = jax.tree.map(jnp.asarray, trie)
  else:
    trie = mesh_lib.place(trie, mesh_lib.replicated(mesh))
  return lambda params, inputs, denied_items=None, item_mask=None: recommend(
    params, trie, inputs, denied_items, item_mask
  )


def make_exact_fn(
  model: nn.Module, vocabulary: SidVocabulary, trie: Trie
) -> Callable[[Any, jax.Array], jax.Array]:
  """Returns a compiled function from inputs to every item's log-likelihood.

  Args:
    model: The network.
    vocabulary: Token layout of the catalog.
    trie: The catalog's semantic IDs.

  Returns:
    (params, inputs int32 [B, S]) -> float32 [B, N]; see `exact_scores`, also
    for the memory that a user takes.
  """

  @jax.jit
  def score(params, trie, inputs):
    search = _start(model, vocabulary, params, inputs)
    return exact_scores(
      search.tokens_to_logits,
      search.cache,
      trie,
      vocabulary,
      batch_size=inputs.shape[0],
      direct=search.direct,
    )

  trie = jax.tree.map(jnp.asarray, trie)
  return lambda params, inputs: score(params, trie, inputs)


@dataclasses.dataclass(frozen=True)
class _Search:
  """What decoding takes of a network that has read the histories."""

  tokens_to_logits: TokensToLogits
  cache: Any
  direct: jax.Array | None


def _start(model, vocabulary, params, inputs) -> _Search:
  """Encodes the users."""
  variables = {"params": params}
  encoded = model.apply(variables, inputs, method="encode")
  context = model.apply(variables, encoded, inputs, method="start_decode")

  def tokens_to_logits(tokens, cache, level):
    return model.apply(
      variables, tokens, cache, context, level=level, method="decode_step"
    )

  max_length = vocabulary.num_levels + int(vocabulary.append_eos)
  cache = model.init_cache(inputs.shape[0], max_length)
  direct = None
  if isinstance(model, RQTransformer) and model.direct_codes:
    direct = model.apply(variables, encoded, method="direct_log_probs")
  return _Search(tokens_to_logits, cache, direct)


def predict(
  recommend: Recommend,
  params: Any,
  data: windows.TrainingData,
  layout: windows.WindowLayout,
  *,
  batch_size: int,
  mesh: Mesh,
  denied_items: Int32[np.ndarray, "U R"] | None = None,
  description: str = "decoding",
) -> Predictions:
  """Ranks items for every example of `data`.

  Users are padded to whole batches, so that one shape is compiled, and split
  over the mesh's data axis.

  Args:
    recommend: From `make_recommend_fn`.
    params: The network's parameters, anywhere; those that lie on the mesh
      stay split over its model axis.
    data: Device arrays, holding the examples to predict.
    layout: How histories become tokens.
    batch_size: Users decoded at once.
    mesh: The devices.
    denied_items: Items that each user must not get, -1 filling the rows.
    description: What the progress bar says.

  Returns:
    Lists in the order of the examples.

  Raises:
    InputError: The data axis does not divide the batch.
  """
  mesh_lib.check_batch(mesh, batch_size, "evaluation.batch_size")
  gather = jax.jit(
    lambda data, index: windows.gather_batch(data, index, layout).inputs,
    out_shardings=mesh_lib.batch_sharding(mesh),
  )
  params = mesh_lib.use_on(mesh, params)
  data = mesh_lib.place(data, mesh_lib.replicated(mesh))
  results = []
  with progress.bar(
    description, total=data.num_examples, unit="user"
  ) as advance:
    for start in range(0, data.num_examples, batch_size):
      index = np.arange(start, start + batch_size, dtype=np.int32)
      count = min(batch_size, data.num_examples - start)
      denied = None
      if denied_items is not None:
        rows = np.pad(
          denied_items[start : start + count],
          ((0, batch_size - count), (0, 0)),
          constant_values=-1,
        )
        denied = mesh_lib.place(rows, mesh_lib.batch_sharding(mesh))
      result = recommend(params, gather(data, index), denied)
      host = Predictions.of(result)
      results.append([array[:count] for array in vars(host).values()])
      advance(count)
  item_index, codes, scores = (
    np.concatenate(parts) for parts in zip(*results, strict=True)
  )
  return Predictions(item_index, codes, scores)


def histories(
  interactions: Interactions, examples: Examples
) -> Int32[np.ndarray, "U R"]:
  """Returns every example's whole history as item indices, -1 after it."""
  lengths = examples.target_position - examples.history_start  # [U]
  place = np.arange(int(lengths.max(initial=1)))
  index = examples.history_start[:, None] + place[None]  # [U, R]
  items = interactions.items[np.minimum(index, interactions.items.size - 1)]
  return np.where(place[None] < lengths[:, None], items, np.int32(-1))


def targets(
  interactions: Interactions, examples: Examples
) -> Int[np.ndarray, "U"]:
  """Returns every example's target item index."""
  return interactions.items[examples.target_position]
