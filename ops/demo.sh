#!/bin/sh
# The whole deployment on this host with the mock in the place of Ollama, a tenant and a fresh key.
#   ops/demo.sh           start it, and print commands to paste
#   ops/demo.sh --down    stop it and remove its data
set -eu
umask 077
cd "$(dirname "$0")"
state=.demo
settings="$state/env"
authority="$state/root.crt"
port="${PORT:-8443}"

compose() {
    # By its name, whatever the environment calls its own: --down removes volumes.
    docker compose --project-name neuronetz-demo --env-file "$settings" --file compose.yaml --file compose.demo.yaml "$@"
}

secret() {
    od -An -tx1 -N24 /dev/urandom | tr -d ' \n'
}

if [ "${1:-}" = "--down" ]; then
    if [ -f "$settings" ]; then
        compose down --volumes --remove-orphans --timeout 40
        rm -rf "$state"
    else
        echo "no demo is here" >&2
    fi
    exit
fi
if [ $# -gt 0 ]; then
    echo "usage: ops/demo.sh [--down]" >&2
    exit 2
fi

mkdir -p "$state"
# Once for each demo: the stores' volumes keep the passwords that they were made with.
if [ ! -f "$settings" ]; then
    {
        echo "SITE_ADDRESS=localhost"
        echo "EDGE_SUBNET=172.30.255.16/28"
        echo "POSTGRES_PASSWORD=$(secret)"
        echo "GATEWAY_PASSWORD=$(secret)"
        echo "REDIS_PASSWORD=$(secret)"
        echo "HTTP_PUBLISHED=127.0.0.1:${HTTP_PORT:-8081}"
        echo "HTTPS_PUBLISHED=127.0.0.1:$port"
    } >"$settings.new"
    mv "$settings.new" "$settings"
fi

compose up --build --detach --wait
compose exec -T gateway neuronetz tenant show demo >/dev/null 2>&1 ||
    compose exec -T gateway neuronetz tenant create demo --allow-all-models >/dev/null
compose cp caddy:/data/caddy/pki/authorities/local/root.crt "$authority" >/dev/null

address="https://localhost:$(sed -n 's/^HTTPS_PUBLISHED=.*://p' "$settings")"
echo "The demo is running at $address. A fresh key of its tenant:"
compose exec -T gateway neuronetz key create demo --name demo
cat <<EOF

With the key in KEY:

  curl -N --cacert $(pwd)/$authority $address/api/chat -H "Authorization: Bearer \$KEY" \\
    -d '{"model": "tiny", "messages": [{"role": "user", "content": "Hello!"}]}'

ops/demo.sh --down stops it and removes its data.
EOF
