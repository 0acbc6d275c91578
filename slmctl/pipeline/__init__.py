"""The stage table, what runs a stage, and chains of stages."""
