"""One run's settings: every section of a config file as a frozen dataclass."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from gr_jax import data, embeddings, tokenizers
from gr_jax.core import artifact, checks
from gr_jax.core import mesh as mesh_lib
from gr_jax.evaluation import metrics
from gr_jax.models import MODELS
from gr_jax.models.config import T5Config
from gr_jax.sids import collisions
from gr_jax.sids.hourglass import Hourglass
from gr_jax.stages.build import build, construct
from gr_jax.tasks import windows
from gr_jax.training import loaders, partition
from gr_jax.training.loop import TrainingConfig
from gr_jax.training.optimizer import OptimizerConfig

_LONGEST_LIST = max(*metrics.RECALL_CUTOFFS, *metrics.NDCG_CUTOFFS)


@dataclasses.dataclass(frozen=True)
class TaskConfig:
  """How histories become training examples.

  Attributes:
    max_history: Items of a user that the model sees, the newest.
    augmentation: "prefixes" (every item with all before it), "subsequences"
      (every contiguous sub-history), "none" (only each user's last item),
      "sequences" (a user is one example, and every item of it a target), for
      the networks that read items: "rq_transformer" and "sasrec".
    num_user_buckets: User tokens that user ids are hashed into; 0 for none.
    neighbor_share: Targets that are a text neighbor of the item before and
      not the item chosen, drawn anew at every visit; 0 is off.
    neighbor_temperature: Of the softmax over cosines that weighs an item's
      neighbors.
    history_cut_rate: Probability that an item of a packed sequence begins a
      history of its own, drawn anew at every visit, for
      augmentation="sequences"; 0 is off.
  """

  max_history: int = 20
  augmentation: str = "prefixes"
  num_user_buckets: int = 0
  neighbor_share: float = 0.0
  neighbor_temperature: float = 0.05
  history_cut_rate: float = 0.0

  def __post_init__(self):
    """Refuses a task without history."""
    if self.max_history < 1:
      raise checks.InputError(
        f"task.max_history must be 1 or more; got {self.max_history}."
      )
    checks.check_known(
      self.augmentation, windows.AUGMENTATIONS, "task.augmentation"
    )
    for name in ("neighbor_share", "history_cut_rate"):
      value = getattr(self, name)
      if not 0.0 <= value < 1.0:
        raise checks.InputError(
          f"task.{name} must lie in [0, 1), 0 being off; got {value}."
        )
    if self.neighbor_temperature <= 0.0:
      raise checks.InputError(
        "task.neighbor_temperature must exceed 0; got "
        f"{self.neighbor_temperature}."
      )
    if self.history_cut_rate and self.augmentation != windows.SEQUENCES:
      raise checks.InputError(
        f"task.history_cut_rate={self.history_cut_rate} cuts sequences; set "
        f"task.augmentation={windows.SEQUENCES!r}, or the rate to 0."
      )


def _check_direct_path(network: str, policy: Any, constrained: bool) -> None:
  """Refuses a direct path that a network lacks, or that names no item."""
  is_number = isinstance(policy, collisions.SparseId) and policy.num_tokens == 1
  if network != "rq_transformer" or not is_number:
    raise checks.InputError(
      "model.direct_path=True predicts an item's own number at once: it needs "
      f"model.name='rq_transformer', not {network!r}, and collisions.name="
      f"'sparse_id' with num_tokens=1, not {policy}."
    )
  if not constrained:
    raise checks.InputError(
      "model.direct_path=True leads to items alone; set "
      "decoding.constrained=True."
    )


def _check_network(network: str, task: TaskConfig, loader: str) -> None:
  """Refuses examples that a network or a loader cannot take."""
  reads_items = [name for name, kind in MODELS.items() if kind.reads_items]
  if network in reads_items and task.num_user_buckets:
    raise checks.InputError(
      f"model.name={network!r} reads items alone; set task.num_user_buckets=0."
    )
  for name in ("neighbor_share", "history_cut_rate"):
    if getattr(task, name) and loader != "device":
      raise checks.InputError(
        f"task.{name}={getattr(task, name)} is drawn on the device; set it to "
        f"0, or data.loader to 'device' and not {loader!r}."
      )
  if task.augmentation != windows.SEQUENCES:
    return
  if network not in reads_items:
    raise checks.InputError(
      f"task.augmentation={task.augmentation!r} needs a network that reads "
      f"items; set model.name to one of {reads_items}, not {network!r}."
    )
  if loader == "seqio":
    raise checks.InputError(
      f"task.augmentation={task.augmentation!r} is no seqio task; set "
      "data.loader to 'device' or 'grain'."
    )


def _check_beam(name: str, width: int) -> None:
  if width < _LONGEST_LIST:
    raise checks.InputError(
      f"{name}={width} must be {_LONGEST_LIST} or more: recall@"
      f"{_LONGEST_LIST} is reported."
    )


@dataclasses.dataclass(frozen=True)
class DecodingConfig:
  """How semantic IDs are written.

  Attributes:
    beam_width: Semantic IDs kept a user, and the longest list returned.
    level_widths: Beams kept after each level, of which the last is
      `beam_width`; empty keeps `beam_width` after every level.
    constrained: Only IDs of the catalog may be written.
    rerank: Whether lists are put in another order by counts and texts, with
      weights fitted on validation users (`gr_jax.evaluation.reranking`).
    ensemble: Whether all replicas recommend as one, by the mean of their
      probabilities (`gr_jax.evaluation.ensemble`), and not the best alone;
      the report then has rows of both.
  """

  beam_width: int = 50
  level_widths: tuple[int, ...] = ()
  constrained: bool = True
  rerank: bool = False
  ensemble: bool = False

  def __post_init__(self):
    """Refuses a beam narrower than the lists that are scored."""
    _check_beam("decoding.beam_width", self.beam_width)
    if self.level_widths and (
      min(self.level_widths) < 1 or self.level_widths[-1] != self.beam_width
    ):
      raise checks.InputError(
        f"decoding.level_widths={self.level_widths} must be 1 or more and end "
        f"in decoding.beam_width={self.beam_width}."
      )

  def widths(self, at_least: int = 1) -> int | tuple[int, ...]:
    """Returns the beams of every level, or of each, as `beam_search` takes."""
    if not self.level_widths:
      return max(self.beam_width, at_least)
    return tuple(max(width, at_least) for width in self.level_widths)


@dataclasses.dataclass(frozen=True)
class ValidationConfig:
  """How training judges its parameters.

  Attributes:
    num_users: Validation users that are looked at, chosen once by the seed;
      0 takes all.
    beam_width: Beam; narrower than the final one, for speed.
  """

  num_users: int = 0
  beam_width: int = 20

  def __post_init__(self):
    """Refuses a beam narrower than the lists that are scored."""
    _check_beam("validation.beam_width", self.beam_width)


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
  """How users are put through the decoder; changes no result.

  Attributes:
    batch_size: Users decoded at once.
  """

  batch_size: int = 256


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """How devices are arranged, and parameters over them; changes no result.

  Attributes:
    data: Ways that batches are split; -1 takes all devices that are left.
    model: Ways that parameters are split by "tensor" rules.
    replica: Groups of devices, e.g. hosts, that batches are split over before
      `data`; each holds all parameters, by "fsdp" rules split inside it.
    rules: Which parameters are split over what, a name of
      `partition.RULES`: "replicated", "tensor", "fsdp" or "fsdp_tensor".
  """

  data: int = -1
  model: int = 1
  replica: int = 1
  rules: str = "tensor"

  def __post_init__(self):
    """Refuses rules that do not exist, or that leave an axis idle."""
    checks.check_known(self.rules, partition.RULES, "mesh.rules")
    if self.rules == "replicas" and self.replica > 1:
      raise checks.InputError(
        "mesh.rules='replicas' puts training.replicas over mesh.data; use "
        f"mesh.replica=1, not {self.replica}."
      )

  def arrange(self, devices: Sequence[jax.Device]) -> Mesh:
    """Returns the devices as a mesh.

    Raises:
      InputError: The axes do not fit their number.
    """
    return mesh_lib.make_mesh(
      devices, data=self.data, model=self.model, replica=self.replica
    )


SECTIONS = (
  "data", "embedding", "tokenizer", "hourglass", "collisions", "task", "model",
  "training", "optimizer", "validation", "decoding", "evaluation", "mesh",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class RunConfig:
  """All settings of a run, checked before any work.

  `sections` holds the same as plain JSON, for manifests and hashes.
  """

  seed: int
  data: Any
  loader: str  # data.loader, a name of `loaders.LOADERS`
  embedding: Any
  tokenizer: Any
  hourglass: Hourglass
  collisions: Any
  task: TaskConfig
  network: str  # model.name, a name of `MODELS`
  direct_path: bool  # model.direct_path, see `RQTransformer`
  model: Mapping[str, Any]  # T5Config's fields but the vocabulary size
  training: TrainingConfig
  optimizer: OptimizerConfig
  decoding: DecodingConfig
  validation: ValidationConfig
  evaluation: EvaluationConfig
  mesh: MeshConfig
  sections: Mapping[str, Any]

  @classmethod
  def from_dict(cls, config: Mapping[str, Any]) -> "RunConfig":
    """Builds every section; an unknown key anywhere is refused.

    Args:
      config: A config file's content as nested plain mappings.

    Raises:
      InputError: Unknown sections or keys, missing ones, bad values.
    """
    for key in config:
      checks.check_known(key, ("seed", *SECTIONS), "config section")
    missing = [name for name in SECTIONS if name not in config]
    if missing:
      raise checks.InputError(f"The config lacks the section {missing[0]!r}.")
    if not isinstance(config.get("seed"), int):
      raise checks.InputError("The config lacks an integer 'seed'.")
    sections = artifact.canonical(dict(config))
    loader = sections["data"].pop("loader", loaders.LOADERS[0])
    checks.check_known(loader, loaders.LOADERS, "data.loader")
    network = sections["model"].pop("name", "encoder_decoder")
    checks.check_known(network, MODELS, "model.name")
    direct_path = sections["model"].pop("direct_path", False)
    if not isinstance(direct_path, bool):
      raise checks.InputError(
        f"model.direct_path must be True or False; got {direct_path!r}."
      )
    # The vocabulary is read from the semantic IDs, never typed.
    construct(T5Config, {"vocab_size": 2, **sections["model"]}, "model")
    tokenizer = build(tokenizers.TOKENIZERS, sections["tokenizer"], "tokenizer")
    hourglass = construct(Hourglass, sections["hourglass"], "hourglass")
    hourglass.check(len(tokenizer.codebook_sizes))  # not after a long fit
    task = construct(TaskConfig, sections["task"], "task")
    _check_network(network, task, loader)
    decoding = construct(DecodingConfig, sections["decoding"], "decoding")
    training = construct(TrainingConfig, sections["training"], "training")
    if decoding.ensemble and training.replicas == 1:
      raise checks.InputError(
        "decoding.ensemble=True needs several networks; set training.replicas "
        "to 2 or more, or decoding.ensemble to False."
      )
    policy = build(collisions.POLICIES, sections["collisions"], "collisions")
    if direct_path:
      _check_direct_path(network, policy, decoding.constrained)
    return cls(
      seed=sections["seed"],
      data=build(data.DATASETS, sections["data"], "data"),
      loader=loader,
      embedding=build(embeddings.EMBEDDERS, sections["embedding"], "embedding"),
      tokenizer=tokenizer,
      hourglass=hourglass,
      collisions=policy,
      task=task,
      network=network,
      direct_path=direct_path,
      model=sections["model"],
      training=training,
      optimizer=construct(OptimizerConfig, sections["optimizer"], "optimizer"),
      decoding=decoding,
      validation=construct(
        ValidationConfig, sections["validation"], "validation"
      ),
      evaluation=construct(
        EvaluationConfig, sections["evaluation"], "evaluation"
      ),
      mesh=construct(MeshConfig, sections["mesh"], "mesh"),
      sections=sections
      | {
        "data": sections["data"] | {"loader": loader},
        "model": sections["model"]
        | {"name": network}
        # Named where it is taken: runs from before there was one stay valid.
        | ({"direct_path": True} if direct_path else {}),
      },
    )

  def generator(self, vocab_size: int) -> T5Config:
    """Returns the network's config for a vocabulary of this size."""
    return construct(
      T5Config, {"vocab_size": vocab_size, **self.model}, "model"
    )
