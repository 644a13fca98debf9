"""Outputs of many values a sample, such as logits over a vocabulary, judged a few positions at a time."""
