-- prompt logging: the opt-in of each key, how long its rows live, what was cut
-- depends: 0002_budget_adjustments

-- migrate: apply
ALTER TABLE gateway.api_keys
    ADD COLUMN log_prompts boolean NOT NULL DEFAULT false,
    ADD COLUMN prompt_ttl_s integer CHECK (prompt_ttl_s BETWEEN 60 AND 31536000);
COMMENT ON COLUMN gateway.api_keys.log_prompts IS
    'Whether prompts and completions are logged. Of the key alone: neither a tenant nor a setting can turn it on.';
COMMENT ON COLUMN gateway.api_keys.prompt_ttl_s IS
    'Seconds for which a logged prompt is kept. NULL: the gateway''s PROMPT_LOG_TTL_S.';

ALTER TABLE gateway.prompt_log
    ADD COLUMN prompt_truncated boolean NOT NULL DEFAULT false,
    ADD COLUMN completion_truncated boolean NOT NULL DEFAULT false,
    -- Whoever removes a key or a tenant removes what they said with it.
    ADD CONSTRAINT prompt_log_key FOREIGN KEY (key_id) REFERENCES gateway.api_keys ON DELETE CASCADE;
CREATE INDEX prompt_log_of_key ON gateway.prompt_log (key_id, created_at DESC);
COMMENT ON COLUMN gateway.prompt_log.completion IS 'What was delivered to the client.';

-- migrate: rollback
DROP INDEX gateway.prompt_log_of_key;
ALTER TABLE gateway.prompt_log
    DROP CONSTRAINT prompt_log_key, DROP COLUMN prompt_truncated, DROP COLUMN completion_truncated;
ALTER TABLE gateway.api_keys DROP COLUMN log_prompts, DROP COLUMN prompt_ttl_s;
