"""From a config section to a frozen dataclass; every default lives there."""

import dataclasses
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
      get, or a value that it refuses.
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
  return cls(**values)


def build(
  table: Mapping[str, type[Any]], section: Mapping[str, Any], where: str
) -> Any:
  """Builds the component that a section names, with the section's other keys.

  Args:
    table: Names to frozen dataclasses.
    section: Has `name`; the rest are fields of the dataclass it names.
    where: The section's name, for messages.

  Raises:
    InputError: No name, an unknown one, or as `construct`.
  """
  if "name" not in section:
    raise checks.InputError(
      f"Config section {where!r} lacks 'name'; known: "
      f"{', '.join(sorted(table))}."
    )
  rest = {key: value for key, value in section.items() if key != "name"}
  checks.check_known(section["name"], table, where)
  return construct(table[section["name"]], rest, where)
