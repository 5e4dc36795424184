#!/bin/sh
# Run once by the postgres image on an empty data folder: the gateway's role, which is no superuser, its database, and
# the role for whoever looks on (docs/DEPLOYMENT.md). Takes the password from GATEWAY_PASSWORD.
set -eu
psql -v ON_ERROR_STOP=1 -v password="$GATEWAY_PASSWORD" --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" <<'SQL'
CREATE ROLE gateway LOGIN PASSWORD :'password';
CREATE ROLE console NOLOGIN;
CREATE DATABASE gateway OWNER gateway;
REVOKE ALL ON DATABASE gateway FROM PUBLIC;
GRANT CONNECT ON DATABASE gateway TO console;
SQL
