"""A transformers causal LM: load, embed, step with a cache, LoRA, freezing."""
