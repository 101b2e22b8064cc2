"""`python -m fairmix_jax.lab` is `fairmix`."""

import sys

from fairmix_jax.lab.command_line import main

if __name__ == "__main__":
    sys.argv[0] = "fairmix"  # which messages and `run.json` name
    main()
