"""What labels ask for: a loss, metrics and a picture for each kind of target."""

from typing import TYPE_CHECKING

from decur.lazy import lazy_names

if TYPE_CHECKING:
    from decur.transfer.tasks.base import TASKS, Kept, Task, choose_task, known_metrics, make_task
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = ["TASKS", "Kept", "Task", "choose_task", "known_metrics", "make_task"]
