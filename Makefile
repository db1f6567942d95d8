# `make` lists the targets. CI runs `make test` and nothing else.

PREFIX ?= /usr/local
SHELL := /bin/bash

.DEFAULT_GOAL := help
.PHONY: help demo demo-fleet test check bench build install uninstall fmt clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## the whole platform on this machine: set up, deploy examples/, call them; Ctrl-C ends it (DEMO_EXIT=1: by itself)
	@infra/demo.sh

demo-fleet: ## three agents behind a gateway: sticky routing, one agent killed under load, what the autoscaler says
	@infra/demo-fleet.sh

test: ## set up all that the tests need and run them all, against the real Docker Engine
	@infra/test.sh

check: ## quick and local: format, lints, unit tests
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- --deny warnings
	cargo test --workspace --exclude epsilon-e2e --locked --lib --bins

bench: ## measure Epsilon beside its references in one run, as ratios
	@infra/ensure-tools.sh
	@infra/ensure-docker.sh
	cargo build --release --locked --package epsilon-cli
	cargo run --release --locked --package epsilon-bench -- $(ARGS)

build: ## the release binaries: epsilon, epsilon-gateway, epsilon-vm-agent, epsilon-builder
	cargo build --release --locked --bins $(addprefix --package epsilon-,cli gateway vm-agent builder)

install: build ## put `epsilon` into PREFIX/bin (/usr/local), and the systemd unit beside it
	install -D -m 755 target/release/epsilon $(DESTDIR)$(PREFIX)/bin/epsilon
	install -d $(DESTDIR)$(PREFIX)/lib/systemd/system
	sed 's|/usr/local/bin|$(PREFIX)/bin|' infra/systemd/epsilon.service > $(DESTDIR)$(PREFIX)/lib/systemd/system/epsilon.service

uninstall: ## remove what `make install` put there
	rm -f $(DESTDIR)$(PREFIX)/bin/epsilon $(DESTDIR)$(PREFIX)/lib/systemd/system/epsilon.service

fmt: ## format the Rust code
	cargo fmt --all

clean: ## remove what cargo built
	cargo clean
