"""Stages 6 to 8: semantic IDs and histories -> a trained generator."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh

from gr_jax.core import artifact, checks, processes, rng
from gr_jax.core import mesh as mesh_lib
from gr_jax.data import splits
from gr_jax.decoding import trie as trie_lib
from gr_jax.embeddings import co_occurrence
from gr_jax.evaluation import evaluator, metrics, shared_ids
from gr_jax.models import (
  MODELS,
  DecoderOnly,
  EncoderDecoder,
  RQTransformer,
  SASRec,
)
from gr_jax.sids.sid_catalog import SidCatalog
from gr_jax.sids.vocabulary import SidVocabulary
from gr_jax.stages import prepare
from gr_jax.stages.config import RunConfig
from gr_jax.stages.prepare import StoredDataset
from gr_jax.stages.workdir import Workdir
from gr_jax.tasks import neighbors, windows
from gr_jax.training import loaders, loop, partition
from gr_jax.training.checkpoint import Checkpointer

# A vocabulary that is a multiple of this splits evenly over devices and
# fills the lanes of matrix units.
VOCAB_MULTIPLE = 128


@dataclasses.dataclass(frozen=True, eq=False)
class Generator:
  """A network and all that turns its tokens into items."""

  model: EncoderDecoder | DecoderOnly | RQTransformer | SASRec
  vocabulary: SidVocabulary
  layout: windows.WindowLayout
  trie: trie_lib.Trie
  catalog: SidCatalog


def make_generator(config: RunConfig, catalog: SidCatalog) -> Generator:
  """Builds the untrained generator of a semantic-ID catalog."""
  vocabulary = SidVocabulary.from_catalog(
    catalog, num_user_buckets=config.task.num_user_buckets
  )
  layout = windows.WindowLayout.create(
    catalog,
    vocabulary,
    max_history=config.task.max_history,
    every_item=config.task.augmentation == windows.SEQUENCES,
  )
  kind = MODELS[config.network]
  network = config.generator(vocabulary.padded_size(VOCAB_MULTIPLE))
  if kind.reads_items and layout.is_variable_length:
    raise checks.InputError(
      f"model.name={config.network!r} needs items of one length; use another "
      "collision policy or hourglass.remove_top_codes=0."
    )
  if kind is SASRec:
    model = SASRec(network, vocabulary.code_ranges, layout.max_history)
  elif kind is RQTransformer:
    direct_codes = 0
    if config.direct_path:  # all numbers but those of items to come
      direct_codes = catalog.codebook_sizes[-1] - config.collisions.spare_items
    model = RQTransformer(network, vocabulary.code_ranges, direct_codes)
  else:
    model = kind(network)
  return Generator(
    model=model,
    vocabulary=vocabulary,
    layout=layout,
    trie=trie_lib.build_trie(catalog.codes, catalog.codebook_sizes),
    catalog=catalog,
  )


def make_mesh(config: RunConfig) -> Mesh:
  """Arranges this job's devices as the config says.

  Raises:
    InputError: The axes do not fit the devices.
  """
  return config.mesh.arrange(jax.devices())


def check_devices(config: RunConfig) -> None:
  """Refuses a mesh or batches that the devices cannot share, before any work.

  Raises:
    InputError: Naming the axis or the batch.
  """
  mesh = make_mesh(config)
  mesh_lib.check_batch(mesh, config.training.batch_size, "training.batch_size")
  mesh_lib.check_batch(
    mesh, config.evaluation.batch_size, "evaluation.batch_size"
  )


def train(
  config: RunConfig,
  workdir: Workdir,
  stored: StoredDataset,
  sids: artifact.Artifact,
  catalog: SidCatalog,
  stop_requested: Callable[[], bool] = lambda: False,
) -> artifact.Artifact | None:
  """Trains the generator, resuming where an earlier run was cut off.

  Args:
    config: The run's settings.
    workdir: Where checkpoints, metrics and the result go.
    stored: The data set.
    sids: The semantic IDs' artifact.
    catalog: Its content.
    stop_requested: Asked after every dispatch; True saves and returns.

  Returns:
    The generator with the parameters of each replica's best validation, or
    None when stopped on request.

  Raises:
    InputError: Settings that do not fit, or checkpoints of another run.
    DivergedError: The loss is no longer finite.
  """
  section = _section(config)
  parents = {"dataset": stored.artifact, "sids": sids}
  fingerprint = artifact.hash_config([section, stored.artifact.hash, sids.hash])
  processes.check_same("configuration or catalog", fingerprint)
  kept = workdir.matching("generator", section, parents)
  if kept is not None:
    return kept
  generator = make_generator(config, catalog)
  mesh = make_mesh(config)
  split = splits.leave_one_out(stored.interactions)
  examples = windows.training_examples(
    stored.interactions,
    split,
    config.task.augmentation,
    config.task.max_history,
  )
  loader = _make_loader(config, workdir, generator, stored, examples, mesh)
  logging.info(
    "generator: training on %s examples of at most %d items.",
    f"{examples.num_examples:,}",
    config.task.max_history,
  )
  checkpointer = Checkpointer(
    workdir.training / "checkpoints",
    fingerprint=fingerprint,
  )
  try:
    result = loop.train(
      generator.model,
      loader,
      generator.layout,
      config=config.training,
      optimizer_config=config.optimizer,
      mesh=mesh,
      keys=replica_keys(config),
      validate=_validator(config, generator, stored, split, mesh),
      checkpointer=checkpointer,
      writer_folder=str(workdir.training),
      stop_requested=stop_requested,
      rules=partition.RULES[config.mesh.rules],
    )
  finally:
    checkpointer.close()
  if result is None:
    return None
  params = [mesh_lib.to_host(params) for params in result.params]
  saved = workdir.save(
    "generator",
    section,
    params_to_arrays(params),
    parents,
    metadata={
      "best_step": result.best_step,
      "best_value": result.best_value,
      "best_replica": int(np.argmax(result.best_value)),
      "last_step": result.last_step,
      "num_parameters": sum(p.size for p in jax.tree.leaves(params[0])),
    },
  )
  logging.info(
    "generator: best validation %s %s at steps %s of %d, %.0f s.",
    config.training.selection_metric,
    ", ".join(f"{value:.4f}" for value in result.best_value),
    ", ".join(map(str, result.best_step)),
    result.last_step,
    result.seconds,
  )
  return saved


def replica_keys(config: RunConfig) -> jax.Array:
  """Returns each replica's root key [R]: of the run's seed and those after.

  The semantic IDs are those of the run's seed for all of them.
  """
  return jnp.stack(
    [rng.stream(jax.random.key(s), "generator") for s in replica_seeds(config)]
  )


def replica_seeds(config: RunConfig) -> range:
  """Returns each replica's seed."""
  return range(config.seed, config.seed + config.training.replicas)


