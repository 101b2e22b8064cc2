"""CIFAR's python archives, written as in 2009: by Python 2's cPickle, protocol 2.

It writes the same opcodes in the same order: its files of class names are those of the originals,
byte for byte.
"""

import io
import tarfile

import numpy as np

CLASSES = b"airplane automobile bird cat deer dog frog horse ship truck".split()
COARSE = b"""
aquatic_mammals fish flowers food_containers fruit_and_vegetables household_electrical_devices
household_furniture insects large_carnivores large_man-made_outdoor_things
large_natural_outdoor_scenes large_omnivores_and_herbivores medium_mammals
non-insect_invertebrates people reptiles small_mammals trees vehicles_1 vehicles_2
""".split()
FINE = b"""
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus
butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab
crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo
keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse
mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy
porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper
snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television
tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
""".split()


class _CPickle:
    """The part of cPickle that CIFAR's files needed: every object is remembered."""

    def __init__(self):
        self.written, self._remembered = bytearray(b"\x80\x02"), 0

    def _remember(self):
        self._remembered += 1
        short = self._remembered < 256
        self.written += b"q" if short else b"r"
        self.written += self._remembered.to_bytes(1 if short else 4, "little")

    def name(self, module, name):
        self.written += b"c%s\n%s\n" % (module, name)
        self._remember()

    def write(self, found):
        match found:
            case bool():
                self.written += b"\x88" if found else b"\x89"
            case None:
                self.written += b"N"
            case int():
                size = 1 if 0 <= found < 1 << 8 else 2 if 0 <= found < 1 << 16 else 4
                self.written += {1: b"K", 2: b"M", 4: b"J"}[size]
                self.written += found.to_bytes(size, "little", signed=found < 0)
            case bytes():
                size = 1 if len(found) < 256 else 4
                self.written += {1: b"U", 4: b"T"}[size] + len(found).to_bytes(size, "little")
                self.written += found
                self._remember()
            case tuple():
                self.written += b"" if len(found) < 4 else b"("
                for item in found:
                    self.write(item)
                self.written += {1: b"\x85", 2: b"\x86", 3: b"\x87"}.get(len(found), b"t")
                self._remember()
            case list() | dict():
                self.written += b"]" if isinstance(found, list) else b"}"
                self._remember()
                items = [*found] if isinstance(found, list) else [*found.items()]
                for start in range(0, len(items), 1000):
                    self.written += b"("
                    for item in items[start : start + 1000]:
                        for part in (item,) if isinstance(found, list) else item:
                            self.write(part)
                    self.written += b"e" if isinstance(found, list) else b"u"
            case np.ndarray():
                self._array(found)
        return self

    def _array(self, found, dtype=b"u1"):
        self.name(b"numpy.core.multiarray", b"_reconstruct")
        self.name(b"numpy", b"ndarray")
        self.write((0,)).write(b"b")
        self.written += b"\x87"
        self._remember()
        self.written += b"R"
        self._remember()
        self.written += b"("
        self.write(1).write(found.shape)
        self.name(b"numpy", b"dtype")
        self.write(dtype).write(0).write(1)
        self.written += b"\x87"
        self._remember()
        self.written += b"R"
        self._remember()
        self.write((3, b"|", None, None, None, -1, -1, 0))
        del self.written[-2:]  # states are not remembered
        self.written += b"b"
        self.write(False).write(found.tobytes())
        self.written += b"tb"


def cpickle(found):
    """The pickle of numbers, text of Python 2, lists, tuples, dictionaries and uint8 arrays."""
    return bytes(_CPickle().write(found).written + b".")


def python_version(name, count=2, levels=256):
    """File name -> content of an archive with `count` images in each file."""
    rng = np.random.default_rng(5)

    def batch(label):
        pixels = rng.integers(0, levels, (count, 3072), dtype=np.uint8)
        files = [b"picture_s_%06d.png" % n for n in rng.integers(0, 1 << 19, count).tolist()]
        kinds = (
            {b"labels": 10} if name == "cifar10" else {b"fine_labels": 100, b"coarse_labels": 20}
        )
        labels = {kind: rng.integers(0, size, count).tolist() for kind, size in kinds.items()}
        return cpickle({b"batch_label": label} | labels | {b"data": pixels, b"filenames": files})

    if name == "cifar10":
        files = {f"data_batch_{n}": batch(b"training batch %d of 5" % n) for n in range(1, 6)}
        meta = {b"num_cases_per_batch": 10_000, b"label_names": CLASSES, b"num_vis": 3072}
        return files | {"test_batch": batch(b"testing batch 1 of 1"), "batches.meta": cpickle(meta)}
    meta = {b"fine_label_names": FINE, b"coarse_label_names": COARSE}
    return {"train": batch(b"train"), "test": batch(b"test"), "meta": cpickle(meta)}


def packed(files, folder="cifar-10-batches-py"):
    """The bytes of a tar file."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, part in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(part)
            archive.addfile(member, io.BytesIO(part))
    return content.getvalue()


def binary_version(count=2):
    """File name -> content of CIFAR-10's binary version."""
    rng = np.random.default_rng(6)
    labels = rng.integers(0, 10, (6, count, 1), dtype=np.uint8)
    records = np.concatenate([labels, rng.integers(0, 256, (6, count, 3072), np.uint8)], axis=2)
    stems = [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]
    files = {f"{stem}.bin": part.tobytes() for stem, part in zip(stems, records, strict=True)}
    return files | {"batches.meta.txt": b"\n".join(CLASSES) + b"\n\n"}
