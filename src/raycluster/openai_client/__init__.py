"""What `bench` and `batch` both know of the OpenAI API: prompts, targets, what servers say."""
