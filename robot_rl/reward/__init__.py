"""Rewards that are learned: success classifiers from labelled frames, and VICE (docs/rewards.md)."""
