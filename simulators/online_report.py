"""The result of `online` as tables and pictures.

Owns what stands in which table and how pictures look; figures come in, nothing is measured here.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from simulators.comparison_report import Grid
from simulators.nightly import HALF_LIFE, NIGHTLY_ALS, NIGHTLY_POPULAR, RECENT, WEIGHTS
from simulators.online import FROZEN, ONLINE, RETRAINED

_METRICS = {"hr@10": "HR@10", "hr@50": "HR@50", "mrr10": "MRR × 10"}
_COLOURS = {
    FROZEN: "#9aa7b4",
    RECENT: "#c9b458",
    NIGHTLY_ALS: "#9cc9a9",
    NIGHTLY_POPULAR: "#3f8f5b",
    RETRAINED: "#d1663a",
    ONLINE: "#1f6fb2",
}
_STYLE: dict[Any, Any] = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
_PLACES = {
    "end": "at the end",
    "along": "along the log, in the windows that follow a retraining",
    "all": "all windows, between retrainings too",
}


def grids(result: Mapping[str, Any]) -> list[Grid]:
    """Return the tables of a result, the headline first."""
    found = [
        *(_ratios(result, other) for other in result["ratios"]),
        _refresh(result["refresh"]),
        _varied("Negatives, each kind alone", "negatives", result["negatives"]),
        _varied("Rehearsal", "learned examples drawn per new one", result["rehearsal"]),
        _varied("Settings varied", "setting", result["varied"]),
    ]
    return [grid for grid in found if grid.body]


def markdown(result: Mapping[str, Any], pictures: Sequence[Path]) -> str:
    """Return the whole report: what it is of, tables, pictures (beside it)."""
    parts = [f"# Online on {result['data']}", "\n".join(f"- {line}" for line in about(result))]
    for grid in grids(result):
        lines = [grid.header, ["---", *["---:"] * (len(grid.header) - 1)], *grid.body]
        parts += [f"## {grid.title}", "\n".join("| " + " | ".join(line) + " |" for line in lines)]
    parts += [f"![{picture.stem}]({picture.name})" for picture in pictures]
    return "\n\n".join(parts) + "\n"


def about(result: Mapping[str, Any]) -> list[str]:
    """Return what a reader must know to judge the figures, a sentence or two a line."""
    learned, retrained = result["seconds"]["learning"], result["seconds"]["retraining"]
    first = result["windows"][0]
    size = first["stop"] - first["start"]
    lines = [
        f"`{result['command']}`; sources {result['code']}; seeds {result['seeds']}",
        f"{result['num_reviews']:,} reviews, {result['num_items']:,} items; {len(result['windows'])} windows "
        f"of {size:,} reviews are asked about. A question is asked when the slate is shown and answered by "
        "what is learned then; its click is learned when it was joined. The whole catalogue is ranked; what "
        "a user had is left out.",
        f"Retrained: {result['num_epochs']} batch epochs "
        f"{'in order of time' if result['in_order'] else 'in shuffled order'} from scratch over all "
        "that online has learned, "
        f"{len(result['retrain_at'])} times, in batches of 1 % of it but not under 64 nor above "
        "learning.batch_size of `compare`; then it answers with its own towers and items, users' histories "
        "going on. Frozen: the online model after the first "
        f"{result['frozen_at'] / result['num_reviews']:.0%} of the log, histories going on.",
        "Where its windows follow a retraining, the retrained model is in the mean "
        f"{', '.join(f'{days:.0f}' for days in result['retrained_days'])} days old, days of which online has "
        "learned: what a ratio owes to that is not told apart from what it owes to the way of learning.",
        f"Learning the log online took {learned:.0f} s, all retrainings together {retrained:.0f} s: one "
        "thread each, mean over seeds, without asking.",
    ]
    lines += [
        f"Nightly ALS: implicit ALS fitted at midnight (UTC) on all reviews before, {found['num_fits']} "
        f"fits in {found['seconds']:,.0f} s; alone, and with the logarithm of recent popularity (half-life "
        f"{HALF_LIFE:,} reviews) added to its scores, the same for everybody. The settings of both "
        f"({found['chosen']}) are the best of `compare`'s candidates and of {len(WEIGHTS)} weights for these "
        "very questions: hindsight that favours it. Users it does not know get what is popular, in the "
        "second series of late. Recent popularity alone is counted every night, too."
        for found in result["als"]
    ]
    return [*lines, *([result["note"]] if result["note"] else [])]


def draw(result: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw the pictures into PNG files; returns them."""
    with matplotlib.rc_context(_STYLE):
        drawn = {"over_time": _over_time(result), "refresh": _refresh_picture(result)}
        if result["rehearsal"]:
            drawn["rehearsal"] = _rehearsal_picture(result)
        paths = []
        for name, figure in drawn.items():
            paths.append(folder / f"{name}.png")
            figure.savefig(paths[-1], format="png", dpi=130)
    return paths


