"""Part IoU as a torchmetrics metric, over batches and processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from pcattn.metrics.functional import PROTOCOLS, PartIoUResult, PartTable, count_shapes, shape_iou, summarize
from pcattn.utils.errors import InputError


class PartIoU(Metric):
    """Part IoU over all shapes seen since the last reset, see `pcattn.metrics.part_iou`.

    The state is the sum of the IoUs and the number of shapes of each category, summed over processes. The result
    therefore does not depend on how the shapes are distributed over batches and processes.

    Args:
        parts: part ids of each category.
        protocol: a key of `pcattn.metrics.PROTOCOLS`.
        ignore_index: points with this target are ignored.
        **kwargs: of `torchmetrics.Metric`.

    Raises:
        InputError: as `part_iou`.

    Example:
        One category with the parts 0 and 1. The first shape is segmented perfectly (IoU 1). In the second, one of two
        points of part 0 is predicted as part 1: part 0 has 1/2, part 1 has 2/3, and their mean is 7/12. The mean of
        both shapes is 19/24 = 0.7917.

        >>> import torch
        >>> metric = PartIoU([[0, 1]])
        >>> metric.update(torch.tensor([[[9., 0], [9, 0], [0, 9], [0, 9]]]), torch.tensor([[0, 0, 1, 1]]))
        >>> metric.update(torch.tensor([[[9., 0], [0, 9], [0, 9], [0, 9]]]), torch.tensor([[0, 0, 1, 1]]))
        >>> print(f"{metric.compute().instance:.4f}")
        0.7917
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    sums: Tensor
    counts: Tensor

    def __init__(
        self,
        parts: Sequence[Sequence[int]],
        protocol: str = "category",
        ignore_index: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if protocol not in PROTOCOLS:
            raise InputError(f"expected protocol to be one of {', '.join(PROTOCOLS)}, but got {protocol!r}")
        self.protocol = protocol
        self.ignore_index = ignore_index
        self.table = PartTable(parts)
        self.add_state("sums", torch.zeros(len(parts), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(len(parts), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, logits: Tensor, target: Tensor, category: Tensor | None = None) -> None:
        """Add shapes: logits (B, N, num_parts), parts (B, N) and categories (B,)."""
        shapes, category = shape_iou(logits, target, category, self.table, self.protocol, self.ignore_index)
        sums, counts = count_shapes(shapes, category, len(self.counts))
        self.sums = self.sums + sums
        self.counts = self.counts + counts

    def compute(self) -> PartIoUResult:
        """The result over all shapes; its `shapes` is None."""
        return summarize(self.sums, self.counts)

    def _wrap_compute(self, compute: Callable[..., PartIoUResult]) -> Callable[..., PartIoUResult]:
        """Keep `per_class` and `counts` (1,) for one category: torchmetrics squeezes tensors with one element."""
        squeezed = super()._wrap_compute(compute)

        @wraps(compute)
        def wrapped(*args: Any, **kwargs: Any) -> PartIoUResult:
            result: PartIoUResult = squeezed(*args, **kwargs)
            return result._replace(per_class=result.per_class.view(-1), counts=result.counts.view(-1))

        return wrapped
