-- tenants, keys, limits, ledger, audit log, revocations
-- depends:

-- migrate: apply
CREATE SCHEMA IF NOT EXISTS gateway;

CREATE TABLE gateway.tenants (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    name text NOT NULL UNIQUE CHECK (name ~ '^[a-z0-9][a-z0-9_-]{0,62}$'),
    suspended_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE gateway.tenants IS 'Who pays: a tenant owns keys and bears limits over all of them.';
COMMENT ON COLUMN gateway.tenants.suspended_at IS 'Not null: every key of the tenant is refused.';

CREATE TABLE gateway.tenant_limits (
    tenant_id uuid PRIMARY KEY REFERENCES gateway.tenants ON DELETE CASCADE,
    rpm integer CHECK (rpm > 0),
    concurrency integer CHECK (concurrency > 0),
    budget_tokens bigint CHECK (budget_tokens >= 0),
    budget_period text NOT NULL DEFAULT 'month' CHECK (budget_period IN ('day', 'week', 'month')),
    max_predict integer CHECK (max_predict > 0),
    max_body_bytes integer CHECK (max_body_bytes > 0),
    allow_all_models boolean NOT NULL DEFAULT false,
    models text[] NOT NULL DEFAULT '{}',
    updated_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE gateway.tenant_limits IS 'Limits over all keys of a tenant together. NULL: no limit.';
COMMENT ON COLUMN gateway.tenant_limits.rpm IS 'Requests in any 60 seconds.';
COMMENT ON COLUMN gateway.tenant_limits.concurrency IS 'Requests at once.';
COMMENT ON COLUMN gateway.tenant_limits.budget_tokens IS 'Tokens, prompt and completion, in a budget period (UTC).';
COMMENT ON COLUMN gateway.tenant_limits.models IS 'Normalised model names; without effect where allow_all_models is set.';

CREATE TABLE gateway.api_keys (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    tenant_id uuid NOT NULL REFERENCES gateway.tenants ON DELETE CASCADE,
    name text NOT NULL CHECK (length(name) BETWEEN 1 AND 100),
    prefix text NOT NULL UNIQUE CHECK (prefix ~ '^nnz_[0-9A-Za-z]{8}$'),
    secret_hash text NOT NULL CHECK (secret_hash LIKE '$argon2id$%'),
    expires_at timestamptz,
    revoked_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX api_keys_tenant ON gateway.api_keys (tenant_id);
COMMENT ON TABLE gateway.api_keys IS 'API keys; of the secret only its argon2id hash is kept.';
COMMENT ON COLUMN gateway.api_keys.prefix IS 'The public first 12 characters, by which a key is looked up and named.';

CREATE TABLE gateway.key_limits (
    key_id uuid PRIMARY KEY REFERENCES gateway.api_keys ON DELETE CASCADE,
    rpm integer CHECK (rpm > 0),
    concurrency integer CHECK (concurrency > 0),
    budget_tokens bigint CHECK (budget_tokens >= 0),
    budget_period text CHECK (budget_period IN ('day', 'week', 'month')),
    max_predict integer CHECK (max_predict > 0),
    max_body_bytes integer CHECK (max_body_bytes > 0),
    allow_all_models boolean,
    models text[],
    updated_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE gateway.key_limits IS 'Limits of one key. NULL inherits the tenant''s value.';
COMMENT ON COLUMN gateway.key_limits.allow_all_models IS 'Not null overrides the tenant''s value.';

CREATE TABLE gateway.budget_usage (
    tenant_id uuid NOT NULL,
    key_id uuid NOT NULL,
    day date NOT NULL,
    prompt_tokens bigint NOT NULL DEFAULT 0 CHECK (prompt_tokens >= 0),
    completion_tokens bigint NOT NULL DEFAULT 0 CHECK (completion_tokens >= 0),
    requests bigint NOT NULL DEFAULT 0 CHECK (requests >= 0),
    PRIMARY KEY (tenant_id, key_id, day)
);
COMMENT ON TABLE gateway.budget_usage IS
    'The ledger: tokens by key and UTC day. It moves in the statement that inserts audit rows, and only for rows that were inserted. Weeks and months are sums of days. No foreign keys: a row of usage must never be refused.';

CREATE TABLE gateway.audit_log (
    request_id uuid NOT NULL,
    started_at timestamptz NOT NULL,
    tenant_id uuid NOT NULL,
    key_id uuid NOT NULL,
    endpoint text NOT NULL,
    dialect text NOT NULL,
    model text,
    stream boolean NOT NULL,
    status integer NOT NULL CHECK (status BETWEEN 100 AND 599),
    outcome text NOT NULL CHECK (outcome ~ '^[a-z_]{1,40}$'),
    prompt_tokens bigint NOT NULL CHECK (prompt_tokens >= 0),
    completion_tokens bigint NOT NULL CHECK (completion_tokens >= 0),
    tokens_exact boolean NOT NULL,
    budget_day date NOT NULL,
    duration_ms integer NOT NULL CHECK (duration_ms >= 0),
    first_byte_ms integer CHECK (first_byte_ms >= 0),
    client_ip text,
    instance text NOT NULL,
    PRIMARY KEY (started_at, request_id)
) PARTITION BY RANGE (started_at);
CREATE TABLE gateway.audit_log_default PARTITION OF gateway.audit_log DEFAULT;
CREATE INDEX audit_log_tenant ON gateway.audit_log (tenant_id, started_at DESC);
CREATE INDEX audit_log_key ON gateway.audit_log (key_id, started_at DESC);
COMMENT ON TABLE gateway.audit_log IS
    'Exactly one row for each authenticated request. Partitioned by month; retention drops whole partitions.';
COMMENT ON COLUMN gateway.audit_log.tokens_exact IS
    'False: counted while streaming, since the upstream did not get to report.';
COMMENT ON COLUMN gateway.audit_log.budget_day IS 'The UTC day of the ledger that the tokens were charged to.';

CREATE TABLE gateway.prompt_log (
    request_id uuid PRIMARY KEY,
    tenant_id uuid NOT NULL,
    key_id uuid NOT NULL,
    prompt text NOT NULL,
    completion text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL
);
CREATE INDEX prompt_log_expiry ON gateway.prompt_log (expires_at);
COMMENT ON TABLE gateway.prompt_log IS 'Prompts and completions of keys that opted in, until they expire.';

CREATE TABLE gateway.revocations (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    prefix text NOT NULL REFERENCES gateway.api_keys (prefix) ON DELETE CASCADE,
    reason text,
    created_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE gateway.revocations IS
    'Outbox: inserting a row revokes the key and tells every gateway. Listeners that were away read on from their last id.';

CREATE FUNCTION gateway.revoke_key() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body$
BEGIN
    UPDATE gateway.api_keys SET revoked_at = coalesce(revoked_at, now()) WHERE prefix = NEW.prefix;
    PERFORM pg_notify('key_revoked', NEW.id || ':' || NEW.prefix);
    RETURN NEW;
END
$body$;
REVOKE ALL ON FUNCTION gateway.revoke_key() FROM PUBLIC;
CREATE TRIGGER key_revoked AFTER INSERT ON gateway.revocations
    FOR EACH ROW EXECUTE FUNCTION gateway.revoke_key();

CREATE FUNCTION gateway.announce_policy() RETURNS trigger
LANGUAGE plpgsql AS $body$
BEGIN
    PERFORM pg_notify('policy_changed', CASE TG_TABLE_NAME
        WHEN 'tenants' THEN 'tenant:' || (to_jsonb(NEW) ->> 'id')
        WHEN 'tenant_limits' THEN 'tenant:' || (to_jsonb(NEW) ->> 'tenant_id')
        WHEN 'api_keys' THEN 'key:' || (to_jsonb(NEW) ->> 'id')
        ELSE 'key:' || (to_jsonb(NEW) ->> 'key_id')
    END);
    RETURN NEW;
END
$body$;
COMMENT ON FUNCTION gateway.announce_policy() IS
    'Tells every gateway which tenant (tenant:ID) or key (key:ID) to read anew.';
CREATE TRIGGER policy_changed AFTER UPDATE ON gateway.tenants
    FOR EACH ROW EXECUTE FUNCTION gateway.announce_policy();
CREATE TRIGGER policy_changed AFTER INSERT OR UPDATE ON gateway.tenant_limits
    FOR EACH ROW EXECUTE FUNCTION gateway.announce_policy();
CREATE TRIGGER policy_changed AFTER UPDATE ON gateway.api_keys
    FOR EACH ROW EXECUTE FUNCTION gateway.announce_policy();
CREATE TRIGGER policy_changed AFTER INSERT OR UPDATE ON gateway.key_limits
    FOR EACH ROW EXECUTE FUNCTION gateway.announce_policy();

CREATE FUNCTION gateway.make_audit_partitions(months_ahead integer) RETURNS integer
LANGUAGE plpgsql AS $body$
DECLARE
    first_day date;
    child text;
    made integer := 0;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('gateway.make_audit_partitions'));
    FOR ahead IN 0..months_ahead LOOP
        first_day := (date_trunc('month', now() AT TIME ZONE 'UTC') + make_interval(months => ahead))::date;
        child := 'audit_log_' || to_char(first_day, 'YYYYMM');
        IF to_regclass('gateway.' || child) IS NULL AND NOT EXISTS (
            SELECT FROM gateway.audit_log_default
            WHERE started_at >= first_day::timestamp AT TIME ZONE 'UTC'
              AND started_at < (first_day + interval '1 month') AT TIME ZONE 'UTC'
        ) THEN
            EXECUTE format(
                'CREATE TABLE gateway.%I PARTITION OF gateway.audit_log FOR VALUES FROM (%L) TO (%L)',
                child,
                first_day::timestamp AT TIME ZONE 'UTC',
                (first_day + interval '1 month') AT TIME ZONE 'UTC'
            );
            made := made + 1;
        END IF;
    END LOOP;
    RETURN made;
END
$body$;
COMMENT ON FUNCTION gateway.make_audit_partitions(integer) IS
    'Makes the partitions of this month and the months ahead; a month whose rows already lie in the default partition stays there.';
SELECT gateway.make_audit_partitions(2);

DO $body$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'console') THEN
        CREATE ROLE console NOLOGIN;
    END IF;
EXCEPTION
    WHEN duplicate_object OR unique_violation THEN
        NULL;
    WHEN insufficient_privilege THEN
        RAISE EXCEPTION 'role "console" is missing and this user may not create it; as a superuser run: CREATE ROLE console NOLOGIN';
END
$body$;
GRANT USAGE ON SCHEMA gateway TO console;
GRANT SELECT ON ALL TABLES IN SCHEMA gateway TO console;
ALTER DEFAULT PRIVILEGES IN SCHEMA gateway GRANT SELECT ON TABLES TO console;
GRANT INSERT ON gateway.revocations TO console;

-- migrate: rollback
DROP SCHEMA gateway CASCADE;
