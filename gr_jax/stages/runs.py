"""What the mains run: stages in order, each skipped where it is done."""

from absl import logging

from gr_jax.stages import (
  appending,
  evaluation,
  generator,
  preemption,
  prepare,
  recommendation,
  refitting,
  semantic_ids,
)
from gr_jax.stages.config import RunConfig
from gr_jax.stages.workdir import Workdir


def embed(config: RunConfig, workdir: Workdir) -> None:
  """Stores the data set and its items' embeddings.

  Raises:
    InputError: The data or the embedder's input is refused.
  """
  stored, dataset = prepare.prepare_data(config, workdir)
  prepare.embed(config, workdir, stored, dataset)
  workdir.write_config(config)


def tokenize(config: RunConfig, workdir: Workdir) -> None:
  """Fits the tokenizer and stores the semantic IDs.

  Raises:
    InputError: No embeddings yet, or the tokenizer refuses them.
  """
  stored = prepare.load_data(workdir)
  embeddings, table = prepare.load_embeddings(workdir, stored)
  tokenizer = semantic_ids.fit_tokenizer(config, workdir, embeddings, table)
  semantic_ids.make_sids(config, workdir, tokenizer, table)
  workdir.write_config(config)


def refit(
  config: RunConfig, workdir: Workdir, earlier: Workdir, *, stable: bool
) -> None:
  """Fits the tokenizer from an earlier run's; reports what IDs changed.

  Raises:
    InputError: As `refitting.refit`.
  """
  refitting.refit(config, workdir, earlier, stable=stable)


def append(
  config: RunConfig, workdir: Workdir, items: str, vectors: str = ""
) -> None:
  """Gives new items semantic IDs under the fitted tokenizer.

  Raises:
    InputError: As `appending.append`.
  """
  appending.append(config, workdir, items, vectors)


def remove(
  config: RunConfig, workdir: Workdir, item_ids: tuple[str, ...]
) -> None:
  """Takes items out of what is recommended.

  Raises:
    InputError: As `appending.remove`.
  """
  appending.remove(config, workdir, item_ids)


def restore(
  config: RunConfig, workdir: Workdir, item_ids: tuple[str, ...]
) -> None:
  """Takes removed items back.

  Raises:
    InputError: As `appending.restore`.
  """
  appending.restore(config, workdir, item_ids)


def train(config: RunConfig, workdir: Workdir) -> None:
  """Trains the generator; SIGTERM saves a checkpoint and ends the process.

  Raises:
    InputError: No semantic IDs yet, or settings that do not fit.
    Stopped: On SIGTERM or SIGINT, after the checkpoint.
  """
  generator.check_devices(config)
  stored = prepare.load_data(workdir)
  sids, catalog = semantic_ids.load_sids(workdir)
  workdir.write_config(config)
  with preemption.watch() as stop_requested:
    done = generator.train(
      config, workdir, stored, sids, catalog, stop_requested
    )
  if done is None:
    raise preemption.Stopped("Training stopped; run the same again to go on.")


def evaluate(config: RunConfig, workdir: Workdir) -> None:
  """Ranks the test items and prints the table of metrics.

  Raises:
    InputError: No trained generator yet, or one of another catalog.
  """
  evaluation.evaluate(config, workdir)


def pipeline(config: RunConfig, workdir: Workdir) -> None:
  """Runs every stage that is not done yet.

  Raises:
    InputError: As the stages.
    Stopped: As `train`.
  """
  generator.check_devices(config)
  embed(config, workdir)
  tokenize(config, workdir)
  train(config, workdir)
  evaluate(config, workdir)
  logging.info("Artifacts lie in %s.", workdir.root)


def recommend(
  config: RunConfig, workdir: Workdir, request: recommendation.Request
) -> list[recommendation.Recommendation]:
  """Prints a user's best next items and returns them.

  Raises:
    InputError: No trained generator yet, an unknown user or item.
  """
  return recommendation.recommend(config, workdir, request)
