"""How a wheel is built. Everything else about the project is in pyproject.toml."""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.egg_info import egg_info

ROOT = Path(__file__).parent
DATA = ("conf", "models/tiny-base")  # the default experiment needs no clone


class OnePackage(build_py):
    """Move the packages of the repository into `slackmerge/`, so that a wheel installs one name, and add the data.

    An editable install is left alone: it imports from the clone.
    """

    def run(self) -> None:
        installed = Path(self.build_lib) / "slackmerge"
        if not self.editable_mode:
            shutil.rmtree(self.build_lib, ignore_errors=True)  # files of an earlier build
        super().run()
        if self.editable_mode:
            return
        for package in {name.partition(".")[0] for name in self.packages} - {"slackmerge"}:
            shutil.move(Path(self.build_lib) / package, installed / package)
        for folder in DATA:
            shutil.copytree(ROOT / folder, installed / folder)


class OneName(egg_info):
    """Record in the metadata the one name that a wheel installs."""

    def run(self) -> None:
        super().run()
        (Path(self.egg_info) / "top_level.txt").write_text("slackmerge\n", encoding="utf-8")


setup(cmdclass={"build_py": OnePackage, "egg_info": OneName})
