"""Downstream tasks: fine-tuning of converted checkpoints, beside baselines on the same split."""
