"""Prints the counts that keep the house small; exits with 1 if one is above its limit.

A goal that is not reached yet is printed beside its limit, which only ever comes down.

Command:  python tools/house.py
"""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "fairmix_jax"
AWKWARD = frozenset("=,()[]{} ")


def tracked(folder: str) -> list[Path]:
    """Returns the files below a folder that git tracks or would track."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", folder],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    paths = {ROOT / name for name in listed.split("\0") if name}
    return sorted(path for path in paths if path.exists())


def room_of(path: Path) -> str:
    """Returns the room a module lies in: its folder or file at the package's top level."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: Path, rooms: set[str]) -> set[str]:
    """Returns the rooms that a module imports from, inside functions as well."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    parts = [name.split(".") for name in names if name.startswith("fairmix_jax.")]
    return {part[1] for part in parts} & rooms


def floors(modules: list[Path]) -> list[str]:
    """Returns the longest chain of rooms in which each imports from the next."""
    rooms = {room_of(path) for path in modules} - {"__init__"}
    below: dict[str, set[str]] = {room: set() for room in rooms}
    for path in modules:
        if room_of(path) in rooms:
            below[room_of(path)] |= imported_rooms(path, rooms) - {room_of(path)}

    @cache
    def chain(room: str) -> tuple[str, ...]:
        return (room, *max((chain(lower) for lower in sorted(below[room])), key=len, default=()))

    return list(max((chain(room) for room in sorted(rooms)), key=len))


def layers_are_kept() -> bool:
    """Returns whether import-linter finds the contract of pyproject.toml kept."""
    command = Path(sys.executable).with_name("lint-imports")
    return subprocess.run([command], cwd=ROOT, capture_output=True).returncode == 0


def main() -> int:
    """Prints the counts; returns the exit status."""
    modules = [path for path in tracked("fairmix_jax") if path.suffix == ".py"]
    lines = sum(len(path.read_text().splitlines()) for path in modules)
    longest = floors(modules)
    results = tracked("results")
    awkward = [path for path in results if AWKWARD & set(str(path.relative_to(ROOT)))]
    counts = [
        ("modules and folders at the package's top level", len(set(map(room_of, modules))), 14),
        ("floors: " + " > ".join(longest), len(longest), 10),
        ("lines of Python in the package; the goal is 14,000", lines, 19_570),
        ("files under results/", len(results), 60),
        ("  of these, names with = , brackets or spaces", len(awkward), 0),
        ("files in configs/", len(tracked("configs")), 20),
        ("broken layers of imports; lint-imports shows where", int(not layers_are_kept()), 0),
    ]
    for what, count, limit in counts:
        verdict = "ABOVE" if count > limit else "kept"
        print(f"{count:>7,} of at most {limit:>6,}  {verdict:<5}  {what}")
    print(
        "\nFloors are the rooms on the longest chain of import statements between rooms, those\n"
        "inside functions included; the package's __init__.py, which imports lazily, is not a room."
    )
    return int(any(count > limit for _, count, limit in counts))


if __name__ == "__main__":
    sys.exit(main())
