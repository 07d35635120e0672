"""Speed and memory beside a naive baseline, Hugging Face and pycocoevalcap."""
