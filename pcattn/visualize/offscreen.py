"""Pictures of clouds by Open3D without a screen, in a process of its own: `python -m pcattn.visualize.offscreen`.

Open3D takes the process down where a driver is broken, and hangs where another is. `render` starts the process, waits
for it within a time limit, and says in words what went wrong.
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

from pcattn.visualize.camera import fade, look, radius
from pcattn.visualize.flat import MARGIN

#: What Open3D needs of the system, as Debian and Ubuntu call it.
PACKAGES = "libusb-1.0-0 libgl1 libegl1 libvulkan1 mesa-vulkan-drivers"

#: What the process writes when one of them is missing.
_SIGNS = ("cannot open shared object file", "vulkan", "EGL", "libGL", "libusb")

_COMMAND = (sys.executable, "-m", "pcattn.visualize.offscreen")


class Open3DError(RuntimeError):
    """Open3D cannot draw here; the message says why, and what to install where that would help."""


def render(
    clouds: list[tuple[NDArray, NDArray]], size: int, up: str, time_limit: float = 180.0
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
    # A session of its own, so that nothing it started outlives the limit.
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True
    )
    try:
        output, _ = process.communicate(timeout=time_limit)
    except subprocess.TimeoutExpired:
        raise Open3DError(f"Open3D did not answer within {time_limit:g} s") from None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    if process.returncode:
        raise Open3DError(explain(process.returncode, output))


def explain(status: int, output: str) -> str:
    """Why a process that uses Open3D failed, in one line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    last = lines[-1][:200] if lines else "no message"
    if status < 0:
        reason = f"Open3D crashed (signal {-status}, {signal.Signals(-status).name})"
    else:
        reason = f"Open3D cannot draw ({last})"
    if any(sign.lower() in output.lower() for sign in _SIGNS):
        reason += f"; what it needs on Debian or Ubuntu: apt-get install {PACKAGES}"
    return reason


def spheres(pos: NDArray, colors: NDArray, size: float | NDArray) -> tuple[NDArray, NDArray, NDArray]:
    """A small shaded sphere for every point: vertices, triangles, and colors of the vertices.

    The shading is painted on, as by a light at the camera's left shoulder: a renderer's own light changes the colors,
    and a legend would no longer tell the truth.
    """
    import open3d

    mesh = open3d.geometry.TriangleMesh.create_sphere(1.0, 4)
    directions, corners = np.asarray(mesh.vertices), np.asarray(mesh.triangles)
    vertices = (pos[:, None] + size * directions).reshape(-1, 3)
    triangles = (corners + len(directions) * np.arange(len(pos))[:, None, None]).reshape(-1, 3)
    light = directions @ _LIGHT
    shade = (0.7 + 0.36 * light).clip(0.45, 1.0)
    return vertices, triangles, (colors[:, None] * shade[:, None]).reshape(-1, 3)


# Below some 256 spheres the driver of Mesa that needs no GPU hung more often than not; with more, seldom.
_LEAST_SPHERES = 512

# In the coordinates of the picture: to the right, up, towards the camera.
_LIGHT = np.array((-0.35, 0.55, 0.76))


def main(task: str, result: str) -> None:
    """Draw what the file `task` holds and write the pictures to the file `result`."""
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
    # A software driver may hang at a small mesh: it is drawn several times in the same place.
    times = math.ceil(_LEAST_SPHERES / sum(len(pos) for pos, _ in clouds))
    triangles = [np.concatenate(triangles) + count * i for i in range(times)]
    vertices, shades = vertices * times, shades * times
    mesh = open3d.geometry.TriangleMesh(
        open3d.utility.Vector3dVector(np.concatenate(vertices)),
        open3d.utility.Vector3iVector(np.concatenate(triangles)),
    )
    mesh.vertex_colors = open3d.utility.Vector3dVector(np.concatenate(shades))
    # One sheet with all clouds, because some software drivers hang at a second picture; drawn at twice the size, since
    # the mean of four pixels is smooth.
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
    # The driver may hang as it is taken down.
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
