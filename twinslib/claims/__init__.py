"""Rules applied to evidence: verdicts and the ledger."""