def _ratios(result: Mapping[str, Any], other: str) -> Grid:
    header = ["where", "questions"]
    for metric in ("HR@50", "MRR × 10"):
        header += [f"{metric} online", other, f"online ÷ {other}"]
    body = []
    for place, found in result["ratios"][other].items():
        cells = [_PLACES.get(place, place), f"{found['num_questions']:,}"]
        for metric in ("hr@50", "mrr10"):
            one = found[metric]
            cells += [f"{one[ONLINE]:.4f}", f"{one[other]:.4f}", _interval(one)]
        body.append(cells)
    return Grid(f"Online beside {other}", header, body)


def _refresh(entries: Sequence[Mapping[str, Any]]) -> Grid:
    body = []
    for entry in entries:
        compared = entry["to_always"]
        cells = [f"{entry[metric]:.4f}" for metric in _METRICS]
        body.append(
            [_every(entry["seconds"]), *cells, "1" if compared is None else _interval(compared["hr@50"])]
        )
    return Grid(
        "How often what is served is refreshed", ["every", *_METRICS.values(), "HR@50 ÷ always"], body
    )


def _varied(title: str, what: str, entries: Sequence[Mapping[str, Any]]) -> Grid:
    header = [what, *_METRICS.values(), "HR@50 ÷ main", "MRR ÷ main", "learning, s", "positives/s"]
    body = [
        [
            entry["name"],
            *(f"{entry[metric]:.4f}" for metric in _METRICS),
            *(_interval(entry["to_main"][metric]) for metric in ("hr@50", "mrr10")),
            f"{entry['learn_seconds']:.1f}",
            f"{entry['positives_per_second']:,.0f}",
        ]
        for entry in entries
    ]
    return Grid(title, header, body)


def _interval(found: Mapping[str, float | None]) -> str:
    if found["ratio"] is None:
        return "–"
    if found["low"] is None:  # so few hits that some resamples have none to divide by
        return f"{found['ratio']:.3f}"
    return f"{found['ratio']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"


def _every(seconds: float | None) -> str:
    """Return how people say an interval.

    >>> _every(0.0), _every(90.0), _every(7200.0), _every(86400.0), _every(None)
    ('always', '90 s', '2 h', '1 d', 'never')
    """
    if not seconds:
        return "never" if seconds is None else "always"
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds % length == 0:
            return f"{seconds / length:g} {unit}"
    return f"{seconds:g} s"


def _over_time(result: Mapping[str, Any]) -> Figure:
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    figure.suptitle(f"{result['data']}: asked when shown, learned when clicked")
    panels = figure.subplots(1, 2)
    for axes, metric in zip(panels, ("hr@50", "mrr10"), strict=True):
        for name in [name for name in _COLOURS if name in result["windows"][0]["series"]]:
            points = [
                (window["start"], window["series"][name][metric])
                for window in result["windows"]
                if window["series"][name]
            ]
            axes.plot(
                *zip(*points, strict=True), "o-", color=_COLOURS[name], label=name, markersize=3, linewidth=1
            )
        for number, row in enumerate(result["retrain_at"]):
            axes.axvline(row, color="#d1663a", linestyle=":", label="" if number else "retraining")
        axes.set(title=_METRICS[metric], xlabel="reviews so far", ylim=(0, None))
        axes.grid(alpha=0.25)
        _name_years(axes, result["windows"])
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    return figure


def _name_years(axes: Axes, windows: Sequence[Mapping[str, Any]]) -> None:
    """Name the reviews' months on a second axis: logs grow faster in their later years."""
    shown = [windows[round(i * (len(windows) - 1) / 4)] for i in range(5)]
    second = axes.secondary_xaxis(-0.22)
    second.set_xticks(
        [window["start"] for window in shown],
        [datetime.fromtimestamp(window["ts_ms"] / 1000, UTC).strftime("%b %Y") for window in shown],
    )
    second.spines["bottom"].set_visible(False)
    second.tick_params(length=0)


def _refresh_picture(result: Mapping[str, Any]) -> Figure:
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes = figure.subplots()
    entries = result["refresh"]
    axes.plot(range(len(entries)), [entry["hr@50"] for entry in entries], "o-", color=_COLOURS[ONLINE])
    axes.set_xticks(range(len(entries)), [_every(entry["seconds"]) for entry in entries])
    axes.set(title="How often what is served is refreshed (event time)", ylabel="HR@50", ylim=(0, None))
    axes.grid(alpha=0.25)
    return figure


def _rehearsal_picture(result: Mapping[str, Any]) -> Figure:
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    entries = result["rehearsal"]
    ratios = [int(entry["name"]) for entry in entries]
    hit_rates, seconds = ([entry[name] for entry in entries] for name in ("hr@50", "learn_seconds"))
    left.plot(ratios, hit_rates, "o-", color=_COLOURS[ONLINE])
    left.set(title="Quality", ylabel="HR@50", ylim=(0, 1.05 * max(hit_rates)))
    right.plot(ratios, seconds, "o-", color=_COLOURS[RETRAINED])
    right.set(title="Cost", ylabel="seconds of learning, one thread", ylim=(0, 1.05 * max(seconds)))
    for axes in (left, right):
        axes.set_xlabel("learned examples drawn per new one")
        axes.set_xticks(ratios)
        axes.grid(alpha=0.25)
    return figure
