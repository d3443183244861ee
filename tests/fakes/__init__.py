"""Stand-ins for tests of what drives a server from outside: a contract-shaped server and a toy market."""
