"""The network guard, credentials, and the clients of the hub, the package index and endpoints."""
