"""The command line: configs, sweeps, engines, benchmarks, and compilation for absent pods."""
