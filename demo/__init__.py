"""A demo one can see: a tiny base model that knows a few photographs, and a picture of what a LoRA changes in it."""
