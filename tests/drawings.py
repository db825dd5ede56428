"""One small figure of each kind, with numbers made by hand."""

from typing import Any

import numpy as np

from experiments import canvas, figures, surfaces, trends

TEXT: dict[str, Any] = {"title": "A title", "note": "400 test images; seeds 0, 1, 2. " * 6}
NONE, HESSIAN = canvas.style("none"), canvas.style("hessian")
METHODS = (
    *("none", "gradient", "hessian", "hessian-only", "finite-step", "curvature", "jacobian"),
    *("gauss-newton", "adversarial"),
)


def curves():
    radii = np.array([0.0, 0.5, 2.0])
    three = np.array([[0.9, 0.5, 0.1], [0.8, 0.5, 0.2], [1.0, 0.5, 0.3]])
    return {
        norm: [
            figures.Curve("none", NONE, radii, three[:1]),
            figures.Curve("hessian", HESSIAN, radii, three),
        ]
        for norm in ("l2", "linf")
    }


def draw_accuracy(path):
    figures.accuracy(path, curves(), **TEXT)


def draw_ranking(path):
    figures.ranking(path, {norm: 7 * drawn for norm, drawn in curves().items()}, **TEXT)


def draw_histograms(path):
    values = np.geomspace(1e-3, 10, 40)
    clouds = [
        figures.Cloud("none", NONE, values, 2 * values),
        figures.Cloud("hessian", HESSIAN, values / 10, values / 5),
    ]
    figures.histograms(path, clouds, **TEXT)


def draw_planes(path, losses=None):
    offsets = np.linspace(-1, 1, 5)
    bowl = 2 * (offsets[:, None] ** 2 + offsets[None, :] ** 2)
    planes = [
        surfaces.Plane(name, canvas.style(name), loss, 0.6)
        for name, loss in (losses or {"none": bowl, "hessian": bowl / 8}).items()
    ]
    surfaces.planes(path, planes, offsets, epsilon=0.5, **TEXT)


def draw_attacks(path, channels=1, order=2.0, height=4):
    clean = np.full((height, 4, channels), 0.5)
    attacked = clean.copy()
    attacked[0, 0] += 0.3
    attacked[height // 4, 1] -= 0.4
    rows = [
        ("none", NONE, [figures.Attack(clean, attacked, 7, 7, 2)]),
        ("hessian", HESSIAN, [figures.Attack(clean, attacked, 7, 7, 7)]),
    ]
    figures.attacks(path, rows, order=order, **TEXT)


def draw_boundaries(path):
    offsets = np.linspace(-1, 1, 5)
    # Of the label up to 0.5 along the attack, for the second method everywhere.
    margin = np.tile(0.5 - offsets, (5, 1))
    drawn = [
        surfaces.Boundary("none", NONE, margin, 0.75),
        surfaces.Boundary("hessian", HESSIAN, margin + 2, 0.5),
    ]
    surfaces.boundaries(path, drawn, offsets, epsilon=0.75, **TEXT)


def draw_frontier(path):
    points = [
        trends.Point("none", NONE, np.array([1.0]), np.array([0.2])),
        # Dearer and worse than the next.
        trends.Point("gradient", canvas.style("gradient"), np.array([6.0]), np.array([0.5])),
        trends.Point("hessian", HESSIAN, np.array([4.0, 6.0]), np.array([0.8, 0.9])),
    ]
    trends.frontier(path, points, norm="l2", radius=1.5, **TEXT)


def draw_tradeoff(path):
    methods = [
        trends.Settings("none", NONE, np.array([0.9]), {"l2": np.array([0.1])}),
        # The first has lost too much.
        trends.Settings(
            "hessian", HESSIAN, np.array([0.6, 0.8, 0.85]), {"l2": np.array([0.5, 0.7, 0.4])}
        ),
    ]
    trends.tradeoff(path, methods, radii={"l2": 1.5}, least=0.8, joined=True, **TEXT)


def draw_trajectories(path):
    steps, seeds = np.array([1, 20, 40]), np.array([[1.0, 0.5, 0.25], [1.2, 0.4, 0.35]])
    drawn = [
        trends.Trajectory(name, canvas.style(name), steps, values, 2 * values)
        for name, values in (("none", seeds[:1]), ("hessian", seeds))
    ]
    trends.trajectories(path, drawn, **TEXT)


def draw_calibration(path):
    found = np.array([0.1, 0.3, 0.2, 0.8, 0.4, 0.6])
    networks = [
        # Of the second panel, only four are finite; of the last network none of them is.
        trends.Distances(label, look, found, {"a": a * found, "b": np.array(b), "c": 1000 * found})
        for label, look, a, b in (
            ("none", NONE, 2, [1, 2, 3, 4, *INF]),
            ("hessian", HESSIAN, 1, 3 * INF),
        )
    ]
    trends.calibration(path, networks, groups=3, **TEXT)


INF = [np.inf, np.inf]
