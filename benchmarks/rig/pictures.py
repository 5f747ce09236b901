"""The pictures in ``docs/``; matplotlib is only needed, and only imported, when one is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def _plots(columns: int, rows: int = 1) -> Any:
    try:
        import matplotlib
    except ImportError:
        raise SystemExit("Pictures need matplotlib: pip install matplotlib") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot.subplots(
        rows, columns, figsize=(5.2 * columns, 3.6 * rows), squeeze=False, layout="constrained"
    )


def _save(figure: Any, path: str) -> None:
    # No date and no version in the file: the same numbers give the same bytes.
    figure.savefig(path, dpi=90, metadata={"Software": None})
    print(f"{path} saved")


def save_soak(path: str, samples: Sequence[tuple[float, float, float]]) -> None:
    """``samples``: seconds, MB of the daemon, MB of Redis."""
    figure, axes = _plots(2)
    for axis, column, title in zip(
        axes[0], (1, 2), ("daemon, its own memory", "Redis, used memory"), strict=True
    ):
        axis.plot([sample[0] / 60 for sample in samples], [sample[column] for sample in samples])
        axis.set(title=title, xlabel="minutes", ylabel="MB", ylim=(0, None))
        axis.grid(alpha=0.3)
    _save(figure, path)


# Name of a line -> what was set, requests a second, p99 in ms.
Curves = Mapping[str, Sequence[tuple[float, float, float]]]


def save_curves(path: str, title: str, x: str, curves: Curves) -> None:
    """Throughput on the left, p99 on the right, over ``x``."""
    figure, axes = _plots(2)
    for axis, column, what in zip(axes[0], (1, 2), ("requests a second", "p99, ms"), strict=True):
        for name, points in curves.items():
            axis.plot(
                [point[0] for point in points], [point[column] for point in points], "o-", label=name, ms=3
            )
        axis.set(title=f"{title}: {what}", xlabel=x, xscale="symlog" if points[0][0] == 0 else "log")
        axis.set(yscale="log" if column == 2 else "linear")
        if column == 1:
            axis.set_ylim(0, None)
        axis.grid(alpha=0.3)
        axis.legend()
    _save(figure, path)
