"""The command `vllm-prune`; main.py knows the subcommands, each of which is a module here."""
