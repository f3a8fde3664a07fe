"""The rest of the packaging is in setup.cfg.

A wheel carries the checkpoints and the samples inside the package; an editable install reads them where they
lie.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithWeights(build_py):
    def run(self):
        if not self.editable_mode:  # a module that was renamed since the last build must not come along
            shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()
        if not self.editable_mode:
            weights = Path(self.build_lib, "align_minimal", "weights")
            for folder in ("emoji", "emoji-world", "samples"):
                self.copy_tree(f"weights/{folder}", str(weights / folder))


setup(cmdclass={"build_py": BuildWithWeights})
