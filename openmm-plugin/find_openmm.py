"""Prints the folder with the include and lib of the OpenMM that this Python imports.

pip builds in an environment of its own, which may have another OpenMM than the one that the plugin is installed for, so the latter is looked
for first.
"""

import runpy
import sys
import sysconfig
from pathlib import Path

for place in [sysconfig.get_path("platlib"), *sys.path]:
    version = Path(place) / "openmm" / "version.py"
    if version.exists():
        print(Path(runpy.run_path(str(version))["openmm_library_path"]).parent)
        break
