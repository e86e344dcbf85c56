"""From the name of a network in a configuration to the network."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from pcattn.models.hierarchical import SIZES, HierarchicalClassifier
from pcattn.models.hierarchical_segmenter import HierarchicalSegmenter
from pcattn.models.pct import PCTBackbone, PCTClassifier
from pcattn.models.segmenter import PCTSegmenter
from pcattn.utils.errors import InputError

#: Networks by variant: each is built as `(num_outputs, ..., variant=variant, attention=..., **kwargs)`.
CLASSIFIERS: dict[str, type[nn.Module]] = {
    **dict.fromkeys(PCTBackbone.VARIANTS, PCTClassifier),
    **dict.fromkeys(SIZES, HierarchicalClassifier),
}
SEGMENTERS: dict[str, type[nn.Module]] = {
    **dict.fromkeys(PCTSegmenter.VARIANTS, PCTSegmenter),
    **dict.fromkeys(SIZES, HierarchicalSegmenter),
}


def build_classifier(num_classes: int, variant: str = "pct", **kwargs: Any) -> nn.Module:
    """The classifier of a variant, a key of `CLASSIFIERS`, with its arguments; (pos, features) -> (B, num_classes).

    Raises:
        InputError: no such variant, or an argument is out of range.
    """
    return _find(variant, CLASSIFIERS)(num_classes, variant=variant, **kwargs)


def build_segmenter(num_parts: int, num_categories: int | None, variant: str = "pct", **kwargs: Any) -> nn.Module:
    """The segmenter of a variant, a key of `SEGMENTERS`; (pos, category, features) -> (B, N, num_parts).

    Raises:
        InputError: no such variant, or an argument is out of range.
    """
    return _find(variant, SEGMENTERS)(num_parts, num_categories, variant=variant, **kwargs)


def _find(variant: str, networks: Mapping[str, type[nn.Module]]) -> type[nn.Module]:
    if variant not in networks:
        raise InputError(f"expected variant to be one of {', '.join(networks)}, but got {variant!r}")
    return networks[variant]
