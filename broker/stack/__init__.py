"""The whole stack on one machine: embedded servers, our processes, one command."""
