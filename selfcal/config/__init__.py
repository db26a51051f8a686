"""What a user may configure: runs, data cards, studies; each a pydantic model with a JSON Schema."""
