"""Damages CIFAR archives and prepares them, in a process that may crash; prints what came of it.

Command:  python archive_fuzz.py START STOP FOLDER

Each number makes one archive. It is read as an independent reader reads it, or refused by one
line and status 2; the process prints a count of both, and every case that is neither.
"""

import contextlib
import gzip
import io
import json
import math
import os
import pickle
import pickletools
import random
import resource
import sys
import tarfile
import time
from pathlib import Path

import cifar_archives
import numpy as np

from fairmix_jax.data import prepare

HOSTILE = [
    b"cos\nsystem\n(U\x04true\x85R", b"cnumpy\ndtype\nU\x02O8K\x00K\x01\x87R",
    b"c__builtin__\neval\n", b")" + b"\x85" * 100_000, b")" + b"q\x09h\x09\x86" * 60, b"s",
    b"\x96\x00\x00\x00\x00\x00\x01\x00\x00", b"r\xff\xff\xff\x7f", b"\x8b\xff\xff\xff\x7f",
    b"T\xff\xff\xff\x7f", b"B\xff\xff\xff\xff", b"\x8e\x00\x00\x00\x00\x01\x00\x00\x00", b"I9\n",
    b"G\x3f\xe0\x00\x00\x00\x00\x00\x00", b"J\xff\xff\xff\xff", b"(d", b"(l", b"0", b"1", b"2",
    b"Q", b"P1\n", b"\x82\x01", b"\x95\xff\xff\xff\xff\x00\x00\x00\x00", b"b", b"R", b"\x81", b"o",
    b"N", b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb", b"]", b"}", b"\x8f", b"e",
    b"u", b"cnumpy.core.multiarray\nscalar\n", b"cnumpy\nndarray\n", b"t", b"(", b"\x93", b"h\x01",
    b".",
]  # fmt: skip
DTYPES = [b"O8", b"V8", b"S1", b"i8", b"f8", b"b1", b"U1", b"O", b"u8", b"i1"]


def scrambled(draw, content, places=None):
    """A few bits, cuts, copies and holes; at one of `places` if they are given."""
    content = bytearray(content)
    for _ in range(draw.choice([1, 1, 1, 2, 5])):
        at = draw.choice(places) if places else draw.randrange(len(content) or 1)
        size = draw.choice([1, 2, 8, 64, 512, 4096])
        match draw.randrange(7):
            case 0 | 1 if at < len(content):
                content[at] ^= 1 << draw.randrange(8)
            case 2 if at < len(content):
                content[at] = draw.choice([0, 1, 0x7F, 0x80, 0xFF])
            case 3:
                del content[at : at + size]
            case 4:
                other = draw.randrange(len(content) or 1)
                content[at:at] = content[other : other + size]
            case 5:
                content[at : at + size] = bytes(min(size, max(0, len(content) - at)))
            case 6:
                content[at:] = b"" if draw.random() < 0.3 else content[at:]
    return bytes(content)


def other_opcodes(draw, content):
    """A pickle with opcodes gone, doubled, in other places or foreign, or with another dtype."""
    starts = [place for _, _, place in pickletools.genops(content)]
    parts = [content[a:b] for a, b in zip(starts, [*starts[1:], len(content)], strict=True)]
    for _ in range(draw.choice([1, 1, 2, 4])):
        at = draw.randrange(len(parts))
        match draw.randrange(6):
            case 0:
                del parts[at : at + draw.choice([1, 1, 2, 10])]
            case 1:
                parts.insert(at, draw.choice(parts or [b"."]))
            case 2:
                parts.insert(at, draw.choice(HOSTILE))
            case 3:
                parts[at] = draw.choice(HOSTILE)
            case 4:
                other = draw.randrange(len(parts))
                parts[at], parts[other] = parts[other], parts[at]
            case 5:
                dtype = draw.choice(DTYPES)
                forged = [p.replace(b"U\x02u1", b"U%c%s" % (len(dtype), dtype)) for p in parts]
                parts = [
                    p.replace(b"\x8c\x02u1", b"\x8c%c%s" % (len(dtype), dtype)) for p in forged
                ]
        parts = parts or [b"."]
    return b"".join(parts)


