"""The blocks of commands that no test of the documents runs, each with the reason."""

_STARTS_A_DEMO = "installs, and starts a demo that stays: tests/local/test_demo.py starts one"
_RUNS_TESTS = "runs the tests, of which this would be one"

# Page, then the block's first line.
NOT_RUN: dict[str, dict[str, str]] = {
    "README.md": {
        "pip install uv rust-just && just demo": _STARTS_A_DEMO,
        "pip install uv rust-just && just test": _RUNS_TESTS,
        "pip install .                      # without the embedded servers": "names hosts of a network that is not"
        " here; tests/local/test_serve.py and tests/cli run the same commands",
    },
    "docs/BENCHMARKS.md": {
        "just bench": "takes minutes: tests/bench/test_bench.py is a short run",
        "uv tool install 'litellm[proxy]'": "installs other projects' gateways, which the tests do without",
        'just profile --shape "chat stream" --clients 16 --seconds 10': "takes minutes: tests/bench/test_soak.py is a short run of both",
        "python -m tests.bench.counts        # what is counted now, and the bounds": "writes the bounds: tests/bench/test_counts.py counts the same",
    },
    "docs/CLI.md": {
        "neuronetz audit --follow                      # the latest ten, then each request within about a second of"
        " its end": "goes on until it is stopped: tests/local/test_follow.py",
    },
    "docs/DEPLOYMENT.md": {
        "install -m 600 ops/example.env ops/.env        # the name (SITE_ADDRESS) and three passwords; nothing starts"
        " without": "needs a container engine: tests/ops checks what the files say",
        "python3 -m venv /opt/neuronetz && /opt/neuronetz/bin/pip install .": "needs root and systemd: tests/ops reads"
        " the units with systemd's own reader, where it is there",
        "docker build -f ops/Dockerfile -t REGISTRY/neuronetz:0.1.0 .           # push it, and name it in"
        " kustomization.yaml": "needs a container engine and a cluster: tests/ops checks the manifests",
    },
    "docs/DEVELOPMENT.md": {
        "pip install uv rust-just": _RUNS_TESTS,
        "just chaos --seconds 60 --seed 7": "takes minutes: tests/chaos/test_chaos.py and tests/fuzz are short runs",
        "uv build --wheel --out-dir built": "fetches the tools that build it",
    },
    "docs/GUARANTEES.md": {
        "just test tests/guarantees                    # all proofs of this page": _RUNS_TESTS,
    },
    "docs/OPERATIONS.md": {
        "systemctl restart neuronetz": "needs root and systemd; tests/local/test_serve.py drains by the same signal",
    },
    "docs/TUTORIAL.md": {
        "pip install uv rust-just && just demo": _STARTS_A_DEMO + ", and test_tutorial.py another for this page",
        ". .venv/bin/activate": "the tests' own environment takes its place",
        "just demo-down": "would remove the reader's own demo: tests/local/test_demo.py",
    },
    "docs/index.md": {
        "pip install uv rust-just && just demo": _STARTS_A_DEMO,
    },
}
