"""The rooms that may not import each other agree on the names of keys that both of them use."""

from neuronetz.admission import keyspace
from neuronetz.audit.copies import rows_key, tenants_key


def test_audit_and_admission_name_the_same_keys() -> None:
    assert rows_key("t", "i") == keyspace.rows("t", "i")
    assert tenants_key("i") == keyspace.instance_tenants("i")