def _make_loader(
  config: RunConfig,
  workdir: Workdir,
  generator: Generator,
  stored: StoredDataset,
  examples: splits.Examples,
  mesh: Mesh,
) -> loaders.Loader:
  """Opens what `data.loader` names.

  Raises:
    InputError: What it needs is not installed, or the devices do not fit.
  """
  size = config.training.batch_size
  parts = stored.interactions, generator.catalog, generator.vocabulary, examples
  if config.loader == "device":
    data = windows.training_data(*parts)
    if config.task.neighbor_share:
      data = data.replace(neighbors=_neighbors(config, workdir, stored))
    return loaders.DeviceLoader(
      data,
      generator.layout,
      mesh,
      batch_size=size,
      packs=generator.model.packs,
      neighbor_share=config.task.neighbor_share,
      history_cut_rate=config.task.history_cut_rate,
    )
  if "replica" in partition.RULES[config.mesh.rules]:
    raise checks.InputError(
      f"data.loader={config.loader!r} splits batches over devices, "
      f"mesh.rules={config.mesh.rules!r} replicas; use data.loader='device'."
    )
  steps = config.training.steps_per_dispatch
  if config.loader == "grain":
    return loaders.grain_loader(
      *parts,
      generator.layout,
      mesh,
      keys=replica_keys(config),
      batch_size=size,
      num_steps=steps,
      packs=generator.model.packs,
    )
  # Registering a task needs seqio, which nothing else of training does.
  from gr_jax.stages import seqio_tasks

  task = seqio_tasks.register(config, workdir)
  return loaders.seqio_loader(
    task.name,
    generator.layout,
    mesh,
    seeds=replica_seeds(config),
    batch_size=size,
    num_steps=steps,
    cache_dir=str(task.cache_dir) if task.is_cached else None,
  )