def other_headers(draw, files):
    """A tar file whose headers lie, with sound checksums."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=draw.choice([1, 1, 2])) as archive:
        for name, part in files.items():
            member = tarfile.TarInfo(f"cifar/{name}")
            member.size = len(part)
            if draw.random() < 0.4:
                match draw.randrange(6):
                    case 0:
                        member.type = draw.choice(
                            [b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"S", b"x", b"g", b"L", b"Z"]
                        )
                        member.linkname = draw.choice(["/etc/passwd", "../../x", f"cifar/{name}"])
                    case 1:
                        member.name = draw.choice(["/tmp/evil", "../../../evil", "a/../b"]) + name
                    case 2:
                        member.name = draw.choice(["/etc/", "../../", "x" * 200 + "/", ""]) + name
                    case 3:
                        member.size = draw.choice(
                            [0, 1, -1, -512, -1024, len(part) + 512, 1 << 20, 3 << 30, 1 << 60]
                        )
                    case 4:
                        member.pax_headers = {
                            draw.choice(["size", "path", "GNU.sparse.size", "GNU.sparse.map"]):
                            draw.choice(["-1", "99999999999", "0,1,5,9", "é", "../data_batch_1"])
                        }  # fmt: skip
                    case 5:
                        archive.addfile(member, io.BytesIO(part[:1] + part))
            archive.fileobj.write(member.tobuf(archive.format))
            archive.fileobj.write(part + bytes(-len(part) % 512))
    return content.getvalue()


def sound(draw):
    """The name of a set and its files, in one of the forms in which an archive comes."""
    name = draw.choice(["cifar10", "cifar10", "cifar100"])
    files = cifar_archives.python_version(name, levels=draw.choice([4, 256]))
    match draw.randrange(4):
        case 0:
            for key, content in files.items():
                protocol = draw.choice([2, 3, 4])
                found = pickle.loads(content, encoding="bytes")
                if b"labels" in found and draw.random() < 0.5:
                    found[b"labels"] = np.array(found[b"labels"], np.uint8)
                files[key] = pickle.dumps(found, protocol)
        case 1 if name == "cifar10":
            return name, cifar_archives.binary_version()
    return name, files


def damaged(draw):
    """The name of a set, the bytes of its archive, and the kind of damage."""
    name, files = sound(draw)
    kind = draw.choice(["gzip", "tar", "headers", "file", "opcodes", "opcodes", "opcodes"])
    victim = draw.choice([*files])
    if kind == "file":
        files[victim] = scrambled(draw, files[victim])
    if kind == "opcodes" and not victim.endswith((".bin", ".txt")):
        files[victim] = other_opcodes(draw, files[victim])
    content = other_headers(draw, files) if kind == "headers" else cifar_archives.packed(files)
    if kind == "tar":
        headers = [n for n in range(len(content)) if content[n - n % 512 :][257:262] == b"ustar"]
        content = scrambled(draw, content, headers if draw.random() < 0.7 else None)
    if draw.random() < 0.8 or kind == "gzip":
        content = gzip.compress(content, 1)
    return name, scrambled(draw, content) if kind == "gzip" else content, kind


def reference(name, content):
    """What the archive holds, by the standard library's tarfile and the machine below."""
    content = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
        files = {}
        for member in archive:
            if member.isfile():
                files[Path(member.name).name] = archive.extractfile(member).read()
    train = [f"data_batch_{n}" for n in range(1, 6)] if name == "cifar10" else ["train"]
    meta = "batches.meta" if name == "cifar10" else "meta"
    splits = {"train": train, "test": ["test_batch" if name == "cifar10" else "test"]}
    arrays = {}
    is_python = meta in files and train[0] in files
    for split, own in splits.items():
        images, labels = [], []
        for file in own:
            if is_python:
                found = parsed(files[file])
                key = b"labels" if name == "cifar10" else b"fine_labels"
                own = found[key if key in found else key.decode()]
                labels += array(own).tolist() if isinstance(own, Asked) else own
                images.append(array(found[b"data" if b"data" in found else "data"]))
            else:
                records = np.frombuffer(files[f"{file}.bin"], np.uint8).reshape(-1, 3073)
                labels += records[:, 0].tolist()
                images.append(records[:, 1:])
        images = np.concatenate(images).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        arrays |= {f"{split}_images": images, f"{split}_labels": np.array(labels, np.int32)}
    return arrays


class Asked:
    """A name or a call in a pickle; the package has its own, over another machine."""

    def __init__(self, name, arguments=None):
        self.name, self.arguments, self.state = name, arguments, None


