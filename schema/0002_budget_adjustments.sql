-- what an operator takes off a budget's use, beside the ledger
-- depends: 0001_gateway

-- migrate: apply
CREATE TABLE gateway.budget_adjustments (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_id uuid NOT NULL,
    key_id uuid,
    day date NOT NULL,
    tokens bigint NOT NULL CHECK (tokens < 0),
    reason text,
    created_at timestamptz NOT NULL DEFAULT now(),
    created_by text NOT NULL DEFAULT current_user
);
CREATE INDEX budget_adjustments_scope ON gateway.budget_adjustments (tenant_id, day);
COMMENT ON TABLE gateway.budget_adjustments IS
    'Tokens that do not count against a budget. What was used stays in the ledger and in the audit log; a budget counts the sum of both, and never less than 0. No foreign keys: it outlives what it is about, as the ledger does.';
COMMENT ON COLUMN gateway.budget_adjustments.key_id IS
    'Null: the budget of the whole tenant; else that key''s own. One never touches the other.';
COMMENT ON COLUMN gateway.budget_adjustments.day IS
    'The UTC day whose use is taken off, so that every period that holds the day stays right when a budget''s period is changed.';
COMMENT ON COLUMN gateway.budget_adjustments.tokens IS 'Negative: so many tokens less.';

CREATE FUNCTION gateway.announce_adjustment() RETURNS trigger
LANGUAGE plpgsql AS $body$
BEGIN
    PERFORM pg_notify('policy_changed', coalesce('key:' || NEW.key_id, 'tenant:' || NEW.tenant_id));
    RETURN NEW;
END
$body$;
COMMENT ON FUNCTION gateway.announce_adjustment() IS
    'Tells every gateway whose budget counts anew: tenant:ID or key:ID, as other changes of the policy.';
CREATE TRIGGER policy_changed AFTER INSERT ON gateway.budget_adjustments
    FOR EACH ROW EXECUTE FUNCTION gateway.announce_adjustment();

GRANT SELECT ON gateway.budget_adjustments TO console;

-- migrate: rollback
DROP TABLE gateway.budget_adjustments;
DROP FUNCTION gateway.announce_adjustment();
