"""Seeded shop data with known structure, for tests, demos and smoke runs.

Items form a grid: every product kind of a taxonomy is sold by several brands
in several colors. What a user takes next depends on the two product kinds
taken before (routines: shampoo, conditioner, hair mask) and on a taste for one
brand and one color that each single purchase shows only in part. An exact pair
of items is therefore rare, so that counting pairs learns little, while product
kind, brand and color, which item texts and hence semantic IDs carry, predict
the next item well.
"""

import dataclasses

import numpy as np
from jaxtyping import Float64

from gr_jax.core.checks import InputError
from gr_jax.data import catalog as catalog_lib
from gr_jax.data.catalog import ItemCatalog
from gr_jax.data.dataset import Dataset
from gr_jax.data.interactions import Interactions, offsets_from_lengths

# Department -> category -> product kinds, each with a word on what it is for.
_TAXONOMY = {
  "Beauty": {
    "Hair Care": ("Shampoo", "Conditioner", "Hair Mask", "Styling Gel"),
    "Skin Care": ("Face Cleanser", "Toner", "Night Cream", "Sunscreen"),
    "Makeup": ("Lipstick", "Mascara", "Foundation", "Nail Polish"),
  },
  "Kitchen": {
    "Cookware": ("Frying Pan", "Stock Pot", "Baking Sheet", "Wok"),
    "Coffee & Tea": ("Coffee Grinder", "Moka Pot", "Teapot", "Milk Frother"),
    "Knives": ("Chef Knife", "Bread Knife", "Cutting Board", "Whetstone"),
  },
  "Outdoors": {
    "Camping": ("Tent", "Sleeping Bag", "Camp Stove", "Lantern"),
    "Cycling": ("Bike Helmet", "Bike Pump", "Pannier Bag", "Cycling Gloves"),
    "Hiking": ("Backpack", "Trekking Poles", "Water Bottle", "Rain Jacket"),
  },
  "Office": {
    "Writing": ("Fountain Pen", "Notebook", "Pencil Case", "Ink Bottle"),
    "Desk": ("Desk Lamp", "Monitor Stand", "Mouse Pad", "Desk Organizer"),
    "Paper": ("Sketch Pad", "Envelope Set", "Sticky Notes", "Paper Trimmer"),
  },
}
_BRANDS = (
  "Northwind",
  "Aurelia",
  "Kestrel & Co",
  "Mistral",
  "Halden",
  "Ofelia",
)
_COLORS = (
  "Charcoal",
  "Ivory",
  "Coral",
  "Sage Green",
  "Navy Blue",
)
_KINDS = 12  # product kinds of a department
_MIN_ITEMS = 60  # a department's
_SUCCESSORS = 4  # product kinds that may follow one
_FAVORITE = 0.7  # chance of the successor that the last two kinds call for
_STAY = 0.12  # chance of another item of the same kind
_SAME_DAY = 0.35  # chance that an item is taken on the day of the one before
_MEAN_GAP_DAYS = 14
_START_DAYS = 700  # users arrive over about two years
_DAY_SECONDS = 86_400
_DRAWS = 4  # attempts to find an item that the user does not have


@dataclasses.dataclass(frozen=True)
class SyntheticData:
  """Synthetic shop data; equal settings give equal data.

  Attributes:
    num_items: Items in the catalog.
    num_users: Users.
    mean_length: Mean interactions a user; each has at least five.
    taste: Chance that an item follows the user's brand, and the same for the
      color; else it is drawn at random.
    seed: Names the data, as a version would; runs have seeds of their own.
  """

  num_items: int = 1_440
  num_users: int = 4_000
  mean_length: float = 10.0
  taste: float = 0.65
  seed: int = 0

  def load(self) -> Dataset:
    """Makes the data.

    Raises:
      InputError: Sizes too small for any structure, or a chance outside 0..1.
    """
    if self.num_items < _MIN_ITEMS or self.num_users < 1:
      raise InputError(
        f"Need num_items >= {_MIN_ITEMS} and num_users >= 1; got "
        f"{self.num_items=}, {self.num_users=}."
      )
    if not 5 <= self.mean_length <= self.num_items // 4:
      raise InputError(
        f"Need 5 <= mean_length <= num_items / 4 = {self.num_items // 4}; got "
        f"{self.mean_length=}."
      )
    if not 0 <= self.taste <= 1:
      raise InputError(f"Need 0 <= taste <= 1; got {self.taste=}.")
    shop = _make_shop(self.num_items, np.random.default_rng([self.seed, 0]))
    interactions = _make_users(
      shop, self, np.random.default_rng([self.seed, 1])
    )
    return Dataset(_make_catalog(shop), interactions)


