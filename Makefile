# `make` lists what there is. The two to know: `make test` and `make demo`.

SHELL := bash
CARGO ?= cargo
# The ext4 tools live where an ordinary user's PATH does not look.
export PATH := $(PATH):/usr/sbin:/sbin

.DEFAULT_GOAL := help
.PHONY: help build test test-slow iotests iotests-quick demo demo-images check deny miri schedules mutants bench compare comparefs compare-peers fuzz torture install clean

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## The imgtool program, optimised, in target/release
	scripts/setup.sh build
	$(CARGO) build --release --package imgtool

test: ## All tests, those against QEMU and the ext4 tools included (installs what is missing)
	scripts/setup.sh test
	$(CARGO) test --workspace --all-features --no-fail-fast

test-slow: ## What takes minutes and a network: Debian 12 and Ubuntu built by their recipes, and booted
	scripts/setup.sh test-slow
	$(CARGO) test --package machines --test distributions -- --nocapture --test-threads=1

iotests: ## All of QEMU's own tests of qemu-img that are expected to pass with imgtool in its place (fetches them)
	scripts/setup.sh test
	$(CARGO) build --release --package imgtool
	tests/qemu-iotests.sh target/release/imgtool all

iotests-quick: ## Those of them that take seconds: three minutes on two processors, with the fetching
	scripts/setup.sh test
	$(CARGO) build --release --package imgtool
	tests/qemu-iotests.sh target/release/imgtool quick

demo: ## A template from a recipe, three clones, one of them booted, each step verified by other tools
	scripts/setup.sh demo
	$(CARGO) build --release --package imgtool
	scripts/demo.sh

demo-images: ## A Debian system's disk to a compressed base, copy-on-write clones and back, beside qemu-img
	scripts/setup.sh demo
	$(CARGO) build --release --package imgtool
	scripts/demo-images.sh

check: ## Formatting, lints and documentation, with warnings as errors
	scripts/setup.sh check
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --all-features -- -D warnings
	$(CARGO) clippy --package machines --test distributions --all-features -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --all-features --no-deps

deny: ## Licences, advisories and sources of all dependencies (needs cargo-deny: `cargo install --locked cargo-deny`)
	$(CARGO) deny check

# Tree borrows: bitvec keeps more in its pointers than stacked borrows have words for. Left out is what takes minutes.
miri: export MIRIFLAGS = -Zmiri-disable-isolation -Zmiri-tree-borrows
miri: export PROPTEST_CASES = 4
miri: ## Parsers of qcow2, the cache of block with its threads, and the simulator of power cuts, by Miri (installs it)
	scripts/setup.sh miri
	$(CARGO) +nightly miri test --package qcow2 --all-features --lib -- \
		entry:: feature:: geometry:: metadata_map:: bitmap::directory bitmap::table extension:: --skip what_is_plain --skip qemu
	$(CARGO) +nightly miri test --package block --all-features --lib -- \
		error:: extent:: size:: slice_cache:: test_utils::crash::tests::a_ test_utils::crash::tests::one_

# Apart from what else is built: every crate is another one with these locks.
schedules: ## Threads on one image, by Shuttle, in orders that are drawn at every use of a lock; TORTURE=10 tries ten times as many
	RUSTFLAGS="--cfg shuttle" $(CARGO) test --target-dir target/shuttle --package qcow2 --test schedules

mutants: ## The code of refcounts with each part of it changed: what no test notices is listed (needs cargo-mutants)
	$(CARGO) mutants --no-shuffle --package qcow2 --file qcow2/src/refcount.rs --file qcow2/src/refcount_table.rs --output target -- --lib refcount

bench: ## All benchmarks; `make bench BENCH=lookup` runs those whose name contains it
	scripts/setup.sh build
	$(CARGO) bench --package benches -- $(BENCH)

compare: ## Whole commands beside qemu-img's; `make compare WHAT=snapshot` runs those whose name contains it
	scripts/setup.sh test
	$(CARGO) build --release --package imgtool
	scripts/compare.sh "$(WHAT)"

comparefs: ## imgtool mkfs beside mke2fs -d and mkext4: processor time and memory
	scripts/setup.sh test
	$(CARGO) build --release --package imgtool
	$(CARGO) build --release --package benches --example mkext4
	scripts/comparefs.sh $(WHAT)

compare-peers: ## The crates imago and qcow2-rs beside this library, by criterion; `BENCH=chain` runs those whose name contains it
	scripts/setup.sh test
	$(CARGO) bench --manifest-path benches/peers/Cargo.toml -- $(BENCH)

fuzz: ## Each fuzz target for FUZZ_SECONDS (60) seconds
	scripts/fuzz.sh

torture: ## Power cuts, TORTURE (10) times as many as in the tests, from seed TORTURE_SEED (0) on, and kills
	scripts/torture.sh

install: ## imgtool into cargo's bin directory
	scripts/setup.sh build
	$(CARGO) install --path imgtool --locked

clean: ## Remove everything built, the demo's cached root filesystem too
	$(CARGO) clean
