"""Weights as the start of another network: what is copied, and what is said about the rest."""

import pytest
import torch

from pcattn.inference.finetune import initialize
from pcattn.models import PCTClassifier

SIZES = {"variant": "spct", "dim": 8, "depth": 1, "out_dim": 16}


def test_copies_what_fits() -> None:
    source, network = PCTClassifier(4, **SIZES), PCTClassifier(3, **SIZES, attention="self")
    source(torch.randn(4, 8, 3))  # running statistics
    last = network.head[4].weight.clone()
    assert initialize(network, source.state_dict()) == [
        "backbone.layers.0.core.q.weight (2, 8): not there, keeps its start",
        "backbone.layers.0.core.k.weight (2, 8): not there, keeps its start",
        "head.4.weight (3, 256): (4, 256) there, keeps its start",
        "head.4.bias (3,): (4,) there, keeps its start",
        "backbone.layers.0.core.qk.weight (2, 8): not in this network",
    ]
    left = {"backbone.layers.0.core.q.weight", "backbone.layers.0.core.k.weight", "head.4.weight", "head.4.bias"}
    for name, value in network.state_dict().items():
        if name not in left:
            assert torch.equal(value, source.state_dict()[name]), name
    assert torch.equal(network.head[4].weight, last)


def test_refuses_what_fits_nowhere() -> None:
    """Counters and single biases would fit."""
    source, network = torch.nn.Linear(3, 4), torch.nn.Linear(2, 4)
    before = network.bias.clone()
    with pytest.raises(ValueError, match=r"none fits; the first, weight, is to be \(4, 2\), but got \(4, 3\)"):
        initialize(network, source.state_dict())
    assert torch.equal(network.bias, before)
