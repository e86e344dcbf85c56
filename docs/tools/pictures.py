"""The picture of attention in the README and on the site: what one point of a chair attends to.

Train a narrow part segmenter with every mechanism first (about five minutes each on one core; for the picture in the
repository, two epochs of self and neighborhood, one of external, and 56 batches of the others were enough):

    for name in self offset external multihead_external neighborhood acmix axial polarized; do
        pcattn fit -c shapes_parts --model.attention $name --trainer.max_epochs 2 --run runs/$name
    done
    python docs/tools/pictures.py runs

The other pictures are those of `pcattn show`, for runs of `smoke` and `shapes_normals`:

    pcattn show runs/smoke --category airplane car chair guitar lamp teapot truck --number 7 --fields prediction \\
        --out docs/images/classes.png
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import pcattn
from pcattn.attention import ATTENTION
from pcattn.datasets import Shapes
from pcattn.inference.attention_maps import attention_maps
from pcattn.visualize.montage import montage
from pcattn.visualize.scene import Cloud, quantity

PICTURE = Path(__file__).parents[1] / "images" / "mechanisms.png"
NUM_POINTS = 512
LAYER = 3
CHAIR = 3  # of those in the test split
POINT = 79  # on a leg

#: What the map of each mechanism shows.
NOTES = {
    "self": "any other point",
    "offset": "any other point",
    "external": "points that share a memory slot",
    "multihead_external": "points that share a memory slot",
    "neighborhood": "16 nearest points",
    "acmix": "9 nearest points",
    "axial": "points along x, y and z",
    "polarized": "one gate for all points",
}


def attention_of(name: str, pos: Tensor, point: int, category: int, runs: Path) -> Cloud:
    """The cloud, colored by what the point attends to in a layer of a trained network."""
    model = pcattn.load(runs / name)
    task = model.task

    def forward() -> None:
        task(pos[None], torch.tensor([category]))

    maps, tokens, token = attention_maps(task.network, forward, LAYER, pos, point)
    weights = maps.weights[0]
    # Of the slots of a memory, the one that the point attends to most; otherwise the mean over the heads.
    weights = weights[weights[:, token].argmax()] if maps.slots else weights.mean(0)
    if name == "polarized":
        weights = maps.weights[0, 0]
    nearest = torch.cdist(pos, tokens).argmin(dim=1)
    values = weights[nearest].double().numpy()
    values = np.sqrt((values - values.min()) / np.ptp(values))  # the root shows small weights, too
    return Cloud(pos.numpy(), name, {"attention": quantity(values, 0.0, 1.0)}, NOTES[name], marked=point)


def main(runs: Path) -> None:
    """Draw the picture."""
    shapes = Shapes("data/shapes", split="test")
    category = shapes.class_names.index("chair")
    chairs = [index for index in range(len(shapes)) if int(shapes[index].category) == category]
    pos = shapes[chairs[CHAIR]].pos[:NUM_POINTS]
    clouds = [attention_of(name, pos, POINT, category, runs) for name in ATTENTION]
    montage(clouds, PICTURE, ["attention"], columns=4, renderer="matplotlib")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
