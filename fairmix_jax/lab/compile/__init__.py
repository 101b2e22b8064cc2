"""`--mode=compile`: compiles the programs of a config for TPUs that need not be here."""
