#!/bin/sh
# Ensures that gmx is available: from the PATH, or from the distribution's package, installed with apt where permitted.
# Otherwise prints what to do and exits with status 1.
set -eu
command -v gmx > /dev/null && exit 0
if command -v apt-get > /dev/null; then
    if [ "$(id -u)" = 0 ]; then sudo=; else sudo="sudo -n"; fi
    export DEBIAN_FRONTEND=noninteractive
    # the package lists of a fresh machine may be missing or out of date
    if $sudo apt-get update -qq && $sudo apt-get install -qq -y --no-install-recommends gromacs openmpi-bin > /dev/null; then
        command -v gmx > /dev/null && exit 0
    fi
fi
echo "scripts/gromacs.sh: gmx is not on the PATH and could not be installed: install GROMACS 2022 or later (apt install gromacs)" >&2
exit 1
