# The project's commands. Whatever a fresh machine lacks is installed into .venv and target.

SHELL := /bin/sh
PYTHON ?= python3
VENV := .venv
# where the commands below, examples and tests look for what cargo builds
export CARGO_TARGET_DIR := $(CURDIR)/target
PY := $(VENV)/bin/python
# two tests at a time: most tests use a single core
PYTEST := $(PY) -m pytest -q -rs -n 2 --dist worksteal
BIN := target/release/modejump
ALA2 := models/ala2
DEMO := target/demo
DEMO_SECONDS ?= 90
HBONDS ?=
SUFFIX := $(if $(HBONDS),-hbonds,)

.PHONY: all venv build plugin test test-rust test-plugin test-mpi lammps-plugin test-lammps test-gromacs fuzz-targets lint demo train-demo test-openmm \
	test-openmmtools test-opencl test-cuda test-arm train-modes train-peptides moves ladder gallery dimer solvent gromacs-demo lammps-demo exchange-demo toy learned bench test-gpu \
	test-plugin-gpu sanitize-gpu bench-gpu bench-pytorch clean

all: build plugin

venv:
	@PYTHON=$(PYTHON) sh scripts/venv.sh

build: venv
	cargo build --release --features openmm

# Installs the plugin into the OpenMM of .venv; a stamp file avoids rebuilding when nothing has changed.
plugin: venv
	@sh scripts/plugin.sh

test: test-rust test-plugin test-cuda test-lammps test-gromacs test-mpi fuzz-targets

test-rust: venv
	@sh scripts/nvcc.sh
	cargo test --release --features openmm --lib --bins --tests
	cargo test --release --features openmm --doc

# Samples, weights and annealing on MPI ranks. The library, the program and this test are rebuilt with the `mpi` feature and little optimisation
# in a separate folder.
test-mpi: venv
	@sh scripts/mpi.sh cargo test --release --features openmm,mpi --config profile.release.opt-level=1 --config profile.release.debug=0 --target-dir target/mpi-build --test mpi

# Kernels on a GPU: parity with the CPU, and speed. All other kernel tests are part of test-rust.
test-gpu: venv
	cargo test --release --test cuda_cpu -- --ignored --nocapture
	MODEJUMP_TENSOR_CORES=1 cargo test --release --test cuda_cpu -- --ignored --nocapture gvp egnn graphormer mlp

# The test-gpu tests under the CUDA toolkit's compute-sanitizer; racecheck takes hours for all kernels. KERNELS="coupling weights" selects kernels,
# TOOLS the tools.
KERNELS ?=
TOOLS ?= memcheck synccheck racecheck
sanitize-gpu: venv
	for tool in $(TOOLS); do \
		compute-sanitizer --tool $$tool --error-exitcode 1 --target-processes all \
			cargo test --release --test cuda_cpu -- --ignored --nocapture $(KERNELS) || exit 1; \
	done

bench-gpu: build
	$(BIN) --device cuda bench coupling/sample coupling/log_density coupling/log_density_score gvp_flow egnn_flow \
		graphormer_ebm gvp_ebm invariant_ebm tarflow/sample tarflow/log_density tarflow/log_density_score prose
	MODEJUMP_TENSOR_CORES=1 $(BIN) --device cuda bench gvp_flow egnn_flow graphormer_ebm gvp_ebm invariant_ebm

# The work of bench-gpu in PyTorch, which must be installed for $(PYTHON).
bench-pytorch:
	$(PYTHON) benches/pytorch --warm

test-plugin: plugin
	$(PYTEST) openmm-plugin/tests

# The plugin tests with another OpenMM, 8.2 to 8.5, in an environment of its own, in which the README's command installs it.
OPENMM ?= 8.2
test-openmm:
	@PYTHON=$(PYTHON) sh scripts/openmm.sh $(OPENMM)

# The plugin tests on a GPU, in each precision; one test runs the generator there, too.
test-plugin-gpu: plugin
	MODEJUMP_TEST_PLATFORMS="CUDA:single CUDA:mixed CUDA:double" $(PY) -m pytest -q openmm-plugin/tests

# The plugin's device code, run in OpenCL on the CPU: slow, but the same code as for CUDA.
test-opencl: plugin
	MODEJUMP_TEST_PLATFORMS="OpenCL:single OpenCL:mixed OpenCL:double" sh scripts/opencl.sh \
		$(PY) -m pytest -q openmm-plugin/tests/test_devices.py openmm-plugin/tests/test_restore.py

# What runs on a GPU, on a graphics card in software: OpenMM's CUDA platform, the plugin on it, and a generator beside it. TESTS and PLATFORMS
# select others; all of openmm-plugin/tests in three precisions take hours.
TESTS ?= $(addprefix openmm-plugin/tests/, test_devices.py test_restore.py test_water.py)
PLATFORMS ?= CUDA:mixed
test-cuda: plugin
	MODEJUMP_TEST_PLATFORMS="$(PLATFORMS)" sh scripts/software_card.sh $(PYTEST) $(TESTS)

