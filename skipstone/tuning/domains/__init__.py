"""One setting for each domain of prompts: the classifier's training, the searches, and what goes on learning."""
