"""Sources of GROMACS for the tests: fetched once, unpacked as far as needed, and md.cpp compiled alone.

    python gromacs-plugin/tests/gromacs_source.py            # for the installed GROMACS: prints the path of the library to preload

Under an installed GROMACS of exactly the same version the library takes the place of do_md() by LD_PRELOAD, so that the patch can be
run without an hour of building. GROMACS_TARBALL may name a gromacs-VERSION.tar.gz that is taken for the source of that version.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PATCH = ROOT / "gromacs-plugin" / "modejump-gromacs-patch"
CACHE = ROOT / "target" / "gromacs"
URL = "http://deb.debian.org/debian/pool/main/g/gromacs/gromacs_{version}.orig.tar.gz"
# of the versions that are fetched; the archive drops one when the next is there, so a neighbour has to do for compiling
SHA256 = {
    "2022.5": "083cc3c424bb93ffe86c12f952e3e5b4e6c9f6520de5338761f24b75e018c223",
    "2025.2": "0df09f9d45a99ef00e66b9baa9493a27e906813763a3b6c7672217c66b43ea11",
    "2026.3": "1094b7bbc6a3960223827114626657110b40096cdf9598a727935fc84ebf8aa0",
    "2026.4": "58eda60979b124fcf9dff8b1b63cedfbc72fdb36d99e921dc1bdc310571098b6",
}
FAILED = {}
# what a configuration asks for must not change what do_md() sees; the rest is switched off to be quick
CONFIGURATION = """
    -DCMAKE_BUILD_TYPE=Release -DCMAKE_EXPORT_COMPILE_COMMANDS=ON -DCMAKE_POLICY_VERSION_MINIMUM=3.5 -DGMX_GPU=OFF
    -DGMX_FFT_LIBRARY=fftpack -DGMX_HWLOC=OFF -DGMX_USE_TNG=OFF -DGMXAPI=OFF -DGMX_INSTALL_NBLIB_API=OFF -DBUILD_TESTING=OFF
    -DGMX_BUILD_HELP=OFF -DGMX_INSTALL_LEGACY_API=OFF -DGMX_USE_COLVARS=NONE -DGMX_USE_PLUMED=OFF
    -DGMX_THREAD_MPI=ON -DCMAKE_DISABLE_FIND_PACKAGE_MPI=ON
""".split()


class Missing(Exception):
    """Something is not there that a test could do without."""


def tool(name):
    """A program of this Python's environment, or of the system."""
    beside = Path(sys.prefix) / "bin" / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise Missing(f"there is no {name}")
    return found