def parsed(content):
    """The object of a pickle, by the opcodes as pickletools sees them."""
    stack, outer, memo, taken = [], [], {}, []
    takes = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "APPEND": 1, "SETITEM": 2, "BUILD": 1}
    takes |= {"STACK_GLOBAL": 2, "REDUCE": 2}
    for opcode, given, _ in pickletools.genops(content):
        name = opcode.name
        if name in ("TUPLE", "APPENDS", "SETITEMS"):
            taken, stack = stack, outer.pop()
        elif name in takes:
            taken = [stack.pop() for _ in range(takes[name])][::-1]
        match name:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case "MARK":
                outer.append(stack)
                stack = []
            case "SHORT_BINSTRING" | "BINSTRING":
                stack.append(given.encode("latin-1"))
            case "EMPTY_DICT" | "EMPTY_LIST" | "EMPTY_TUPLE":
                stack.append({"DICT": dict, "LIST": list, "TUPLE": tuple}[name[6:]]())
            case "TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(taken))
            case "APPEND" | "APPENDS":
                stack[-1].extend(taken)
            case "SETITEM" | "SETITEMS":
                for key, value in zip(taken[::2], taken[1::2], strict=True):
                    stack[-1][key] = value
            case "GLOBAL" | "STACK_GLOBAL":
                stack.append(Asked(given or " ".join(taken)))
            case "REDUCE" if taken[0].name == "_codecs encode" and taken[1][1] == "latin1":
                stack.append(taken[1][0].encode("latin-1"))
            case "REDUCE":
                stack.append(Asked(f"call of {taken[0].name}", taken[1]))
            case "BUILD":
                stack[-1].state = taken[0]
            case "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                memo[len(memo) if given is None else given] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[given])
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name])
            case _:
                known = ("BININT", "BINFLOAT", "BINUNICODE", "SHORT_BIN", "BINBYTES", "LONG1")
                assert name.startswith(known), name
                stack.append(given)
    return stack[-1]


def array(found):
    """The pixels that a pickle asks for."""
    version, shape, dtype, is_fortran, raw = found.state
    assert found.name.endswith("_reconstruct") and found.arguments[0].name == "numpy ndarray"
    assert dtype.name == "call of numpy dtype" and dtype.arguments[0] in ("u1", b"u1")
    assert version == 1 and math.prod(shape) == len(raw)
    return np.frombuffer(raw, "u1").reshape(shape, order="F" if is_fortran else "C")


def outcome(name, archive, folder):
    """How the command ends: "read", "refused", or what is wrong."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            prepare.main([name, f"--source={archive}", f"--data_dir={folder}"])
        except SystemExit as stopped:
            line = said.getvalue()
            is_line = line.count("\n") == 1 and line.startswith("prepare: ") and ";" in line
            left = [path.name for path in folder.iterdir()]
            fine = is_line and stopped.code == 2 and not left
            return "refused" if fine else f"status {stopped.code}, {line!r}, left {left}"
        except BaseException as error:
            return f"{type(error).__name__}: {error}"
    try:
        expected = reference(name, archive.read_bytes())
    except BaseException as error:
        (folder / f"{name}.npz").unlink()
        return f"read, but the reference has {type(error).__name__}: {error}"
    with np.load(folder / f"{name}.npz") as found:
        same = all(np.array_equal(found[key], value) for key, value in expected.items())
    (folder / f"{name}.npz").unlink()
    return "read" if same else "read, but wrong"


def main(start, stop, folder):
    """Prints the counts, the failures and the longest time as JSON, a start line for each case."""
    sys.dont_write_bytecode = True
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
    data, archive, strayed = folder / "data", folder / "archive", []
    data.mkdir()

    def watch(event, arguments):
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & 3:
            strayed.extend([arguments[0]] if not str(arguments[0]).startswith(str(folder)) else [])
        elif event in ("os.rename", "os.remove", "os.mkdir", "os.link", "os.symlink"):
            paths = [path for path in arguments if isinstance(path, str | os.PathLike)]
            strayed.extend(path for path in paths if not str(path).startswith(str(folder)))
        elif event in ("os.system", "os.exec", "subprocess.Popen", "socket.connect"):
            strayed.append(event)

    sys.addaudithook(watch)
    counts, failures, slowest = {}, [], 0.0
    for number in range(start, stop):
        name, content, kind = damaged(random.Random(number))
        archive.write_bytes(content)
        began = time.monotonic()
        result = outcome(name, archive, data)
        slowest = max(slowest, time.monotonic() - began)
        if result not in ("read", "refused") or strayed:
            failures.append([number, kind, result, list(map(str, strayed))])
            strayed.clear()
        key = f"{kind} {result.partition(',')[0].partition(':')[0]}"
        counts[key] = counts.get(key, 0) + 1
    left = sorted(path.name for path in folder.rglob("*"))
    print(json.dumps([counts, failures, slowest, left]), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(os.path.realpath(sys.argv[3])))
