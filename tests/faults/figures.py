"""The table of docs/reliability.md, from what the tests of faults recorded."""

from collections import Counter

COLUMNS = ("the same", "refused", "failed")


def table(reports):
    """Returns the lines of a table in Markdown: how often each kind of fault ended how.

    Each fault is a property `("fault", (group, how, row))` of a test's report.
    """
    called = [report for report in reports if report.when == "call"]
    faults = [fault for r in called for name, fault in r.user_properties if name == "fault"]
    counts = Counter((group, row, how) for group, how, row in faults)
    lines = ["| fault | kind | " + " | ".join(COLUMNS) + " |", "|" + " --- |" * 5]
    rows = sorted({(group, row) for group, row, _ in counts})
    groups = sorted({group for group, _ in rows})
    for group in groups:
        total = [sum(counts[g, r, how] for g, r in rows if g == group) for how in COLUMNS]
        own = [row for g, row in rows if g == group]
        shown = [(row, [counts[group, row, how] for how in COLUMNS]) for row in own]
        for row, numbers in [*shown, ("**all**", total)]:
            lines.append(f"| {group} | {row} | " + " | ".join(map(str, numbers)) + " |")
    return lines if faults else []
