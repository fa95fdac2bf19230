"""A user's best next items, for people (table) or programs (JSON lines)."""

import dataclasses
import json
import pathlib
import sys
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.table
from jaxtyping import Bool

from gr_jax.core import checks, rng
from gr_jax.evaluation import ensemble, evaluator, shared_ids
from gr_jax.evaluation.evaluator import Predictions
from gr_jax.evaluation.scorers import Histories
from gr_jax.sids.sid_catalog import SidCatalog
from gr_jax.sids.vocabulary import SidVocabulary
from gr_jax.stages import generator as generator_stage
from gr_jax.stages import live_catalog, prepare, reranking, tries
from gr_jax.stages.config import RunConfig
from gr_jax.stages.workdir import Workdir
from gr_jax.tasks import windows


@dataclasses.dataclass(frozen=True)
class Request:
  """Whom to recommend to, and how.

  Attributes:
    user: A user id of the data set; their whole history is used.
    history: Item ids, oldest first, instead of a user.
    top_k: Items to return.
    keep_history: Whether items of the history may be recommended again.
    allow: Item ids that alone may be recommended, e.g. those in stock; empty
      for all. An id after an @ names a file with one item id a line.
    deny: Item ids that must not be recommended, given in the same way.
    all_items: Whether a semantic ID that several items share yields them
      all, with one score, instead of one, drawn by the config's seed.
    min_new: At least this many are appended items, as far as there are: a
      generator never wrote their IDs and seldom puts them before known ones
      (the share of unseen items of TIGER, arXiv:2305.05065, section 4.3).
    as_json: One JSON object a line instead of a table.
  """

  user: str = ""
  history: tuple[str, ...] = ()
  top_k: int = 10
  keep_history: bool = False
  allow: tuple[str, ...] = ()
  deny: tuple[str, ...] = ()
  all_items: bool = False
  min_new: int = 0
  as_json: bool = False

  def __post_init__(self):
    """Refuses requests that name nobody, or two."""
    if bool(self.user) == bool(self.history):
      raise checks.InputError("Give either --user=ID or --history=ID,ID,...")
    if self.top_k < 1:
      raise checks.InputError(f"--top_k must be 1 or more; got {self.top_k}.")
    if not 0 <= self.min_new <= self.top_k:
      raise checks.InputError(
        f"--min_new={self.min_new} must lie in 0..{self.top_k}, the --top_k."
      )


@dataclasses.dataclass(frozen=True)
class Recommendation:
  """One recommended item."""

  rank: int  # from 1
  item_id: str
  title: str
  semantic_id: str
  # Log-likelihood of the semantic ID, nats; reranked, of the item in the list.
  score: float

  def to_dict(self) -> dict[str, object]:
    """Returns the fields as JSON types."""
    return dataclasses.asdict(self)


def recommend(
  config: RunConfig, workdir: Workdir, request: Request
) -> list[Recommendation]:
  """Ranks the catalog for one user and prints the best items.

  What the request excludes is taken out of the search itself, so that the
  list is that of a catalog without it: as long as `top_k` items with IDs of
  their own are left, it holds `top_k`.

  Returns:
    What was printed.

  Raises:
    InputError: No trained generator yet, an unknown user or item, a file of
      ids that cannot be read, or a request that leaves no item.
  """
  stored = prepare.load_data(workdir)
  live = live_catalog.load(workdir, stored)
  saved = workdir.load_child(
    "generator", {"dataset": stored.artifact, "sids": live.sids_artifact}
  )
  trained, stored = stored, dataclasses.replace(stored, catalog=live.items)
  catalog = live.sids
  history, user_id = _history(request, stored)
  generator = generator_stage.make_generator(config, catalog)
  vocabulary = generator.vocabulary
  data = windows.history_data(
    [history.tolist()],
    vocabulary.tokens_from_codes(catalog.codes),
    vocabulary.user_tokens([user_id]) if vocabulary.num_user_buckets else None,
  )
  batch = windows.gather_batch(data, jnp.zeros(1, jnp.int32), generator.layout)
  denied = [] if request.keep_history else [history]
  if request.deny:
    denied.append(stored.catalog.indices_of(_ids("deny", request.deny)))
  denied = np.concatenate([np.zeros(0, np.int64), *denied])
  left = live.recommendable
  if request.allow:
    allowed = stored.catalog.indices_of(_ids("allow", request.allow))
    left = left & np.isin(np.arange(left.size), allowed)
  left[denied] = False
  if not left.any():
    raise checks.InputError(
      "No item is left to recommend: --allow, --deny and the history leave "
      "none; allow more, or --keep_history."
    )
  # One network, the best, or all of them.
  replicas = [None]
  if config.decoding.ensemble:
    replicas = list(range(generator_stage.num_replicas(saved)))
  networks = [generator_stage.load_params(saved, r) for r in replicas]
  recommend_fn = evaluator.make_recommend_fn(
    generator.model,
    vocabulary,
    tries.load(workdir, live),
    beam_width=config.decoding.widths(at_least=request.top_k),
  )

  def search(
    candidates: Bool[np.ndarray, "N"], *, as_mask: bool
  ) -> list[tuple[int, float]]:
    # A mask costs a pass over the catalog, a list of denied items does not.
    exclusions = (
      {"item_mask": jnp.asarray(candidates)[None]}
      if as_mask
      else {"denied_items": jnp.asarray(denied, jnp.int32)[None]}
    )
    lists = [
      Predictions.of(recommend_fn(params, batch.inputs, **exclusions))
      for params in networks
    ]
    found = ensemble.join(lists) if len(lists) > 1 else lists[0]
    return _items(config, request, catalog, candidates, found)

  ranked, new = search(left, as_mask=bool(request.allow)), []
  if request.min_new:
    is_new = live.recommendable.copy()
    is_new[: live.items.num_items - live.num_appended] = False
    if not is_new.any():
      raise checks.InputError(
        f"--min_new={request.min_new} needs appended items, and there are "
        "none; append some with launch.tokenize --append."
      )
    new = search(left & is_new, as_mask=True)
  if config.decoding.rerank:
    reranker = reranking.load(config, workdir, trained, live)
    ranked, new = _reranked(reranker, history, ranked, new)
  ranked = ranked[: request.top_k]
  if request.min_new:
    ranked = _with_new(ranked, new, is_new, request)
  found = [
    Recommendation(
      rank=rank,
      item_id=catalog.item_ids[item],
      title=stored.catalog.titles[item],
      semantic_id=vocabulary.readable(_id_tokens(vocabulary, catalog, item)),
      score=round(float(score), 4),
    )
    for rank, (item, score) in enumerate(ranked, start=1)
  ]
  _show(request, stored, history, found)
  return found


