"""The embedded data set `Shapes`: parametric objects with labeled parts, generated on first use."""

from pcattn.datasets.shapes.dataset import Shapes, sample_object

__all__ = ["Shapes", "sample_object"]
