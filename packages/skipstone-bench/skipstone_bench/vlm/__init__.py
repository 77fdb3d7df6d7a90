"""Pictures judged by vision-language models: which of two rows is preferred, and whether the judge can be believed."""
