"""What labels ask for: a loss, metrics and a picture for each kind of target."""

from decur.transfer.tasks.base import TASKS, Kept, Task, choose_task, make_task

__all__ = ["TASKS", "Kept", "Task", "choose_task", "make_task"]
