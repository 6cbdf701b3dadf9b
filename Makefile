# Each target does all of its own set-up on a machine with Rust, Node.js >= 20 with npm, and a C compiler.

.PHONY: demo test test-shim test-postgres test-helm test-isolation test-upgrade test-cgroup-v2 check-aarch64 lint doc bench check-tools

## Publish examples/login into a service of its own, invoke its functions, show what happened.
demo: check-tools
	cargo build --locked --bin chatfn
	cargo run --locked --quiet --bin chatfn -- demo examples/login

## All tests: the shim's, the crate's (unit, architecture, end to end, attacks), then the chart's, which ask the program that was built.
test: check-tools test-shim
	scripts/with-postgres cargo test --locked
	@$(MAKE) --no-print-directory test-postgres
	@$(MAKE) --no-print-directory test-helm

# Left out: three tests that open SQLite's file, and two that expect a killed service's work to be taken over at once when it starts
# again, which here waits for replica_timeout.
NOT_ON_POSTGRES = --skip a_version_of_another_node_is_warned_of --skip credentials_and_tokens_outlive_a_crash \
	--skip a_history_that_cannot_be_written --skip what_ran_when_the_service_was_killed --skip one_apps_backlog_keeps_no_other_waiting

## What is tested of the store on SQLite, on PostgreSQL; and the service on it through the front door.
test-postgres:
	ENGINE_FOR_TESTS=postgres scripts/with-postgres cargo test --locked --lib -- store:: history:: auth:: artifacts::
	ENGINE_FOR_TESTS=postgres scripts/with-postgres cargo test --locked --test e2e -- $(NOT_ON_POSTGRES) \
		audit:: events:: queue:: dead_letters:: idempotency:: versions:: activation:: credentials history:: rest::

test-shim: check-tools
	node --test node-shim/test/*.test.js

## The Helm chart and the Containerfile: rendered, linted and validated for many values, and Envoy's part run in a real Envoy.
test-helm:
	scripts/test-helm

## Those tests that attack the service as a tenant, in every mode that this machine has; as root, for all of them.
test-isolation: check-tools
	cargo test --locked --test isolation

## Services of an older revision (REV, by default the newest tag) beside those of this tree; builds that revision.
test-upgrade: check-tools
	scripts/test-upgrade $(REV)

## What depends on cgroup v2, in a virtual machine that has nothing else; as root it installs what that takes.
test-cgroup-v2: check-tools
	scripts/test-cgroup-v2

## What CI refuses: formatting, lints, broken documentation.
lint: check-tools
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings

## Lints for the other architecture; takes `rustup target add aarch64-unknown-linux-gnu` and gcc-aarch64-linux-gnu.
check-aarch64: check-tools
	CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc cargo clippy --locked --lib --bin chatfn --target aarch64-unknown-linux-gnu -- -D warnings

doc: check-tools
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --document-private-items

## The frame codec, what a worker's start costs in each mode, what the queue costs, and what calls, workers and apps cost a whole service,
## with a fleet simulated from that; to load a service of yours see `chatfn bench --help`.
bench: check-tools
	cargo bench --locked --bench codec
	cargo bench --locked --bench spawn
	cargo bench --locked --bench queue
	scripts/with-postgres cargo bench --locked --bench costs
	cargo bench --locked --bench capacity

check-tools:
	@scripts/check-tools
