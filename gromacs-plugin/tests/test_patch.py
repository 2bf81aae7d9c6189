"""The script that patches the source, on md.cpp as it was released."""

import subprocess

import pytest

import gromacs_source
from gromacs_source import Missing, patch

VERSIONS = sorted(gromacs_source.SHA256)


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """By version, md.cpp and the file that tells the version."""
    texts = {}

    def get(version):
        if version not in texts:
            folder = tmp_path_factory.mktemp(version)
            members = f"gromacs-{version}/CMakeLists.txt", f"gromacs-{version}/src/gromacs/mdrun/md.cpp"
            try:
                source = gromacs_source.unpack(version, folder, *members)
            except Missing as problem:
                pytest.skip(str(problem))
            texts[version] = [(source / member.split("/", 1)[1]).read_bytes() for member in members]
        return texts[version]

    return get


class Tree:
    """As much of a source as the script looks at."""

    def __init__(self, folder, version, md):
        self.top = folder
        self.md = folder / "src" / "gromacs" / "mdrun" / "md.cpp"
        self.md.parent.mkdir(parents=True)
        (folder / "CMakeLists.txt").write_bytes(version)
        self.md.write_bytes(md)

    def __call__(self, *options):
        return patch(self.top, *options)

    def files(self):
        return {path: path.read_bytes() for path in self.md.parent.rglob("*") if path.is_file()}

    def refused(self, *options):
        before = self.files()
        done = self(*options)
        assert done.returncode != 0 and "Traceback" not in done.stderr, done.stderr
        assert self.files() == before
        return done.stderr


@pytest.fixture(params=VERSIONS)
def tree(request, released, tmp_path):
    return Tree(tmp_path / "source", *released(request.param))


def test_patching_twice_is_patching_once_and_reverting_gives_the_original(tree):
    original = tree.md.read_bytes()
    check = tree("--check")
    assert check.returncode == 0 and "can be patched" in check.stdout and tree.md.read_bytes() == original
    done = tree()
    assert done.returncode == 0 and "is patched" in done.stdout, done.stderr
    patched = tree.md.read_bytes()
    assert patched != original and b"modejumpHook.attempt(" in patched
    assert sorted(path.name for path in tree.md.parent.iterdir()) == ["md.cpp", "modejump"]
    assert {"hook.h", "modejump.h", "mover.h"} < {path.name for path in (tree.md.parent / "modejump").iterdir()}
    again = tree()
    assert again.returncode == 0 and "already patched" in again.stdout and tree.md.read_bytes() == patched
    assert "already patched" in tree("--check").stdout
    assert tree("--revert").returncode == 0
    assert tree.md.read_bytes() == original and [path.name for path in tree.md.parent.iterdir()] == ["md.cpp"]
    assert "is not patched" in tree("--revert").stdout


def test_an_older_patch_is_brought_up_to_date(tree):
    tree()
    patched = tree.md.read_bytes()
    tree.md.write_bytes(patched.replace(b"modejumpHook.finish();", b"modejumpHook.end();"))
    (tree.md.parent / "modejump/hook.h").write_text("older\n")
    assert "can be patched" in tree("--check").stdout
    assert tree().returncode == 0 and tree.md.read_bytes() == patched
    assert (tree.md.parent / "modejump/hook.h").read_text() != "older\n"


@pytest.mark.parametrize(
    "anchor",
    [
        '#include "shellfc.h"\n',
        "    bFirstStep = TRUE;\n",
        "bNS = (bFirstStep || bNStList || bExchanged || bNeedRepartition",
        "(bCalcEner ? GMX_FORCE_ENERGY : 0)",
        " do_force(",
        "if ((bExchanged || bNeedRepartition) && haveDDAtomOrdering(",
        "        if (bExchanged)\n",
        "    /* End of main MD loop */\n",
    ],
)
def test_a_source_without_its_anchors_is_refused(tree, anchor):
    original = tree.md.read_text()
    assert anchor in original
    start = original.index(anchor)
    whole = original[start : original.index("\n", start + len(anchor) - 1) + 1]
    tree.md.write_text(original.replace(whole, "/* gone */"))
    assert "0 times, expected once" in tree.refused()
    tree.md.write_text(original.replace(whole, whole + "/* twice */" + whole))
    assert "2 times, expected once" in tree.refused()


def test_a_version_that_is_not_known_is_refused(tree):
    text = (tree.top / "CMakeLists.txt").read_text()
    for version in ("2019.6", "2023.5", "2024.6", "2031.1"):
        for known in VERSIONS:
            text = text.replace(f"project(Gromacs VERSION {known})", f"project(Gromacs VERSION {version})")
        (tree.top / "CMakeLists.txt").write_text(text)
        assert f"GROMACS {version} is not supported" in tree.refused()
        text = text.replace(version, VERSIONS[0])


def test_what_is_no_source_is_refused(tmp_path):
    done = patch(tmp_path)
    assert done.returncode != 0 and "is not a source folder of GROMACS" in done.stderr


def test_edits_after_the_patch_are_not_lost(tree):
    tree()
    tree.md.write_bytes(tree.md.read_bytes() + b"// mine\n")
    assert "was edited after it was patched" in tree.refused("--revert")
    assert "was edited after it was patched" in tree.refused()


def test_the_newest_version_compiles():
    """The patched md.cpp, as an object: that of the installed version is compiled, and run, by the other tests."""
    missing = []
    for version in reversed(VERSIONS[1:]):
        try:
            done = gromacs_source.compiled(version, shared=False)
            break
        except Missing as problem:
            missing.append(str(problem))
    else:
        pytest.skip("; ".join(missing))
    symbols = subprocess.run(["nm", "-C", done], capture_output=True, text=True, check=True).stdout
    assert "T gmx::LegacySimulator::do_md()" in symbols and "modejump::Hook::attempt" in symbols
