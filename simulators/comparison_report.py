"""A comparison's result as tables: in the terminal, in Markdown and in LaTeX.

Pure. Owns what stands in which table and how numbers look; figures come in, nothing is measured here.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rich.table import Table

from simulators.contenders import CONTENDERS
from simulators.variety import LISTS

_PUBLISHED = {"hr@50": "HR@50", "hr@100": "HR@100", "mrr10": "MRR × 10"}
_METRICS = {**_PUBLISHED, "hr@10": "HR@10", "ndcg@10": "NDCG@10"}
_RECALL = {"recall@10": "Recall@10", "recall@50": "Recall@50"}
_LEARNS_NOTHING = ("popularity", "random")
_VARIETY = {
    "coverage": "share of the catalogue in any of them",
    "overlap": "share of them that two users have in common",
}
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{",
    "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$",
    "×": r"$\times$", "−": r"$-$",
    "÷": r"$\div$", "\n": " ",
}  # fmt: skip


class Grid(NamedTuple):
    """A table of text. A cell may hold a line break: the terminal keeps it, the others make it a space."""

    title: str
    header: Sequence[str]
    body: Sequence[Sequence[str]]


def grids(result: Mapping[str, Any], published: bool = True, every_category: bool = True) -> list[Grid]:
    """Return the tables of a result that have lines; without published figures, small categories."""
    found = [
        _figures(result, published),
        _differences(result),
        _questions(result),
        _groups(result, every_category),
        _variety(result),
        _costs(result),
        _failures(result),
    ]
    return [grid for grid in found if grid.body]


def rich_table(grid: Grid) -> Table:
    """Return a table for the terminal."""
    table = Table(title=grid.title, title_justify="left")
    for place, title in enumerate(grid.header):
        table.add_column(title, justify="right" if place else "left", overflow="fold")
    for row in grid.body:
        table.add_row(*row)
    return table


def markdown(result: Mapping[str, Any]) -> str:
    """Return all tables in Markdown, with what they are of before them."""
    parts = [f"# Comparison on {result['data']}", "\n".join(f"- {line}" for line in about(result))]
    for grid in grids(result):
        lines = [grid.header, ["---", *["---:"] * (len(grid.header) - 1)], *grid.body]
        rows = ["| " + " | ".join(_markdown(cell) for cell in line) + " |" for line in lines]
        parts += [f"## {grid.title}", "\n".join(rows)]
    return "\n\n".join(parts) + "\n"


def latex(result: Mapping[str, Any]) -> str:
    """Return all tables in LaTeX; they need the package booktabs and, as they are wide, a small font."""
    parts = ["% \\usepackage{booktabs}", *(f"% {line}" for line in about(result))]
    for grid in grids(result):
        lines = [" & ".join(_latex(cell) for cell in line) + r" \\" for line in (grid.header, *grid.body)]
        parts += [
            "",
            r"\begin{table}",
            r"\caption{" + _latex(grid.title) + "}",
            r"\begin{tabular}{l" + "r" * (len(grid.header) - 1) + "}",
            r"\toprule",
            lines[0],
            r"\midrule",
            *lines[1:],
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    return "\n".join(parts) + "\n"


def _untuned(result: Mapping[str, Any]) -> list[str]:
    """Return the contenders that learn by settings which nobody tuned."""
    known = {*result["tuning"], *result["ablations"]}
    names = dict.fromkeys(row["contender"] for row in result["rows"])
    return [name for name in names if name not in known and CONTENDERS[name].how not in _LEARNS_NOTHING]


def about(result: Mapping[str, Any]) -> list[str]:
    """Say in lines what the figures are of, and what to know before one trusts them."""
    if result["num_samples"]:
        runs = f"{result['num_samples']} samples of {result['sample_share']:.1%} of users, sizes are means"
        unit = "samples"
    else:
        runs, unit = f"seeds {', '.join(map(str, result['seeds']))}", "users"
    split = "split by time" if result["protocol"] == "time" else "each user's last item held out"
    lines = [
        f"{result['data']}: {result['num_train']:,} reviews of {result['num_users']:,} users learned, "
        f"{result['num_test']:,} held out, each ranked over {result['num_items']:,} items; {split}; {runs}",
        f"± is the standard deviation over {'samples' if unit == 'samples' else 'seeds'}; [ ] are 95 % "
        f"intervals, paired bootstrap over {unit}, {result['num_resamples']:,} resamples; * excludes zero. "
        "They are of the models that were trained: what other seeds would find is in the ±",
    ]
    if result["tuned"]:
        lines.append(
            "tuned with as many candidates each on reviews before the test: highest HR@50, then MRR, then "
            f"the first tried; {result['num_tuning_users']:,} users, one seed"
        )
        lines += [
            f"{CONTENDERS[name].title}: with what was tuned for {CONTENDERS[of].title}"
            for name, of in result["ablations"].items()
        ]
        lines += [f"{CONTENDERS[name].title}: as it is, not tuned" for name in _untuned(result)]
    else:
        lines.append("not tuned: every contender with its own settings")
    if result["settings_for_all"]:
        lines.append(f"for all: {', '.join(result['settings_for_all'])}")
    lines.append(f"learned in {result['precision']} unless it says otherwise: what is fastest here")
    if result["quick"]:
        lines.append("quick: few users, epochs and candidates; the order may be another with all of them")
    if len(result["code"]) > 1:
        lines.append(
            "MIXED: results of different versions of the code; delete the folder trials to run all anew"
        )
    lines.append("paper, reproduction: what they report for Amazon Books, other data than these")
    lines += [f"{name}: {result[name]}" for name in ("command", "commit") if result.get(name)]
    return lines


def _figures(result: Mapping[str, Any], published: bool) -> Grid:
    metrics = {**_METRICS, **(_RECALL if result["protocol"] == "time" else {})}
    rows = result["rows"]
    sources = [name for name in ("paper", "reproduction") if published and _told(rows, name)]
    header = ["Model", *metrics.values()]
    header += [f"{source}: {title}" for source in sources for title in _PUBLISHED.values()]
    body = []
    for row in rows:
        line = [row["title"], *(_spread(row["figures"][name]) for name in metrics)]
        for source in sources:
            told = (row["published"] or {}).get(source, {})
            line += [_spread(told.get(name)) for name in _PUBLISHED]
        body.append(line)
    return Grid("Figures", header, body)


def _told(rows: Sequence[Mapping[str, Any]], source: str) -> bool:
    return any(source in (row["published"] or {}) for row in rows)


def _differences(result: Mapping[str, Any]) -> Grid:
    titles = {row["name"]: row["title"] for row in result["rows"]}
    body = [
        [titles[pair["first"]], *(_interval(pair["metrics"][name]) for name in _METRICS)]
        for pair in result["differences"]
        if not pair["asked"]
    ]
    reference = "the first value" if result["kind"] == "sweep" else titles.get(result["against"], "")
    return Grid(f"Difference to {reference}", ["Model", *_METRICS.values()], body)


def _questions(result: Mapping[str, Any]) -> Grid:
    titles = {row["name"]: row["title"] for row in result["rows"]}
    header = ["Is it worth it?", "HR@10", "HR@50", "MRR × 10", "HR@50, ratio", "MRR, ratio"]
    body = []
    for pair in result["differences"]:
        if pair["asked"]:
            metrics = pair["metrics"]
            body.append(
                [
                    f"{titles[pair['first']]} − {titles[pair['second']]}",
                    *(_interval(metrics[name]) for name in ("hr@10", "hr@50", "mrr10")),
                    *(_ratio(metrics[name]) for name in ("hr@50", "mrr10")),
                ]
            )
    return Grid("Pairs", header, body)


def _groups(result: Mapping[str, Any], every: bool) -> Grid:
    titles = {row["name"]: row["title"] for row in result["rows"]}
    both = " − ".join(titles.values())
    by_category = result.get("by") == "category"
    header = ["Category" if by_category else "Reviews of the user", "small", "training reviews", "test users"]
    header += [f"{title}: {metric}" for metric in ("HR@50", "MRR × 10") for title in titles.values()]
    header += [f"{metric}: {both}" for metric in ("HR@50", "MRR × 10")]
    body = []
    for entry in result.get("groups", ()):
        if entry["small"] and not entry["pooled"] and not every:
            continue
        line = [entry["group"], "yes" if entry["small"] else "", f"{entry['num_train']:,}"]
        line.append(f"{entry['num_test_users']:,}")
        figures, found = entry.get("figures"), entry.get("differences")
        for metric in ("hr@50", "mrr10"):
            line += [f"{figures[name][metric]:.4f}" if figures else "–" for name in titles]
        line += [_interval(found[metric]) if found else "–" for metric in ("hr@50", "mrr10")]
        body.append(line)
    title = "By category of the held-out item" if by_category else "By reviews of the user that were learned"
    return Grid(title, header, body)


def _variety(result: Mapping[str, Any]) -> Grid:
    body = [[row["title"], *(_share(row["variety"][name]) for name in _VARIETY)] for row in result["rows"]]
    return Grid(
        f"First 50 of at most {LISTS:,} users: how alike they are", ["Model", *_VARIETY.values()], body
    )


def _costs(result: Mapping[str, Any]) -> Grid:
    body = [
        [
            row["title"],
            f"{row['seconds']['mean']:,.1f}",
            f"{row['peak_mib']:,.0f}",
            _settings(row["overrides"]),
        ]
        for row in result["rows"]
    ]
    return Grid(
        "Cost and settings", ["Model", "seconds of learning", "peak MiB", "settings beside its own"], body
    )


def _failures(result: Mapping[str, Any]) -> Grid:
    body = [
        [
            each["trial"]["contender"],
            str(each["trial"]["seed"]),
            _settings(each["trial"]["overrides"]),
            each["error"],
        ]
        for each in result["failures"]
    ]
    return Grid("Failed", ["Contender", "seed", "settings", "error"], body)


def _settings(overrides: Sequence[str]) -> str:
    return ", ".join(each for each in overrides if not each.startswith("learning.num_threads=")) or "–"


def _spread(value: Mapping[str, float | None] | float | None) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4f}"
    return f"{value['mean']:.4f}" + ("" if value["sd"] is None else f" ± {value['sd']:.4f}")


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _interval(found: Mapping[str, float]) -> str:
    star = "*" if found["low"] > 0 or found["high"] < 0 else ""
    return f"{_signed(found['difference'])}{star}\n[{_signed(found['low'])}, {_signed(found['high'])}]"


def _signed(value: float) -> str:
    return f"{value:+.4f}".replace("-", "−")


def _ratio(found: Mapping[str, float | None]) -> str:
    if found["ratio"] is None or found["ratio_low"] is None:
        return "–"
    return f"{found['ratio']:.3f}\n[{found['ratio_low']:.3f}, {found['ratio_high']:.3f}]"


def _markdown(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", " ").replace("*", "\\*").replace("_", "\\_")


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)
