"""Progress bars with rate and time left; silent unless a main turns them on."""

import contextlib
import threading
from collections.abc import Callable, Iterator

import rich.console
import rich.progress

_console: rich.console.Console | None = None


def enable() -> None:
  """Shows bars on standard error from now on; mains call it."""
  global _console
  _console = rich.console.Console(stderr=True)


class _RateColumn(rich.progress.ProgressColumn):
  """Finished units a second."""

  def render(self, task: rich.progress.Task) -> str:
    rate = task.finished_speed or task.speed
    return "" if rate is None else f"{rate:,.1f} {task.fields['unit']}/s"


@contextlib.contextmanager
def bar(
  description: str, *, total: int, unit: str = "step", completed: int = 0
) -> Iterator[Callable[..., None]]:
  """Shows one bar while its block runs, in the main thread alone.

  Args:
    description: What is being done, e.g. "training".
    total: How many units there are.
    unit: What is counted, singular.
    completed: Units already done, for a resumed run.

  Yields:
    `advance(count=1, note="")`, to be called as units finish; the note is
    shown behind the bar.
  """
  in_main = threading.current_thread() is threading.main_thread()
  if _console is None or not in_main:  # work side by side has one bar for all
    yield lambda count=1, note="": None
    return
  columns = (
    rich.progress.TextColumn("{task.description}"),
    rich.progress.BarColumn(bar_width=24),
    rich.progress.MofNCompleteColumn(),
    _RateColumn(),
    rich.progress.TimeRemainingColumn(),
    rich.progress.TextColumn("{task.fields[note]}"),
  )
  with rich.progress.Progress(*columns, console=_console) as display:
    task = display.add_task(
      description, total=total, completed=completed, unit=unit, note=""
    )

    def advance(count: int = 1, note: str | None = None) -> None:
      fields = {} if note is None else {"note": note}
      display.update(task, advance=count, **fields)

    yield advance
