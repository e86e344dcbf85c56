"""Pictures of clouds by Open3D without a screen, in a separate process: `python -m pcattn.visualize.offscreen`.

With a broken driver Open3D crashes its process or hangs. `render` starts the process, waits for it within a time limit,
and reports what went wrong.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pcattn.utils.errors import InputError
from pcattn.utils.processes import child_process
from pcattn.visualize.camera import fade, look, radius
from pcattn.visualize.flat import MARGIN

#: Packages of Debian and Ubuntu that Open3D needs.
PACKAGES = "libusb-1.0-0 libgl1 libegl1 libvulkan1 mesa-vulkan-drivers"

#: Signs in its output that one of them is missing.
_SIGNS = ("cannot open shared object file", "vulkan", "EGL", "libGL", "libusb")

_COMMAND = (sys.executable, "-m", "pcattn.visualize.offscreen")


class Open3DError(InputError):
    """Open3D cannot draw on this machine. The message says why and, if that helps, what to install."""


def render(
    clouds: list[tuple[NDArray[Any], NDArray[Any]]], size: int, up: str, time_limit: float = 180.0
) -> list[NDArray[np.uint8]]:
    """Pictures (size, size, 3) of clouds, each positions (N, 3) with colors (N, 3).

    Raises:
        Open3DError: no pictures within the time limit in seconds.
    """
    with tempfile.TemporaryDirectory(prefix="pcattn-") as folder:
        task, result = Path(folder) / "task.npz", Path(folder) / "result.npz"
        arrays: dict[str, Any] = {
            f"{name}{i}": array for i, pair in enumerate(clouds) for name, array in zip("pc", pair, strict=True)
        }
        np.savez(task, size=size, up=up, number=len(clouds), **arrays)
        run([*_COMMAND, str(task), str(result)], time_limit)
        if not result.is_file():
            raise Open3DError("Open3D ended without a picture")
        with np.load(result) as pictures:
            return list(pictures["pictures"])


def run(command: list[str], time_limit: float) -> None:
    """Run a process that uses Open3D.

    Raises:
        Open3DError: it failed, crashed, or took longer than the time limit.
    """
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
    with child_process(command, signal.SIGKILL, **output) as process:
        try:
            text, _ = process.communicate(timeout=time_limit)
        except subprocess.TimeoutExpired:
            raise Open3DError(f"Open3D did not answer within {time_limit:g} s") from None
    if process.returncode:
        raise Open3DError(explain(process.returncode, text))


def explain(status: int, output: str) -> str:
    """Why a process that uses Open3D failed, in one line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    last = lines[-1][:200] if lines else "no message"
    if status < 0:
        reason = f"Open3D crashed (signal {-status}, {signal.Signals(-status).name})"
    else:
        reason = f"Open3D cannot draw ({last})"
    if any(sign.lower() in output.lower() for sign in _SIGNS):
        reason += f"; on Debian or Ubuntu it needs: apt-get install {PACKAGES}"
    return reason


def spheres(
    pos: NDArray[Any], colors: NDArray[Any], size: float | NDArray[Any]
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """A small shaded sphere for every point: vertices, triangles, and colors of the vertices.

    The shading is painted on, as by a light at the camera's left shoulder, because a renderer's own light would change
    the colors that the legend explains.
    """
    import open3d

    mesh = open3d.geometry.TriangleMesh.create_sphere(1.0, 4)
    directions, corners = np.asarray(mesh.vertices), np.asarray(mesh.triangles)
    vertices = (pos[:, None] + size * directions).reshape(-1, 3)
    triangles = (corners + len(directions) * np.arange(len(pos))[:, None, None]).reshape(-1, 3)
    light = directions @ _LIGHT
    shade = (0.7 + 0.36 * light).clip(0.45, 1.0)
    return vertices, triangles, (colors[:, None] * shade[:, None]).reshape(-1, 3)


# Mesa's software driver often hung below about 256 spheres, and rarely above.
_LEAST_SPHERES = 512

# In picture coordinates: right, up, toward the camera.
_LIGHT = np.array((-0.35, 0.55, 0.76))


def main(task: str, result: str) -> None:
    """Draw the clouds in the file `task` and write the pictures to the file `result`."""
    import open3d

    rendering = open3d.visualization.rendering
    with np.load(task) as arrays:
        size, up, number = int(arrays["size"]), str(arrays["up"]), int(arrays["number"])
        clouds = [(arrays[f"p{i}"], arrays[f"c{i}"]) for i in range(number)]
    columns = math.ceil(math.sqrt(number))
    rows = math.ceil(number / columns)
    limit = 1 + 2 * MARGIN
    vertices, triangles, shades, count = [], [], [], 0
    for i, (pos, colors) in enumerate(clouds):
        view = look(pos, up)
        row, column = divmod(i, columns)
        place = np.array((2 * limit * column, -2 * limit * row, 0.0))
        seen = np.column_stack((view.xy, view.depth)) + place
        points, corners, shade = spheres(seen, fade(colors, view.depth), radius(len(pos)))
        vertices.append(points)
        triangles.append(corners + count)
        shades.append(shade)
        count += len(points)
    # A software driver may hang on a small mesh, so it is drawn several times in the same place.
    times = math.ceil(_LEAST_SPHERES / sum(len(pos) for pos, _ in clouds))
    triangles = [np.concatenate(triangles) + count * i for i in range(times)]
    vertices, shades = vertices * times, shades * times
    mesh = open3d.geometry.TriangleMesh(
        open3d.utility.Vector3dVector(np.concatenate(vertices)),
        open3d.utility.Vector3iVector(np.concatenate(triangles)),
    )
    mesh.vertex_colors = open3d.utility.Vector3dVector(np.concatenate(shades))
    # One sheet with all clouds, because some software drivers hang on a second picture; at twice the size, because the
    # mean of four pixels is smooth.
    renderer = rendering.OffscreenRenderer(2 * size * columns, 2 * size * rows)
    renderer.scene.set_background((1.0, 1.0, 1.0, 1.0))
    renderer.scene.view.set_post_processing(False)  # tone mapping would change the colors
    material = rendering.MaterialRecord()
    material.shader = "defaultUnlit"
    renderer.scene.add_geometry("clouds", mesh, material)
    x, y = (columns - 1) * limit, -(rows - 1) * limit
    camera, far = renderer.scene.camera, 100.0
    width, height = columns * limit, rows * limit
    camera.set_projection(rendering.Camera.Projection.Ortho, -width, width, -height, height, 0.1, 2 * far)
    camera.look_at((x, y, 0.0), (x, y, far), (0.0, 1.0, 0.0))
    large = np.asarray(renderer.render_to_image()).astype(np.float32)[..., :3]
    sheet = large.reshape(size * rows, 2, size * columns, 2, 3).mean(axis=(1, 3)).round().astype(np.uint8)
    cells = sheet.reshape(rows, size, columns, size, 3).swapaxes(1, 2).reshape(-1, size, size, 3)
    np.savez(result, pictures=cells[:number])
    # The driver may hang on exit.
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