def _neighbors(
  config: RunConfig, workdir: Workdir, stored: StoredDataset
) -> jax.Array:
  """Returns draws from every item's text neighbors.

  Raises:
    InputError: No embeddings, or those of another data set.
  """
  _, embeddings = prepare.load_embeddings(workdir, stored)
  text = co_occurrence.text_vectors(config.embedding, embeddings)
  table = neighbors.neighbor_table(
    text, temperature=config.task.neighbor_temperature
  )
  return jnp.asarray(table)


def validation_examples(
  config: RunConfig, split: splits.Split
) -> splits.Examples:
  """Returns the validation examples, or the part that the config asks for."""
  examples = split.validation
  wanted = config.validation.num_users
  if not 0 < wanted < examples.num_examples:
    return examples
  draw = rng.numpy_generator(jax.random.key(config.seed), "validation_users")
  chosen = draw.choice(examples.num_examples, wanted, replace=False)
  return examples.take(np.sort(chosen))


def _validator(
  config: RunConfig,
  generator: Generator,
  stored: StoredDataset,
  split: splits.Split,
  mesh: Mesh,
) -> Callable[[Any], Mapping[str, float]]:
  """Returns a function from parameters to item-level validation metrics."""
  examples = validation_examples(config, split)
  recommend = evaluator.make_recommend_fn(
    generator.model,
    generator.vocabulary,
    generator.trie,
    beam_width=config.validation.beam_width,
    mesh=mesh,
  )
  data = windows.training_data(
    stored.interactions, generator.catalog, generator.vocabulary, examples
  )
  targets = evaluator.targets(stored.interactions, examples)
  buckets = shared_ids.Buckets.create(generator.catalog)

  def validate(params: Any) -> Mapping[str, float]:
    predictions = evaluator.predict(
      recommend,
      params,
      data,
      generator.layout,
      batch_size=config.evaluation.batch_size,
      mesh=mesh,
      description="validating",
    )
    expected = buckets.expected_ranks(predictions.item_index, targets)
    return metrics.summarize(
      expected.ranks,
      list_size=config.validation.beam_width,
      chances=expected.chances,
    )

  return validate


def params_to_arrays(replicas: Sequence[Any]) -> dict[str, np.ndarray]:
  """Returns the arrays of a generator artifact: replicas' parameters."""
  arrays = {}
  for r, params in enumerate(replicas):
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    arrays |= artifact.prefixed(flat, f"replica_{r}")
  return arrays


def num_replicas(saved: artifact.Artifact) -> int:
  """Returns how many networks a generator artifact holds."""
  return len({name.split("/")[0] for name in saved.arrays})


def load_params(saved: artifact.Artifact, replica: int | None = None) -> Any:
  """Returns a replica's parameters as the network's tree.

  Args:
    saved: A generator artifact.
    replica: Which one; None takes the best on validation.
  """
  if replica is None:
    replica = saved.metadata.get("best_replica", 0)
  arrays = artifact.group(saved.arrays, f"replica_{replica}")
  return flax.traverse_util.unflatten_dict(
    {name: jnp.asarray(value) for name, value in arrays.items()}, sep="/"
  )


def _section(config: RunConfig) -> Mapping[str, Any]:
  """The settings that decide what training returns."""
  names = ("task", "model", "training", "optimizer", "validation")
  sections = {name: config.sections[name] for name in names}
  return sections | {"seed": config.seed, "loader": config.loader}
