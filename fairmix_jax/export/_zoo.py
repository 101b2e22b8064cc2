"""What RobustBench's classes know of their CIFAR models, and the files of these do not say.

Source: the classes of `robustbench/model_zoo/{cifar10,cifar100}.py` and the file LICENSE of
https://github.com/RobustBench/robustbench (Croce et al. 2021, arXiv 2010.09670), as of March 2025.
"""

import re
from typing import NamedTuple

from fairmix_jax.runtime.errors import UsageError

CLASSES = {
    "cifar10": "airplane automobile bird cat deer dog frog horse ship truck".split(),
    "cifar100": """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup
dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower
leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid
otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray
road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
wardrobe whale willow_tree wolf woman worm
""".split(),
}
"""Names of the classes in the order of their labels."""

Normalisation = tuple[tuple[float, ...], tuple[float, ...]]  # mean and std of each channel

DEEPMIND: dict[str, Normalisation] = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}
"""What every model of DeepMind's two architectures subtracts and divides by."""

_ROUNDED100 = ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))
_EXACT100 = (
    (0.5070751592371323, 0.48654887331495095, 0.4409178433670343),
    (0.2673342858792401, 0.2564384629170883, 0.27615047132568404),
)
_EXACT10 = (
    (0.4913997551666284, 0.48215855929893703, 0.4465309133731618),
    (0.24703225141799082, 0.24348516474564, 0.26158783926049628),
)
_NORMALISED: dict[str, Normalisation] = {
    ".*/(Hendrycks20(19Using|20AugMix)|Modas2021)": ((0.5,) * 3, (0.5,) * 3),
    "cifar10/.*(Rice2020|Wong2020|Chen2020Efficient|Kireev2021)": DEEPMIND["cifar10"],
    "cifar10/.*Engstrom2019": (DEEPMIND["cifar10"][0], (0.2023, 0.1994, 0.2010)),
    "cifar10/.*Rony2019": ((0.491, 0.482, 0.447), (0.247, 0.243, 0.262)),
    "cifar10/.*Augustin2020": _EXACT10,
    "cifar100/.*Chen2020Efficient": _ROUNDED100,
    "cifar100/.*(Wu2020|Rice2020)": _EXACT100,
}
_REFUSED = {
    "Chen2020Adversarial": "the mean softmax of three networks",
    "Kang2021Stable": "a network with an ODE solver",
    "Bai2023Improving|Bai2024MixedNUTS|Diffenderfer2021.*Deck": "several networks in one",
    "Debenedetti2022Light": "a transformer (XCiT)",
    "Ding2020MMA": "a network that normalises each image by its own mean",
    "Pang2020Boosting": "a network with features and weights of length one",
    "Amini2024MeanSparse": "a network with sparse features",
    "Huang2021Exploring|Huang2022Revisiting|Peng2023Robust": "of an architecture of its own",
    "Dai2021Parameterizing": "a network whose activation is learned",
    ".*(ResNest|ResNeXt)|Diffenderfer2021": "of another family (ResNeSt, ResNeXt or CARD)",
}
_LICENCES = {
    "Gowal|Rebuffi|Hendrycks2019|Pang2020Boosting": "Apache-2.0", "Rony2019": "BSD-3-Clause",
    "Ding2020": "CC-BY-NC-SA-4.0",
}  # fmt: skip
_AUTHORS = """
Addepalli2021 Addepalli2022 Andriushchenko2020 Augustin2020 Bartoldson2024 Carmon2019 Chen2020
Chen2021 Chen2024 Cui2020 Cui2023 Engstrom2019 Gowal2020 Gowal2021 Hendrycks2019 Hendrycks2020
Huang2020 Jia2022 Kireev2021 Modas2021 Pang2022 Rade2021 Rebuffi2021 Rice2020 Rony2019 Sehwag2020
Sehwag2021 Sitawarin2020 Sridhar2021 Standard Wang2020 Wang2023 Wong2020 Wu2020 Xu2023 Zhang2019
Zhang2020
""".split()


class Entry(NamedTuple):
    """What is known of an entry: its data set, its normalisation unless DeepMind's, its licence."""

    dataset: str
    normalisation: Normalisation
    licence: str


def entry(name: str) -> Entry:
    """Returns what is known of an entry `DATASET/THREAT/NAME`.

    Raises a `UsageError` if there is none of that name, or it is no network that we have.
    """
    match = re.fullmatch(r"(cifar100?)/(Linf|L2|corruptions)/([\w-]+)", name)
    dataset, _, own = match.groups() if match else ("", "", "")
    for pattern, what in _REFUSED.items():
        if re.match(pattern, own):
            raise UsageError(f"--zoo={name!r} is {what}, which is not among our models")
    if re.split(r"(?<=\d{4})|_", own)[0] not in _AUTHORS:
        raise UsageError(
            f"--zoo={name!r} is not known; give cifar10/Linf/NAME (or cifar100, L2, corruptions) "
            "with a name of RobustBench's model zoo, or leave it out and give --mean and --std"
        )
    plain = ((0.0,) * 3, (1.0,) * 3)
    found = (value for pattern, value in _NORMALISED.items() if re.match(pattern, name))
    licences = (value for pattern, value in _LICENCES.items() if re.match(pattern, own))
    return Entry(dataset, next(found, plain), next(licences, "MIT"))
