# neuronetz: `just` lists the recipes

set positional-arguments
run := "uv run --locked --all-extras"

# list the recipes
_default:
    @just --list --unsorted

# start everything on this machine: stores, a mock Ollama, the gateway, a fresh key
[no-exit-message]
demo *args:
    @{{ run }} --no-default-groups neuronetz demo "$@"

# stop a running demo and remove its data
demo-down:
    @{{ run }} --no-default-groups neuronetz demo --down --yes

# the same stores before your own Ollama: OLLAMA_URL=http://127.0.0.1:11434 just dev
[no-exit-message]
dev *args:
    @{{ run }} --no-default-groups neuronetz dev "$@"

# run the tests (all of them, or what pytest's arguments select)
test *args:
    @{{ run }} pytest -n auto "$@"

# format, lint, types, import contracts, tests: what must be green before a commit
check:
    @{{ run }} ruff format --check .
    @{{ run }} ruff check .
    @{{ run }} mypy
    @{{ run }} lint-imports
    @just test

# clients and disasters of all kinds at several gateways, then the reckoning; --seconds 60 --seed 7
[no-exit-message]
chaos *args:
    @{{ run }} python -m tests.chaos "$@"

# speed beside other ways to the same upstream, in one table; --only "chat paced", --streams 1000 --workers 2, --quick
[no-exit-message]
bench *args:
    @{{ run }} python -m tests.bench "$@"

# a flame graph of the gateway under one load; --shape "chat stream" --clients 16 --seconds 10
[no-exit-message]
profile *args:
    @{{ run }} python -m tests.bench.profile "$@"

# half of what the gateway can do, for --minutes 10: memory and descriptors must stay flat
[no-exit-message]
soak *args:
    @{{ run }} python -m tests.bench.soak "$@"

# look for what the tests did not: random examples until the time is up (--minutes, --seed, --examples, -k)
[no-exit-message]
fuzz *args:
    @{{ run }} python -m tests.fuzz "$@"

# build the documents into site/, strictly; `just docs --serve` shows them at 127.0.0.1:8000 as they are written
docs *args:
    @{{ run }} mkdocs {{ if args == "--serve" { "serve --strict" } else { "build --strict --clean " + args } }}

# check all, build sdist and wheel into dist/, try the wheel, tag if confirmed; it never pushes
release:
    @{{ run }} python ops/release.py

# mend formatting and what the linter can mend
fix:
    @{{ run }} ruff format .
    @{{ run }} ruff check --fix .
