"""Commands of ``drawbridge`` that prepare the ledger and end by themselves."""
