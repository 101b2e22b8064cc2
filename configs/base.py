"""Every default, in one place; not an experiment of its own.

A field left at its placeholder (`None`) takes the default of the chosen member, so
`--config.model.depth=18` needs no knowledge of the file it lands in. `config.json` in the
workdir shows what each field became.
"""

from ml_collections import ConfigDict, config_dict

from fairmix_jax import engines, plugins


def get_config(arg: str = "") -> ConfigDict:
    """Returns the defaults, unlocked, for a config file to change and lock."""
    no_variant(arg)
    config = ConfigDict()
    config.seed = 0
    config.total_epochs = 30
    config.batch_size = 128
    config.num_devices = 0  # that share a batch; 0: all
    config.num_parts = 1  # of a batch, one after another, their gradients averaged

    config.data = _section("data", "digits")
    config.data.dir = ""  # where TFDS keeps its data; empty: TFDS_DATA_DIR
    config.data.val_fraction = 0.1  # of the training set, stratified
    config.data.num_train = 0  # class-balanced subset of the training set; 0: all
    config.data.crop_padding = 0  # pixels of random shift
    config.data.flip = False

    config.model = _section("models", "small_cnn")
    config.base = _section("bases", "pgd_at")
    config.rule = _section("rules", "none")
    config.averaging = _section("averaging", "none")

    config.mixing = ConfigDict()
    config.mixing.name = "none"
    config.mixing.num_samples = 2
    config.mixing.law = "dirichlet"
    config.mixing.alpha = 1.0
    config.mixing.weights = ()  # fixed weights, instead of num_samples, law and alpha
    config.mixing.probability = 1.0
    config.mixing.class_strength = ()  # factors of the probability, one a class; empty: ones
    config.mixing.per_batch = False
    config.mixing.stage = "before_attack"
    config.mixing.num_groups = 1  # equal parts of the batch that are paired apart
    config.mixing.off_epochs = 0  # last epochs without mixing

    # The training attack; its norm and epsilon are also those of the evaluation.
    config.attack = ConfigDict()
    config.attack.norm = "linf"
    config.attack.epsilon = 8 / 255
    config.attack.step_size = 2 / 255
    config.attack.num_steps = 10
    config.attack.batch_norm = "eval"  # or train: with the statistics of the batch under attack

    # Adversarial weight perturbation around the training step.
    config.awp = ConfigDict()
    config.awp.gamma = 0.0  # relative size; 0: off
    config.awp.warmup_epochs = 0

    # Start from the weights of another run.
    config.hot_start = ConfigDict()
    config.hot_start.workdir = ""  # empty: from random weights
    config.hot_start.weights = "last"  # or best

    config.optim = ConfigDict()
    config.optim.name = "sgd"
    config.optim.learning_rate = 0.1
    config.optim.momentum = 0.9
    config.optim.nesterov = True
    config.optim.weight_decay = 5e-4
    config.optim.decay_biases = True
    config.optim.schedule = "piecewise"
    config.optim.milestones = (0.5, 0.75)  # of the run, where "piecewise" multiplies by decay
    config.optim.decay = 0.1
    config.optim.decays = ()  # a factor for each milestone, instead of decay
    config.optim.warmup = 0.0  # of the run, linear from zero

    config.validation = ConfigDict()
    config.validation.every_epochs = 1
    config.validation.num_steps = 10

    config.checkpoint = ConfigDict()
    config.checkpoint.every_epochs = 1

    config.evaluate = ConfigDict()
    config.evaluate.attacks = "clean,pgd20"
    config.evaluate.num_examples = 0  # class-balanced subset of the test set; 0: all
    config.evaluate.weights = "best"  # best by validation, last, or a file NAME.safetensors
    config.evaluate.batch_size = 512
    config.evaluate.step_size = config_dict.placeholder(float)  # epsilon / 4
    config.evaluate.num_restarts = 1
    config.evaluate.radii = ()  # rising factors of epsilon: PGD's accuracy over the radius
    config.evaluate.search_dtype = "float32"  # or bfloat16: AutoAttack searches, float32 decides
    config.evaluate.save_adversarial = (
        False  # keep AutoAttack's images, in attacks/NAME/verdicts.npz
    )
    config.evaluate.masking = True  # whether AutoAttack's number gets a verdict on masking

    config.report = "classes"  # or gaussian: theory beside it

    # --mode=benchmark: training steps of each member of the grid, in turns; or, if attacks or
    # bases are named, attacks and training steps against the gradients they are made of.
    config.benchmark = ConfigDict()
    config.benchmark.rounds = 15
    config.benchmark.steps = 1  # a round
    config.benchmark.attacks = ""  # e.g. "pgd20,apgd100,fab-t50,square200,autoattack"
    config.benchmark.bases = ""  # e.g. "standard,pgd_at,trades"
    config.benchmark.peers = False  # what people use instead, where installed
    config.benchmark.exponents = False  # how cost grows with steps, images, parameters

    # --mode=compile: for TPUs that need not be here.
    config.compile = ConfigDict()
    config.compile.topology = ""  # e.g. v5e:2x4, v5e:16x16, v5p:2x2x4
    config.compile.largest_batch = True  # look for it, by compiling a few more

    # --backend=ray|slurm: what each run is given there, see engines.Launch.
    config.launch = ConfigDict(engines.Launch()._asdict())

    # What a study compares and predicts, see fairmix_jax/predictions.py; its report says what
    # became of it.
    config.study = ConfigDict()
    config.study.arms = ConfigDict()  # {"name": "field=value field=value", ...}, its methods
    config.study.predictions = ()
    config.study.easy_classes = ()
    config.study.hard_classes = ()

    # A grid to run instead of a single run: "field=value,value field=value,value".
    config.sweep = ""
    return config


def no_variant(arg: str) -> None:
    """Raises a `ValueError` unless `arg` is empty."""
    if arg:
        raise ValueError(f"variant {arg!r} is unknown; this config has none")


def variant(arg: str) -> bool:
    """Returns whether the smoke variant is asked for; raises `ValueError` for any other."""
    if arg not in ("", "smoke"):
        raise ValueError(f"variant {arg!r} is unknown; the only one is ':smoke'")
    return arg == "smoke"


def _section(axis: str, name: str) -> ConfigDict:
    section = ConfigDict({"name": name})
    for field, kind in plugins.all_parameters(axis).items():
        section[field] = config_dict.placeholder(kind)
    return section
