"""The report's charts as inline SVG, so that the report is one file."""

import io
from collections.abc import Callable, Sequence
from typing import Any

INK, ACCENT, SOFT, WARM = "#1f2937", "#2563eb", "#cbd5e1", "#d97706"


def stage_seconds(rows: Sequence[dict[str, Any]]) -> str:
    """Seconds per stage beside its budget."""

    def draw(axes: Any) -> None:
        names = [row["stage"] for row in rows][::-1]
        axes.barh(names, [row["budget"] for row in rows][::-1], color=SOFT, label="budget")
        axes.barh(names, [row["seconds"] for row in rows][::-1], color=ACCENT, height=0.45, label="this run")
        axes.set_xlabel("seconds")
        axes.legend(frameon=False)

    return _svg(draw, height=0.32 * len(rows) + 1.2)


def verdict_means(means: Sequence[dict[str, Any]]) -> str:
    """Mean score per judge and criterion with its 95 % interval; a criterion without verdict stays empty."""
    judged = [mean for mean in means if mean["mean"] is not None]

    def draw(axes: Any) -> None:
        for row, mean in enumerate(reversed(judged)):
            axes.plot([mean["low"], mean["high"]], [row, row], color=ACCENT, linewidth=2)
            axes.plot(mean["mean"], row, "o", color=INK)
        labels = [f"{mean['criterion']} · {mean['judge'].split('@')[0].split(':')[0]}" for mean in reversed(judged)]
        axes.set_yticks(range(len(judged)), labels)
        axes.set_xlim(0.8, 5.2)
        axes.set_xlabel("score, 1 to 5 (mean and 95 % interval)")

    return _svg(draw, height=0.34 * max(len(judged), 1) + 1.0)


def losses(adapter: dict[str, Any]) -> str:
    """Training loss over steps, with the held-out loss before and after as lines."""
    curve = adapter.get("loss_curve", [])

    def draw(axes: Any) -> None:
        if curve:
            axes.plot([point[0] for point in curve], [point[1] for point in curve], color=SOFT, label="train")
        axes.axhline(adapter["heldout_loss_before"], color=WARM, linestyle="--", label="held out, before")
        axes.axhline(adapter["heldout_loss_after"], color=ACCENT, label="held out, after")
        axes.set_xlabel("step")
        axes.set_ylabel("loss, nats per token")
        axes.legend(frameon=False)

    return _svg(draw, height=3.0)


def drift_trace(wealth: Sequence[float], threshold: float) -> str:
    """The detector's wealth after each interaction on a logarithmic scale, with its threshold."""

    def draw(axes: Any) -> None:
        axes.plot(range(1, len(wealth) + 1), [max(value, 1e-3) for value in wealth], color=ACCENT)
        axes.axhline(threshold, color=WARM, linestyle="--", label="threshold")
        axes.set_yscale("log")
        axes.set_xlabel("interaction")
        axes.set_ylabel("wealth of the bet on change")
        axes.legend(frameon=False)

    return _svg(draw, height=2.8)


def _svg(draw: Callable[[Any], None], *, height: float) -> str:
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.2, height), layout="constrained")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    draw(axes)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :]
