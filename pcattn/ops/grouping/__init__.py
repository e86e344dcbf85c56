"""Features of points by index, and relative features of neighborhoods."""

from pcattn.ops.grouping.op import gather, group

__all__ = ["gather", "group"]
