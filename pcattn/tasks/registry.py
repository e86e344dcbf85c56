"""Tasks by their short names."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from pcattn.utils.errors import InputError

if TYPE_CHECKING:
    from pcattn.tasks.base import PointCloudTask

T = TypeVar("T", bound="type[PointCloudTask]")

#: Task classes by name. Checkpoints store the names of this package's tasks, and the import paths of all others.
TASKS: dict[str, type[PointCloudTask]] = {}


def register_task(task: T) -> T:
    """Make a task class known by its name; a class decorator.

    Raises:
        InputError: another task has this name.
    """
    if (known := TASKS.get(task.__name__)) is not None and known.__module__ != task.__module__:
        raise InputError(f"expected a new name for a task, but {task.__name__} is registered already")
    TASKS[task.__name__] = task
    return task
