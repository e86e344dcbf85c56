"""Tasks by their short names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pcattn.utils.registry import Registry

if TYPE_CHECKING:
    from pcattn.tasks.base import PointCloudTask

#: Task classes by name. Checkpoints store the names of this package's tasks, and the import paths of all others.
TASKS: Registry[type[PointCloudTask]] = Registry("task")

#: Class decorator that adds a task by the name of its class: `@register_task`.
register_task = TASKS.register
