"""From a config section to a frozen dataclass; every default lives there."""

import dataclasses
import inspect
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from gr_jax.core import checks

T = TypeVar("T")


def construct(cls: type[T], section: Mapping[str, Any], where: str) -> T:
  """Builds a config dataclass from a section's keys.

  Args:
    cls: A frozen dataclass.
    section: Its fields by name; lists become tuples.
    where: The section's name, for messages.

  Raises:
    InputError: A key that `cls` does not have, a field it needs and did not
      get, a value of another type, or one that it refuses.
  """
  fields = {field.name: field for field in dataclasses.fields(cls)}
  for key in section:
    checks.check_known(key, fields, f"key in config section {where!r}:")
  missing = [
    name
    for name, field in fields.items()
    if name not in section
    and field.default is dataclasses.MISSING
    and field.default_factory is dataclasses.MISSING
  ]
  if missing:
    raise checks.InputError(
      f"Config section {where!r} lacks {missing[0]!r}; set "
      f"--config.{where}.{missing[0]}=..."
    )
  values = {
    key: tuple(value) if isinstance(value, list) else value
    for key, value in section.items()
  }
  hints = typing.get_type_hints(cls)
  for key, value in values.items():
    if not _is_of(value, hints[key]):
      wanted = inspect.formatannotation(hints[key])
      raise checks.InputError(
        f"Config section {where!r}: {key}={value!r} is not of type {wanted}."
      )
  return cls(**values)


def _is_of(value: Any, hint: Any) -> bool:
  """Says whether a config's value is of a field's type, as far as is plain."""
  if isinstance(hint, types.UnionType):
    return any(_is_of(value, one) for one in typing.get_args(hint))
  if typing.get_origin(hint) is tuple:
    each, *rest = typing.get_args(hint)
    if rest != [...]:
      return isinstance(value, tuple)
    return isinstance(value, tuple) and all(_is_of(v, each) for v in value)
  if hint in (int, float):
    kinds = (int, float) if hint is float else int
    return isinstance(value, kinds) and not isinstance(value, bool)
  return isinstance(value, hint) if isinstance(hint, type) else True


def build(
  table: Mapping[str, type[Any]], section: Mapping[str, Any], where: str
) -> Any:
  """Builds the component that a section names, with the section's other keys.

  Args:
    table: Names to frozen dataclasses.
    section: Has `name`; the rest are fields of the dataclass it names. One
      that is a section itself names a component of the same table.
    where: The section's name, for messages.

  Raises:
    InputError: No name, an unknown one, or as `construct`.
  """
  if "name" not in section:
    raise checks.InputError(
      f"Config section {where!r} lacks 'name'; known: "
      f"{', '.join(sorted(table))}."
    )
  checks.check_known(section["name"], table, where)
  rest = {
    key: build(table, value, f"{where}.{key}")
    if isinstance(value, Mapping)
    else value
    for key, value in section.items()
    if key != "name"
  }
  return construct(table[section["name"]], rest, where)