# The core's tests for 64-bit ARM, under emulation (Debian: apt install gcc-aarch64-linux-gnu qemu-user-static; rustup target add
# aarch64-unknown-linux-gnu): takes hours. FILTER="nn:: moves::" runs a part.
test-arm:
	CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc \
	CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64-static -L /usr/aarch64-linux-gnu" \
		cargo test --release --target aarch64-unknown-linux-gnu --lib -- $(FILTER)

# openmmtools is heavy and optional, so the tests of its adapter have their own environment and are not part of `make test`.
OPENMMTOOLS := target/openmmtools
test-openmmtools:
	[ -x $(OPENMMTOOLS)/bin/python ] || $(PYTHON) -m venv $(OPENMMTOOLS)
	$(OPENMMTOOLS)/bin/python -m pip install --quiet pytest mpi4py mpich './openmm-plugin[openmmtools]'
	$(OPENMMTOOLS)/bin/python -m pytest -q openmm-plugin/tests_openmmtools

lammps-plugin: venv
	$(VENV)/bin/cmake -S lammps-plugin -B target/lammps-plugin -G Ninja \
		-DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(VENV)/bin/ninja -DPython3_EXECUTABLE=$(CURDIR)/$(PY)
	$(VENV)/bin/cmake --build target/lammps-plugin

test-lammps: lammps-plugin
	$(PYTEST) lammps-plugin/tests

# These tests are skipped, with a message, where gmx is missing and cannot be installed.
test-gromacs: plugin build
	-@sh scripts/gromacs.sh
	$(PYTEST) tests/gromacs
	$(PYTEST) gromacs-plugin/tests

# Only checks that the fuzz targets compile; `cargo test --test fuzz_corpus` runs the same code, and fuzz/Cargo.toml explains how to fuzz.
fuzz-targets:
	cargo check --release --quiet --locked --manifest-path fuzz/Cargo.toml --target-dir target

# In release builds, whose build scripts and macros `make test` uses, too.
lint: venv
	cargo fmt --check
	cargo clippy --release --all-targets --features openmm -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --release --no-deps --features openmm
	@sh scripts/deny.sh

# Plain MD and MD with jumps side by side on alanine dipeptide; HBONDS=1 constrains bonds to hydrogen.
demo: build plugin
	@mkdir -p $(DEMO)
	$(BIN) reweight $(ALA2)/model$(SUFFIX).safetensors --system $(ALA2)/system$(SUFFIX).xml -n 20000 -o $(DEMO)/reweighted.json
	$(PY) examples/ala2_demo.py --seconds $(DEMO_SECONDS) $(if $(HBONDS),--hbonds) --reweighted $(DEMO)/reweighted.json --output $(DEMO)
	$(BIN) plot $(DEMO)/series.json $(DEMO)/reweighted.json -o $(DEMO)

# Trains the shipped generator from scratch: molecular dynamics for frames, training, and importance weights to assess the result.
# About ten minutes on two cores. The training curves are drawn next to the model.
train-demo: build
	@mkdir -p $(DEMO)
	$(BIN) train --topology $(ALA2)/topology.pdb --system $(ALA2)/system$(SUFFIX).xml --config $(ALA2)/train.json \
		--log $(DEMO)/training.jsonl -o $(DEMO)/model$(SUFFIX).safetensors
	$(BIN) reweight $(DEMO)/model$(SUFFIX).safetensors --system $(ALA2)/system$(SUFFIX).xml -n 20000

# TarFlows of alanine dipeptide and Ala-Ala-Ala trained from scratch, and the table of docs/tarflow.md: frames from molecular dynamics with jumps
# of a coupling flow, which visits all basins often enough (the shipped flow, or for Ala-Ala-Ala one that is trained first), then maximum
# likelihood on one core (about twenty-five minutes of an idle one; about fifteen for Ala-Ala-Ala, including the preceding steps). An interrupted
# run is resumed.
PEPTIDES := target/peptides
ALA3 := models/ala3
train-peptides: build $(PEPTIDES)/ala2.safetensors $(PEPTIDES)/ala3.safetensors
	RAYON_NUM_THREADS=1 $(BIN) train --model tarflow --topology $(ALA2)/topology.pdb --frames $(PEPTIDES)/ala2.safetensors \
		--config $(ALA2)/tarflow.json --checkpoint $(PEPTIDES)/tarflow.ckpt --log $(PEPTIDES)/tarflow.jsonl -o $(PEPTIDES)/tarflow.safetensors
	RAYON_NUM_THREADS=1 $(BIN) train --model tarflow --topology $(ALA3)/topology.pdb --frames $(PEPTIDES)/ala3.safetensors \
		--config $(ALA3)/tarflow.json --checkpoint $(PEPTIDES)/tarflow-ala3.ckpt --log $(PEPTIDES)/tarflow-ala3.jsonl \
		-o $(PEPTIDES)/tarflow-ala3.safetensors
	$(PY) examples/tarflow_table.py --output $(PEPTIDES)

