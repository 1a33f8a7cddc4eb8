"""OpenAI's API: completions, chat, responses, models, and what tokens a text has."""
