"""The differences that docs/checkpoints.md claims, which the tests hold it to."""

from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs" / "checkpoints.md"
MARGIN = 5  # a test allows so many times what is claimed: other processors round otherwise


def tolerances(first_column: str, numbers: int) -> dict[str, list[float]]:
    """What the table with that first column allows: {name of a row: its last numbers}."""
    table: dict[str, list[float]] = {}
    inside = False
    for line in DOCS.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] == first_column:
            inside = True
        elif inside and not line.startswith("|"):
            break
        elif inside and not cells[0].startswith("---"):
            table[cells[0].strip("`")] = [MARGIN * float(cell) for cell in cells[-numbers:]]
    return table
