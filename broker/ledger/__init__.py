"""The ledger: SQL, which decides."""
