"""Runs an experiment: python launch.py --config=configs/NAME.py[:variant] [--workdir=DIR]."""

from fairmix_jax.lab.command_line import main

if __name__ == "__main__":
    main()
