"""Operations on batches of point clouds, one per folder.

Every folder holds the definition (`reference.py`), faster kernels where they exist (`numba.py`, `triton.py`), and
`op.py`, which checks arguments and registers the operation with `torch.library`, so that `torch.compile` and
`torch.export` pass through it. The README states what holds for all of them: exactness, ties, padding, determinism.

Import the operations on positions from here, and those for attention and normalization from their folders.
"""

from pcattn.ops.grouping import gather, group
from pcattn.ops.interpolation import interpolate
from pcattn.ops.neighbors import KNN, ball_query, knn
from pcattn.ops.sampling import farthest_point_sample

__all__ = ["KNN", "ball_query", "farthest_point_sample", "gather", "group", "interpolate", "knn"]
