"""`NormalEstimation`: its loss and metrics, and that the network never sees the target."""

import numpy as np
import pytest
import torch

from pcattn.data import PointBatch
from pcattn.inference.model import Model
from pcattn.tasks import NormalEstimation
from pcattn.training import PointCloudDataModule

NETWORK = {"dim": 16, "depth": 1, "k": 4, "out_dim": 32}


def make_batch(target: torch.Tensor) -> PointBatch:
    clouds = len(target)
    return PointBatch(torch.randn_like(target), target, torch.zeros(clouds), None, torch.arange(clouds), 0)


def units(*shape: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape, 3), dim=-1)


@pytest.mark.parametrize(("oriented", "loss", "angle"), [(True, 1.5, 135.0), (False, 0.5, 45.0)])
def test_metrics(oriented: bool, loss: float, angle: float) -> None:
    """Half of the predictions are opposite to the truth, the others at right angles."""
    task = NormalEstimation(network_kwargs=NETWORK, oriented=oriented)
    truth = torch.tensor([[[1.0, 0, 0], [1, 0, 0]]])
    predicted = torch.tensor([[[-1.0, 0, 0], [0, 1, 0]]])
    batch = make_batch(truth)
    task.update_metrics(predicted, batch)
    metrics = task.compute_metrics("val")
    assert {name: float(value) for name, value in metrics.items()} == pytest.approx(
        {"val/loss": loss, "val/angle": angle}
    )
    assert float(task.loss(predicted, batch)) == pytest.approx(loss)
    assert f"angle error {angle:.2f}°" in task.report("val")


def test_the_network_does_not_see_the_target() -> None:
    task = NormalEstimation(network_kwargs=NETWORK, num_features=1).eval()
    batch = make_batch(units(2, 20))._replace(features=torch.rand(2, 20, 1))
    inputs = task.inputs(batch)
    assert list(inputs) == ["pos", "features"]
    assert inputs["features"].shape == (2, 20, 1)
    assert torch.equal(task.logits(batch), task.logits(batch._replace(normals=units(2, 20))))


def test_gradients_reach_every_parameter() -> None:
    task = NormalEstimation(network_kwargs=NETWORK)
    batch = make_batch(units(2, 20))
    task.loss(task.logits(batch), batch).backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in task.parameters())


def test_a_target_is_needed() -> None:
    task = NormalEstimation(network_kwargs=NETWORK)
    with pytest.raises(ValueError, match="expected normals as the target"):
        task.evaluate(make_batch(units(2, 20))._replace(normals=None))


@pytest.mark.parametrize("oriented", [True, False])
def test_predictions_can_be_averaged(oriented: bool) -> None:
    """Without orientation, a normal and its opposite are the same prediction."""
    task = NormalEstimation(network_kwargs=NETWORK, oriented=oriented)
    normals = units(1, 50)
    flipped = normals if oriented else -normals
    mean = (task.predictions(normals) + task.predictions(flipped))[0] / 2
    found = torch.from_numpy(task.attributes(mean)["normals"])
    cosine = (found * normals[0]).sum(dim=1)
    torch.testing.assert_close(cosine if oriented else cosine.abs(), torch.ones(50))


def test_model() -> None:
    """All points of a cloud have a unit normal; a cloud that fits the network has the network's own."""
    model = Model(NormalEstimation(network_kwargs=NETWORK), {"num_points": 32})
    normals = model.predict(torch.randn(100, 3), votes=2)["normals"]
    assert normals.shape == (100, 3)
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-5)
    pos = torch.randn(32, 3)
    pos = (pos - pos.mean(dim=0)) / (pos - pos.mean(dim=0)).norm(dim=1).max()
    with torch.no_grad():
        expected = model.network(pos[None])[0]
    np.testing.assert_allclose(model.predict(pos)["normals"], expected, atol=1e-4)
    with pytest.raises(ValueError, match="a part segmenter, but this is NormalEstimation: use predict"):
        model.segment(pos)


class TestData:
    @pytest.mark.parametrize("features", [["normals"], ["estimated_normals", "height"]])
    def test_the_target_is_no_feature(self, features: list[str]) -> None:
        with pytest.raises(ValueError, match=r"expected features without .*normals, which are the target"):
            PointCloudDataModule(target="normals", features=features)

    def test_another_target(self) -> None:
        with pytest.raises(ValueError, match="expected target to be normals or null, but got 'colors'"):
            PointCloudDataModule(target="colors")  # type: ignore[arg-type]
