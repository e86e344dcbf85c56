"""What attention layers need to know of the positions, computed once for all of them."""

from torch import Tensor

from pcattn.ops import knn


class Geometry:
    """The positions of one set of points, and what several layers derive from them.

    Everything is computed on first use and kept, so that four layers over the same points search neighbours once.

    Args:
        pos: (B, N, 3).
    """

    def __init__(self, pos: Tensor) -> None:
        self.pos = pos
        self._neighbours: dict[int, Tensor] = {}

    def neighbours(self, k: int) -> Tensor:
        """Indices (B, N, k) of the k nearest points of every point, itself among them, nearest first."""
        if k not in self._neighbours:
            self._neighbours[k] = knn(self.pos, self.pos, k).indices
        return self._neighbours[k]
