"""Part IoU of segmented shapes, with the protocols of published results."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pcattn.utils.checks import check_device, is_integer, reads_values
from pcattn.utils.errors import InputError


class Protocol(NamedTuple):
    """How a published part IoU predicts and counts parts."""

    own_parts: bool  #: predict only parts of the shape's category; otherwise any part of the data set
    count_absent: bool  #: a part absent from truth and prediction has IoU 1; otherwise only parts in the truth count


#: Protocols by name. Code that uses them: "category": PointNet++, DGCNN, PCT and most papers. "all50":
#: AnTao97/dgcnn.pytorch, Pointcept, PointNeXt. "present": PAConv, PointMLP. "category_present": KPConv, openpoints.
PROTOCOLS = {
    "category": Protocol(own_parts=True, count_absent=True),
    "all50": Protocol(own_parts=False, count_absent=True),
    "present": Protocol(own_parts=False, count_absent=False),
    "category_present": Protocol(own_parts=True, count_absent=False),
}


class PartIoUResult(NamedTuple):
    """Part IoU of a set of shapes, in [0, 1]; NaN without shapes."""

    instance: Tensor  #: (), mean over shapes: the instance mIoU
    classes: Tensor  #: (), mean over the categories that have shapes: the class mIoU
    per_class: Tensor  #: (C,), mean over the shapes of each category
    counts: Tensor  #: (C,), number of shapes of each category
    shapes: Tensor | None  #: (B,), IoU of each shape; None from `PartIoU`, which keeps only sums


class PartTable:
    """The parts of each category as tensors. Short rows are padded with their first part.

    Args:
        parts: part ids of each category; two categories may share a part.

    Raises:
        InputError: there is no category, a category has no parts, or an id is negative or repeated in a category.
    """

    def __init__(self, parts: Sequence[Sequence[int]]) -> None:
        if not parts or not all(parts):
            raise InputError(f"expected parts to list at least one part for each category, but got {parts}")
        for ids in parts:
            if min(ids) < 0 or len(set(ids)) < len(ids):
                raise InputError(f"expected the parts of a category to be different and >= 0, but got {ids}")
        width = max(map(len, parts))
        self.num_parts = 1 + max(map(max, parts))  #: logits needed
        self.ids = torch.tensor([[*ids, *[ids[0]] * (width - len(ids))] for ids in parts])  #: (C, P), int64
        self.real = torch.tensor([[place < len(ids) for place in range(width)] for ids in parts])  #: (C, P), bool

    def __len__(self) -> int:
        return len(self.ids)


def predict_parts(
    logits: Tensor, category: Tensor | None, parts: Sequence[Sequence[int]], protocol: str = "category"
) -> Tensor:
    """The predicted part of every point.

    Args:
        logits: (B, N, num_parts), or other scores of the parts.
        category: (B,), integers; may be None if there is only one category.
        parts: part ids of each category.
        protocol: a key of `PROTOCOLS`; `"category"` and `"category_present"` choose among the parts of the shape's
            category, the others among all parts.

    Shape:
        (B, N), int64.

    Raises:
        InputError: shapes do not fit, an argument is out of range, or on the CPU a logit is NaN.
    """
    table = PartTable(parts)
    return _predict(logits, _check(logits, category, table, protocol), table, protocol)


def shape_iou(
    logits: Tensor,
    target: Tensor,
    category: Tensor | None,
    table: PartTable,
    protocol: str,
    ignore_index: int | None = None,
) -> tuple[Tensor, Tensor]:
    """IoU (B,) of each shape in float64 and its category (B,); for arguments see `part_iou`.

    A shape whose points are all ignored has IoU NaN.
    """
    category = _check(logits, category, table, protocol)
    check_device(logits=logits, target=target)
    if target.shape != logits.shape[:2] or not is_integer(target):
        raise InputError(
            f"expected target to be integers of shape {tuple(logits.shape[:2])}, "
            f"but got {target.dtype} of shape {tuple(target.shape)}"
        )
    ids, real = table.ids.to(logits.device)[category], table.real.to(logits.device)[category]  # (B, P)
    in_truth = target[:, :, None] == ids[:, None]  # (B, N, P)
    known = torch.ones_like(target, dtype=torch.bool) if ignore_index is None else target != ignore_index  # (B, N)
    foreign = ~in_truth.any(dim=2) & known
    if bool(foreign.any()):
        shape, point = foreign.nonzero()[0].tolist()
        raise InputError(
            f"expected target to hold parts of the shape's category ({ids[shape][real[shape]].tolist()} for shape "
            f"{shape} of category {int(category[shape])}), but got {int(target[shape, point])}"
        )
    in_prediction = _predict(logits, category, table, protocol)[:, :, None] == ids[:, None]
    in_truth, in_prediction = in_truth & known[:, :, None], in_prediction & known[:, :, None]
    intersection = (in_truth & in_prediction).sum(dim=1)
    union = (in_truth | in_prediction).sum(dim=1)
    iou = torch.where(union == 0, 1.0, intersection.double() / union)  # (B, P)
    counted = real if PROTOCOLS[protocol].count_absent else real & in_truth.any(dim=1)
    mean = iou.where(counted, 0.0).sum(dim=1) / counted.sum(dim=1)
    return mean.where(known.any(dim=1), torch.nan), category


def count_shapes(shapes: Tensor, category: Tensor, num_categories: int) -> tuple[Tensor, Tensor]:
    """Sum (C,) and number (C,) of the shape IoUs (B,) of each category, ignoring NaN."""
    sums = shapes.new_zeros(num_categories).index_add(0, category, shapes.nan_to_num())
    counts = category.new_zeros(num_categories).index_add(0, category, (~shapes.isnan()).long())
    return sums, counts


def summarize(sums: Tensor, counts: Tensor, shapes: Tensor | None = None) -> PartIoUResult:
    """The result from the sum and the number of shape IoUs of each category, (C,) both."""
    per_class = sums / counts
    return PartIoUResult(sums.sum() / counts.sum(), per_class.nanmean(), per_class, counts, shapes)


def part_iou(
    logits: Tensor,
    target: Tensor,
    category: Tensor | None,
    parts: Sequence[Sequence[int]],
    protocol: str = "category",
    ignore_index: int | None = None,
) -> PartIoUResult:
    r"""Part IoU of segmented shapes.

    .. math::
        \mathrm{IoU}_s = \frac{1}{|P_s|} \sum_{p \in P_s} \frac{|T_p \cap \hat T_p|}{|T_p \cup \hat T_p|}

    Here P_s are the parts of the shape's category, T_p are the points of part p in the truth, and :math:`\hat T_p` are
    its points in the prediction. The instance mIoU is the mean over all shapes. The class mIoU is the mean over
    categories of the mean over the shapes of a category.

    Args:
        logits: (B, N, num_parts).
        target: (B, N), the part of every point, which must belong to the shape's category.
        category: (B,), integers; may be None if there is only one category.
        parts: part ids of each category. ShapeNetPart: `[[0, 1, 2, 3], [4, 5], ...]`.
        protocol: which parts are predicted, and which count:

            ================ ======================== ============================= ====================================
            protocol         argmax over              a part absent from both       used by
            ================ ======================== ============================= ====================================
            category         the category's own parts IoU 1                         PointNet++, DGCNN, PCT, most papers
            all50            all parts                IoU 1                         AnTao97/dgcnn.pytorch, Pointcept,
                                                                                    PointNeXt
            present          all parts                only parts in the truth count PAConv, PointMLP
            category_present the category's own parts only parts in the truth count KPConv, openpoints
            ================ ======================== ============================= ====================================
        ignore_index: points with this target are ignored; a shape without other points is not counted.

    Returns:
        `PartIoUResult` in float64, with `instance`, `classes`, `per_class`, `counts` and the IoU of each of the
        `shapes`.

    Raises:
        InputError: shapes do not fit, an argument is out of range, a target is not a part of its shape's category, or
            on the CPU a logit is NaN.

    Source: the evaluation code of the projects in the table. PointNet++: Qi et al. 2017,
        https://arxiv.org/abs/1706.02413; PAConv: Xu et al. 2021, https://arxiv.org/abs/2103.14635; KPConv: Thomas et
        al. 2019, https://arxiv.org/abs/1904.08889.

    Example:
        The first category has the parts 0, 1, 2, the second has only part 3. A shape of the first category has two
        points of part 0 and two points of part 1. Its largest logits are at parts 0, 1, 1, 3. Among the parts of its
        category, the largest logit of the last point is at part 1.

        >>> import torch
        >>> logits = torch.tensor([[[9., 0, 0, 0], [0, 9, 0, 0], [0, 9, 0, 0], [0, 5, 0, 9]]])
        >>> target, category = torch.tensor([[0, 0, 1, 1]]), torch.tensor([0])
        >>> parts = [[0, 1, 2], [3]]

        `"category"`, prediction 0 1 1 1: part 0 has IoU 1/2, part 1 has 2/3, part 2 is absent and has 1, so the shape
        has (1/2 + 2/3 + 1) / 3 = 13/18 = 0.7222.

        >>> print(f"{part_iou(logits, target, category, parts).instance:.4f}")
        0.7222

        `"all50"`, prediction 0 1 1 3: part 0 has 1/2, part 1 has 1/3, part 2 has 1: 11/18 = 0.6111. The point predicted
        as part 3 is missing from part 1. Part 3 itself does not count, because it is not in this category.

        >>> print(f"{part_iou(logits, target, category, parts, 'all50').instance:.4f}")
        0.6111

        `"present"`, prediction 0 1 1 3: part 2 does not count, (1/2 + 1/3) / 2 = 5/12 = 0.4167.

        >>> print(f"{part_iou(logits, target, category, parts, 'present').instance:.4f}")
        0.4167

        `"category_present"`, prediction 0 1 1 1: (1/2 + 2/3) / 2 = 7/12 = 0.5833.

        >>> print(f"{part_iou(logits, target, category, parts, 'category_present').instance:.4f}")
        0.5833

        With two more such shapes and a perfectly segmented shape of the second category, the mean over shapes is
        (3 * 13/18 + 1) / 4 = 0.7917, and the mean over categories (13/18 + 1) / 2 = 0.8611.

        >>> target = torch.cat((target.expand(3, -1), torch.full((1, 4), 3)))
        >>> result = part_iou(logits.expand(4, -1, -1), target, torch.tensor([0, 0, 0, 1]), parts)
        >>> print(f"{result.instance:.4f} {result.classes:.4f}")
        0.7917 0.8611
        >>> result.counts.tolist()
        [3, 1]
    """
    table = PartTable(parts)
    shapes, category = shape_iou(logits, target, category, table, protocol, ignore_index)
    return summarize(*count_shapes(shapes, category, len(table)), shapes)


def _predict(logits: Tensor, category: Tensor, table: PartTable, protocol: str) -> Tensor:
    """`predict_parts` of checked arguments."""
    if not PROTOCOLS[protocol].own_parts:
        return logits.argmax(dim=2)
    ids = table.ids.to(logits.device)[category][:, None].expand(-1, logits.shape[1], -1)  # (B, N, P)
    # Padding repeats a part, which does not change the argmax. Gathering the allowed logits, instead of setting the
    # others to minus infinity, gives an allowed part even if all logits are minus infinity.
    return ids.gather(2, logits.gather(2, ids).argmax(dim=2, keepdim=True)).squeeze(2)


def _check(logits: Tensor, category: Tensor | None, table: PartTable, protocol: str) -> Tensor:
    """Check the arguments and return the categories (B,) in int64; zeros if there is only one category."""
    if protocol not in PROTOCOLS:
        raise InputError(f"expected protocol to be one of {', '.join(PROTOCOLS)}, but got {protocol!r}")
    if logits.dim() != 3 or logits.shape[1] == 0 or logits.shape[2] < table.num_parts:
        raise InputError(
            f"expected logits to be (B, N, num_parts) with N >= 1 and num_parts >= {table.num_parts}, "
            f"but got shape {tuple(logits.shape)}"
        )
    if logits.is_complex() or logits.dtype == torch.bool:
        raise InputError(f"expected logits to be real numbers, but got {logits.dtype}")
    if reads_values(logits) and bool(logits.isnan().any()):
        shape, point, _ = logits.isnan().nonzero()[0].tolist()
        raise InputError(f"expected logits without NaN, but got NaN at point {point} of shape {shape}")
    if category is None:
        if len(table) > 1:
            raise InputError(f"expected category (B,) because there are {len(table)} categories, but got None")
        return torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    check_device(logits=logits, category=category)
    if category.shape != logits.shape[:1] or not is_integer(category):
        raise InputError(
            f"expected category to be integers of shape {tuple(logits.shape[:1])}, "
            f"but got {category.dtype} of shape {tuple(category.shape)}"
        )
    if bool(((category < 0) | (category >= len(table))).any()):
        shape = int(((category < 0) | (category >= len(table))).nonzero()[0])
        raise InputError(f"expected category in [0, {len(table)}), but got {int(category[shape])} for shape {shape}")
    return category.long()
