"""Lightning modules: networks with their losses, metrics and optimisers."""

from pcattn.tasks.classification import Classification

__all__ = ["Classification"]
