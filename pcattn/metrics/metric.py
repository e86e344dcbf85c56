"""`PartIoU`: `part_iou` over a whole data set, batch by batch and process by process."""

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

    The state is the sum of the shapes' IoUs and the number of shapes of each category, added up over processes: the
    result depends neither on the batches nor on which process saw which shape.

    Args:
        parts: part ids of each category.
        protocol: a key of `pcattn.metrics.PROTOCOLS`.
        ignore_index: points with this target are left out.
        **kwargs: of `torchmetrics.Metric`.

    Raises:
        InputError: as `part_iou`.

    Example:
        One category with the parts 0 and 1. The first shape is right (IoU 1); in the second, one of two points of part
        0 is taken for part 1: part 0 has 1/2, part 1 has 2/3, their mean is 7/12. The mean of both is 19/24 = 0.7917.

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
        """Undo what torchmetrics does to every tensor of one element: of one category, `per_class` is (1,), not ()."""
        squeezed = super()._wrap_compute(compute)

        @wraps(compute)
        def wrapped(*args: Any, **kwargs: Any) -> PartIoUResult:
            result: PartIoUResult = squeezed(*args, **kwargs)
            return result._replace(per_class=result.per_class.view(-1), counts=result.counts.view(-1))

        return wrapped
