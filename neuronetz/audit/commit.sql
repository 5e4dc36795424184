-- Commits a group of audit rows ($1: a JSON array) and moves the ledger by what was really inserted.
-- Both inserts are ordered, and the ledger's begins only after all rows are in: two writers that hold the
-- same rows, or the same keys, take their locks in one order and cannot deadlock.
WITH inserted AS (
    INSERT INTO gateway.audit_log (
        request_id, started_at, tenant_id, key_id, endpoint, dialect, model, stream, status, outcome,
        prompt_tokens, completion_tokens, tokens_exact, budget_day, duration_ms, first_byte_ms, client_ip, instance
    )
    SELECT
        request_id, started_at, tenant_id, key_id, endpoint, dialect, model, stream, status, outcome,
        prompt_tokens, completion_tokens, tokens_exact, budget_day, duration_ms, first_byte_ms, client_ip, instance
    FROM jsonb_to_recordset($1::jsonb) AS row_ (
        request_id uuid, started_at timestamptz, tenant_id uuid, key_id uuid, endpoint text, dialect text,
        model text, stream boolean, status integer, outcome text, prompt_tokens bigint,
        completion_tokens bigint, tokens_exact boolean, budget_day date, duration_ms integer,
        first_byte_ms integer, client_ip text, instance text
    )
    ORDER BY started_at, request_id
    ON CONFLICT (started_at, request_id) DO NOTHING
    RETURNING tenant_id, key_id, budget_day, prompt_tokens, completion_tokens
)
INSERT INTO gateway.budget_usage AS ledger (tenant_id, key_id, day, prompt_tokens, completion_tokens, requests)
SELECT tenant_id, key_id, budget_day, sum(prompt_tokens), sum(completion_tokens), count(*)
FROM inserted
GROUP BY tenant_id, key_id, budget_day
ORDER BY tenant_id, key_id, budget_day
ON CONFLICT (tenant_id, key_id, day) DO UPDATE SET
    prompt_tokens = ledger.prompt_tokens + excluded.prompt_tokens,
    completion_tokens = ledger.completion_tokens + excluded.completion_tokens,
    requests = ledger.requests + excluded.requests
