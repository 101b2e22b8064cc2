"""Runs are killed, files damaged and disks filled; see docs/reliability.md."""
