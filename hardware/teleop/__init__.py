"""Devices a person moves an arm with: every module here without an underscore is one (what it gives: ``_device``)."""