$(PEPTIDES)/ala2.safetensors: | build
	@mkdir -p $(PEPTIDES)
	$(BIN) md --topology $(ALA2)/topology.pdb --system $(ALA2)/system.xml --model $(ALA2)/model.safetensors -n 3000000 --record 15 \
		--checkpoint $@.ckpt -o $(@D)/begun-$(@F)
	mv $(@D)/begun-$(@F) $@

$(PEPTIDES)/ala3.safetensors: | build
	@mkdir -p $(PEPTIDES)
	$(BIN) train --topology $(ALA3)/topology.pdb --system $(ALA3)/system.xml --config $(ALA3)/train.json \
		--checkpoint $(PEPTIDES)/ala3.ckpt --log $(PEPTIDES)/ala3.jsonl -o $(PEPTIDES)/ala3-model.safetensors
	$(BIN) md --topology $(ALA3)/topology.pdb --system $(ALA3)/system.xml --model $(PEPTIDES)/ala3-model.safetensors \
		-n 2000000 --record 15 --checkpoint $@.ckpt -o $(@D)/begun-$(@F)
	mv $(@D)/begun-$(@F) $@

# A generator for each of the two basins of alanine dipeptide, in one model file: frames from molecular dynamics in each basin, then training.
# MODES=modes-phi-psi: three basins, defined by both torsions.
MODES ?= modes
train-modes: build
	@mkdir -p target/modes
	for seed in 1 2 3 4; do $(BIN) md --topology $(ALA2)/c7ax.pdb --system $(ALA2)/system.xml -n 250000 --record 20 --seed $$seed \
		-o target/modes/c7ax-$$seed.npy || exit 1; done
	for seed in 1 2; do $(BIN) md --topology $(ALA2)/topology.pdb --system $(ALA2)/system.xml -n 250000 --record 10 --seed $$seed \
		-o target/modes/c7eq-$$seed.npy || exit 1; done
	$(BIN) train --modes $(ALA2)/$(MODES).json --topology $(ALA2)/topology.pdb --system $(ALA2)/system.xml \
		--config $(ALA2)/$(MODES)-train.json --frames target/modes/*.npy -o target/modes/$(MODES:modes%=jump%).safetensors

# Every move on alanine dipeptide: the table of docs/moves.md, and the torsions of every run.
moves: build
	$(PY) examples/moves/run.py --output target/moves
	$(BIN) plot target/moves/series.json -o target/moves

# Jumps of a solute in explicit solvent, with frozen solvent and on driven paths: the tables of docs/solvent.md. Half an hour on one core.
solvent: plugin
	$(PY) examples/solvated_jumps.py chain ala2 --output target/solvent

# One steerable model for five temperatures: the last table of docs/moves.md.
ladder: build plugin
	$(PY) examples/temperature_ladder.py --iterations 600 --output target/ladder

# The figures of docs/gallery.md, from the results of make moves, ladder and solvent.
gallery: venv
	$(PY) examples/moves/gallery.py target -o target/gallery

# A dimer with two states in a dense bath of 36 particles that can change places: training of the bijection, jumps, and umbrella
# sampling for comparison. About ten minutes on two cores.
dimer:
	cargo run --release --example lj_dimer -- target/dimer

# Alanine dipeptide in vacuum with LAMMPS; the data file is made from the OpenMM System.
lammps-demo: lammps-plugin
	$(PY) examples/lammps-ala2/make.py --output target/lammps-ala2 --run

# Plain mdrun, then mdrun with jumps, on alanine dipeptide in vacuum.
GROMACS_SECONDS ?= 60
gromacs-demo: build
	@sh scripts/gromacs.sh
	$(PY) examples/gromacs-ala2/run.py --seconds $(GROMACS_SECONDS) --output target/gromacs-demo
	$(BIN) plot target/gromacs-demo/series.json -o target/gromacs-demo

# Learned replica exchange of alanine dipeptide in vacuum between 1000 K and 300 K, compared with a temperature ladder: the figures of
# docs/replica-exchange.md.
exchange-demo: build plugin
	$(PY) examples/learned_exchange.py --output target/exchange

# Two losses for energy-based models, alone and combined, tested on two exact densities in the plane: the table and figures of
# docs/two-dimensional-study.md. Twelve minutes on two shared cores.
toy:
	cargo run --release --example two_dimensional_ebm -- target/toy

# Exact density, energy-based model and delayed acceptance on the same proposals of a continuous flow: the table and figure of
# docs/learned-likelihoods.md. Computes LEARNED_N exact densities, half a second of one core each.
LEARNED_N ?= 1000
learned: build
	cargo run --release --features openmm --example learned_likelihood -- $(ALA2)/gvp-flow.safetensors \
		$(ALA2)/invariant-ebm.safetensors $(ALA2)/system.xml $(LEARNED_N) target/learned

bench:
	cargo bench

clean:
	rm -rf target build
