"""The Hugging Face engine: any strategy, continuous code path from one request to large batches."""
