"""What can happen to a file: each function does it to `path`, or returns `False` if it cannot.

`others` are sound files of the same workdir.
"""

import json
import shutil

BYTES, JSON = {}, {}


def _into(table):
    def register(function):
        table[function.__name__.strip("_").replace("_", " ")] = function
        return function

    return register


@_into(BYTES)
def bit_flipped(path, rng, others):
    content = bytearray(path.read_bytes())
    if not content:
        return False
    position = rng.randrange(8 * len(content))
    content[position // 8] ^= 1 << position % 8
    path.write_bytes(content)


@_into(BYTES)
def cut_in_half(path, rng, others):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


@_into(BYTES)
def emptied(path, rng, others):
    path.write_bytes(b"")


@_into(BYTES)
def all_zeros(path, rng, others):
    path.write_bytes(bytes(len(path.read_bytes())))


@_into(BYTES)
def some_bytes_lost(path, rng, others):
    content = path.read_bytes()
    start = rng.randrange(len(content) + 1)
    path.write_bytes(content[:start] + content[start + rng.randrange(1, 100) :])


@_into(BYTES)
def deleted(path, rng, others):
    path.unlink()


@_into(BYTES)
def another_file(path, rng, others):
    alike = [other for other in others if other != path and other.suffix == path.suffix]
    shutil.copyfile(rng.choice(alike or [other for other in others if other != path]), path)


@_into(BYTES)
def a_folder_in_its_place(path, rng, others):
    path.unlink()
    path.mkdir()


@_into(BYTES)
def a_link_to_nothing(path, rng, others):
    path.unlink()
    path.symlink_to(path.with_name("nowhere"))


def _json(name):
    """A change of a parsed JSON file; of JSON Lines, of one line."""

    def register(change):
        def function(path, rng, others):
            lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
            number = rng.randrange(len(lines))
            content = json.loads(lines[number])
            if not isinstance(content, dict) or change(content, rng) is False:
                return False
            is_file = path.suffix != ".jsonl"
            lines[number] = json.dumps(content, indent=2 if is_file else None)
            path.write_text("\n".join(lines) + "\n")

        JSON[name] = function
        return change

    return register


def _places(value, wanted):
    """Yields the (container, key) of every wanted value in plain data."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        if wanted(item, key):
            yield value, key
        if isinstance(item, (dict, list)):
            yield from _places(item, wanted)


def _drawn(content, rng, wanted):
    places = list(_places(content, wanted))
    return rng.choice(places) if places else (None, None)


@_json("a number changed")
def _(content, rng):
    def is_number(item, key):
        return isinstance(item, (int, float)) and not isinstance(item, bool) and key != "schema"

    container, key = _drawn(content, rng, is_number)
    if container is None:
        return False
    container[key] = container[key] * 2 + 1


@_json("a key missing")
def _(content, rng):
    container, key = _drawn(content, rng, lambda item, key: isinstance(key, str))
    if container is None:
        return False
    del container[key]


@_json("a value of another type")
def _(content, rng):
    container, key = _drawn(content, rng, lambda item, key: True)
    if container is None:
        return False
    container[key] = rng.choice([None, "x", [], {}, 1.5, True, [[1]], {"a": 1}])


@_json("another schema")
def _(content, rng):
    if "schema" not in content:
        return False
    content["schema"] = 99


@_json("a list instead of it all")
def _(content, rng):
    kept = dict(content)
    content.clear()
    content["content"] = [kept]


def state_of(path):
    """What a file is, to see whether it changed."""
    if path.is_symlink() or not path.is_file():
        return "link" if path.is_symlink() else "folder" if path.is_dir() else "nothing"
    return path.read_bytes()


def fitting(path):
    """Returns the names of the kinds of damage that make sense for a file."""
    is_json = path.suffix in (".json", ".jsonl")
    return [*BYTES, *(JSON if is_json else ())]


def damage(kind, path, rng, others):
    """Damages a file; says whether that changed it."""
    before = state_of(path)
    return (BYTES | JSON)[kind](path, rng, others) is not False and state_of(path) != before
