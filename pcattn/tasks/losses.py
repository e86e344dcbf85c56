"""Losses that torch does not have, or has in another form."""

import torch
from torch import Tensor

from pcattn.utils.checks import check_device, check_floating, check_labels
from pcattn.utils.errors import InputError


def torch_smoothing(label_smoothing: float, num_classes: int) -> float:
    """The `label_smoothing` of torch's cross-entropy that spreads eps over the K - 1 classes that are not the true one.

    That is PCT's code and the usual meaning; torch spreads over all K classes, the true one included.
    """
    if num_classes == 1:
        return 0.0
    smoothing = label_smoothing * num_classes / (num_classes - 1)
    if smoothing > 1:
        limit = (num_classes - 1) / num_classes
        raise InputError(f"expected label_smoothing <= {limit:g} with {num_classes} classes, but got {label_smoothing}")
    return smoothing


def mixed_cross_entropy(logits: Tensor, label: Tensor, weight: Tensor, label_smoothing: float = 0.0) -> Tensor:
    r"""Cross-entropy of clouds mixed from classes: :math:`\sum_l w_l \, \mathrm{CE}(z, y_l)`, the mean over clouds.

    Cross-entropy is linear in its target, so this is the cross-entropy with the soft label :math:`\sum_l w_l e(y_l)`,
    e(y) being the smoothed one-hot vector of class y.

    Args:
        logits: (B, K).
        label: (B, L), classes.
        weight: (B, L), their shares, adding up to 1.
        label_smoothing: torch's, see `torch_smoothing`.

    Shape:
        ().

    Raises:
        InputError: shapes do not fit, or on the CPU a label is out of range.
    """
    if logits.dim() != 2 or label.dim() != 2 or len(label) != len(logits) or weight.shape != label.shape:
        raise InputError(
            f"expected logits (B, K), label (B, L) and weight (B, L), but got {tuple(logits.shape)}, "
            f"{tuple(label.shape)} and {tuple(weight.shape)}"
        )
    check_floating("logits", logits)
    check_device(logits=logits, label=label, weight=weight)
    check_labels("label", label, logits.shape[1])
    repeated = logits[:, :, None].expand(-1, -1, label.shape[1])  # (B, K, L)
    loss = torch.nn.functional.cross_entropy(repeated, label.long(), label_smoothing=label_smoothing, reduction="none")
    return (weight * loss).sum(dim=1).mean()


def lovasz_softmax(probabilities: Tensor, target: Tensor) -> Tensor:
    r"""Lovász-Softmax, a convex surrogate of 1 - IoU: the mean over the parts that a shape has, then over shapes.

    With the errors :math:`m_i = |[y_i = c] - p_i(c)|` of part c in descending order and J_i the Jaccard loss when the
    first i points are wrong,

    .. math::
        \ell_c = \sum_i m_i (J_i - J_{i-1}), \qquad
        J_i = 1 - \frac{G - g_i}{G + i - g_i}

    where G points belong to part c, g_i of them among the first i.

    Args:
        probabilities: (B, N, P).
        target: (B, N), integers in [0, P).

    Shape:
        (), in [0, 1].

    Source: Berman et al. 2018, https://arxiv.org/abs/1705.08790, section 3; computed for each shape, as the
        instance mIoU is.

    Raises:
        InputError: shapes do not fit, or on the CPU a target is out of range.
    """
    if probabilities.dim() != 3 or 0 in probabilities.shape or target.shape != probabilities.shape[:2]:
        raise InputError(
            "expected probabilities (B, N, P), not empty, and target (B, N), "
            f"but got {tuple(probabilities.shape)} and {tuple(target.shape)}"
        )
    check_floating("probabilities", probabilities)
    check_device(probabilities=probabilities, target=target)
    check_labels("target", target, probabilities.shape[2])
    target = target.long()
    truth = torch.nn.functional.one_hot(target, probabilities.shape[2])  # (B, N, P)
    errors, order = (truth - probabilities).abs().sort(dim=1, descending=True)
    found = truth.gather(1, order).cumsum(dim=1)
    total = found[:, -1:]
    wrong = torch.arange(1, target.shape[1] + 1, device=target.device)[:, None]
    jaccard = 1 - (total - found) / (total + wrong - found)
    steps = torch.cat((jaccard[:, :1], jaccard.diff(dim=1)), dim=1)
    present = total[:, 0] > 0  # (B, P)
    loss = (errors * steps).sum(dim=1).where(present, 0.0)
    return (loss.sum(dim=1) / present.sum(dim=1)).mean()
