"""Settings of an orchestrator, derived from measured starts."""
