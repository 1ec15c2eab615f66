"""A comparison's result as pictures: bars, differences, the curve of a sweep, groups.

Owns how they look; figures come in, nothing is measured here.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_INK, _SECOND, _FAINT = "#1f6fb2", "#d1663a", "#9aa7b4"
_COLOURS = (_INK, _SECOND, "#3d8f5f", "#7a5aa6", "#b8922f")
_SHOWN = (("hr@50", "HR@50"), ("mrr10", "MRR × 10"))
_LARGEST = 12  # groups drawn one by one; the others are in the tables


def draw(result: Mapping[str, Any], folder: Path, stem: str) -> list[Path]:
    """Draw what suits the result into PNG files `stem…png`; returns them."""
    if not result["rows"]:
        return []
    drawn = []
    with matplotlib.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        if result["kind"] == "sweep":
            drawn.append(("", _sweep(result)))
        else:
            drawn.append(("", _bars(result)))
            if any(not pair["asked"] for pair in result["differences"]):
                drawn.append(("-differences", _differences(result)))
        if result.get("groups"):
            drawn.append(("-groups", _groups(result)))
        paths = []
        for suffix, figure in drawn:
            paths.append(folder / f"{stem}{suffix}.png")
            figure.savefig(paths[-1], format="png", dpi=130)
    return paths


def _panels(height: float, title: str) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(11, height), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(1, 2)
    return figure, list(axes)


def _bars(result: Mapping[str, Any]) -> Figure:
    rows = result["rows"][::-1]  # drawn from the bottom up
    figure, panels = _panels(1.6 + 0.36 * len(rows), f"{result['data']}: figures with 95 % intervals")
    for axes, (metric, title) in zip(panels, _SHOWN, strict=True):
        found = [row["figures"][metric] for row in rows]
        middle = [each["mean"] for each in found]
        errors = [
            [max(0.0, each["mean"] - each["low"]) for each in found],
            [max(0.0, each["high"] - each["mean"]) for each in found],
        ]
        colours = [_SECOND if row["name"] == result["against"] else _INK for row in rows]
        axes.barh(range(len(rows)), middle, xerr=errors, color=colours, ecolor="#33404d", height=0.68)
        axes.set(title=title, xlim=(0, None))
        axes.grid(axis="x", alpha=0.25)
        axes.set_axisbelow(True)
        _label_rows(axes, [row["title"] for row in rows], shown=axes is panels[0])
    return figure


def _differences(result: Mapping[str, Any]) -> Figure:
    titles = {row["name"]: row["title"] for row in result["rows"]}
    pairs = [pair for pair in result["differences"] if not pair["asked"]][::-1]
    reference = titles[result["against"]]
    figure, panels = _panels(
        1.6 + 0.36 * len(pairs), f"{result['data']}: difference to {reference}, 95 % paired intervals"
    )
    for axes, (metric, title) in zip(panels, _SHOWN, strict=True):
        for place, pair in enumerate(pairs):
            found = pair["metrics"][metric]
            clear = found["low"] > 0 or found["high"] < 0
            colour = _INK if clear else _FAINT
            axes.plot([found["low"], found["high"]], [place, place], color=colour, linewidth=2.5)
            axes.plot(found["difference"], place, "o", color=colour)
        axes.axvline(0, color="#33404d", linewidth=1)
        axes.set(title=f"{title} (grey: holds zero)", ylim=(-0.6, len(pairs) - 0.4))
        axes.grid(axis="x", alpha=0.25)
        _label_rows(axes, [titles[pair["first"]] for pair in pairs], shown=axes is panels[0])
    return figure


def _sweep(result: Mapping[str, Any]) -> Figure:
    values = result["sweep"]["values"]
    places = range(len(values))  # evenly, as the paper draws its widths
    figure, panels = _panels(4.2, f"{result['data']}: {result['sweep']['key']}, 95 % intervals over users")
    contenders = list(dict.fromkeys(row["contender"] for row in result["rows"]))
    for axes, (metric, title) in zip(panels, _SHOWN, strict=True):
        for number, contender in enumerate(contenders):
            rows = [row for row in result["rows"] if row["contender"] == contender]
            x = [places[values.index(row["value"])] for row in rows]
            found = [row["figures"][metric] for row in rows]
            colour = _COLOURS[number % len(_COLOURS)]
            label = rows[0]["title"].rpartition(", ")[0]
            axes.plot(x, [each["mean"] for each in found], "o-", color=colour, label=label)
            low, high = [each["low"] for each in found], [each["high"] for each in found]
            axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.set(title=title, xlabel=result["sweep"]["key"])
        axes.set_xticks(places, values)
        axes.grid(alpha=0.25)
    panels[0].legend(frameon=False)
    return figure


def _groups(result: Mapping[str, Any]) -> Figure:
    entries = [entry for entry in result["groups"] if entry.get("figures")]
    single = [entry for entry in entries if not entry["pooled"]]
    large = [entry for entry in single if not entry["small"]][:_LARGEST]
    shown = [*large, *(entry for entry in entries if entry["pooled"])][::-1]
    num_pooled = len(shown) - len(large)
    by = {"category": "category of the held-out item", "history": "reviews of the user that were learned"}
    figure, panels = _panels(1.8 + 0.5 * len(shown), f"{result['data']}: by {by[result['by']]}")
    height = 0.38
    for axes, (metric, title) in zip(panels, _SHOWN, strict=True):
        for number, row in enumerate(result["rows"]):
            y = [place + (0.5 - number) * height for place in range(len(shown))]
            x = [entry["figures"][row["name"]][metric] for entry in shown]
            axes.barh(y, x, height=height, color=_COLOURS[number], label=row["title"])
        if num_pooled:
            axes.axhline(num_pooled - 0.5, color="#33404d", linewidth=1)
        axes.set(title=title)
        axes.grid(axis="x", alpha=0.25)
        axes.set_axisbelow(True)
        labels = [
            f"{entry['group']}\n{entry['num_train']:,} learned, {entry['num_test_users']:,} users"
            for entry in shown
        ]
        _label_rows(axes, labels, shown=axes is panels[0])
        _mark(axes, shown, metric, max_x=axes.get_xlim()[1])
    figure.legend(*panels[0].get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=2)
    return figure


def _mark(axes: Axes, entries: Sequence[Mapping[str, Any]], metric: str, max_x: float) -> None:
    """Write the difference and its interval beside each pair of bars, if there are users enough."""
    axes.set_xlim(0, max_x * 1.45)
    for place, entry in enumerate(entries):
        if entry["differences"] is None:
            continue
        found = entry["differences"][metric]
        text = f"{found['difference']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]"
        end = max(figures[metric] for figures in entry["figures"].values())
        clear = found["low"] > 0 or found["high"] < 0
        axes.text(
            end + 0.01 * max_x, place, text, va="center", fontsize=8, weight="bold" if clear else "normal"
        )


def _label_rows(axes: Axes, labels: Sequence[str], shown: bool) -> None:
    axes.set_yticks(range(len(labels)), labels if shown else [""] * len(labels))
    axes.tick_params(axis="y", length=0)