@contextlib.contextmanager
def alone(name):
    """Tests run in several processes, which share what is cached: one of them makes it."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / f".{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def given():
    """(version, path) of the source that GROMACS_TARBALL names, if it names one."""
    path = os.environ.get("GROMACS_TARBALL", "")
    found = re.search(r"gromacs-(\d+(?:\.\d+)?)\.tar\.gz$", path)
    if path and not (found and Path(path).exists()):
        raise Missing(f"GROMACS_TARBALL is {path}; it has to be a file gromacs-VERSION.tar.gz")
    return (found.group(1), Path(path)) if found else (None, None)


def fetch(version, path):
    """Fetches the release. What failed is not tried again: that may take a minute, and many tests ask."""
    if version in FAILED:
        raise Missing(FAILED[version])
    url = URL.format(version=version)
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            data = answer.read()
    except OSError as problem:
        FAILED[version] = f"the source of GROMACS {version} cannot be fetched: {problem}"
        raise Missing(FAILED[version]) from problem
    if hashlib.sha256(data).hexdigest() != SHA256[version]:
        FAILED[version] = f"what {url} gives is not the release"
        raise Missing(FAILED[version])
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_bytes(data)
    partial.replace(path)


def tarball(version):
    """The source as it was given, or the release, fetched unless it is cached."""
    if given()[0] == version:
        return given()[1]
    if version not in SHA256:
        raise Missing(f"the source of GROMACS {version} is not known, only {', '.join(SHA256)}; GROMACS_TARBALL may name it")
    path = CACHE / f"gromacs_{version}.orig.tar.gz"
    with alone("fetch"):
        if not path.exists():
            fetch(version, path)
    return path


def unpack(version, folder, *members):
    """Unpacks members of the release, or what compiling needs, into a folder of its own; returns that."""
    what = ["--wildcards", *members] if members else ["--exclude=*/tests", f"--exclude=gromacs-{version}/docs/*"]
    path = tarball(version)
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["tar", "xzf", path, "-C", folder, *what], check=True)
    return folder / f"gromacs-{version}"


def configured(version, simd):
    """(source, folder of the build) with the headers that CMake generates."""
    folder = CACHE / f"{version}-{simd}{'-given' if given()[0] == version else ''}"
    build = folder / "build"
    if not (build / "compile_commands.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        source = unpack(version, folder)
        (source / "docs" / "CMakeLists.txt").touch()
        command = [tool("cmake"), "-S", source, "-B", build, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}"]
        done = subprocess.run([*command, f"-DGMX_SIMD={simd}", *CONFIGURATION], capture_output=True, text=True)
        if done.returncode != 0:
            (build / "compile_commands.json").unlink(missing_ok=True)
            raise RuntimeError(f"GROMACS {version} cannot be configured:\n{done.stderr[-3000:]}")
    return folder / f"gromacs-{version}", build


def patch(source, *options):
    return subprocess.run([sys.executable, PATCH, source, *options], capture_output=True, text=True)


@alone("compile")
def compiled(version, simd="None", shared=True, faults=False):
    """The patched md.cpp as a library to preload, or as an object; with faults to plant by MODEJUMP_FAULT, or without."""
    source, build = configured(version, simd)
    done = patch(source)
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    commands = json.loads((build / "compile_commands.json").read_text())
    md = source / "src" / "gromacs" / "mdrun" / "md.cpp"
    words = shlex.split(next(entry["command"] for entry in commands if Path(entry["file"]) == md))
    at = words.index("-o")
    words = [word for word in words[:at] + words[at + 2 :] if word not in ("-c", "-O3")]
    words += ["-O2", "-Wall", "-Wextra", "-shared" if shared else "-c", *(["-DMODEJUMP_TESTING"] if faults else [])]
    digest = hashlib.sha256(" ".join(words).encode())
    for path in sorted(md.parent.glob("modejump/*.h")) + [md]:
        digest.update(path.read_bytes())
    result = build.parent / f"md-{digest.hexdigest()[:16]}.{'so' if shared else 'o'}"
    if not result.exists():
        with tempfile.TemporaryDirectory(dir=build.parent) as folder:
            partial = Path(folder) / result.name
            done = subprocess.run([*words, "-o", partial], cwd=build, capture_output=True, text=True)
            if done.returncode != 0 or "modejump" in done.stderr:
                raise RuntimeError(f"md.cpp of GROMACS {version} does not compile without complaint:\n{done.stderr[:5000]}")
            partial.replace(result)
    return result


def installed():
    """(version, SIMD) of the GROMACS on the path."""
    gmx = shutil.which("gmx")
    if gmx is None:
        raise Missing("there is no gmx on the path")
    text = subprocess.run([gmx, "-quiet", "--version"], capture_output=True, text=True, check=True).stdout
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}
    return facts["GROMACS version"], facts["SIMD instructions"], facts["Precision"], facts["MPI library"], facts["GPU support"]


def preload(faults=False):
    """The library for the installed GROMACS, if that is one whose source is known."""
    full, simd, *flavour = installed()
    if flavour != ["mixed", "thread_mpi", "disabled"]:
        raise Missing(f"gmx is built with {', '.join(flavour)}; mixed precision, thread-MPI and no GPU are what is compiled")
    return compiled(full.split("-")[0], simd, faults=faults)


if __name__ == "__main__":
    try:
        print(preload())
    except (Missing, RuntimeError) as problem:
        sys.exit(str(problem))
