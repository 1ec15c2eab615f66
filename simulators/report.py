"""The demo's report: pictures and tables of one run, as one HTML file that needs nothing else.

Pure but for the drawing. Owns the page's look; figures come in, nothing is measured here.
"""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from simulators.variety import LISTS

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto;
  padding: 0 1rem; color: #1d2733; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; }
td, th { padding: .3rem .9rem; border-bottom: 1px solid #d8dee6; text-align: right; }
td:first-child, th:first-child { text-align: left; } tr.best td { font-weight: 600; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(27rem, 1fr)); gap: 1rem; }
img { width: 100%; } .person { display: grid; grid-template-columns: 1fr 1fr; gap: 1.5rem; }
ol, ul { margin: .3rem 0; padding-left: 1.4rem; } small { color: #5b6b7c; }
"""
_INK, _SECOND = "#1f6fb2", "#d1663a"
COLUMNS = (
    ("hr@10", "HR@10"),
    ("hr@50", "HR@50"),
    ("hr@100", "HR@100"),
    ("mrr10", "MRR × 10"),
    ("coverage@50", "coverage"),
    ("overlap@50", "overlap"),
)
NAMES = {"dat": "DAT, one streaming pass", "popularity": "Popularity", "random": "Random"}


def render(report: Mapping[str, Any]) -> str:
    """Return the page for what `demo` measured."""
    pictures = [
        _picture("Loss while learning", "positives learned", "loss", _loss, report),
        _picture(
            "Hit rate at 50, before learning each batch", "positives learned", "hit rate", _hits, report
        ),
        _picture("Generations served", "seconds", "commit of the served generation", _generations, report),
        _picture("Lag of the trainer", "seconds", "records", _lag, report),
    ]
    people = "".join(_person(person) for person in report["people"])
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Dualstream: {html.escape(report["data"])}</title>
<style>{_STYLE}</style>
<h1>Dualstream on {html.escape(report["data"])}</h1>
<p>{html.escape(report["story"])}</p>
<h2>Each user's last item, ranked over all {report["num_items"]:,} items</h2>
{_table(report["figures"])}
<p><small>Items that a user already has are left out. Coverage is the share of the catalogue that
stands in somebody's first 50, of at most {LISTS:,} users; overlap the share of them that two have in common.
Seed {report["seed"]}; {report["num_test"]:,} users.</small></p>
<h2>While it learned</h2>
<div class="pictures">{"".join(pictures)}</div>
<h2>Three people</h2>
{people}
</html>
"""


def _table(figures: Mapping[str, Mapping[str, float]]) -> str:
    head = "".join(f"<th>{title}</th>" for _, title in COLUMNS)
    rows = "".join(
        f'<tr class="{"best" if name == "dat" else ""}"><td>{NAMES[name]}</td>'
        + "".join(f"<td>{cell(row, key)}</td>" for key, _ in COLUMNS)
        + "</tr>"
        for name, row in figures.items()
    )
    return f"<table><tr><th>Model</th>{head}</tr>{rows}</table>"


def cell(figures: Mapping[str, float], key: str) -> str:
    """Return how a figure is shown, a dash where there is none."""
    return f"{figures[key]:.4f}" if key in figures else "–"


def _person(person: Mapping[str, Any]) -> str:
    def listed(tag: str, items: Sequence[str]) -> str:
        return f"<{tag}>" + "".join(f"<li>{html.escape(item)}</li>" for item in items) + f"</{tag}>"

    return (
        f"<h3>{html.escape(person['user_id'])}</h3><div class='person'><div>Bought, the newest last"
        f"{listed('ul', person['bought'])}</div><div>Would be shown "
        f"<small>(source: {html.escape(person['source'])}, generation "
        f"{html.escape(str(person['generation']))})</small>{listed('ol', person['shown'])}</div></div>"
    )


def _picture(title: str, x: str, y: str, draw: Any, report: Mapping[str, Any]) -> str:
    with matplotlib.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(6, 3.4), layout="constrained")
        axes = figure.subplots()
        axes.set(title=title, xlabel=x, ylabel=y)
        axes.grid(alpha=0.25)
        draw(axes, report)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=130)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{html.escape(title)}" src="data:image/png;base64,{data}">'


def _loss(axes: Axes, report: Mapping[str, Any]) -> None:
    steps = report["steps"]
    stride = max(1, len(steps) // 400)
    groups = [steps[i : i + stride] for i in range(0, len(steps), stride)]
    x = [group[-1]["num_positives"] for group in groups]
    axes.plot(x, [sum(s["loss"] for s in group) / len(group) for group in groups], color=_INK)


def _hits(axes: Axes, report: Mapping[str, Any]) -> None:
    points = report["prequential"]
    axes.plot([p[0] for p in points], [p[1] for p in points], ".", color=_INK, alpha=0.35, markersize=4)
    width = max(1, len(points) // 12)
    smooth = [
        sum(p[1] for p in points[max(0, i - width) : i + 1]) / (i + 1 - max(0, i - width))
        for i in range(len(points))
    ]
    axes.plot([p[0] for p in points], smooth, color=_SECOND)


def _generations(axes: Axes, report: Mapping[str, Any]) -> None:
    served = [q for q in report["queries"] if q["generation"] is not None]
    axes.step([q["seconds"] for q in served], [q["commit"] for q in served], where="post", color=_INK)
    failed = [q for q in report["queries"] if q["status"] not in (0, 200, 503)]
    axes.plot([q["seconds"] for q in failed], [0] * len(failed), "x", color=_SECOND)


def _lag(axes: Axes, report: Mapping[str, Any]) -> None:
    steps = report["steps"]
    axes.plot([s["seconds"] for s in steps], [s["lag_records"] for s in steps], color=_INK)
    axes.set_ylim(bottom=0)
