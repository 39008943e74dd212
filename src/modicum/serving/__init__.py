"""Rollouts by a vLLM server, in a process and an environment of its own (docs/vllm.md).

`client` speaks with a server, `child` starts and ends one of ours, over `keeper`, which outlives us by
seconds and ends it when we cannot. None of them needs torch. `sampler` asks servers for completions, `publish`
says what they are sent after an update, `proof` that they have it; `members` are the settings."""
