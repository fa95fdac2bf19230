"""Lines of text files, plain or gzipped, with their numbers."""

import gzip
import os
import pathlib
import zlib
from collections.abc import Iterator

from gr_jax.core.checks import InputError

_GZIP_MAGIC = b"\x1f\x8b"


def read_lines(
  path: str | os.PathLike[str], *, encoding: str = "utf-8"
) -> Iterator[tuple[int, str]]:
  """Yields (line number from 1, line) of every line that is not blank.

  Gzip is told by the file's first bytes, as downloads lose their suffix.

  Args:
    path: The file.
    encoding: Of its text.

  Raises:
    InputError: It cannot be read or decoded to its end.
  """
  number = 0
  try:
    with pathlib.Path(path).open("rb") as raw:
      zipped = raw.read(2) == _GZIP_MAGIC
    opener = gzip.open if zipped else open
    with opener(path, "rt", encoding=encoding) as lines:
      for number, line in enumerate(lines, 1):
        if line.strip():
          yield number, line
  except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
    raise InputError(
      f"{str(path)!r} cannot be read after line {number} ({error}); fetch or "
      "write it again."
    ) from error


def require_files(
  folder: str | os.PathLike[str], *names: str, source: str
) -> list[pathlib.Path]:
  """Returns the files of a raw data set, all of which must be there.

  Args:
    folder: Where they lie.
    names: Their names.
    source: Where a user gets them.

  Raises:
    InputError: The folder or one of the files is missing.
  """
  files = [pathlib.Path(folder) / name for name in names]
  if not pathlib.Path(folder).is_dir():
    raise InputError(
      f"No folder {str(folder)!r}; set data.path to the folder with "
      f"{' and '.join(names)} from {source}."
    )
  for file in files:
    if not file.is_file():
      raise InputError(
        f"Folder {str(folder)!r} lacks {file.name!r}; fetch it from {source}."
      )
  return files