@dataclasses.dataclass(frozen=True, eq=False)
class _Shop:
  """Items by their features, and the routines that link product kinds."""

  kind: np.ndarray  # int [N], product kind
  brand: np.ndarray  # int [N]
  color: np.ndarray  # int [N]
  series: np.ndarray  # int [N], tells items of equal features apart
  successors: np.ndarray  # int [num_kinds, _SUCCESSORS]
  item_at: np.ndarray  # int [num_kinds, brands, colors, series], -1: none


def _make_shop(num_items: int, rng: np.random.Generator) -> _Shop:
  num_departments = min(len(_TAXONOMY), num_items // _MIN_ITEMS)
  num_kinds = num_departments * _KINDS
  index = rng.permutation(num_items)  # item order must not give anything away
  kind, variety = index % num_kinds, index // num_kinds
  brand = variety % len(_BRANDS)
  color = variety // len(_BRANDS) % len(_COLORS)
  series = variety // (len(_BRANDS) * len(_COLORS))
  shape = (num_kinds, len(_BRANDS), len(_COLORS), int(series.max()) + 1)
  item_at = np.full(shape, -1, np.int64)
  item_at[kind, brand, color, series] = np.arange(num_items)
  successors = _make_routines(num_departments, rng)
  return _Shop(kind, brand, color, series, successors, item_at)


def _make_routines(
  num_departments: int, rng: np.random.Generator
) -> np.ndarray:
  """Draws int [num_kinds, _SUCCESSORS]: what may follow every product kind.

  All but the last stay in the department; every kind follows equally many.
  """
  orders = [rng.permutation(_KINDS) for _ in range(num_departments)]
  successors = np.empty((num_departments, _KINDS, _SUCCESSORS), np.int64)
  for department, order in enumerate(orders):
    for choice in range(_SUCCESSORS):
      away = choice == _SUCCESSORS - 1
      other = (department + away) % num_departments
      successors[department, order, choice] = other * _KINDS + np.roll(
        orders[other], -1 - choice
      )
  return successors.reshape(-1, _SUCCESSORS)


def _kind_names() -> list[tuple[str, str, str]]:
  """(department, category, product kind) of every kind, taxonomy order."""
  return [
    (department, category, kind)
    for department, categories in _TAXONOMY.items()
    for category, kinds in categories.items()
    for kind in kinds
  ]


def _make_catalog(shop: _Shop) -> ItemCatalog:
  names = _kind_names()
  titles, texts, paths = [], [], []
  for kind, brand, color, series in zip(
    shop.kind, shop.brand, shop.color, shop.series, strict=True
  ):
    path = names[kind]
    edition = f", Series {series + 1}" if series else ""
    titles.append(f"{_BRANDS[brand]} {path[-1]}, {_COLORS[color]}{edition}")
    texts.append(
      catalog_lib.item_text(
        title=titles[-1], brand=_BRANDS[brand], categories=[path]
      )
    )
    paths.append(catalog_lib.category_path([path]))
  return ItemCatalog(
    item_ids=tuple(f"item{n + 1:05d}" for n in range(shop.kind.size)),
    texts=tuple(texts),
    titles=tuple(titles),
    categories=tuple(paths),
  )


def _make_users(
  shop: _Shop, config: SyntheticData, rng: np.random.Generator
) -> Interactions:
  num_users = config.num_users
  lengths = 5 + rng.poisson(config.mean_length - 5, num_users)
  lengths = np.minimum(lengths, config.num_items // 2)
  brand = rng.choice(len(_BRANDS), num_users, p=_skewed(len(_BRANDS)))
  color = rng.choice(len(_COLORS), num_users, p=_skewed(len(_COLORS)))
  num_kinds = shop.successors.shape[0]
  kinds = rng.integers(num_kinds, size=(2, num_users))  # the last two
  taken = np.full((num_users, int(lengths.max())), -1, np.int64)
  for step in range(taken.shape[1]):
    users = np.flatnonzero(lengths > step)  # [A]
    kind = _next_kind(shop, kinds[:, users], rng)
    items = _draw_items(
      shop, kind, brand[users], color[users], taken[users], config.taste, rng
    )
    taken[users, step] = items
    kinds[0, users] = kinds[1, users]
    kinds[1, users] = shop.kind[items]
  filled = taken >= 0  # [U, T]
  return Interactions(
    user_ids=tuple(f"user{u + 1:05d}" for u in range(num_users)),
    items=taken[filled].astype(np.int32),
    offsets=offsets_from_lengths(lengths),
    times=_make_times(filled, rng),
    absolute_times=True,
  )


def _skewed(size: int) -> Float64[np.ndarray, "size"]:
  """Chances that fall with rank, so that popularity says something."""
  weights = 1.0 / np.arange(2, size + 2)
  return weights / weights.sum()


def _next_kind(
  shop: _Shop, kinds: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
  """Draws the product kind after the last two, `kinds` [2, A]; int [A]."""
  favorite = (kinds[0] + kinds[1]) % _SUCCESSORS
  other = rng.integers(_SUCCESSORS, size=favorite.size)
  follow = rng.random(favorite.size) < _FAVORITE
  drawn = shop.successors[kinds[1], np.where(follow, favorite, other)]
  return np.where(rng.random(favorite.size) < _STAY, kinds[1], drawn)


def _draw_items(
  shop: _Shop,
  kind: np.ndarray,
  brand: np.ndarray,
  color: np.ndarray,
  taken: np.ndarray,
  taste: float,
  rng: np.random.Generator,
) -> np.ndarray:
  """Draws one item a user, of the kind and by taste, that none has; int [A]."""
  num_users = kind.size
  items = np.full(num_users, -1, np.int64)
  for attempt in range(_DRAWS):
    # Later attempts drop the taste: the favorite may be sold out for a user.
    chance = taste if attempt == 0 else 0.0
    cell = (
      kind,
      _mixed(brand, len(_BRANDS), chance, rng),
      _mixed(color, len(_COLORS), chance, rng),
      rng.integers(shop.item_at.shape[3], size=num_users),
    )
    drawn = shop.item_at[cell]
    owned = (taken == drawn[:, None]).any(axis=1)
    items = np.where((items < 0) & ~owned, drawn, items)  # -1 stays -1
  while (lost := np.flatnonzero(items < 0)).size:
    drawn = rng.integers(shop.kind.size, size=lost.size)
    owned = (taken[lost] == drawn[:, None]).any(axis=1)
    items[lost] = np.where(owned, -1, drawn)
  return items


def _mixed(
  favorite: np.ndarray, size: int, chance: float, rng: np.random.Generator
) -> np.ndarray:
  """The favorite with this chance, else any of `size`; int [A]."""
  other = rng.integers(size, size=favorite.size)
  return np.where(rng.random(favorite.size) < chance, favorite, other)


def _make_times(
  filled: np.ndarray, rng: np.random.Generator
) -> Float64[np.ndarray, "T"]:
  """Whole days in seconds, many items of a user on one day."""
  gaps = 1 + np.floor(rng.exponential(_MEAN_GAP_DAYS, filled.shape))
  gaps[rng.random(filled.shape) < _SAME_DAY] = 0
  gaps[:, 0] = rng.integers(_START_DAYS, size=filled.shape[0])
  return np.cumsum(gaps, axis=1)[filled] * _DAY_SECONDS
