# What one does with blockbt's source. One build profile for everything, so that dependencies are compiled once.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PREFIX ?= /usr/local
export PATH := $(PATH):$(HOME)/.cargo/bin
CARGO := cargo
# Root for what needs it, with the caller's cargo.
ROOT := $(if $(filter-out 0,$(shell id -u)),sudo env "PATH=$(PATH)" "CARGO_HOME=$(or $(CARGO_HOME),$(HOME)/.cargo)" "RUSTUP_HOME=$(or $(RUSTUP_HOME),$(HOME)/.rustup)",)
# What the random tests of vm-tests/ take from the environment: their seed, and how much of them.
VM_SIZES = PYTHONDONTWRITEBYTECODE=1 $(foreach name,SEED CUTS KILLS CROWD MINUTES DEEPEST,$(if $($(name)),$(name)=$($(name))))

.PHONY: help demo build test vm-test vm-test-long vm-test-qemu vm-bench vm-bench-readme bench fuzz lint fmt install clean

help: ## Show this list
	@printf 'make TARGET, as root or with sudo at hand:\n\n'
	@awk -F ':.*## ' '/^[a-z-]*:.*## / { printf "  %-14s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## Show the whole path: import, clone, write, commit, publish, pull on a second host
	@packaging/setup-debian.sh build demo
	@$(MAKE) --no-print-directory build
	@$(ROOT) packaging/demo.sh

build: ## Build blockbtd and blockbt-ctl (target/release)
	@packaging/setup-debian.sh build
	@$(CARGO) build --release --locked --quiet

test: ## Run all tests but those that need a kernel of their own (root, FUSE and loop devices are used)
	@packaging/setup-debian.sh build test
	@$(if $(ROOT),echo "make test uses sudo: it tests mounts and FUSE and loop devices",:)
	@$(ROOT) $(CARGO) test --release --locked --quiet --features root-tests

vm-test: build ## Boot user-mode Linux and compare its kernel's view of our deltas with ours
	@packaging/setup-debian.sh build test
	@$(ROOT) env $(VM_SIZES) vm-tests/run $(TESTS)

vm-test-long: build ## A thousand power cuts, a hundred kills of the machine, 200 clones at once, and as much of the other random tests (hours)
	@packaging/setup-debian.sh build test
	@$(ROOT) env $(VM_SIZES) CUTS=$(or $(CUTS),1000) KILLS=$(or $(KILLS),100) MINUTES=$(or $(MINUTES),20) CROWD=$(or $(CROWD),200) vm-tests/run power-cut power-kill verify fault-crowd

vm-test-qemu: build ## The same on Debian's own kernel under emulation, for a short list, with fs-verity enforced
	@packaging/setup-debian.sh build test qemu
	@$(ROOT) env $(VM_SIZES) vm-tests/run --stock $(TESTS)

vm-bench: build ## Measure the kernel modes in user-mode Linux, beside overlayfs, dm-thin, qcow2 and raw loops: target/vm-bench.md
	@packaging/setup-debian.sh build test bench
	@$(ROOT) vm-tests/bench $(ROWS)

vm-bench-readme: ## Put the last table of vm-bench into the README
	@vm-tests/bench --readme

bench: build ## Measure the figures of target/bench.md (a few minutes; better on a quiet machine)
	@packaging/setup-debian.sh build test
	@$(ROOT) $(CARGO) bench --profile release --locked --quiet --bench figures -- $(ROWS)

fuzz: ## Feed random bytes to all that parses what others made, a minute each (SECONDS_EACH=, TARGETS=)
	@packaging/setup-debian.sh build fuzz
	@SECONDS_EACH=$(SECONDS_EACH) fuzz/run $(TARGETS)

lint: ## Check formatting, and everything clippy says
	@packaging/setup-debian.sh build
	@$(CARGO) fmt --check
	@$(CARGO) clippy --release --locked --quiet --all-targets --test kernel_stores --test kernel_dm --all-features -- -D warnings

fmt: ## Format the source
	@$(CARGO) fmt

install: build ## Install into PREFIX (/usr/local), with man pages, completions and systemd units
	install -D -s -m 0755 -t $(DESTDIR)$(PREFIX)/sbin target/release/blockbtd target/release/blockbt-ctl
	install -d $(DESTDIR)$(PREFIX)/share/man/man1 $(DESTDIR)$(PREFIX)/share/bash-completion/completions
	target/release/blockbt-ctl man $(DESTDIR)$(PREFIX)/share/man/man1
	target/release/blockbt-ctl completions bash > $(DESTDIR)$(PREFIX)/share/bash-completion/completions/blockbt-ctl
	install -d $(DESTDIR)/etc/systemd/system
	for unit in packaging/systemd/*.service; do sed 's#/usr/s*bin/blockbt#$(PREFIX)/sbin/blockbt#' "$$unit" > "$(DESTDIR)/etc/systemd/system/$${unit##*/}"; done

clean: ## Remove target/, the demo's cache included
	@$(CARGO) clean --quiet
