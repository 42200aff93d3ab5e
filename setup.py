"""What pyproject.toml cannot say: a wheel holds conf/, which is at the top of the repository, as nemo_cdt/conf."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["nemo_cdt*"]), "nemo_cdt.conf"], package_dir={"nemo_cdt.conf": "conf"})
