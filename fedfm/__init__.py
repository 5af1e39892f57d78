"""Federated fine-tuning of foundation models across domains."""
