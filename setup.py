"""For colcon only, which asks for it; pyproject.toml says everything."""

from setuptools import setup

setup()