def _items(
  config: RunConfig,
  request: Request,
  catalog: SidCatalog,
  candidates: Bool[np.ndarray, "N"],
  found: Predictions,
) -> list[tuple[int, float]]:
  """Returns the items of the returned IDs with their scores, best first."""
  index = found.item_index[0]
  buckets = shared_ids.Buckets.create(catalog, candidates)
  if request.all_items:
    held = [
      buckets.items_of(leader).tolist() if leader >= 0 else []
      for leader in index.tolist()
    ]
  else:
    draw = rng.numpy_generator(jax.random.key(config.seed), "random_item")
    drawn = buckets.sample(index[None], draw)[0]
    held = [[item] if item >= 0 else [] for item in drawn.tolist()]
  scores = found.scores[0].tolist()
  return [
    (item, score)
    for items, score in zip(held, scores, strict=True)
    for item in items
  ]


def _reranked(
  reranker: reranking.Reranker,
  history: np.ndarray,
  *lists: list[tuple[int, float]],
) -> list[list[tuple[int, float]]]:
  """Returns lists of one user in their new order, scored as one list."""
  listed = {item: score for each in lists for item, score in each}
  if not listed:
    return list(lists)
  items, scores = reranker.rerank(
    Histories(np.asarray(history, np.int32), np.array([0, len(history)])),
    np.array([list(listed)], np.int32),
    np.array([list(listed.values())]),
  )
  scored = list(zip(items[0].tolist(), scores[0].tolist(), strict=True))
  held = [{item for item, _ in each} for each in lists]
  return [[pair for pair in scored if pair[0] in names] for names in held]


def _with_new(
  ranked: list[tuple[int, float]],
  new: list[tuple[int, float]],
  is_new: Bool[np.ndarray, "N"],
  request: Request,
) -> list[tuple[int, float]]:
  """Returns the list with at least `min_new` new items; the best of each."""
  listed = {item for item, _ in ranked if is_new[item]}
  missing = max(request.min_new - len(listed), 0)
  added = [pair for pair in new if pair[0] not in listed][:missing]
  known = [pair for pair in ranked if not is_new[pair[0]]]
  known = known[: request.top_k - len(listed) - len(added)]
  listed = [pair for pair in ranked if is_new[pair[0]]]
  return sorted(known + listed + added, key=lambda pair: -pair[1])


def _ids(name: str, given: Sequence[str]) -> list[str]:
  """Returns item ids, those of files (@PATH) read."""
  found = []
  for entry in given:
    if not entry.startswith("@"):
      found.append(entry)
      continue
    path = pathlib.Path(entry[1:])
    try:
      lines = path.read_text().splitlines()
    except OSError as error:
      raise checks.InputError(
        f"--{name} cannot read {str(path)!r}: {error.strerror}."
      ) from None
    found += [line.strip() for line in lines if line.strip()]
  return found


def _id_tokens(
  vocabulary: SidVocabulary, catalog: SidCatalog, item: int
) -> np.ndarray:
  tokens = vocabulary.tokens_from_codes(catalog.codes[item])
  return tokens[: catalog.lengths[item]]


def _history(
  request: Request, stored: prepare.StoredDataset
) -> tuple[np.ndarray, str]:
  """Returns the item indices to continue, oldest first, and the user id."""
  if request.history:
    return stored.catalog.indices_of(request.history), ""
  users = stored.interactions.user_ids
  if request.user not in users:
    raise checks.InputError(
      f"User {request.user!r} is not among the {len(users)} users, e.g. "
      f"{users[0]!r}; or give --history=ID,ID,..."
    )
  return stored.interactions.history(users.index(request.user)), request.user


def _show(
  request: Request,
  stored: prepare.StoredDataset,
  history: np.ndarray,
  found: Sequence[Recommendation],
) -> None:
  if request.as_json:
    for item in found:
      sys.stdout.write(json.dumps(item.to_dict()) + "\n")
    return
  console = rich.console.Console(soft_wrap=False)
  table = rich.table.Table(title="Recently chosen, newest last")
  table.add_column("item")
  table.add_column("title")
  for item in history[-5:]:
    table.add_row(stored.catalog.item_ids[item], stored.catalog.titles[item])
  console.print(table)
  table = rich.table.Table(title="Recommended next")
  for name in ("#", "item", "title", "semantic ID", "score"):
    table.add_column(name)
  for item in found:
    table.add_row(
      str(item.rank),
      item.item_id,
      item.title,
      item.semantic_id,
      f"{item.score:.2f}",
    )
  console.print(table)
