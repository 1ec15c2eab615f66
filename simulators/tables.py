"""Tables for the terminal: figures, and people with what they bought and would be shown."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from simulators.report import COLUMNS, NAMES, cell
from simulators.variety import LISTS


def figures_table(
    figures: Mapping[str, Mapping[str, float]], prequential: Sequence[Sequence[float]]
) -> Table:
    """Return the table of models; the prequential figures are means over the second half of the stream."""
    table = Table(
        title="each held-out item ranked over the whole corpus",
        caption=f"coverage: share of the catalogue in somebody's first 50, of at most {LISTS:,} users; "
        "overlap: share of them that two have in common",
    )
    table.add_column("model")
    for _, title in COLUMNS:
        table.add_column(title, justify="right")
    for name, row in figures.items():
        table.add_row(NAMES[name], *(cell(row, key) for key, _ in COLUMNS))
    later = prequential[len(prequential) // 2 :]
    if later:
        hits, mrr = (sum(point[i] for point in later) / len(later) for i in (1, 2))
        table.add_section()
        table.add_row("DAT, prequential (2nd half)", "", f"{hits:.4f}", "", f"{10 * mrr:.4f}", "", "")
    return table


def people_table(people: Sequence[Mapping[str, Any]]) -> Table:
    """Return what each of some users bought and would be shown."""
    table = Table(title="people", show_lines=True)
    for column in ("user", "bought (newest last)", "would be shown"):
        table.add_column(column, overflow="fold")
    for person in people:
        table.add_row(person["user_id"], "\n".join(person["bought"]), "\n".join(person["shown"]))
    return table
