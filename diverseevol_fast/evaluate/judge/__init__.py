"""A judge model compares answers: the prompt, the endpoint, its replies, the judgements, and their scores."""
