"""The ledger's revisions, in order; what is in them is never edited once released."""
