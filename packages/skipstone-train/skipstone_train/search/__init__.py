"""Searches of other libraries for `skipstone tune --search`: samplers of Optuna, and PPO of Stable-Baselines3."""
