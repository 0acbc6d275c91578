"""Speed, memory and quality beside peers, measured in one run: `make bench NAME=finetune`."""
