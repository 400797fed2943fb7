"""Experiments: the rooms wired together, one module each, with the `penchant` command in front."""
