"""The energy ledger and the passivity filter. The proof is in docs/passivity.md."""
