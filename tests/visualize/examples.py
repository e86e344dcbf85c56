"""Clouds to draw."""

import numpy as np

from pcattn.visualize.scene import Cloud, errors, labels, quantity


def ball(num_points: int = 200, title: str = "ball 3", marked: int | None = None, seed: int = 0) -> Cloud:
    """A ball whose left half is called wing and whose right half is called tail; one point in ten is wrong."""
    rng = np.random.default_rng(seed)
    pos = rng.standard_normal((num_points, 3))
    pos /= np.linalg.norm(pos, axis=1, keepdims=True)
    truth = 4 + (pos[:, 0] > 0)
    wrong = np.arange(num_points) % 10 == 0
    predicted = np.where(wrong, 9 - truth, truth)
    names = [f"part {i}" for i in range(4)] + ["wing", "tail"]
    fields = {
        "truth": labels(truth, names, [4, 5]),
        "prediction": labels(predicted, names, [4, 5]),
        "error": errors(wrong),
        "probability": quantity(rng.random(num_points)),
    }
    return Cloud(pos.astype(np.float32), title, fields, "IoU 0.810", None, marked)
