"""Plain text in columns."""

from collections.abc import Sequence


def align(lines: Sequence[Sequence[str]], to_left: Sequence[bool]) -> str:
    """Lines of cells under each other, two spaces apart; a column not `to_left` ends at its right."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(to_left))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if left else cell.rjust(width)
            for cell, width, left in zip(line, widths, to_left, strict=True)
        ).rstrip()
        for line in lines
    )
