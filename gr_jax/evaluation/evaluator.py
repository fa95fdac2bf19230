"""Model + decoder + examples -> predictions. Knows no files."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float32, Int, Int32

from gr_jax.core import mesh as mesh_lib
from gr_jax.core import progress
from gr_jax.data.interactions import Interactions
from gr_jax.data.splits import Examples
from gr_jax.decoding.beam_search import BeamResult, beam_search
from gr_jax.decoding.trie import Trie
from gr_jax.models.encoder_decoder import EncoderDecoder
from gr_jax.sids.vocabulary import SidVocabulary
from gr_jax.tasks import windows

Recommend = Callable[[Any, jax.Array], BeamResult]


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

  @property
  def returned(self) -> Bool[np.ndarray, "U W"]:
    """Where the search returned an ID, of an item or not."""
    return np.isfinite(self.scores)

  def without(self, removed: list[np.ndarray]) -> "Predictions":
    """Returns the lists with some items taken out and the rest moved up.

    Lists keep their width, so a list of W items that loses r of them ranks
    W - r items and then names none.

    Args:
      removed: Item indices to take out, for each user.
    """
    width = self.item_index.shape[1]
    keep = np.stack(
      [
        ~np.isin(row, items)
        for row, items in zip(self.item_index, removed, strict=True)
      ]
    )
    order = np.argsort(~keep, axis=1, kind="stable")
    kept = np.arange(width)[None] < keep.sum(1)[:, None]

    def move(values: np.ndarray, filler: Any) -> np.ndarray:
      index = order.reshape(order.shape + (1,) * (values.ndim - 2))
      moved = np.take_along_axis(values, index, axis=1)
      where = kept.reshape(kept.shape + (1,) * (values.ndim - 2))
      return np.where(where, moved, values.dtype.type(filler))

    return Predictions(
      item_index=move(self.item_index, -1),
      codes=move(self.codes, -1),
      scores=move(self.scores, -np.inf),
    )


def make_recommend_fn(
  model: EncoderDecoder,
  vocabulary: SidVocabulary,
  trie: Trie,
  *,
  beam_width: int,
  constrained: bool = True,
) -> Recommend:
  """Returns a compiled function from inputs to ranked items.

  Encoder and cross-attention keys and values are computed once a user; beams
  are further queries against them.

  Args:
    model: The network.
    vocabulary: Token layout of the catalog.
    trie: The catalog's semantic IDs.
    beam_width: W, the length of the lists.
    constrained: Whether only IDs of the catalog may be written.

  Returns:
    (params, inputs int32 [B, S]) -> BeamResult of width W. It compiles once a
    shape of the inputs.
  """
  max_length = vocabulary.num_levels + int(vocabulary.append_eos)

  @jax.jit
  def recommend(params, trie, inputs):
    variables = {"params": params}
    encoded = model.apply(variables, inputs, method="encode")
    context = model.apply(variables, encoded, inputs, method="start_decode")

    def tokens_to_logits(tokens, cache, level):
      return model.apply(
        variables, tokens, cache, context, level=level, method="decode_step"
      )

    return beam_search(
      tokens_to_logits,
      model.init_cache(inputs.shape[0], max_length),
      trie,
      vocabulary,
      batch_size=inputs.shape[0],
      beam_width=beam_width,
      constrained=constrained,
    )

  trie = jax.tree.map(jnp.asarray, trie)
  return lambda params, inputs: recommend(params, trie, inputs)


def predict(
  recommend: Recommend,
  params: Any,
  data: windows.TrainingData,
  layout: windows.WindowLayout,
  *,
  batch_size: int,
  mesh: Mesh,
  description: str = "decoding",
) -> Predictions:
  """Ranks items for every example of `data`.

  Users are padded to whole batches, so that one shape is compiled, and split
  over the mesh's data axis.

  Args:
    recommend: From `make_recommend_fn`.
    params: The network's parameters.
    data: Device arrays, holding the examples to predict.
    layout: How histories become tokens.
    batch_size: Users decoded at once.
    mesh: The devices.
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
  everywhere = mesh_lib.replicated(mesh)
  params = jax.device_put(params, everywhere)
  data = jax.device_put(data, everywhere)
  results = []
  with progress.bar(
    description, total=data.num_examples, unit="user"
  ) as advance:
    for start in range(0, data.num_examples, batch_size):
      index = jnp.arange(start, start + batch_size, dtype=jnp.int32)
      result = recommend(params, gather(data, index))
      count = min(batch_size, data.num_examples - start)
      host = jax.device_get((result.item_index, result.codes, result.scores))
      results.append([array[:count] for array in host])
      advance(count)
  item_index, codes, scores = (
    np.concatenate(parts) for parts in zip(*results, strict=True)
  )
  return Predictions(item_index, codes, scores)


def histories(
  interactions: Interactions, examples: Examples
) -> list[Int32[np.ndarray, "n"]]:
  """Returns every example's whole history as item indices."""
  pairs = zip(examples.history_start, examples.target_position, strict=True)
  return [interactions.items[start:end] for start, end in pairs]


def targets(
  interactions: Interactions, examples: Examples
) -> Int[np.ndarray, "U"]:
  """Returns every example's target item index."""
  return interactions.items[examples.target_position]
