"""Does a bias per class, fitted under attack after training, give what mixing promises?

PGD-AT and TRADES, same-class pairs, and five published rules on PGD-AT, trained as in
`study_mixing.py` with seeds of their own; each as trained, with a class bias fitted on the 3,000
validation images for four weights of the worst class, and with equal norms in the last layer.
Runs that differ in their calibration only are trained once. Clean and PGD-20, 10,000 test images.

Command:  TFDS_DATA_DIR=DIR fairmix --config=configs/studies/study_calibration.py --mode=sweep
"""

from fairmix_jax.lab.configs.studies import study_mixing

SEEDS = (6, 7, 8)
WEIGHTS = (0.1, 0.2, 0.5, 1.0)
METHODS = {
    "pgd_at": "base.name=pgd_at",
    "pairs": f"base.name=pgd_at {study_mixing.MIXINGS[' k=2']}",
    "trades": "base.name=trades",
    "faal": "base.name=pgd_at rule.name=faal",
    "trix": "base.name=pgd_at rule.name=trix rule.warmup_epochs=1",
    "dafa": "base.name=pgd_at rule.name=dafa rule.warmup_epochs=1",
    "wat": "base.name=pgd_at rule.name=wat",
    "cfa": "base.name=pgd_at rule.name=cfa rule.warmup_epochs=1",
}
_CALIBRATIONS = {
    "": "calibration.name=none",
    **{f" t{100 * t:.0f}": f"calibration.name=class_bias calibration.t={t}" for t in WEIGHTS},
    " head_norm": "calibration.name=head_norm",
}
ARMS = {
    f"{method}{calibrated}": f"{fields} {calibration}"
    for method, fields in METHODS.items()
    for calibrated, calibration in _CALIBRATIONS.items()
}
_RULES = ("faal", "trix", "dafa", "wat", "cfa")

PREDICTIONS = (
    # A trial with one seed had shown this of PGD-AT and of pairs on other models.
    *(f"C1: worst_class(pgd20): {method} t20 > {method}" for method in METHODS),
    *(f"C2: gap(clean): {method} t20 < {method}" for method in METHODS),
    # Calibration alone against every rule that trains for the worst class.
    *(f"C3: worst_class(pgd20): pgd_at t20 > {rule}" for rule in _RULES),
    # Rules change features too, so that with both the worst class does better still.
    *(f"C4: worst_class(pgd20): {rule} t20 > pgd_at t20" for rule in _RULES),
    # S19 says that mixing does nothing then; networks had paid for it with features.
    "C5: average(pgd20): pairs t20 < pgd_at t20",
    "C5: worst_class(pgd20): pairs t20 < pgd_at t20",
    # Norms of rows are no target; a bias is fitted to one.
    "C6: worst_class(pgd20): pgd_at t20 > pgd_at head_norm",
    # The frontier is flat at its top.
    "C7: average(pgd20): pgd_at t100 < pgd_at t20",
    "C7: worst_class(pgd20): pgd_at t100 > pgd_at t20",
)


def get_config(arg: str = ""):
    """Returns the config; `:smoke` trains two methods for an epoch on 1,000 images, two seeds."""
    smoke_runs = ("pgd_at", "pgd_at t20", "pairs", "pairs t20")
    config = study_mixing.follow_up(
        arg, ARMS, PREDICTIONS, runs=ARMS, smoke_runs=smoke_runs, seeds=SEEDS
    )
    if arg == "smoke":
        config.data.val_fraction = 0.2
    return config.lock()
